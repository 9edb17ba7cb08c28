/* A row a register. */

#pragma once

#include <immintrin.h>
#include <string.h>

enum { LANES = 8, ROWS_EACH = 1, REGISTERS = 4, COLUMNS = 2, TOGETHER = 2 };

typedef __m256 floats;
typedef __m256i bytes;
typedef __m256i signs;
typedef __m128 per_row;

static inline bytes join(const __m256i * rows, int r) {
    return rows[r];
}

static inline bytes magnitudes_of(bytes x) {
    return _mm256_abs_epi8(x);
}

static inline signs signs_of(bytes x) {
    return x;
}

static inline bytes signed_by(bytes y, signs s) {
    return _mm256_sign_epi8(y, s);
}

/* The same block for every row. */
static inline bytes for_all(const void * quants) {
    return _mm256_loadu_si256((const __m256i *) quants);
}

/* Sums of four products each. */
static inline floats dot_fours(bytes magnitudes, bytes y) {
    const __m256i twos = _mm256_maddubs_epi16(magnitudes, y);
    return _mm256_cvtepi32_ps(_mm256_madd_epi16(twos, _mm256_set1_epi16(1)));
}

/* The half at the beginning of each row's block, or the next one. */
static inline per_row halves_at(const char * first, const int32_t * offsets, int which) {
    const __m128i rows = _mm_loadu_si128((const __m128i *) offsets);
    const __m128i pairs = _mm_i32gather_epi32((const int *) first, rows, 1);
    const __m128i low = which ? _mm_srli_epi32(pairs, 16) : _mm_and_si128(pairs, _mm_set1_epi32(0xffff));
    return _mm_cvtph_ps(_mm_packus_epi32(low, low));
}

/* A register's row's own value. */
static inline floats spread(per_row values, int r) {
    return _mm256_permutevar8x32_ps(_mm256_castps128_ps256(values), _mm256_set1_epi32(r));
}

static inline floats multiply_by(floats x, float value) {
    return _mm256_mul_ps(x, _mm256_set1_ps(value));
}

static inline floats multiply_add(floats x, floats y, floats sum) {
    return _mm256_fmadd_ps(x, y, sum);
}

static inline per_row multiply_add_each(per_row x, float y, per_row sum) {
    return _mm_fmadd_ps(x, _mm_set1_ps(y), sum);
}

/* The rows' totals, in the order of ggml's hsum_float_8: halves, quarters, the last two. */
static inline per_row totals(const floats * x) {
    __m128 fours[REGISTERS], twos[2];
    for (int r = 0; r < REGISTERS; r++) {
        fours[r] = _mm_add_ps(_mm256_extractf128_ps(x[r], 1), _mm256_castps256_ps128(x[r]));
    }
    for (int i = 0; i < 2; i++) {
        const __m128 a = fours[2 * i], b = fours[2 * i + 1];
        twos[i] = _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));
    }
    return _mm_add_ps(_mm_shuffle_ps(twos[0], twos[1], _MM_SHUFFLE(2, 0, 2, 0)),
                      _mm_shuffle_ps(twos[0], twos[1], _MM_SHUFFLE(3, 1, 3, 1)));
}

static inline void store(float * to, per_row values, int rows) {
    float each[REGISTERS];
    _mm_storeu_ps(each, values);
    memcpy(to, each, rows * sizeof(float));
}

static inline floats load(const float * from) {
    return _mm256_loadu_ps(from);
}

static inline void store_all(float * to, floats x) {
    _mm256_storeu_ps(to, x);
}

static inline floats widen(const void * halves) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) halves));
}

static inline floats all(float value) {
    return _mm256_set1_ps(value);
}

/* x where a bit is set. */
static inline floats choose(uint32_t bits, floats x, floats otherwise) {
    const __m256i bit_of = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i found = _mm256_and_si256(_mm256_set1_epi32((int) bits), bit_of);
    return _mm256_blendv_ps(otherwise, x, _mm256_castsi256_ps(_mm256_cmpeq_epi32(found, bit_of)));
}

static inline floats larger(floats x, floats y) {
    return _mm256_max_ps(x, y);
}

static inline float largest(floats x) {
    const __m128 fours = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 twos = _mm_max_ps(fours, _mm_movehl_ps(fours, fours));
    return _mm_cvtss_f32(_mm_max_ss(twos, _mm_movehdup_ps(twos)));
}

static inline float sum_of(floats x) {
    const __m128 fours = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 twos = _mm_add_ps(fours, _mm_movehl_ps(fours, fours));
    return _mm_cvtss_f32(_mm_add_ss(twos, _mm_movehdup_ps(twos)));
}

/* A bit for each of 32 halves that is another one. */
static inline uint32_t differing(const uint16_t * halves, uint16_t from) {
    const __m256i wanted = _mm256_set1_epi16((short) from);
    const __m256i first = _mm256_cmpeq_epi16(_mm256_loadu_si256((const __m256i *) halves), wanted);
    const __m256i second = _mm256_cmpeq_epi16(_mm256_loadu_si256((const __m256i *) (halves + 16)), wanted);
    const __m256i in_order = _mm256_permute4x64_epi64(_mm256_packs_epi16(first, second), _MM_SHUFFLE(3, 1, 2, 0));
    return ~(uint32_t) _mm256_movemask_epi8(in_order);
}

/* The sums of the lanes of LANES registers, in their order. */
static inline floats sums_of(const floats * x) {
    __m256 fours[4], twos[2];
    for (int i = 0; i < 4; i++) {
        fours[i] = _mm256_add_ps(_mm256_permute2f128_ps(x[i], x[i + 4], 0x20),
                                 _mm256_permute2f128_ps(x[i], x[i + 4], 0x31));
    }
    for (int i = 0; i < 2; i++) {
        const __m256d a = _mm256_castps_pd(fours[2 * i]), b = _mm256_castps_pd(fours[2 * i + 1]);
        twos[i] = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)), _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
    }
    return _mm256_add_ps(_mm256_shuffle_ps(twos[0], twos[1], _MM_SHUFFLE(2, 0, 2, 0)),
                         _mm256_shuffle_ps(twos[0], twos[1], _MM_SHUFFLE(3, 1, 3, 1)));
}
