#include "products.h"

#include "lanes.h"
#include "pieces.h"

#if HAS_LANES

#include <stdatomic.h>
#include <string.h>

#include "scratch.h"

#define GGML_COMMON_DECL_C
#include "ggml-common.h"

/* What ggml's dot product of two rows does, for a tile of rows at once: of every block of 32 weights, eight sums of
   four integer products each, added to eight floats with the product of the blocks' scales. Integers are exact and each
   float sees the same operations in the same order, so the bits are ggml's. What a tile saves is unpacking: weights
   once for all columns, scales once for all rows. */

enum {
    ROWS = ROWS_EACH * REGISTERS,
    /* Columns for which one tile's unpacked weights are used: these activations stay in the second-level cache. */
    CHUNK = 64,
    /* Rows that a thread takes at a time: one that the system put aside holds the others up for no more than that. */
    SHARE = 64,
};

/* One block of each of a tile's rows, unpacked. */
typedef struct {
    bytes magnitudes[REGISTERS];
    signs negative[REGISTERS];
    per_row scales;
    per_row minimums;
} unpacked;

/* Of a block of activations. */
typedef struct {
    float scale;
    float sum;
} factors;

/* A product to compute, as in products.h; strides in bytes. counter: see pieces.h. */
typedef struct {
    int thread, threads;
    struct ggml_threadpool * counter;
    int64_t m, n, k;
    const char * a;
    int64_t a_stride;
    const char * b;
    int64_t b_stride;
    float * c;
    int64_t ldc;
} product;

static inline float from_half(ggml_half half) {
    return _cvtsh_ss(half);
}

static inline __m256i low_bits(const uint8_t * nibbles) {
    const __m128i both = _mm_loadu_si128((const __m128i *) nibbles);
    const __m256i wide = _mm256_inserti128_si256(_mm256_castsi128_si256(both), _mm_srli_epi16(both, 4), 1);
    return _mm256_and_si256(wide, _mm256_set1_epi8(15));
}

/* 16 where a bit is set. */
static inline __m256i fifth_bits(const uint8_t * bits) {
    int32_t packed;
    memcpy(&packed, bits, sizeof(packed));
    const __m256i byte_of = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit_of = _mm256_set1_epi64x(0x8040201008040201);
    const __m256i found = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(packed), byte_of), bit_of);
    return _mm256_and_si256(_mm256_cmpeq_epi8(found, bit_of), _mm256_set1_epi8(16));
}

/* The 32 quants of a block, from 0 or signed. */
typedef __m256i (*unpacking)(const char * packed);

static __m256i unpack_q4_0(const char * packed) {
    return _mm256_sub_epi8(low_bits(((const block_q4_0 *) packed)->qs), _mm256_set1_epi8(8));
}

static __m256i unpack_q4_1(const char * packed) {
    return low_bits(((const block_q4_1 *) packed)->qs);
}

static __m256i unpack_q5_0(const char * packed) {
    const block_q5_0 * x = (const block_q5_0 *) packed;
    return _mm256_sub_epi8(_mm256_or_si256(low_bits(x->qs), fifth_bits(x->qh)), _mm256_set1_epi8(16));
}

static __m256i unpack_q5_1(const char * packed) {
    const block_q5_1 * x = (const block_q5_1 *) packed;
    return _mm256_or_si256(low_bits(x->qs), fifth_bits(x->qh));
}

static __m256i unpack_q8_0(const char * packed) {
    return _mm256_loadu_si256((const __m256i *) ((const block_q8_0 *) packed)->qs);
}

/* Every block begins with its scale; those from 0 have their minimum next. The last row stands for those after it. */
static INLINE void unpack_rows(unpacked * to, unpacking unpack, size_t block_size, const bool is_signed,
                               const char * rows, int64_t stride, int count, int64_t blocks) {
    int32_t offsets[ROWS];
    for (int r = 0; r < ROWS; r++) {
        offsets[r] = MIN(r, count - 1) * stride;
    }
    for (int64_t i = 0; i < blocks; i++) {
        const char * first = rows + i * block_size;
        __m256i quants[ROWS];
        UNROLL for (int r = 0; r < ROWS; r++) {
            quants[r] = unpack(first + offsets[r]);
        }
        UNROLL for (int r = 0; r < REGISTERS; r++) {
            const bytes x = join(quants, r);
            to[i].magnitudes[r] = is_signed ? magnitudes_of(x) : x;
            to[i].negative[r] = signs_of(x);
        }
        to[i].scales = halves_at(first, offsets, 0);
        if (!is_signed) {
            to[i].minimums = halves_at(first, offsets, 1);
        }
    }
}

/* b: the first column's first block of quants, each behind ``header`` bytes. Columns are ``stride`` bytes apart. */
static INLINE void
compute_tile(const unpacked * a, int64_t blocks, const bool is_signed, const char * b, size_t block_size, size_t header,
             int64_t stride, const factors * by, float * c, int64_t ldc, int rows, const int columns) {
    floats sums[COLUMNS][REGISTERS] = {0};
    per_row offsets[COLUMNS] = {0};
    for (int64_t i = 0; i < blocks; i++) {
        bytes y[COLUMNS];
        UNROLL for (int j = 0; j < columns; j++) {
            y[j] = for_all(b + j * stride + i * block_size + header);
        }
        UNROLL for (int r = 0; r < REGISTERS; r++) {
            const bytes x = a[i].magnitudes[r];
            const signs negative = a[i].negative[r];
            const floats scale = spread(a[i].scales, r);
            UNROLL for (int j = 0; j < columns; j++) {
                const floats products = dot_fours(x, is_signed ? signed_by(y[j], negative) : y[j]);
                sums[j][r] = multiply_add(multiply_by(scale, by[j * blocks + i].scale), products, sums[j][r]);
            }
        }
        if (!is_signed) {
            UNROLL for (int j = 0; j < columns; j++) {
                offsets[j] = multiply_add_each(a[i].minimums, by[j * blocks + i].sum, offsets[j]);
            }
        }
    }
    UNROLL for (int j = 0; j < columns; j++) {
        per_row results = totals(sums[j]);
        if (!is_signed) {
            results += offsets[j];
        }
        store(c + j * ldc, results, rows);
    }
}

static INLINE void
compute_tiles(const unpacked * a, int64_t blocks, const bool is_signed, const char * b, size_t block_size,
              size_t header, int64_t stride, const factors * by, float * c, int64_t ldc, int rows, int64_t columns) {
#define TILE(count)                                                                                                    \
    compute_tile(a, blocks, is_signed, b + j * stride, block_size, header, stride, by + j * blocks, c + j * ldc, ldc,  \
                 rows, count)
    int64_t j = 0;
    for (; j + COLUMNS <= columns; j += COLUMNS) {
        TILE(COLUMNS);
    }
    for (; j + 2 <= columns; j += 2) {
        TILE(2);
    }
    for (; j < columns; j++) {
        TILE(1);
    }
#undef TILE
}

static INLINE void multiply(const product * p, unpacking unpack, size_t weights_size, const bool is_signed) {
    const size_t block_size = is_signed ? sizeof(block_q8_0) : sizeof(block_q8_1);
    const size_t header = is_signed ? offsetof(block_q8_0, qs) : offsetof(block_q8_1, qs);
    const int64_t k = p->k;
    unpacked * rows = scratch(k * sizeof(unpacked) + k * CHUNK * sizeof(factors));
    factors * by = (factors *) (rows + k);
    const int64_t shares = (p->m + SHARE - 1) / SHARE, chunks = (p->n + CHUNK - 1) / CHUNK;
    int64_t prepared = -1;
    for (int64_t piece = p->thread; piece < shares * chunks; piece = next_piece(p->counter, piece, p->threads)) {
        const int64_t column = piece / shares * CHUNK, columns = MIN(CHUNK, p->n - column);
        const char * chunk = p->b + column * p->b_stride;
        for (int64_t j = 0; column != prepared && j < columns; j++) {
            for (int64_t i = 0; i < k; i++) {
                const ggml_half * halves = (const ggml_half *) (chunk + j * p->b_stride + i * block_size);
                by[j * k + i] = (factors){from_half(halves[0]), is_signed ? 0 : from_half(halves[1])};
            }
        }
        prepared = column;
        const int64_t first = piece % shares * SHARE, end = MIN(first + SHARE, p->m);
        for (int64_t row = first; row < end; row += ROWS) {
            const int count = MIN(ROWS, end - row);
            unpack_rows(rows, unpack, weights_size, is_signed, p->a + row * p->a_stride, p->a_stride, count, k);
            compute_tiles(rows, k, is_signed, chunk, block_size, header, p->b_stride, by,
                          p->c + column * p->ldc + row, p->ldc, count, columns);
        }
    }
}

#define KERNEL(name, is_signed)                                                                                        \
    static void multiply_##name(const product * p) {                                                                   \
        multiply(p, unpack_##name, sizeof(block_##name), is_signed);                                                   \
    }
KERNEL(q4_0, true)
KERNEL(q4_1, false)
KERNEL(q5_0, true)
KERNEL(q5_1, false)
KERNEL(q8_0, true)
#undef KERNEL

static const struct kernel {
    enum ggml_type weights, activations;
    void (*multiply)(const product * p);
} KERNELS[] = {
    {GGML_TYPE_Q4_0, GGML_TYPE_Q8_0, multiply_q4_0}, {GGML_TYPE_Q4_1, GGML_TYPE_Q8_1, multiply_q4_1},
    {GGML_TYPE_Q5_0, GGML_TYPE_Q8_0, multiply_q5_0}, {GGML_TYPE_Q5_1, GGML_TYPE_Q8_1, multiply_q5_1},
    {GGML_TYPE_Q8_0, GGML_TYPE_Q8_0, multiply_q8_0},
};

static void fill(float * values, int64_t count, uint32_t seed) {
    for (int64_t i = 0; i < count; i++) {
        seed = seed * 1664525u + 1013904223u;
        values[i] = (float) (int32_t) seed / (1 << 30) - 0.25f;
    }
}

/* Whether the kernel's bits are those of ggml's dot product in a small sample, which has every kind of tile. */
static bool is_exact(const struct kernel * kernel) {
    enum { M = ROWS + 3, N = 2 * COLUMNS - 1, K = 512 };
    const struct ggml_type_traits_cpu * a_traits = ggml_get_type_traits_cpu(kernel->weights);
    const struct ggml_type_traits_cpu * b_traits = ggml_get_type_traits_cpu(kernel->activations);
    const int64_t a_stride = ggml_row_size(kernel->weights, K), b_stride = ggml_row_size(kernel->activations, K);
    static const int64_t k = K;
    float values[K], c[N][M];
    char a[M * K * sizeof(float)], b[N * K * sizeof(float)];
    for (int i = 0; i < M; i++) {
        fill(values, k, i);
        a_traits->from_float(values, a + i * a_stride, k);
    }
    for (int j = 0; j < N; j++) {
        fill(values, k, M + j);
        b_traits->from_float(values, b + j * b_stride, k);
    }
    for (int n = 1; n <= N; n++) {
        const product sample = {0, 1, NULL, M, n, K / ggml_blck_size(kernel->weights), a, a_stride, b, b_stride, c[0], M};
        kernel->multiply(&sample);
        for (int i = 0; i < n * M; i++) {
            float expected;
            a_traits->vec_dot(K, &expected, 0, a + i % M * a_stride, 0, b + i / M * b_stride, 0, 1);
            if (memcmp(&expected, &c[i / M][i % M], sizeof(expected)) != 0) {
                return false;
            }
        }
    }
    return true;
}

static bool is_trusted(const struct kernel * kernel) {
    enum { UNKNOWN, TRUSTED, REFUSED };
    static atomic_int trust[GGML_TYPE_COUNT];
    int known = atomic_load(&trust[kernel->weights]);
    if (known == UNKNOWN) {
        /* Several threads may find out at once, and find the same. */
        known = is_exact(kernel) ? TRUSTED : REFUSED;
        atomic_store(&trust[kernel->weights], known);
    }
    return known == TRUSTED;
}

bool product_is_faster(enum ggml_type a_type) {
    /* ggml's tiles for signed formats are 256 bits wide, and better where few rows meet. */
    return LANES > 8 || a_type == GGML_TYPE_Q4_1 || a_type == GGML_TYPE_Q5_1;
}

bool tiled_product(const struct ggml_compute_params * params, int64_t m, int64_t n, int64_t k, const void * a,
                   int64_t lda, const void * b, int64_t ldb, float * c, int64_t ldc, enum ggml_type a_type,
                   enum ggml_type b_type) {
    for (size_t i = 0; n > 1 && i < sizeof(KERNELS) / sizeof(*KERNELS); i++) {
        if (KERNELS[i].weights == a_type && KERNELS[i].activations == b_type) {
            if (!is_trusted(&KERNELS[i])) {
                return false;
            }
            /* Only a tensor's first product begins with all threads in one place. */
            struct ggml_threadpool * counter = b == params->wdata ? params->threadpool : NULL;
            begin_counting(params, counter);
            const product p = {params->ith, params->nth, counter, m, n, k,
                               a, lda * ggml_type_size(a_type), b, ldb * ggml_type_size(b_type), c, ldc};
            KERNELS[i].multiply(&p);
            return true;
        }
    }
    return false;
}

#else

bool product_is_faster(enum ggml_type a_type) {
    (void) a_type;
    return false;
}

bool tiled_product(const struct ggml_compute_params * params, int64_t m, int64_t n, int64_t k, const void * a,
                   int64_t lda, const void * b, int64_t ldb, float * c, int64_t ldc, enum ggml_type a_type,
                   enum ggml_type b_type) {
    (void) params, (void) m, (void) n, (void) k, (void) a, (void) lda, (void) b, (void) ldb, (void) c;
    (void) ldc, (void) a_type, (void) b_type;
    return false;
}

#endif
