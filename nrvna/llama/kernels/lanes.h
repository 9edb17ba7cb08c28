/* What the kernels need of a processor's registers: one set of these for each width.

   floats   LANES of them: for products, the eight partial sums of each of ROWS_EACH rows
   bytes    a block of 32 quants of each of these rows
   signs    of bytes
   per_row  a float for each row of a tile

   ROWS_EACH * REGISTERS rows and COLUMNS columns of a product make a tile: their sums stay in registers. So do the
   results of TOGETHER rows of an attention, 4 * LANES of each. */

#pragma once

#include <stdint.h>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__) && defined(__F16C__)
#include "lanes_avx512.h"
#define HAS_LANES 1
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "lanes_avx2.h"
#define HAS_LANES 1
#endif

#define INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
