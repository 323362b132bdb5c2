/* int8 rows times an int8 matrix, with what follows done while the sums are still in registers.
 *
 * vpdpbusd multiplies unsigned by signed bytes: the matrix is stored around 128, and 128 times the sum of a row's bytes
 * is taken off again. The int32 sums are exact (K up to 66,000), so their order is free.
 */
#include "onebeat_cpu.h"

ALWAYS_INLINE __m512 scaled(__m512i sums, __m512i offset, __m512 row_scale, __m512 column_scale, const float *bias,
                            __mmask16 mask) {
    __m512 value = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums, offset));
    value = _mm512_mul_ps(_mm512_mul_ps(value, row_scale), column_scale);
    return bias ? _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, bias)) : value;
}

/* silu(gate) * up */
ALWAYS_INLINE __m512 gated(__m512 gate, __m512 up) {
    __m512 decay = power_of_two(_mm512_mul_ps(gate, _mm512_set1_ps(-1.44269504f)));
    return _mm512_div_ps(_mm512_mul_ps(gate, up), _mm512_add_ps(decay, _mm512_set1_ps(1.0f)));
}

ALWAYS_INLINE void finish(const Matrix *matrix, const Rows *rows, int64_t row, int64_t block, __m512i low, __m512i high,
                          const Target *target) {
    int64_t column = block * BLOCK_COLUMNS;
    __m512i offset = _mm512_set1_epi32(128 * rows->sum[row]);
    __m512 row_scale = _mm512_set1_ps(rows->scale[row]);
    const float *bias = matrix->bias ? matrix->bias + column : 0;
    __m512 first = scaled(low, offset, row_scale, _mm512_loadu_ps(matrix->scale + column), bias, 0xffff);
    __m512 second = scaled(high, offset, row_scale, _mm512_loadu_ps(matrix->scale + column + LANES),
                           bias ? bias + LANES : 0, 0xffff);
    if (target->ending == GATE) {
        _mm512_storeu_ps(target->out + row * target->stride + block * LANES, gated(first, second));
        return;
    }
    __mmask16 left = lanes_below(target->columns - column), right = lanes_below(target->columns - column - LANES);
    float *out = target->out + row * target->stride + column;
    if (target->ending == ADD) {
        const float *residual = target->residual + row * target->stride + column;
        first = _mm512_add_ps(first, _mm512_maskz_loadu_ps(left, residual));
        second = _mm512_add_ps(second, _mm512_maskz_loadu_ps(right, residual + LANES));
    }
    _mm512_mask_storeu_ps(out, left, first);
    _mm512_mask_storeu_ps(out + LANES, right, second);
}

/* `count` is a constant where this is called, so that the sums stay in registers. */
ALWAYS_INLINE void group(const Matrix *matrix, const Rows *rows, int64_t row, const int count, int64_t block,
                         int64_t fetched, const Target *target) {
    const int64_t depth = matrix->depth, stride = rows->stride;
    const uint8_t *weights = matrix->bytes + block * BLOCK_COLUMNS * depth;
    const int8_t *bytes = rows->bytes + row * stride;
    __m512i sums[GROUP_ROWS][2];
#pragma GCC unroll 8
    for (int r = 0; r < count; r++) sums[r][0] = sums[r][1] = _mm512_setzero_si512();
    for (int64_t k = 0; k < depth; k += 4) {
        __m512i low = _mm512_load_si512(weights + BLOCK_COLUMNS * k);
        __m512i high = _mm512_load_si512(weights + BLOCK_COLUMNS * k + 64);
        _mm_prefetch((const char *)(weights + fetched + BLOCK_COLUMNS * k), _MM_HINT_T1);
        _mm_prefetch((const char *)(weights + fetched + BLOCK_COLUMNS * k + 64), _MM_HINT_T1);
#pragma GCC unroll 8
        for (int r = 0; r < count; r++) {
            int32_t four;
            memcpy(&four, bytes + r * stride + k, 4);
            __m512i spread = _mm512_set1_epi32(four);
            sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], low, spread);
            sums[r][1] = _mm512_dpbusd_epi32(sums[r][1], high, spread);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < count; r++) finish(matrix, rows, row + r, block, sums[r][0], sums[r][1], target);
}

#define CASE(n)                                      \
    case n:                                          \
        group(matrix, rows, row, n, block, fetched, target); \
        break;

void multiply(const Matrix *matrix, const Rows *rows, int64_t begin, int64_t end, int64_t first, int64_t last,
              const Target *target) {
    int64_t groups = (end - begin + GROUP_ROWS - 1) / GROUP_ROWS;
    for (int64_t block = first; block < last; block++)
        for (int64_t index = 0; index < groups; index++) {
            /* Groups of nearly equal size: a last one of a single row would wait for its weights. */
            int64_t row = begin + (end - begin) * index / groups;
            /* The first rows of a block fetch the weights of the one after the next into the second cache. */
            int64_t fetched = index == 0 ? 2 * BLOCK_COLUMNS * matrix->depth : 0;
            switch (begin + (end - begin) * (index + 1) / groups - row) {
                CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
            }
        }
}
