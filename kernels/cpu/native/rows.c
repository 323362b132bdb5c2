/* Operations on single rows: RMS norm, quantising, rotary positions. */
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

/* row [width], normed where `norm` [width] is given -> int8 row `index` with its scale and sum. Rounds half to even. */
void quantize_row(const float *row, const float *norm, float eps, int64_t width, const Rows *rows, int64_t index) {
    __m512 factor = _mm512_set1_ps(norm ? inverse_rms(row, eps, width) : 1.0f);
    __m512 largest = _mm512_setzero_ps();
    for (int64_t j = 0; j < width; j += LANES) {
        __mmask16 mask = lanes_below(width - j);
        __m512 x = _mm512_maskz_loadu_ps(mask, row + j);
        if (norm) x = _mm512_mul_ps(_mm512_mul_ps(x, factor), _mm512_maskz_loadu_ps(mask, norm + j));
        largest = _mm512_max_ps(largest, _mm512_abs_ps(x));
    }
    float peak = _mm512_reduce_max_ps(largest);
    if (!(peak > SMALLEST)) peak = SMALLEST;
    __m512 levels = _mm512_set1_ps(LEVELS / peak);
    __m512i sum = _mm512_setzero_si512();
    int8_t *out = rows->bytes + index * rows->stride;
    for (int64_t j = 0; j < width; j += LANES) {
        __mmask16 mask = lanes_below(width - j);
        __m512 x = _mm512_maskz_loadu_ps(mask, row + j);
        if (norm) x = _mm512_mul_ps(_mm512_mul_ps(x, factor), _mm512_maskz_loadu_ps(mask, norm + j));
        __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(x, levels));
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
