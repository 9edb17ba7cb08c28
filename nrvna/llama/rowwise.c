/* Stands in for ggml's tiled matrix products where answers are to be reproducible.

   The tiles compute a product of one row otherwise than one of several, so that logits depend on how many rows shared
   a batch. This function is the same by name, is found first by the dynamic linker, and declines every product; ggml
   then takes the kernels that compute each row by itself. */

#include <stdbool.h>
#include <stdint.h>

struct ggml_compute_params;

bool llamafile_sgemm(const struct ggml_compute_params * params, int64_t m, int64_t n, int64_t k, const void * a,
                     int64_t lda, const void * b, int64_t ldb, void * c, int64_t ldc, int a_type, int b_type,
                     int c_type) {
    (void) params, (void) m, (void) n, (void) k, (void) a, (void) lda, (void) b, (void) ldb, (void) c, (void) ldc;
    (void) a_type, (void) b_type, (void) c_type;
    return false;
}
