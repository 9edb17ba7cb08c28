/* Rows r and r + REGISTERS share a register. */

#pragma once

#include <immintrin.h>

enum { LANES = 16, ROWS_EACH = 2, REGISTERS = 4, COLUMNS = 4, TOGETHER = 4 };

typedef __m512 floats;
typedef __m512i bytes;
typedef __mmask64 signs;
typedef __m256 per_row;

static inline bytes join(const __m256i * rows, int r) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(rows[r]), rows[r + REGISTERS], 1);
}

static inline bytes magnitudes_of(bytes x) {
    return _mm512_abs_epi8(x);
}

static inline signs signs_of(bytes x) {
    return _mm512_movepi8_mask(x);
}

static inline bytes signed_by(bytes y, signs s) {
    return _mm512_mask_sub_epi8(y, s, _mm512_setzero_si512(), y);
}

/* The same block for every row. */
static inline bytes for_all(const void * quants) {
    return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *) quants));
}

/* Sums of four products each. */
static inline floats dot_fours(bytes magnitudes, bytes y) {
#if defined(__AVX512VNNI__)
    return _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), magnitudes, y));
#else
    const __m512i twos = _mm512_maddubs_epi16(magnitudes, y);
    return _mm512_cvtepi32_ps(_mm512_madd_epi16(twos, _mm512_set1_epi16(1)));
#endif
}

/* The half at the beginning of each row's block, or the next one. */
static inline per_row halves_at(const char * first, const int32_t * offsets, int which) {
    const __m256i rows = _mm256_loadu_si256((const __m256i *) offsets);
    const __m256i pairs = _mm256_i32gather_epi32((const int *) first, rows, 1);
    return _mm256_cvtph_ps(_mm256_cvtepi32_epi16(which ? _mm256_srli_epi32(pairs, 16) : pairs));
}

/* A register's rows' own values. */
static inline floats spread(per_row values, int r) {
    const __m512i lanes = _mm512_inserti64x4(_mm512_set1_epi32(r), _mm256_set1_epi32(r + REGISTERS), 1);
    return _mm512_permutexvar_ps(lanes, _mm512_castps256_ps512(values));
}

static inline floats multiply_by(floats x, float value) {
    return _mm512_mul_ps(x, _mm512_set1_ps(value));
}

static inline floats multiply_add(floats x, floats y, floats sum) {
    return _mm512_fmadd_ps(x, y, sum);
}

static inline per_row multiply_add_each(per_row x, float y, per_row sum) {
    return _mm256_fmadd_ps(x, _mm256_set1_ps(y), sum);
}

/* The rows' totals, in the order of ggml's hsum_float_8: halves, quarters, the last two. */
static inline per_row totals(const floats * x) {
    __m512 fours[2];
    for (int i = 0; i < 2; i++) {
        const __m512 a = x[2 * i], b = x[2 * i + 1];
        fours[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, _MM_SHUFFLE(3, 1, 3, 1)),
                                 _mm512_shuffle_f32x4(a, b, _MM_SHUFFLE(2, 0, 2, 0)));
    }
    const __m512d a = _mm512_castps_pd(fours[0]), b = _mm512_castps_pd(fours[1]);
    const __m512 twos = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                                      _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    const __m512 each = _mm512_add_ps(twos, _mm512_movehdup_ps(twos));
    /* Rows 0 and 2, 4 and 6, 1 and 3, 5 and 7 are in even lanes now. */
    const __m512i order = _mm512_castsi256_si512(_mm256_setr_epi32(0, 8, 2, 10, 4, 12, 6, 14));
    return _mm512_castps512_ps256(_mm512_permutexvar_ps(order, each));
}

static inline void store(float * to, per_row values, int rows) {
    _mm256_mask_storeu_ps(to, (1u << rows) - 1, values);
}

static inline floats load(const float * from) {
    return _mm512_loadu_ps(from);
}

static inline void store_all(float * to, floats x) {
    _mm512_storeu_ps(to, x);
}

static inline floats widen(const void * halves) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) halves));
}

static inline floats all(float value) {
    return _mm512_set1_ps(value);
}

/* x where a bit is set. */
static inline floats choose(uint32_t bits, floats x, floats otherwise) {
    return _mm512_mask_blend_ps((__mmask16) bits, otherwise, x);
}

static inline floats larger(floats x, floats y) {
    return _mm512_max_ps(x, y);
}

static inline float largest(floats x) {
    return _mm512_reduce_max_ps(x);
}

static inline float sum_of(floats x) {
    return _mm512_reduce_add_ps(x);
}

/* A bit for each of 32 halves that is another one. */
static inline uint32_t differing(const uint16_t * halves, uint16_t from) {
    return _mm512_cmpneq_epi16_mask(_mm512_loadu_si512(halves), _mm512_set1_epi16((short) from));
}

/* The sums of the lanes of LANES registers, in their order. */
static inline floats sums_of(const floats * x) {
    __m512 eights[8], fours[4], twos[2];
    for (int i = 0; i < 8; i++) {
        const __m512 a = x[i + (i & 4)], b = x[i + (i & 4) + 4];
        eights[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, _MM_SHUFFLE(1, 0, 1, 0)),
                                  _mm512_shuffle_f32x4(a, b, _MM_SHUFFLE(3, 2, 3, 2)));
    }
    for (int i = 0; i < 4; i++) {
        fours[i] = _mm512_add_ps(_mm512_shuffle_f32x4(eights[i], eights[i + 4], _MM_SHUFFLE(2, 0, 2, 0)),
                                 _mm512_shuffle_f32x4(eights[i], eights[i + 4], _MM_SHUFFLE(3, 1, 3, 1)));
    }
    for (int i = 0; i < 2; i++) {
        const __m512d a = _mm512_castps_pd(fours[2 * i]), b = _mm512_castps_pd(fours[2 * i + 1]);
        twos[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    return _mm512_add_ps(_mm512_shuffle_ps(twos[0], twos[1], _MM_SHUFFLE(2, 0, 2, 0)),
                         _mm512_shuffle_ps(twos[0], twos[1], _MM_SHUFFLE(3, 1, 3, 1)));
}
