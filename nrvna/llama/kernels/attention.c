#include "attention.h"

#include "lanes.h"
#include "pieces.h"

#if HAS_LANES

#include <math.h>
#include <string.h>

#include "scratch.h"
#include "vec.h"

/* Softmax over blocks of cells, with the maximum so far (Milakov and Gimelshein, 2018), so that no row of scores is
   ever kept. Keys and values of a block are widened to F32 once and stay in the first-level cache for all rows that
   read them: the query heads of a group, and the tokens of a batch. What a row sees, and in which order, depends on
   its own cells alone; masked cells add nothing to it, and blocks that are masked for all are left out. */

enum {
    CELLS = 32,
    /* Rows that share the widened keys and values of a block. */
    ROWS = 24,
    /* What it costs to widen a block, in the time that a row takes to see it. */
    WIDENING = 1,
    /* Lanes of results that stay in registers. */
    STEP = 4 * LANES,
};

static const uint16_t MINUS_INFINITY = 0xfc00;

/* Rows follow each other without gaps: gaps would be a power of two, and collide in the cache. */
typedef struct {
    int length;
    float * keys;
    float * values;
    float * queries;
    float * results;
    float weights[ROWS][CELLS];
    float sums[ROWS][LANES];
    float maximum[ROWS];
} working;

/* Rows that read the same keys and values: the heads of a group for some tokens of one stream, token by token.
   The first row may be any head of its token. */
typedef struct {
    const char * keys;
    const char * values;
    size_t key_stride, value_stride;
    int64_t cells;
    const char * mask;
    size_t mask_stride;
    int heads;
    int first_head;
    bool in_order;
} group;

/* A token's mask for a block: what it adds to the scores, in halves, and which of the cells it sees, a bit each. */
typedef struct {
    uint16_t halves[CELLS];
    uint32_t seen;
} mask_of_block;

/* Cells that a token sees and few others do. */
typedef struct {
    int count;
    int64_t index[2 * CELLS];
    uint16_t mask[2 * CELLS];
} put_off;

static INLINE int token_of(const group * g, int row) {
    return (g->first_head + row) / g->heads;
}

static inline void widen_cell(float * to, const char * from, int length) {
    for (int i = 0; i < length; i += LANES) {
        store_all(to + i, widen(from + i * sizeof(ggml_fp16_t)));
    }
}

/* What the mask adds to a token's scores for the cells of a block; minus infinity where there are none. */
static INLINE void read_mask(mask_of_block * to, const group * g, int token, int64_t first, int count) {
    for (int i = count; i < CELLS; i++) {
        to->halves[i] = MINUS_INFINITY;
    }
    if (g->mask) {
        memcpy(to->halves, g->mask + token * g->mask_stride + first * sizeof(ggml_fp16_t), count * sizeof(ggml_fp16_t));
    } else {
        memset(to->halves, 0, count * sizeof(ggml_fp16_t));
    }
    to->seen = differing(to->halves, MINUS_INFINITY);
}

/* A row's weights of a block of cells before they are divided by the sum of all, and what its results so far are to
   be multiplied with. */
static INLINE float weigh(working * w, int row, const mask_of_block * mask, const int length) {
    floats scores[CELLS / LANES];
    floats maxima = all(-INFINITY);
    UNROLL for (int part = 0; part < CELLS / LANES; part++) {
        const uint32_t seen = mask->seen >> part * LANES;
        scores[part] = all(-INFINITY);
        if (!(seen & ((1u << LANES) - 1))) {
            continue;
        }
        floats products[LANES];
        UNROLL for (int cell = 0; cell < LANES; cell++) {
            products[cell] = all(0);
        }
        for (int i = 0; i < length; i += LANES) {
            const floats query = load(w->queries + row * length + i);
            UNROLL for (int cell = 0; cell < LANES; cell++) {
                const floats key = load(w->keys + (part * LANES + cell) * length + i);
                products[cell] = multiply_add(query, key, products[cell]);
            }
        }
        scores[part] = choose(seen, sums_of(products) + widen(mask->halves + part * LANES), scores[part]);
        maxima = larger(maxima, scores[part]);
    }
    const float before = w->maximum[row], maximum = fmaxf(before, largest(maxima));
    const float factor = before == maximum ? 1.0f : expf(before - maximum);
    w->maximum[row] = maximum;
    floats sum = multiply_by(load(w->sums[row]), factor);
    UNROLL for (int part = 0; part < CELLS / LANES; part++) {
        const floats weights = ggml_v_expf(scores[part] - all(maximum));
        store_all(w->weights[row] + part * LANES, weights);
        sum += weights;
    }
    store_all(w->sums[row], sum);
    return factor;
}

/* Add a block's weighted values to the results of some rows, each multiplied with its factor first. */
static INLINE void add_values(working * w, const int * rows, const float * factors, const int count,
                              const int length) {
    for (int start = 0; start < length; start += STEP) {
        floats results[TOGETHER][STEP / LANES];
        UNROLL for (int r = 0; r < count; r++) {
            UNROLL for (int i = 0; i < STEP / LANES; i++) {
                if (start + i * LANES < length) {
                    const floats before = load(w->results + rows[r] * length + start + i * LANES);
                    results[r][i] = multiply_by(before, factors[r]);
                }
            }
        }
        for (int cell = 0; cell < CELLS; cell++) {
            UNROLL for (int i = 0; i < STEP / LANES; i++) {
                if (start + i * LANES < length) {
                    const floats value = load(w->values + cell * length + start + i * LANES);
                    UNROLL for (int r = 0; r < count; r++) {
                        results[r][i] = multiply_add(all(w->weights[rows[r]][cell]), value, results[r][i]);
                    }
                }
            }
        }
        UNROLL for (int r = 0; r < count; r++) {
            UNROLL for (int i = 0; i < STEP / LANES; i++) {
                if (start + i * LANES < length) {
                    store_all(w->results + rows[r] * length + start + i * LANES, results[r][i]);
                }
            }
        }
    }
}

/* Let rows from begin to end see the widened cells. masks: of each token, the first row's token first. */
static INLINE void see_with(working * w, const group * g, int begin, int end, const mask_of_block * masks,
                            const int length) {
    int waiting[TOGETHER];
    float factors[TOGETHER];
    int n_waiting = 0;
    for (int row = begin; row < end; row++) {
        const mask_of_block * mask = &masks[token_of(g, row) - token_of(g, begin)];
        if (!mask->seen) {
            continue;
        }
        factors[n_waiting] = weigh(w, row, mask, length);
        waiting[n_waiting++] = row;
        if (n_waiting == TOGETHER) {
            add_values(w, waiting, factors, TOGETHER, length);
            n_waiting = 0;
        }
    }
    switch (n_waiting) {
        case 3: add_values(w, waiting, factors, MIN(3, TOGETHER), length); break;
        case 2: add_values(w, waiting, factors, 2, length); break;
        case 1: add_values(w, waiting, factors, 1, length); break;
    }
}

/* Loops are unrolled for the lengths of heads that models have. */
static bool has_length(int64_t length) {
    return length == 64 || length == 80 || length == 96 || length == 128 || length == 256;
}

static void see(working * w, const group * g, int begin, int end, const mask_of_block * masks) {
    switch (w->length) {
        case 64: see_with(w, g, begin, end, masks, 64); break;
        case 80: see_with(w, g, begin, end, masks, 80); break;
        case 96: see_with(w, g, begin, end, masks, 96); break;
        case 128: see_with(w, g, begin, end, masks, 128); break;
        case 256: see_with(w, g, begin, end, masks, 256); break;
    }
}

/* Let one token's rows see cells that were put off. */
static void see_put_off(working * w, const group * g, int token, int rows, put_off * cells) {
    const int length = w->length;
    const int begin = token * g->heads - g->first_head, end = begin + g->heads;
    const int count = cells->count < CELLS ? cells->count : CELLS;
    for (int i = 0; i < count; i++) {
        widen_cell(w->keys + i * length, g->keys + cells->index[i] * g->key_stride, length);
        widen_cell(w->values + i * length, g->values + cells->index[i] * g->value_stride, length);
    }
    memset(w->values + count * length, 0, (CELLS - count) * length * sizeof(float));
    mask_of_block mask;
    for (int i = 0; i < CELLS; i++) {
        mask.halves[i] = i < count ? cells->mask[i] : MINUS_INFINITY;
    }
    mask.seen = differing(mask.halves, MINUS_INFINITY);
    see(w, g, begin > 0 ? begin : 0, end < rows ? end : rows, &mask);
    cells->count -= count;
    memmove(cells->index, cells->index + count, cells->count * sizeof(*cells->index));
    memmove(cells->mask, cells->mask + count, cells->count * sizeof(*cells->mask));
}

/* The results of some rows whose queries are in w, before they are divided by their sums. */
static void attend(working * w, const group * g, int rows) {
    const int length = w->length;
    for (int row = 0; row < rows; row++) {
        memset(w->results + row * length, 0, length * sizeof(float));
        memset(w->sums[row], 0, sizeof(w->sums[row]));
        w->maximum[row] = -INFINITY;
    }
    const int tokens = token_of(g, rows - 1) + 1;
    put_off later[ROWS];
    for (int token = 0; token < tokens; token++) {
        later[token].count = 0;
    }
    for (int64_t first = 0; first < g->cells; first += CELLS) {
        const int count = g->cells - first < CELLS ? g->cells - first : CELLS;
        mask_of_block masks[ROWS];
        int n_seeing = 0, n_seen = 0;
        for (int token = 0; token < tokens; token++) {
            read_mask(&masks[token], g, token, first, count);
            n_seeing += masks[token].seen != 0;
            n_seen += __builtin_popcount(masks[token].seen);
        }
        if (!n_seeing) {
            continue;
        }
        const int at_once = WIDENING + n_seeing * g->heads, apart = n_seen * (WIDENING + g->heads) / CELLS;
        if (!g->in_order && apart < at_once) {
            for (int token = 0; token < tokens; token++) {
                put_off * cells = &later[token];
                for (uint32_t seen = masks[token].seen; seen; seen &= seen - 1) {
                    const int cell = __builtin_ctz(seen);
                    cells->index[cells->count] = first + cell;
                    cells->mask[cells->count++] = masks[token].halves[cell];
                }
                if (cells->count >= CELLS) {
                    see_put_off(w, g, token, rows, cells);
                }
            }
            continue;
        }
        for (int i = 0; i < count; i++) {
            widen_cell(w->keys + i * length, g->keys + (first + i) * g->key_stride, length);
            widen_cell(w->values + i * length, g->values + (first + i) * g->value_stride, length);
        }
        memset(w->values + count * length, 0, (CELLS - count) * length * sizeof(float));
        see(w, g, 0, rows, masks);
    }
    for (int token = 0; token < tokens; token++) {
        if (later[token].count) {
            see_put_off(w, g, token, rows, &later[token]);
        }
    }
}

static void compute(const struct ggml_compute_params * params, struct ggml_tensor * dst, bool in_order) {
    const struct ggml_tensor *q = dst->src[0], *k = dst->src[1], *v = dst->src[2], *mask = dst->src[3];
    const int64_t tokens = q->ne[1], heads = q->ne[2], streams = q->ne[3];
    const int64_t groups = k->ne[2], group_heads = heads / groups;
    const int64_t rows = tokens * group_heads, blocks = (rows + ROWS - 1) / ROWS;
    float scale;
    memcpy(&scale, dst->op_params, sizeof(scale));
    const int length = k->ne[0];
    working w;
    w.length = length;
    w.keys = scratch((CELLS + ROWS) * 2 * length * sizeof(float));
    w.values = w.keys + CELLS * length;
    w.queries = w.values + CELLS * length;
    w.results = w.queries + ROWS * length;
    begin_counting(params, params->threadpool);
    for (int64_t unit = params->ith; unit < streams * groups * blocks;
         unit = next_piece(params->threadpool, unit, params->nth)) {
        const int64_t stream = unit / blocks / groups, kv_head = unit / blocks % groups;
        const int64_t begin = unit % blocks * ROWS, end = begin + ROWS < rows ? begin + ROWS : rows;
        const int64_t token = begin / group_heads;
        const group g = {
            .keys = (const char *) k->data + kv_head * k->nb[2] + stream * k->nb[3],
            .values = (const char *) v->data + kv_head * v->nb[2] + stream * v->nb[3],
            .key_stride = k->nb[1],
            .value_stride = v->nb[1],
            .cells = k->ne[1],
            .mask = mask ? (const char *) mask->data + token * mask->nb[1] + stream % mask->ne[3] * mask->nb[3] : NULL,
            .mask_stride = mask ? mask->nb[1] : 0,
            .heads = group_heads,
            .first_head = begin % group_heads,
            .in_order = in_order,
        };
        for (int64_t row = begin; row < end; row++) {
            const int64_t head = kv_head * group_heads + row % group_heads;
            const char * query = (const char *) q->data + row / group_heads * q->nb[1] + head * q->nb[2] + stream * q->nb[3];
            for (int i = 0; i < length; i += LANES) {
                store_all(w.queries + (row - begin) * length + i, multiply_by(load((const float *) query + i), scale));
            }
        }
        attend(&w, &g, end - begin);
        for (int64_t row = begin; row < end; row++) {
            const int64_t head = kv_head * group_heads + row % group_heads;
            float * result = (float *) dst->data + ((stream * tokens + row / group_heads) * heads + head) * length;
            const float sum = sum_of(load(w.sums[row - begin]));
            for (int i = 0; i < length; i += LANES) {
                const floats total = load(w.results + (row - begin) * length + i);
                store_all(result + i, multiply_by(total, sum > 0 ? 1 / sum : 0));
            }
        }
    }
}

static bool is_ours(const struct ggml_tensor * dst) {
    const struct ggml_tensor *q = dst->src[0], *k = dst->src[1], *v = dst->src[2], *mask = dst->src[3];
    float bias, softcap;
    memcpy(&bias, dst->op_params + 1, sizeof(bias));
    memcpy(&softcap, dst->op_params + 2, sizeof(softcap));
    return bias == 0 && softcap == 0 && !dst->src[4] && q->type == GGML_TYPE_F32 && k->type == GGML_TYPE_F16 &&
           v->type == GGML_TYPE_F16 && k->nb[0] == sizeof(ggml_fp16_t) && v->nb[0] == sizeof(ggml_fp16_t) &&
           has_length(k->ne[0]) && k->ne[0] == v->ne[0] && k->ne[2] == v->ne[2] && q->ne[2] % k->ne[2] == 0 && k->ne[3] == q->ne[3] &&
           v->ne[3] == q->ne[3] && (!mask || (mask->type == GGML_TYPE_F16 && mask->ne[2] == 1));
}

bool tiled_attention(const struct ggml_compute_params * params, struct ggml_tensor * dst, bool in_order) {
    if (!is_ours(dst)) {
        return false;
    }
    compute(params, dst, in_order);
    return true;
}

#else

bool tiled_attention(const struct ggml_compute_params * params, struct ggml_tensor * dst, bool in_order) {
    (void) params, (void) dst, (void) in_order;
    return false;
}

#endif
