/* Causal attention for a tile of queries: 32 (row, query head) pairs that share a key head, one in each vector lane.
 *
 * A lane never meets another: scores, running maximum and sums of a query depend on its own keys alone, taken in blocks
 * that begin at absolute multiples of KEYS. A block that a query does not see leaves its lane unchanged to the bit, so
 * it does not matter which queries share a tile, nor where a chunk of the prompt begins. Online softmax: Milakov and
 * Gimelshein, arXiv:1805.02867.
 */
#include "onebeat_cpu.h"

#define QUERIES 32 /* lanes of a tile: two vectors */
#define KEYS 32
#define STEP 8 /* keys, or dimensions, whose sums are in registers together */
#define FAR_BELOW -1e30f

#define PAIRS (KEYS / 2)

/* Scratch of one thread: sums float32 [D][32], weights float32 [32][32]; pairs of bfloat16: queries [D/2][32], weights
 * [16][32], values [16][D]. In units of 4 bytes. */
int64_t attention_scratch(const Layer *layer) {
    return (QUERIES + QUERIES / 2 + PAIRS) * layer->head_size + (KEYS + PAIRS) * QUERIES;
}

int64_t attention_tiles(const Layer *layer, int64_t rows) {
    return (rows * (layer->query_heads / layer->key_heads) + QUERIES - 1) / QUERIES;
}

/* sum + both products of a pair of bfloat16 in each lane. */
ALWAYS_INLINE __m512 add_pair(__m512 sum, __m512i a, __m512i b) {
#ifdef __AVX512BF16__
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
#else
    __m512i high = _mm512_set1_epi32((int)0xffff0000);
    sum = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(a, high)),
                          _mm512_castsi512_ps(_mm512_and_si512(b, high)), sum);
    return _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(a, 16)),
                           _mm512_castsi512_ps(_mm512_slli_epi32(b, 16)), sum);
#endif
}

/* Values of two keys beside one another: rows [D] of bfloat16 from `from`, `stride` apart -> pairs [16][D]. An odd
 * last row is beside zeros. */
ALWAYS_INLINE void pair_values(const uint16_t *from, int64_t stride, int64_t count, int64_t size, uint32_t *pairs) {
    for (int64_t pair = 0; 2 * pair < count; pair++)
        for (int64_t j = 0; j < size; j += LANES) {
            const uint16_t *row = from + 2 * pair * stride + j;
            __m256i none = _mm256_setzero_si256();
            __m256i even = _mm256_loadu_si256((const __m256i *)row);
            __m256i odd = 2 * pair + 1 < count ? _mm256_loadu_si256((const __m256i *)(row + stride)) : none;
            __m512i both = _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16);
            _mm512_store_si512(pairs + pair * size + j, _mm512_or_si512(both, _mm512_cvtepu16_epi32(even)));
        }
}

/* weights[key][lane] = sum over d of keys[key][d] * queries[d][lane], for the first `count` keys and those of the same
 * step, which are computed from the last key there is: no query sees them. */
ALWAYS_INLINE void scores(const uint16_t *keys, int64_t stride, int64_t count, const uint32_t *queries, int64_t size,
                          float *weights) {
    for (int64_t key = 0; key < count; key += STEP) {
        const uint16_t *rows[STEP];
        __m512 sums[STEP][2];
#pragma GCC unroll 8
        for (int s = 0; s < STEP; s++) {
            rows[s] = keys + (key + s < count ? key + s : count - 1) * stride;
            sums[s][0] = sums[s][1] = _mm512_setzero_ps();
        }
        for (int64_t d = 0; d < size; d += 2) {
            __m512i low = _mm512_load_si512(queries + d / 2 * QUERIES);
            __m512i high = _mm512_load_si512(queries + d / 2 * QUERIES + LANES);
#pragma GCC unroll 8
            for (int s = 0; s < STEP; s++) {
                int32_t two;
                memcpy(&two, rows[s] + d, 4);
                __m512i pair = _mm512_set1_epi32(two);
                sums[s][0] = add_pair(sums[s][0], pair, low);
                sums[s][1] = add_pair(sums[s][1], pair, high);
            }
        }
#pragma GCC unroll 8
        for (int s = 0; s < STEP; s++) {
            _mm512_store_ps(weights + (key + s) * QUERIES, sums[s][0]);
            _mm512_store_ps(weights + (key + s) * QUERIES + LANES, sums[s][1]);
        }
    }
}

/* sums[d][lane] = sums[d][lane] * shrink[lane] + sum over keys of values[key][d] * weights[key][lane] */
ALWAYS_INLINE void gather(const uint32_t *values, const uint32_t *weights, int64_t count, int64_t size,
                          const __m512 *shrink, float *sums) {
    for (int64_t d = 0; d < size; d += STEP) {
        __m512 own[STEP][2];
#pragma GCC unroll 8
        for (int s = 0; s < STEP; s++) {
            own[s][0] = _mm512_mul_ps(_mm512_load_ps(sums + (d + s) * QUERIES), shrink[0]);
            own[s][1] = _mm512_mul_ps(_mm512_load_ps(sums + (d + s) * QUERIES + LANES), shrink[1]);
        }
        for (int64_t pair = 0; 2 * pair < count; pair++) {
            __m512i low = _mm512_load_si512(weights + pair * QUERIES);
            __m512i high = _mm512_load_si512(weights + pair * QUERIES + LANES);
#pragma GCC unroll 8
            for (int s = 0; s < STEP; s++) {
                __m512i value = _mm512_set1_epi32((int32_t)values[pair * size + d + s]);
                own[s][0] = add_pair(own[s][0], value, low);
                own[s][1] = add_pair(own[s][1], value, high);
            }
        }
#pragma GCC unroll 8
        for (int s = 0; s < STEP; s++) {
            _mm512_store_ps(sums + (d + s) * QUERIES, own[s][0]);
            _mm512_store_ps(sums + (d + s) * QUERIES + LANES, own[s][1]);
        }
    }
}

/* One vector of lanes: masks its scores, moves its maximum and total on, leaves pairs of weights; returns how much
 * earlier sums shrink. `places` are the lanes' positions minus that of the block's first key. */
ALWAYS_INLINE __m512 weigh(float *weights, uint32_t *pairs, int64_t count, __m512i places, int64_t window, int masked,
                           __m512 *maximum, __m512 *total) {
    const __m512 none = _mm512_setzero_ps();
    __m512 peak = *maximum, sum = none;
    for (int64_t key = 0; key < count; key++) {
        __m512 score = _mm512_load_ps(weights + key * QUERIES);
        if (masked) {
            __m512i behind = _mm512_sub_epi32(places, _mm512_set1_epi32((int)key)); /* 0: the query's own position */
            __mmask16 seen = _mm512_cmpge_epi32_mask(behind, _mm512_setzero_si512());
            if (window) seen &= _mm512_cmplt_epi32_mask(behind, _mm512_set1_epi32((int)window));
            score = _mm512_mask_blend_ps(seen, _mm512_set1_ps(-__builtin_inff()), score);
            _mm512_store_ps(weights + key * QUERIES, score);
        }
        peak = _mm512_max_ps(peak, score);
    }
    for (int64_t key = 0; key < count; key += 2) {
        __m512 even = power_of_two(_mm512_sub_ps(_mm512_load_ps(weights + key * QUERIES), peak)), odd = none;
        if (key + 1 < count) odd = power_of_two(_mm512_sub_ps(_mm512_load_ps(weights + (key + 1) * QUERIES), peak));
        _mm512_store_si512(pairs + key / 2 * QUERIES, bfloat16_pair(even, odd));
        sum = _mm512_add_ps(sum, _mm512_add_ps(even, odd));
    }
    __m512 shrink = power_of_two(_mm512_sub_ps(*maximum, peak));
    *total = _mm512_fmadd_ps(*total, shrink, sum);
    *maximum = peak;
    return shrink;
}

/* Rows and columns of 16 vectors of 16 values change places. */
ALWAYS_INLINE void transpose(__m512i *rows) {
    __m512i pairs[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) {
            rows[i + 2 * j] = _mm512_unpacklo_epi64(pairs[i + j], pairs[i + 2 + j]);
            rows[i + 2 * j + 1] = _mm512_unpackhi_epi64(pairs[i + j], pairs[i + 2 + j]);
        }
    /* rows[4g + c] holds, in its quarters q, column 4q + c of rows 4g to 4g + 3. */
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        __m512i low = _mm512_shuffle_i32x4(rows[c], rows[4 + c], 0x44), high = _mm512_shuffle_i32x4(rows[c], rows[4 + c], 0xee);
        __m512i low2 = _mm512_shuffle_i32x4(rows[8 + c], rows[12 + c], 0x44);
        __m512i high2 = _mm512_shuffle_i32x4(rows[8 + c], rows[12 + c], 0xee);
        pairs[c] = _mm512_shuffle_i32x4(low, low2, 0x88);
        pairs[4 + c] = _mm512_shuffle_i32x4(low, low2, 0xdd);
        pairs[8 + c] = _mm512_shuffle_i32x4(high, high2, 0x88);
        pairs[12 + c] = _mm512_shuffle_i32x4(high, high2, 0xdd);
    }
    memcpy(rows, pairs, sizeof pairs);
}

/* Where the query of a lane of the key head lies among `heads`; its attended values take its place. */
ALWAYS_INLINE int64_t place_of(const Layer *layer, int64_t lane, int64_t stride) {
    int64_t group = layer->query_heads / layer->key_heads;
    return lane / group * stride + lane % group * layer->head_size;
}

/* Queries of lanes [first, first + count) of the key head, pairs [D/2][32], scaled to powers of two; absent lanes are
 * 0. */
static void load_queries(const Layer *layer, const float *heads, int64_t stride, int64_t first, int64_t count,
                         uint32_t *queries) {
    __m512 scale = _mm512_set1_ps(layer->score_scale * 1.44269504f);
    for (int64_t half = 0; half < QUERIES; half += LANES)
        for (int64_t d = 0; d < layer->head_size; d += 2 * LANES) {
            __m512i rows[LANES];
            int64_t more = d + LANES < layer->head_size;
            for (int64_t lane = 0; lane < LANES; lane++) {
                __mmask16 there = half + lane < count ? 0xffff : 0, second = more ? there : 0;
                const float *own = heads + (there ? place_of(layer, first + half + lane, stride) : 0) + d;
                __m512 low = _mm512_mul_ps(_mm512_maskz_loadu_ps(there, own), scale);
                __m512 high = _mm512_mul_ps(_mm512_maskz_loadu_ps(second, own + LANES), scale);
                __m512i narrow = _mm512_castsi256_si512(to_bfloat16(low));
                rows[lane] = _mm512_inserti64x4(narrow, to_bfloat16(high), 1);
            }
            transpose(rows);
            for (int64_t pair = 0; pair < (more ? LANES : LANES / 2); pair++)
                _mm512_store_si512(queries + (d / 2 + pair) * QUERIES + half, rows[pair]);
        }
}

/* sums [D][32] over each lane's total -> the places that the queries came from. */
static void store_attended(const Layer *layer, const float *sums, const __m512 *total, int64_t stride, int64_t first,
                           int64_t count, float *heads) {
    for (int64_t half = 0; half < QUERIES; half += LANES) {
        __m512 inverse = _mm512_div_ps(_mm512_set1_ps(1.0f), total[half / LANES]);
        for (int64_t d = 0; d < layer->head_size; d += LANES) {
            __m512i rows[LANES];
            for (int64_t j = 0; j < LANES; j++)
                rows[j] = _mm512_castps_si512(_mm512_mul_ps(_mm512_load_ps(sums + (d + j) * QUERIES + half), inverse));
            transpose(rows);
            for (int64_t lane = 0; lane < LANES && half + lane < count; lane++)
                _mm512_storeu_si512(heads + place_of(layer, first + half + lane, stride) + d, rows[lane]);
        }
    }
}

/* Brings the head's keys and values of the block at `key` nearer: between two steps they left the caches. */
static void fetch(const uint16_t *keys, const uint16_t *values, int64_t stride, int64_t count, int64_t size) {
    for (int64_t row = 0; row < count; row++)
        for (int64_t j = 0; j < size; j += 32) {
            _mm_prefetch((const char *)(keys + row * stride + j), _MM_HINT_T1);
            _mm_prefetch((const char *)(values + row * stride + j), _MM_HINT_T1);
        }
}

static int64_t row_of(const Batch *batch, int64_t sequence, int64_t begin, int64_t key) {
    if (!batch->block_table) return begin + key;
    return batch->block_table[sequence * batch->table_width + key / batch->block_tokens] * batch->block_tokens +
           key % batch->block_tokens;
}

void attend(const Layer *layer, const Batch *batch, int64_t sequence, int64_t head, int64_t tile, float *heads,
            int64_t stride, const uint16_t *keys, const uint16_t *values, float *scratch) {
    int64_t begin = batch->cu_seqlens[sequence], rows = batch->cu_seqlens[sequence + 1] - begin;
    int64_t context = batch->context_tokens ? batch->context_tokens[sequence] : rows, before = context - rows;
    int64_t group = layer->query_heads / layer->key_heads, size = layer->head_size, width = layer->key_heads * size;
    int64_t first = tile * QUERIES, count = rows * group - first < QUERIES ? rows * group - first : QUERIES;
    int64_t first_place = before + first / group, last_place = before + (first + count - 1) / group;
    float *sums = scratch, *weights = sums + QUERIES * size;
    uint32_t *queries = (uint32_t *)(weights + KEYS * QUERIES), *pairs = queries + QUERIES / 2 * size;
    uint32_t *own_values = pairs + PAIRS * QUERIES;
    float *own_heads = heads + begin * stride + head * group * size;
    int32_t places[QUERIES];
    for (int64_t lane = 0; lane < QUERIES; lane++)
        places[lane] = (int32_t)(before + (first + (lane < count ? lane : count - 1)) / group);
    load_queries(layer, own_heads, stride, first, count, queries);
    memset(sums, 0, (size_t)(QUERIES * size) * sizeof(float));
    __m512 maximum[2] = {_mm512_set1_ps(FAR_BELOW), _mm512_set1_ps(FAR_BELOW)};
    __m512 total[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()}, shrink[2];
    int64_t start = layer->window && first_place >= layer->window ? first_place - layer->window + 1 : 0;
    for (int64_t key = start / KEYS * KEYS; key <= last_place; key += KEYS) {
        /* Keys that some query of the tile sees; leaving the others out changes no bit. */
        int64_t known = last_place + 1 - key < KEYS ? last_place + 1 - key : KEYS;
        int64_t row = row_of(batch, sequence, begin, key), next = key + 2 * KEYS;
        if (next <= last_place) {
            int64_t there = row_of(batch, sequence, begin, next) * width + head * size;
            fetch(keys + there, values + there, width, last_place + 1 - next < KEYS ? last_place + 1 - next : KEYS, size);
        }
        pair_values(values + row * width + head * size, width, known, size, own_values);
        scores(keys + row * width + head * size, width, known, queries, size, weights);
        int masked = key + KEYS - 1 > first_place || (layer->window && last_place - key >= layer->window);
        for (int half = 0; half < 2; half++) {
            __m512i own = _mm512_sub_epi32(_mm512_loadu_si512(places + half * LANES), _mm512_set1_epi32((int)key));
            shrink[half] = weigh(weights + half * LANES, pairs + half * LANES, known, own, layer->window, masked,
                                 &maximum[half], &total[half]);
        }
        gather(own_values, pairs, known, size, shrink, sums);
    }
    store_attended(layer, sums, total, stride, first, count, own_heads);
}
