/* Stands in for two of ggml's functions: those here are the same by name and are found first by the dynamic linker.

   What nrvna's kernels decline goes on to ggml's own. Where answers are to be reproducible, no row may be computed in
   a way that depends on how many share the batch, as ggml's tiles do in the last bits: then they are set aside, and
   ggml computes what is left row by row. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>

#include "attention.h"
#include "products.h"

/* The rest of the library is hidden. */
#define EXPORT __attribute__((visibility("default")))

typedef bool (*matrix_product)(const struct ggml_compute_params *, int64_t, int64_t, int64_t, const void *, int64_t,
                               const void *, int64_t, void *, int64_t, int, int, int);
typedef void (*flash_attention)(const struct ggml_compute_params *, struct ggml_tensor *);

static matrix_product ggml_product;
static flash_attention ggml_attention;
static bool rows_alone;
static int64_t n_tiled_attentions;

__attribute__((constructor)) static void prepare(void) {
    ggml_product = (matrix_product) dlsym(RTLD_NEXT, "llamafile_sgemm");
    ggml_attention = (flash_attention) dlsym(RTLD_NEXT, "ggml_compute_forward_flash_attn_ext");
    if (!ggml_product || !ggml_attention) {
        abort();
    }
    /* For llama.cpp's own programs, which know of no function to call. */
    rows_alone = getenv("NRVNA_ROWS_ALONE") != NULL;
}

/* Whether each row is computed as if alone. To be called while nothing decodes. */
EXPORT void nrvna_compute_rows_alone(bool wanted) {
    rows_alone = wanted;
}

/* How many attentions were computed here and not by ggml, one a layer. To be called while nothing decodes. */
EXPORT int64_t nrvna_tiled_attentions(void) {
    return n_tiled_attentions;
}

/* Matrix products of more than one row. Those that are declined ggml computes row by row. */
EXPORT bool llamafile_sgemm(const struct ggml_compute_params * params, int64_t m, int64_t n, int64_t k, const void * a,
                            int64_t lda, const void * b, int64_t ldb, void * c, int64_t ldc, int a_type, int b_type,
                            int c_type) {
    const bool is_wanted = rows_alone || product_is_faster(a_type);
    if (is_wanted && c_type == GGML_TYPE_F32 && tiled_product(params, m, n, k, a, lda, b, ldb, c, ldc, a_type, b_type)) {
        return true;
    }
    return !rows_alone && ggml_product(params, m, n, k, a, lda, b, ldb, c, ldc, a_type, b_type, c_type);
}

EXPORT void ggml_compute_forward_flash_attn_ext(const struct ggml_compute_params * params, struct ggml_tensor * dst) {
    if (tiled_attention(params, dst, rows_alone)) {
        n_tiled_attentions += params->ith == 0;
        return;
    }
    /* use_ref: no tiles for many rows and no splitting of the cache for a single one. */
    struct ggml_compute_params own_params = *params;
    own_params.use_ref |= rows_alone;
    ggml_attention(&own_params, dst);
}
