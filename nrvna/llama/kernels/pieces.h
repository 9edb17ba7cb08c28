/* Work in numbered pieces. Each thread begins with the piece of its own number and goes on with the next that nobody
   has: one that the system puts aside holds the others up for one piece only. */

#pragma once

#include "ggml-cpu-impl.h"

/* To be called by all threads before the first takes its second piece. Without a counter they take turns instead. */
static inline void begin_counting(const struct ggml_compute_params * params, struct ggml_threadpool * counter) {
    if (counter) {
        if (params->ith == 0) {
            ggml_threadpool_chunk_set(counter, params->nth);
        }
        ggml_barrier(counter);
    }
}

static inline int64_t next_piece(struct ggml_threadpool * counter, int64_t piece, int threads) {
    return counter ? ggml_threadpool_chunk_add(counter, 1) : piece + threads;
}
