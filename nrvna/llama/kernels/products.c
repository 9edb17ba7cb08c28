#include "products.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__F16C__)

#include <immintrin.h>
#include <stdatomic.h>
#include <string.h>

#include "scratch.h"

#define GGML_COMMON_DECL_C
#include "ggml-common.h"

/* What ggml's dot product of two rows does, for a tile of rows at once: of every block of 32 weights, eight sums of
   four integer products each, added to eight floats with the product of the blocks' scales. A 512-bit register holds
   the eight floats of two rows. Integers are exact and each float sees the same operations in the same order, so the
   bits are ggml's. What a tile saves is unpacking: weights once for all columns, scales once for all rows. */

#define INLINE inline __attribute__((always_inline))

enum {
    ROWS = 8,
    PAIRS = ROWS / 2,
    COLUMNS = 4,
    /* Columns for which one tile's unpacked weights are used: these activations stay in the second-level cache. */
    CHUNK = 64,
};

/* One block of each of a tile's rows, unpacked. Pair p is of rows p and p + PAIRS. */
typedef struct {
    __m512i magnitudes[PAIRS];
    uint64_t negative[PAIRS];
    __m256 scales;
    __m256 minimums;
} unpacked;

/* Of a block of activations. */
typedef struct {
    float scale;
    float sum;
} factors;

/* Of a block of weights: its 32 quants, from 0 or signed, and its factors. */
typedef struct {
    __m256i quants;
    float scale;
    float minimum;
} block;

/* A product to compute, as in products.h; strides in bytes. */
typedef struct {
    int thread, threads;
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

static inline __m256i fifth_bit(const uint8_t * bits) {
    uint32_t mask;
    memcpy(&mask, bits, sizeof(mask));
    return _mm256_maskz_set1_epi8(mask, 16);
}

static block unpack_q4_0(const char * packed) {
    const block_q4_0 * x = (const block_q4_0 *) packed;
    return (block){_mm256_sub_epi8(low_bits(x->qs), _mm256_set1_epi8(8)), from_half(x->d), 0};
}

static block unpack_q4_1(const char * packed) {
    const block_q4_1 * x = (const block_q4_1 *) packed;
    return (block){low_bits(x->qs), from_half(x->d), from_half(x->m)};
}

static block unpack_q5_0(const char * packed) {
    const block_q5_0 * x = (const block_q5_0 *) packed;
    const __m256i quants = _mm256_or_si256(low_bits(x->qs), fifth_bit(x->qh));
    return (block){_mm256_sub_epi8(quants, _mm256_set1_epi8(16)), from_half(x->d), 0};
}

static block unpack_q5_1(const char * packed) {
    const block_q5_1 * x = (const block_q5_1 *) packed;
    return (block){_mm256_or_si256(low_bits(x->qs), fifth_bit(x->qh)), from_half(x->d), from_half(x->m)};
}

static block unpack_q8_0(const char * packed) {
    const block_q8_0 * x = (const block_q8_0 *) packed;
    return (block){_mm256_loadu_si256((const __m256i *) x->qs), from_half(x->d), 0};
}

static INLINE void unpack_rows(unpacked * to, block (*unpack)(const char *), size_t block_size, const bool is_signed,
                               const char * rows, int64_t stride, int count, int64_t blocks) {
    for (int64_t i = 0; i < blocks; i++) {
        float scales[ROWS] = {0}, minimums[ROWS] = {0};
        __m256i quants[ROWS];
        for (int r = 0; r < ROWS; r++) {
            quants[r] = _mm256_setzero_si256();
            if (r < count) {
                const block x = unpack(rows + r * stride + i * block_size);
                quants[r] = x.quants, scales[r] = x.scale, minimums[r] = x.minimum;
            }
        }
        for (int p = 0; p < PAIRS; p++) {
            const __m512i pair = _mm512_inserti64x4(_mm512_castsi256_si512(quants[p]), quants[p + PAIRS], 1);
            to[i].magnitudes[p] = is_signed ? _mm512_abs_epi8(pair) : pair;
            to[i].negative[p] = is_signed ? _mm512_movepi8_mask(pair) : 0;
        }
        to[i].scales = _mm256_loadu_ps(scales);
        to[i].minimums = _mm256_loadu_ps(minimums);
    }
}

/* Sixteen sums of four products each. */
static inline __m512 dot_fours(__m512i magnitudes, __m512i y) {
#if defined(__AVX512VNNI__)
    return _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), magnitudes, y));
#else
    const __m512i pairs = _mm512_maddubs_epi16(magnitudes, y);
    return _mm512_cvtepi32_ps(_mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#endif
}

/* The totals of the eight floats of each row in two columns: the first column's rows 0 to 7, then the second's.
   In the order of ggml's hsum_float_8: halves, quarters, the last two. */
static inline __m512 totals(const __m512 * first, const __m512 * second) {
    __m512 fours[PAIRS], twos[PAIRS / 2];
    for (int p = 0; p < PAIRS; p++) {
        const __m512 low = _mm512_shuffle_f32x4(first[p], second[p], _MM_SHUFFLE(2, 0, 2, 0));
        fours[p] = _mm512_add_ps(_mm512_shuffle_f32x4(first[p], second[p], _MM_SHUFFLE(3, 1, 3, 1)), low);
    }
    for (int p = 0; p < PAIRS / 2; p++) {
        const __m512d x = _mm512_castps_pd(fours[2 * p]), y = _mm512_castps_pd(fours[2 * p + 1]);
        twos[p] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                                _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
    }
    return _mm512_add_ps(_mm512_shuffle_ps(twos[0], twos[1], _MM_SHUFFLE(2, 0, 2, 0)),
                         _mm512_shuffle_ps(twos[0], twos[1], _MM_SHUFFLE(3, 1, 3, 1)));
}

static inline __m512 twice(__m256 half) {
    return _mm512_castpd_ps(_mm512_broadcast_f64x4(_mm256_castps_pd(half)));
}

/* b: the first column's first block of quants, each behind ``header`` bytes. Columns are ``stride`` bytes apart. */
static INLINE void
compute_tile(const unpacked * a, int64_t blocks, const bool is_signed, const char * b, size_t block_size, size_t header,
             int64_t stride, const factors * by, float * c, int64_t ldc, int rows, const int columns) {
    __m512i rows_of[PAIRS];
    for (int p = 0; p < PAIRS; p++) {
        rows_of[p] = _mm512_inserti64x4(_mm512_set1_epi32(p), _mm256_set1_epi32(p + PAIRS), 1);
    }
    __m512 sums[COLUMNS][PAIRS], offsets[COLUMNS / 2];
    for (int j = 0; j < COLUMNS; j++) {
        offsets[j / 2] = _mm512_setzero_ps();
        for (int p = 0; p < PAIRS; p++) {
            sums[j][p] = _mm512_setzero_ps();
        }
    }
    for (int64_t i = 0; i < blocks; i++) {
        __m512i y[COLUMNS];
        for (int j = 0; j < columns; j++) {
            const char * quants = b + j * stride + i * block_size + header;
            y[j] = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *) quants));
        }
        const __m512 scales = twice(a[i].scales);
        for (int p = 0; p < PAIRS; p++) {
            const __m512i x = a[i].magnitudes[p];
            const __m512 scale = _mm512_permutexvar_ps(rows_of[p], scales);
            for (int j = 0; j < columns; j++) {
                const __m512i signed_y =
                    is_signed ? _mm512_mask_sub_epi8(y[j], a[i].negative[p], _mm512_setzero_si512(), y[j]) : y[j];
                const __m512 factor = _mm512_mul_ps(scale, _mm512_set1_ps(by[j * blocks + i].scale));
                sums[j][p] = _mm512_fmadd_ps(factor, dot_fours(x, signed_y), sums[j][p]);
            }
        }
        if (!is_signed) {
            const __m512 minimums = twice(a[i].minimums);
            for (int j = 0; j < columns; j += 2) {
                const __m512 first = _mm512_set1_ps(by[j * blocks + i].sum);
                const int next = j + 1 < columns ? j + 1 : j;
                const __m512 both = _mm512_mask_broadcastss_ps(first, 0xff00, _mm_load_ss(&by[next * blocks + i].sum));
                offsets[j / 2] = _mm512_fmadd_ps(minimums, both, offsets[j / 2]);
            }
        }
    }
    const __mmask8 mask = (1u << rows) - 1;
    for (int j = 0; j < columns; j += 2) {
        __m512 both = totals(sums[j], sums[j + 1]);
        both = is_signed ? both : _mm512_add_ps(both, offsets[j / 2]);
        _mm256_mask_storeu_ps(c + j * ldc, mask, _mm512_castps512_ps256(both));
        if (j + 1 < columns) {
            const __m256d second = _mm512_extractf64x4_pd(_mm512_castps_pd(both), 1);
            _mm256_mask_storeu_ps(c + (j + 1) * ldc, mask, _mm256_castpd_ps(second));
        }
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
    switch (columns - j) {
        case 3: TILE(3); break;
        case 2: TILE(2); break;
        case 1: TILE(1); break;
    }
#undef TILE
}

/* block_size, header: of the activations. */
static INLINE void multiply(const product * p, block (*unpack)(const char *), size_t weights_size, const bool is_signed) {
    const size_t block_size = is_signed ? sizeof(block_q8_0) : sizeof(block_q8_1);
    const size_t header = is_signed ? offsetof(block_q8_0, qs) : offsetof(block_q8_1, qs);
    const int64_t k = p->k;
    unpacked * rows = scratch(k * sizeof(unpacked) + k * CHUNK * sizeof(factors));
    factors * by = (factors *) (rows + k);
    const int64_t tiles = (p->m + ROWS - 1) / ROWS;
    const int64_t begin = tiles * p->thread / p->threads, end = tiles * (p->thread + 1) / p->threads;
    for (int64_t column = 0; column < p->n; column += CHUNK) {
        const int64_t columns = p->n - column < CHUNK ? p->n - column : CHUNK;
        const char * chunk = p->b + column * p->b_stride;
        for (int64_t j = 0; j < columns; j++) {
            for (int64_t i = 0; i < k; i++) {
                const ggml_half * halves = (const ggml_half *) (chunk + j * p->b_stride + i * block_size);
                by[j * k + i] = (factors){from_half(halves[0]), is_signed ? 0 : from_half(halves[1])};
            }
        }
        for (int64_t tile = begin; tile < end; tile++) {
            const int64_t row = tile * ROWS;
            const int count = p->m - row < ROWS ? p->m - row : ROWS;
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
        const product sample = {0, 1, M, n, K / ggml_blck_size(kernel->weights), a, a_stride, b, b_stride, c[0], M};
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

bool tiled_product(const struct ggml_compute_params * params, int64_t m, int64_t n, int64_t k, const void * a,
                   int64_t lda, const void * b, int64_t ldb, float * c, int64_t ldc, enum ggml_type a_type,
                   enum ggml_type b_type) {
    for (size_t i = 0; n > 1 && i < sizeof(KERNELS) / sizeof(*KERNELS); i++) {
        if (KERNELS[i].weights == a_type && KERNELS[i].activations == b_type) {
            if (!is_trusted(&KERNELS[i])) {
                return false;
            }
            const product p = {params->ith, params->nth, m, n, k, a, lda * ggml_type_size(a_type),
                               b, ldb * ggml_type_size(b_type), c, ldc};
            KERNELS[i].multiply(&p);
            return true;
        }
    }
    return false;
}

#else

bool tiled_product(const struct ggml_compute_params * params, int64_t m, int64_t n, int64_t k, const void * a,
                   int64_t lda, const void * b, int64_t ldb, float * c, int64_t ldc, enum ggml_type a_type,
                   enum ggml_type b_type) {
    (void) params, (void) m, (void) n, (void) k, (void) a, (void) lda, (void) b, (void) ldb, (void) c;
    (void) ldc, (void) a_type, (void) b_type;
    return false;
}

#endif
