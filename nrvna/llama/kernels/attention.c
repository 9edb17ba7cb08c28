#include "attention.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__F16C__)

#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "scratch.h"
#include "vec.h"

/* Softmax over blocks of cells, with the maximum so far (Milakov and Gimelshein, 2018), so that no row of scores is
   ever kept. Keys and values of a block are widened to F32 once and stay in the first-level cache for all rows that
   read them: the query heads of a group, and the tokens of a batch. What a row sees, and in which order, depends on
   its own cells alone; masked cells add nothing to it, and blocks that are masked for all are left out. */

#define INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

enum {
    LANES = 16,
    CELLS = 2 * LANES,
    /* Rows that share the widened keys and values of a block. */
    ROWS = 24,
    /* Rows whose values are summed together: enough independent sums to hide an addition's latency. */
    TOGETHER = 4,
    /* What it costs to widen a block, in the time that a row takes to see it. */
    WIDENING = 1,
};

static const uint16_t MINUS_INFINITY = 0xfc00;

/* Rows follow each other without gaps: gaps would be a power of two, and collide in the cache. */
typedef struct {
    float * keys;
    float * values;
    float * queries;
    float * results;
    float weights[ROWS][CELLS];
    float sums[ROWS][LANES];
    float maximum[ROWS];
} working __attribute__((aligned(64)));

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

/* Cells that a token sees and few others do. */
typedef struct {
    int count;
    int64_t index[2 * CELLS];
    uint16_t mask[2 * CELLS];
} put_off;

static INLINE int token_of(const group * g, int row) {
    return (g->first_head + row) / g->heads;
}

static INLINE void widen(float * to, const char * from, const int length) {
    UNROLL for (int i = 0; i < length; i += LANES) {
        const __m256i halves = _mm256_loadu_si256((const __m256i *) (from + i * sizeof(ggml_fp16_t)));
        _mm512_store_ps(to + i, _mm512_cvtph_ps(halves));
    }
}

/* The sums of the lanes of sixteen registers, in their order. */
static INLINE __m512 totals(const __m512 * x) {
    __m512 eights[8], fours[4], twos[2];
    UNROLL for (int i = 0; i < 8; i++) {
        const __m512 a = x[i + (i & 4)], b = x[i + (i & 4) + 4];
        eights[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, _MM_SHUFFLE(1, 0, 1, 0)),
                                  _mm512_shuffle_f32x4(a, b, _MM_SHUFFLE(3, 2, 3, 2)));
    }
    UNROLL for (int i = 0; i < 4; i++) {
        fours[i] = _mm512_add_ps(_mm512_shuffle_f32x4(eights[i], eights[i + 4], _MM_SHUFFLE(2, 0, 2, 0)),
                                 _mm512_shuffle_f32x4(eights[i], eights[i + 4], _MM_SHUFFLE(3, 1, 3, 1)));
    }
    UNROLL for (int i = 0; i < 2; i++) {
        const __m512d a = _mm512_castps_pd(fours[2 * i]), b = _mm512_castps_pd(fours[2 * i + 1]);
        twos[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    return _mm512_add_ps(_mm512_shuffle_ps(twos[0], twos[1], _MM_SHUFFLE(2, 0, 2, 0)),
                         _mm512_shuffle_ps(twos[0], twos[1], _MM_SHUFFLE(3, 1, 3, 1)));
}

/* What the mask adds to a token's scores for the cells of a block; minus infinity where there are none. */
static INLINE __m512i mask_of(const group * g, int token, int64_t first, int count) {
    const __mmask32 present = count < CELLS ? (1u << count) - 1 : ~0u;
    const __m512i nothing = _mm512_set1_epi16(MINUS_INFINITY);
    if (!g->mask) {
        return _mm512_mask_blend_epi16(present, nothing, _mm512_setzero_si512());
    }
    return _mm512_mask_loadu_epi16(nothing, present, g->mask + token * g->mask_stride + first * sizeof(ggml_fp16_t));
}

static INLINE uint32_t visible(__m512i mask) {
    return _mm512_cmpneq_epi16_mask(mask, _mm512_set1_epi16(MINUS_INFINITY));
}

/* A row's weights of a block of cells before they are divided by the sum of all, and what its results so far are to
   be multiplied with. */
static INLINE float weigh(working * w, int row, __m512i mask, const int key_length) {
    const uint32_t seen = visible(mask);
    __m512 scores[2];
    for (int half = 0; half < 2; half++) {
        const __mmask16 bits = seen >> half * LANES;
        if (!bits) {
            scores[half] = _mm512_set1_ps(-INFINITY);
            continue;
        }
        __m512 products[LANES];
        UNROLL for (int cell = 0; cell < LANES; cell++) {
            products[cell] = _mm512_setzero_ps();
        }
        for (int i = 0; i < key_length; i += LANES) {
            const __m512 query = _mm512_load_ps(w->queries + row * key_length + i);
            UNROLL for (int cell = 0; cell < LANES; cell++) {
                const __m512 key = _mm512_load_ps(w->keys + (half * LANES + cell) * key_length + i);
                products[cell] = _mm512_fmadd_ps(query, key, products[cell]);
            }
        }
        const __m256i halves = half ? _mm512_extracti64x4_epi64(mask, 1) : _mm512_castsi512_si256(mask);
        const __m512 found = _mm512_add_ps(totals(products), _mm512_cvtph_ps(halves));
        scores[half] = _mm512_mask_blend_ps(bits, _mm512_set1_ps(-INFINITY), found);
    }
    const float before = w->maximum[row];
    const float maximum = fmaxf(before, _mm512_reduce_max_ps(_mm512_max_ps(scores[0], scores[1])));
    const float factor = before == maximum ? 1.0f : expf(before - maximum);
    w->maximum[row] = maximum;
    __m512 sum = _mm512_mul_ps(_mm512_load_ps(w->sums[row]), _mm512_set1_ps(factor));
    for (int half = 0; half < 2; half++) {
        const __m512 weights = ggml_v_expf(_mm512_sub_ps(scores[half], _mm512_set1_ps(maximum)));
        _mm512_store_ps(w->weights[row] + half * LANES, weights);
        sum = _mm512_add_ps(sum, weights);
    }
    _mm512_store_ps(w->sums[row], sum);
    return factor;
}

/* Add a block's weighted values to the results of some rows, each multiplied with its factor first. */
static INLINE void add_values(working * w, const int * rows, const float * factors, const int count,
                              const int value_length) {
    enum { STEP = 4 * LANES };
    for (int start = 0; start < value_length; start += STEP) {
        __m512 results[TOGETHER][STEP / LANES];
        UNROLL for (int r = 0; r < count; r++) {
            UNROLL for (int i = 0; i < STEP / LANES; i++) {
                if (start + i * LANES < value_length) {
                    const __m512 before = _mm512_load_ps(w->results + rows[r] * value_length + start + i * LANES);
                    results[r][i] = _mm512_mul_ps(before, _mm512_set1_ps(factors[r]));
                }
            }
        }
        for (int cell = 0; cell < CELLS; cell++) {
            UNROLL for (int i = 0; i < STEP / LANES; i++) {
                if (start + i * LANES < value_length) {
                    const __m512 value = _mm512_load_ps(w->values + cell * value_length + start + i * LANES);
                    UNROLL for (int r = 0; r < count; r++) {
                        const __m512 weight = _mm512_set1_ps(w->weights[rows[r]][cell]);
                        results[r][i] = _mm512_fmadd_ps(weight, value, results[r][i]);
                    }
                }
            }
        }
        UNROLL for (int r = 0; r < count; r++) {
            UNROLL for (int i = 0; i < STEP / LANES; i++) {
                if (start + i * LANES < value_length) {
                    _mm512_store_ps(w->results + rows[r] * value_length + start + i * LANES, results[r][i]);
                }
            }
        }
    }
}

/* Let rows from begin to end see the widened cells. masks: of each token, the first row's token first. */
static INLINE void see(working * w, const group * g, int begin, int end, const __m512i * masks, const int key_length,
                       const int value_length) {
    int waiting[TOGETHER];
    float factors[TOGETHER];
    int n_waiting = 0;
    for (int row = begin; row < end; row++) {
        const __m512i mask = masks[token_of(g, row) - token_of(g, begin)];
        if (!visible(mask)) {
            continue;
        }
        factors[n_waiting] = weigh(w, row, mask, key_length);
        waiting[n_waiting++] = row;
        if (n_waiting == TOGETHER) {
            add_values(w, waiting, factors, TOGETHER, value_length);
            n_waiting = 0;
        }
    }
    switch (n_waiting) {
        case 3: add_values(w, waiting, factors, 3, value_length); break;
        case 2: add_values(w, waiting, factors, 2, value_length); break;
        case 1: add_values(w, waiting, factors, 1, value_length); break;
    }
}

/* Let one token's rows see cells that were put off. */
static INLINE void see_put_off(working * w, const group * g, int token, int rows, put_off * cells,
                               const int key_length, const int value_length) {
    const int begin = token * g->heads - g->first_head, end = begin + g->heads;
    const int count = cells->count < CELLS ? cells->count : CELLS;
    for (int i = 0; i < count; i++) {
        widen(w->keys + i * key_length, g->keys + cells->index[i] * g->key_stride, key_length);
        widen(w->values + i * value_length, g->values + cells->index[i] * g->value_stride, value_length);
    }
    memset(w->values + count * value_length, 0, (CELLS - count) * value_length * sizeof(float));
    const __mmask32 present = count < CELLS ? (1u << count) - 1 : ~0u;
    const __m512i mask = _mm512_mask_loadu_epi16(_mm512_set1_epi16(MINUS_INFINITY), present, cells->mask);
    see(w, g, begin > 0 ? begin : 0, end < rows ? end : rows, &mask, key_length, value_length);
    cells->count -= count;
    memmove(cells->index, cells->index + count, cells->count * sizeof(*cells->index));
    memmove(cells->mask, cells->mask + count, cells->count * sizeof(*cells->mask));
}

/* The results of some rows whose queries are in w, before they are divided by their sums. */
static INLINE void attend(working * w, const group * g, int rows, const int key_length, const int value_length) {
    for (int row = 0; row < rows; row++) {
        memset(w->results + row * value_length, 0, value_length * sizeof(float));
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
        __m512i masks[ROWS];
        int n_seeing = 0, n_seen = 0;
        for (int token = 0; token < tokens; token++) {
            masks[token] = mask_of(g, token, first, count);
            const uint32_t seen = visible(masks[token]);
            n_seeing += seen != 0;
            n_seen += __builtin_popcount(seen);
        }
        if (!n_seeing) {
            continue;
        }
        const int at_once = WIDENING + n_seeing * g->heads, apart = n_seen * (WIDENING + g->heads) / CELLS;
        if (!g->in_order && apart < at_once) {
            for (int token = 0; token < tokens; token++) {
                put_off * cells = &later[token];
                for (uint32_t seen = visible(masks[token]); seen; seen &= seen - 1) {
                    const int cell = __builtin_ctz(seen);
                    cells->index[cells->count] = first + cell;
                    cells->mask[cells->count++] = ((const uint16_t *) &masks[token])[cell];
                }
                if (cells->count >= CELLS) {
                    see_put_off(w, g, token, rows, cells, key_length, value_length);
                }
            }
            continue;
        }
        for (int i = 0; i < count; i++) {
            widen(w->keys + i * key_length, g->keys + (first + i) * g->key_stride, key_length);
            widen(w->values + i * value_length, g->values + (first + i) * g->value_stride, value_length);
        }
        memset(w->values + count * value_length, 0, (CELLS - count) * value_length * sizeof(float));
        see(w, g, 0, rows, masks, key_length, value_length);
    }
    for (int token = 0; token < tokens; token++) {
        if (later[token].count) {
            see_put_off(w, g, token, rows, &later[token], key_length, value_length);
        }
    }
}

static INLINE void compute(const struct ggml_compute_params * params, struct ggml_tensor * dst, bool in_order,
                           const int key_length, const int value_length) {
    const struct ggml_tensor *q = dst->src[0], *k = dst->src[1], *v = dst->src[2], *mask = dst->src[3];
    const int64_t tokens = q->ne[1], heads = q->ne[2], streams = q->ne[3];
    const int64_t groups = k->ne[2], group_heads = heads / groups;
    const int64_t rows = tokens * group_heads, blocks = (rows + ROWS - 1) / ROWS;
    float scale;
    memcpy(&scale, dst->op_params, sizeof(scale));
    working w;
    w.keys = scratch((CELLS + ROWS) * (key_length + value_length) * sizeof(float));
    w.values = w.keys + CELLS * key_length;
    w.queries = w.values + CELLS * value_length;
    w.results = w.queries + ROWS * key_length;
    /* Dealt out in turn: of a prompt, the later tokens see more. */
    for (int64_t unit = params->ith; unit < streams * groups * blocks; unit += params->nth) {
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
            for (int i = 0; i < key_length; i += LANES) {
                const __m512 part = _mm512_loadu_ps(query + i * sizeof(float));
                _mm512_store_ps(w.queries + (row - begin) * key_length + i, _mm512_mul_ps(part, _mm512_set1_ps(scale)));
            }
        }
        attend(&w, &g, end - begin, key_length, value_length);
        for (int64_t row = begin; row < end; row++) {
            const int64_t head = kv_head * group_heads + row % group_heads;
            float * result = (float *) dst->data + ((stream * tokens + row / group_heads) * heads + head) * value_length;
            const float sum = _mm512_reduce_add_ps(_mm512_load_ps(w.sums[row - begin]));
            const __m512 divisor = _mm512_set1_ps(sum > 0 ? 1 / sum : 0);
            for (int i = 0; i < value_length; i += LANES) {
                const __m512 total = _mm512_load_ps(w.results + (row - begin) * value_length + i);
                _mm512_storeu_ps(result + i, _mm512_mul_ps(total, divisor));
            }
        }
    }
}

/* Lengths of heads for which the loops are unrolled. */
#define LENGTHS(x) x(64) x(80) x(96) x(128) x(256)

static bool is_ours(const struct ggml_tensor * dst) {
    const struct ggml_tensor *q = dst->src[0], *k = dst->src[1], *v = dst->src[2], *mask = dst->src[3];
    float bias, softcap;
    memcpy(&bias, dst->op_params + 1, sizeof(bias));
    memcpy(&softcap, dst->op_params + 2, sizeof(softcap));
    return bias == 0 && softcap == 0 && !dst->src[4] && q->type == GGML_TYPE_F32 && k->type == GGML_TYPE_F16 &&
           v->type == GGML_TYPE_F16 && k->nb[0] == sizeof(ggml_fp16_t) && v->nb[0] == sizeof(ggml_fp16_t) &&
           k->ne[0] == v->ne[0] && k->ne[2] == v->ne[2] && q->ne[2] % k->ne[2] == 0 && k->ne[3] == q->ne[3] &&
           v->ne[3] == q->ne[3] && (!mask || (mask->type == GGML_TYPE_F16 && mask->ne[2] == 1));
}

bool tiled_attention(const struct ggml_compute_params * params, struct ggml_tensor * dst, bool in_order) {
    if (!is_ours(dst)) {
        return false;
    }
    switch (dst->src[1]->ne[0]) {
#define CASE(length)                                                                                                   \
    case length: compute(params, dst, in_order, length, length); return true;
        LENGTHS(CASE)
#undef CASE
        default: return false;
    }
}

#else

bool tiled_attention(const struct ggml_compute_params * params, struct ggml_tensor * dst, bool in_order) {
    (void) params, (void) dst, (void) in_order;
    return false;
}

#endif
