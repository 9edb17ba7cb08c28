/* Products of quantized matrices, bit by bit as ggml's dot products of single rows. */

#pragma once

#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"

/* Whether tiled_product() is faster for such weights than what ggml does with many rows. */
bool product_is_faster(enum ggml_type a_type);

/* This thread's share of c = a·b: c[j * ldc + i] is the dot product of row i of a and row j of b, k blocks each.

   a: m rows, lda blocks apart; b: n rows, ldb blocks apart, of the type that ggml quantizes activations to for a's;
   c: n rows of m floats, ldc apart. False, in every thread and with c as it was: the type has no kernel here, or one
   whose bits differ from ggml's on this machine. */
bool tiled_product(const struct ggml_compute_params * params, int64_t m, int64_t n, int64_t k, const void * a,
                   int64_t lda, const void * b, int64_t ldb, float * c, int64_t ldc, enum ggml_type a_type,
                   enum ggml_type b_type);
