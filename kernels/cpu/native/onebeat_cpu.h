/* A decoder layer in int8 for x86-64 with AVX-512 VNNI: what its parts know of one another.
 *
 * Every function computes a row (a token) from that row alone, in an order that depends neither on the other rows nor
 * on how rows or columns are shared among threads: a prompt's bits are the same alone, in any batch and in chunks. The
 * compiler may not contract or reorder floating point (-ffp-contract=off, no -ffast-math).
 */
#ifndef ONEBEAT_CPU_H
#define ONEBEAT_CPU_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define LANES 16         /* float32 values of a vector */
#define BLOCK_COLUMNS 32 /* columns of a product that are computed together */
#define GROUP_ROWS 8     /* rows that are: 16 registers of sums reach the peak rate, 24 are spilled by gcc 12 */
#define TILE_ROWS 96     /* rows that one thread takes through all operations of a half layer, out of its own caches */

/* An int8 matrix [N, K]: blocks of 32 columns, each [K/4][32][4] bytes around 128; N and K are padded with zeros. */
typedef struct {
    const uint8_t *bytes;
    const float *scale; /* [N], that of a column */
    const float *bias;  /* [N], or null */
    int64_t blocks;     /* N / 32 */
    int64_t depth;      /* K, a multiple of 4 */
    int64_t hadamard;   /* runs of so many values of a row are transformed before it is quantised: 64, 32, 16 or 1 */
} Matrix;

typedef struct {
    Matrix qkv, attention_out, gate_up, down; /* gate_up: 16 gates and the 16 ups that belong to them, alternately */
    const float *input_norm, *post_norm;      /* [H] */
    const float *q_norm, *k_norm;             /* [D], or null */
    float norm_eps, score_scale;
    int64_t hidden, query_heads, key_heads, head_size;
    int64_t window; /* positions that a query sees, itself included; 0: all before it */
} Layer;

typedef struct {
    int64_t tokens, sequences;
    const int32_t *cu_seqlens;     /* [S + 1] */
    const float *turns;            /* [T, D]: cosine and sine of each pair of dimensions in turn */
    const int64_t *slots;          /* [T] flat places in the cache, or null without one */
    const int32_t *block_table;    /* [S, table_width] */
    const int32_t *context_tokens; /* [S] */
    int64_t table_width, block_tokens;
} Batch;

/* int8 rows with one scale each and the sum that takes the matrix's offset of 128 out again. */
typedef struct {
    int8_t *bytes;
    int64_t stride; /* bytes from row to row */
    float *scale;   /* [rows] */
    int32_t *sum;   /* [rows] */
} Rows;

/* What becomes of a block of sums once they are scaled. */
typedef enum { STORE, ADD, GATE } Ending;

typedef struct {
    Ending ending;
    float *out;
    const float *residual; /* ADD: out = residual + product; may be `out` itself */
    int64_t stride;        /* values from row to row, of both */
    int64_t columns;       /* of `out` */
} Target;

/* product.c: blocks [first, last) of rows [begin, end). */
void multiply(const Matrix *matrix, const Rows *rows, int64_t begin, int64_t end, int64_t first, int64_t last,
              const Target *target);

/* rows.c */
void quantize_row(const float *row, const float *norm, float eps, int64_t width, int64_t block, float *mixed,
                  const Rows *rows, int64_t index);
void turn_row(const Layer *layer, float *heads, const float *turns, uint16_t *keys, uint16_t *values);

/* attention.c: one tile of the queries that share key head `head` of sequence `sequence`, in place. */
int64_t attention_tiles(const Layer *layer, int64_t rows);
void attend(const Layer *layer, const Batch *batch, int64_t sequence, int64_t head, int64_t tile, float *heads,
            int64_t stride, const uint16_t *keys, const uint16_t *values, float *scratch);
int64_t attention_scratch(const Layer *layer);

ALWAYS_INLINE __mmask16 lanes_below(int64_t count) {
    return count >= LANES ? (__mmask16)0xffff : (__mmask16)((1u << (count < 0 ? 0 : count)) - 1);
}

/* float32 to the bits of bfloat16 in the upper half of each lane, half to even; the lower half is left over. */
ALWAYS_INLINE __m512i rounded(__m512 x) {
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
}

ALWAYS_INLINE __m256i to_bfloat16(__m512 x) { return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded(x), 16)); }

/* Two bfloat16 in each lane, `low` in the lower half. */
ALWAYS_INLINE __m512i bfloat16_pair(__m512 low, __m512 high) {
    __m512i upper = _mm512_and_si512(rounded(high), _mm512_set1_epi32((int)0xffff0000));
    return _mm512_or_si512(upper, _mm512_srli_epi32(rounded(low), 16));
}

/* 2^x, correct to 2 units in the last place; exactly 1 at 0 and exactly 0 below -150. */
ALWAYS_INLINE __m512 power_of_two(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-151.0f));
    __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 f = _mm512_sub_ps(x, whole);
    __m512 sum = _mm512_set1_ps(1.52527338e-5f); /* ln(2)^k / k!, k = 7 to 0 */
    sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(1.54035304e-4f));
    sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(1.33335581e-3f));
    sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(9.61812911e-3f));
    sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(5.55041087e-2f));
    sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(2.40226507e-1f));
    sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(6.93147181e-1f));
    sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(sum, whole);
}

#endif
