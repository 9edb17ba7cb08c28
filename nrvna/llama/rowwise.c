/* Stands in for two of ggml's functions where answers are to be reproducible.

   Both choose how to compute a row by how many rows share the batch, and the ways differ in the last bits. The
   functions here are the same by name and are found first by the dynamic linker. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>

#include "ggml-cpu-impl.h"

/* Tiled matrix products: declines all of them. ggml then takes the kernels that compute each row by itself. */
bool llamafile_sgemm(const struct ggml_compute_params * params, int64_t m, int64_t n, int64_t k, const void * a,
                     int64_t lda, const void * b, int64_t ldb, void * c, int64_t ldc, int a_type, int b_type,
                     int c_type) {
    (void) params, (void) m, (void) n, (void) k, (void) a, (void) lda, (void) b, (void) ldb, (void) c, (void) ldc;
    (void) a_type, (void) b_type, (void) c_type;
    return false;
}

typedef void (*flash_attention)(const struct ggml_compute_params * params, struct ggml_tensor * dst);

/* ggml's own function, in whichever library the caller belongs to. */
static flash_attention own_flash_attention(void * caller) {
    static flash_attention found;
    if (!found) {
        Dl_info library;
        void * handle = dladdr(caller, &library) ? dlopen(library.dli_fname, RTLD_LAZY | RTLD_NOLOAD) : NULL;
        /* Without a handle dlsym would look everywhere, and find the function below. */
        if (handle) {
            found = (flash_attention) dlsym(handle, "ggml_compute_forward_flash_attn_ext");
        }
        if (!found) {
            abort();
        }
    }
    return found;
}

/* Flash attention: no tiles for many rows and no splitting of the cache for a single one. */
void ggml_compute_forward_flash_attn_ext(const struct ggml_compute_params * params, struct ggml_tensor * dst) {
    struct ggml_compute_params rowwise = *params;
    rowwise.use_ref = true;
    own_flash_attention(__builtin_return_address(0))(&rowwise, dst);
}
