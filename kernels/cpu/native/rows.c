/* Operations on single rows: RMS norm, Hadamard transform, quantising, rotary positions. */
#include "onebeat_cpu.h"

#define LEVELS 127.0f
#define SMALLEST 1e-30f

ALWAYS_INLINE float inverse_rms(const float *row, float eps, int64_t width) {
    __m512 squares = _mm512_setzero_ps();
    for (int64_t j = 0; j < width; j += LANES) {
        __m512 x = _mm512_maskz_loadu_ps(lanes_below(width - j), row + j);
        squares = _mm512_fmadd_ps(x, x, squares);
    }
    return 1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(_mm512_reduce_add_ps(squares) / (float)width + eps)));
}

/* Pairs at distances 1, 2, 4 and 8 within one vector: (a, b) -> (a + b, a - b). */
ALWAYS_INLINE __m512 hadamard_within(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f), minus = _mm512_set1_ps(-1.0f);
    x = _mm512_fmadd_ps(x, _mm512_mask_blend_ps(0xaaaa, one, minus), _mm512_permute_ps(x, 0xb1));
    x = _mm512_fmadd_ps(x, _mm512_mask_blend_ps(0xcccc, one, minus), _mm512_permute_ps(x, 0x4e));
    x = _mm512_fmadd_ps(x, _mm512_mask_blend_ps(0xf0f0, one, minus), _mm512_shuffle_f32x4(x, x, 0xb1));
    return _mm512_fmadd_ps(x, _mm512_mask_blend_ps(0xff00, one, minus), _mm512_shuffle_f32x4(x, x, 0x4e));
}

/* Runs of 16 * count values, a vector each 16; `count` is a constant where this is called. */
ALWAYS_INLINE void hadamard_between(__m512 *x, const int count) {
#pragma GCC unroll 4
    for (int r = 0; r < count; r++) x[r] = hadamard_within(x[r]);
#pragma GCC unroll 4
    for (int size = 1; size < count; size *= 2)
#pragma GCC unroll 4
        for (int r = 0; r < count; r++)
            if (!(r & size)) {
                __m512 low = x[r], high = x[r + size];
                x[r] = _mm512_add_ps(low, high);
                x[r + size] = _mm512_sub_ps(low, high);
            }
}

/* row [width] -> mixed [width], normed and transformed in runs of 16 * count values (0: not at all); the largest
 * magnitude. */
ALWAYS_INLINE float mix(const float *row, const float *norm, float factor, int64_t width, const int count,
                        float *mixed) {
    const int step = count ? count : 1;
    __m512 largest = _mm512_setzero_ps(), scale = _mm512_set1_ps(factor), x[4];
    for (int64_t j = 0; j < width; j += step * LANES) {
#pragma GCC unroll 4
        for (int r = 0; r < step; r++) {
            int64_t at = j + r * LANES;
            __mmask16 mask = lanes_below(width - at);
            x[r] = _mm512_maskz_loadu_ps(mask, row + at);
            if (norm) x[r] = _mm512_mul_ps(_mm512_mul_ps(x[r], scale), _mm512_maskz_loadu_ps(mask, norm + at));
        }
        if (count) hadamard_between(x, count);
#pragma GCC unroll 4
        for (int r = 0; r < step; r++) {
            largest = _mm512_max_ps(largest, _mm512_abs_ps(x[r]));
            _mm512_storeu_ps(mixed + j + r * LANES, x[r]);
        }
    }
    return _mm512_reduce_max_ps(largest);
}

/* row [width], normed where `norm` [width] is given -> int8 row `index` with its scale and sum. Rounds half to even.
 * `mixed` has room for the width, rounded up to 64. */
void quantize_row(const float *row, const float *norm, float eps, int64_t width, int64_t block, float *mixed,
                  const Rows *rows, int64_t index) {
    float factor = norm ? inverse_rms(row, eps, width) : 1.0f, peak;
    if (block == 64) peak = mix(row, norm, factor, width, 4, mixed);
    else if (block == 32) peak = mix(row, norm, factor, width, 2, mixed);
    else if (block == 16) peak = mix(row, norm, factor, width, 1, mixed);
    else peak = mix(row, norm, factor, width, 0, mixed);
    if (!(peak > SMALLEST)) peak = SMALLEST;
    __m512 levels = _mm512_set1_ps(LEVELS / peak);
    __m512i sum = _mm512_setzero_si512();
    int8_t *out = rows->bytes + index * rows->stride;
    for (int64_t j = 0; j < width; j += LANES) {
        __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(mixed + j), levels));
        sum = _mm512_add_epi32(sum, whole);
        _mm_storeu_si128((__m128i *)(out + j), _mm512_cvtsepi32_epi8(whole)); /* rows are padded to 64 bytes */
    }
    rows->scale[index] = peak / LEVELS;
    rows->sum[index] = _mm512_reduce_add_epi32(sum);
}

/* A head [D], D a multiple of 16, whose dimensions 2i and 2i + 1 rotate together. */
ALWAYS_INLINE void turn_head(const Layer *layer, float *head, const float *norm, const float *turns) {
    float factor = norm ? inverse_rms(head, layer->norm_eps, layer->head_size) : 1.0f;
    for (int64_t j = 0; j < layer->head_size; j += LANES) {
        __m512 x = _mm512_loadu_ps(head + j), turn = _mm512_loadu_ps(turns + j);
        if (norm) x = _mm512_mul_ps(_mm512_mul_ps(x, _mm512_set1_ps(factor)), _mm512_loadu_ps(norm + j));
        __m512 swapped = _mm512_mul_ps(_mm512_permute_ps(x, 0xb1), _mm512_movehdup_ps(turn));
        _mm512_storeu_ps(head + j, _mm512_fmaddsub_ps(x, _mm512_moveldup_ps(turn), swapped));
    }
}

/* heads [(NQ + 2 NKV) D] of one token: queries are turned where they lie, keys and values leave as bfloat16 [NKV D]. */
void turn_row(const Layer *layer, float *heads, const float *turns, uint16_t *keys, uint16_t *values) {
    int64_t size = layer->head_size, width = layer->key_heads * size;
    for (int64_t head = 0; head < layer->query_heads; head++)
        turn_head(layer, heads + head * size, layer->q_norm, turns);
    float *own_keys = heads + layer->query_heads * size, *own_values = own_keys + width;
    for (int64_t head = 0; head < layer->key_heads; head++)
        turn_head(layer, own_keys + head * size, layer->k_norm, turns);
    for (int64_t j = 0; j < width; j += LANES) {
        _mm256_storeu_si256((__m256i *)(keys + j), to_bfloat16(_mm512_loadu_ps(own_keys + j)));
        _mm256_storeu_si256((__m256i *)(values + j), to_bfloat16(_mm512_loadu_ps(own_values + j)));
    }
}
