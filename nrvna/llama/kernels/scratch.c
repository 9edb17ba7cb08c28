#include "scratch.h"

#include <stdio.h>
#include <stdlib.h>

/* Threads live as long as the process, so that nothing is given back. */
void * scratch(size_t size) {
    static __thread void * memory;
    static __thread size_t held;
    if (size > held) {
        free(memory);
        held = (size + 63) / 64 * 64;
        memory = aligned_alloc(64, held);
        if (!memory) {
            fprintf(stderr, "out of memory: failed to allocate %zu bytes for nrvna's kernels\n", held);
            abort();
        }
    }
    return memory;
}
