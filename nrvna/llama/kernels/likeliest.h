/* A token from the likeliest ones alone, by the links of a sampler chain: the same as from all of them.

   llama_sampler_sample copies all logits, 12 bytes for each, and its samplers go through them one after another. Where
   a chain drops all but a few anyway, it is enough to find these and let the samplers see no others. Compiled into the
   cffi module, so that no lock is held meanwhile. */

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* Logits are looked at in rows of so many; where the largest of a column is too small, so are all of it. */
#define LIKELIEST_COLUMNS 2048
/* More are found no faster than by looking at all. */
#define LIKELIEST_MOST 512
#define LIKELIEST_ROOM 4096

static int likeliest_by_id(const void * a, const void * b) {
    const int32_t x = *(const int32_t *) a, y = *(const int32_t *) b;
    return (x > y) - (x < y);
}

static int likeliest_descending(const void * a, const void * b) {
    const float x = *(const float *) a, y = *(const float *) b;
    return (x < y) - (x > y);
}

/* The count-th largest of so many values. A heap of the largest so far, the least of them on top. */
static float likeliest_threshold(const float * values, int size, int count) {
    float heap[LIKELIEST_MOST];
    for (int i = 0; i < count; ++i) {
        heap[i] = -INFINITY;
    }
    for (int i = 0; i < size; ++i) {
        const float value = values[i];
        if (!(value > heap[0])) {
            continue;
        }
        int at = 0;
        for (;;) {
            int child = 2 * at + 1;
            if (child >= count) {
                break;
            }
            child += child + 1 < count && heap[child + 1] < heap[child];
            if (heap[child] >= value) {
                break;
            }
            heap[at] = heap[child];
            at = child;
        }
        heap[at] = value;
    }
    return heap[0];
}

/* The tokens with the count largest logits, and some others, in no order; how many, or -1 if that is not to be had. */
static int likeliest_find(const float * logits, int n_vocab, int count, int32_t * found) {
    float largest[LIKELIEST_COLUMNS];
    const int rows = n_vocab / LIKELIEST_COLUMNS, whole = rows * LIKELIEST_COLUMNS;
    if (rows == 0 || count < 1 || count > LIKELIEST_MOST) {
        return -1;
    }
    memcpy(largest, logits, sizeof(largest));
    for (int row = 1; row < rows; ++row) {
        const float * values = logits + (size_t) row * LIKELIEST_COLUMNS;
        for (int column = 0; column < LIKELIEST_COLUMNS; ++column) {
            largest[column] = values[column] > largest[column] ? values[column] : largest[column];
        }
    }
    /* So many columns have a logit of at least this. */
    const float least = likeliest_threshold(largest, LIKELIEST_COLUMNS, count);
    if (!isfinite(least)) {
        return -1;
    }
    int size = 0;
    for (int column = 0; column < LIKELIEST_COLUMNS; ++column) {
        if (!(largest[column] < least)) {
            for (int token = column; token < whole; token += LIKELIEST_COLUMNS) {
                if (!(logits[token] < least)) {
                    if (size == LIKELIEST_ROOM || isnan(logits[token])) {
                        return -1;
                    }
                    found[size++] = token;
                }
            }
        }
    }
    for (int token = whole; token < n_vocab; ++token) {
        if (!(logits[token] < least)) {
            if (size == LIKELIEST_ROOM || isnan(logits[token])) {
                return -1;
            }
            found[size++] = token;
        }
    }
    return size;
}

/* Whether the kept likeliest are the same ones in the same order whatever else there is: no two are equal. */
static bool likeliest_are_distinct(const llama_token_data * data, int size, int keep) {
    float sorted[LIKELIEST_ROOM + LIKELIEST_MOST];
    for (int i = 0; i < size; ++i) {
        sorted[i] = data[i].logit;
    }
    qsort(sorted, size, sizeof(float), likeliest_descending);
    for (int i = 0; i < keep && i + 1 < size; ++i) {
        if (sorted[i] == sorted[i + 1]) {
            return false;
        }
    }
    return size >= keep && isfinite(sorted[0]) && isfinite(sorted[keep - 1]);
}

/* The token that these links choose, or -1 where all logits must be looked at; no link has changed its state then.

   The first ones, "n_touching", change the logits of no tokens but those in "touched". The next one keeps the "keep"
   likeliest: the first of equals where it is the last link, else sorted. */
static int32_t nrvna_sample_likeliest(struct llama_sampler * const * links, int32_t n_links, int32_t n_touching,
                                      int32_t keep, const float * logits, int32_t n_vocab, const int32_t * touched,
                                      int32_t n_touched) {
    int32_t found[LIKELIEST_ROOM + LIKELIEST_MOST];
    llama_token_data data[LIKELIEST_ROOM + LIKELIEST_MOST];
    if (keep < 1 || keep > LIKELIEST_MOST || n_touched > LIKELIEST_MOST) {
        return -1;
    }
    /* As many as are kept, also where all that are touched drop out. */
    int n_found = likeliest_find(logits, n_vocab, keep + n_touched, found);
    if (n_found < 0) {
        return -1;
    }
    for (int i = 0; i < n_touched; ++i) {
        found[n_found++] = touched[i];
    }
    qsort(found, n_found, sizeof(int32_t), likeliest_by_id);
    size_t size = 0;
    for (int i = 0; i < n_found; ++i) {
        if (i == 0 || found[i] != found[i - 1]) {
            data[size++] = (llama_token_data){found[i], logits[found[i]], 0.0f};
        }
    }
    llama_token_data_array candidates = {data, size, -1, false};
    for (int i = 0; i < n_touching; ++i) {
        llama_sampler_apply(links[i], &candidates);
    }
    if (n_touching + 1 < n_links && !likeliest_are_distinct(data, (int) size, keep)) {
        return -1;
    }
    for (int i = n_touching; i < n_links; ++i) {
        llama_sampler_apply(links[i], &candidates);
    }
    return candidates.selected < 0 ? -1 : candidates.data[candidates.selected].id;
}
