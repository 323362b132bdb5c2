/* A whole decoder layer: norm, q/k/v, rotary positions, attention, output projection, feed-forward, residuals.
 *
 * Many rows: each thread takes tiles of them through all operations of a half layer, so that they stay in its own
 * caches, and threads meet only around attention. Few rows: each operation's columns are shared out, so that no weight
 * is read twice. A row's bits are the same either way.
 */
#include "onebeat_cpu.h"

#include <omp.h>

#define FEW_ROWS 24 /* rows a thread below which columns are shared out */
#define COLUMN_SHARE 2

typedef struct {
    float *heads;            /* [T, (NQ + 2 NKV) D] */
    uint16_t *keys, *values; /* [T, NKV D] where there is no cache */
    int64_t *tiles;          /* [S + 1] tiles of attention before each sequence */
    float *scratch;          /* [threads, attention_scratch] */
    Rows rows;               /* [threads * TILE_ROWS] */
    float *gated;            /* [threads * TILE_ROWS, F] */
    float *mixed;            /* [threads, rows.stride]: a row on its way into int8 */
    int64_t width, feed_forward, heads_width;
} Workspace;

static int64_t largest(int64_t a, int64_t b) { return a > b ? a : b; }

static void *take(uint8_t *base, int64_t *used, int64_t bytes) {
    void *place = base ? base + *used : 0;
    *used += (bytes + 63) / 64 * 64;
    return place;
}

/* Lays the workspace out in `base`, or only counts its bytes where that is null. */
static int64_t lay_out(const Layer *layer, int64_t tokens, int64_t sequences, int64_t threads, uint8_t *base,
                       Workspace *work) {
    int64_t used = 0, tile_rows = threads * TILE_ROWS, query_width = layer->query_heads * layer->head_size;
    work->width = layer->key_heads * layer->head_size;
    work->heads_width = query_width + 2 * work->width;
    work->feed_forward = layer->gate_up.blocks * LANES;
    work->rows.stride = (largest(largest(layer->hidden, query_width), work->feed_forward) + 63) / 64 * 64;
    work->heads = take(base, &used, tokens * work->heads_width * 4);
    work->keys = take(base, &used, tokens * work->width * 2);
    work->values = take(base, &used, tokens * work->width * 2);
    work->tiles = take(base, &used, (sequences + 1) * 8);
    work->scratch = take(base, &used, threads * attention_scratch(layer) * 4);
    work->rows.bytes = take(base, &used, tile_rows * work->rows.stride);
    work->rows.scale = take(base, &used, tile_rows * 4);
    work->rows.sum = take(base, &used, tile_rows * 4);
    work->gated = take(base, &used, tile_rows * work->feed_forward * 4);
    work->mixed = take(base, &used, threads * work->rows.stride * 4);
    return used;
}

int64_t onebeat_workspace_bytes(const Layer *layer, int64_t tokens, int64_t sequences, int64_t threads) {
    Workspace work;
    return lay_out(layer, tokens, sequences, threads, 0, &work);
}

typedef struct {
    const Layer *layer;
    const Batch *batch;
    const Workspace *work;
    const float *x;
    float *out;
    uint16_t *keys, *values; /* the cache, or the workspace's */
} Pass;

/* Rows of the workspace from the `slot`th on: a thread's own tile. */
static Rows rows_from(const Workspace *work, int64_t slot) {
    Rows rows = work->rows;
    rows.bytes += slot * rows.stride;
    rows.scale += slot;
    rows.sum += slot;
    return rows;
}

static void turn(const Pass *pass, int64_t row) {
    const Workspace *work = pass->work;
    int64_t place = (pass->batch->slots ? pass->batch->slots[row] : row) * work->width;
    turn_row(pass->layer, work->heads + row * work->heads_width, pass->batch->turns + row * pass->layer->head_size,
             pass->keys + place, pass->values + place);
}

static void attend_all(const Pass *pass, int64_t thread) {
    const Workspace *work = pass->work;
    int64_t sequences = pass->batch->sequences, key_heads = pass->layer->key_heads;
    float *scratch = work->scratch + thread * attention_scratch(pass->layer);
    /* From the last sequence's last tile on: those with most keys first, so that no thread ends long after the rest. */
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = work->tiles[sequences] * key_heads - 1; task >= 0; task--) {
        int64_t tile = task / key_heads, low = 0, high = sequences;
        while (high - low > 1) {
            int64_t middle = (low + high) / 2;
            if (work->tiles[middle] <= tile) low = middle;
            else high = middle;
        }
        attend(pass->layer, pass->batch, low, task % key_heads, tile - work->tiles[low], work->heads,
               work->heads_width, pass->keys, pass->values, scratch);
    }
}

/* Rows [begin, end) up to attention, by one thread. */
static void before_attention(const Pass *pass, int64_t begin, int64_t end, int64_t thread) {
    const Layer *layer = pass->layer;
    const Workspace *work = pass->work;
    Rows rows = rows_from(work, thread * TILE_ROWS);
    float *mixed = work->mixed + thread * work->rows.stride;
    for (int64_t row = begin; row < end; row++)
        quantize_row(pass->x + row * layer->hidden, layer->input_norm, layer->norm_eps, layer->hidden,
                     layer->qkv.hadamard, mixed, &rows, row - begin);
    Target heads = {STORE, work->heads + begin * work->heads_width, 0, work->heads_width, work->heads_width};
    multiply(&layer->qkv, &rows, 0, end - begin, 0, layer->qkv.blocks, &heads);
    for (int64_t row = begin; row < end; row++) turn(pass, row);
}

/* Rows [begin, end) from attention on, by one thread. */
static void after_attention(const Pass *pass, int64_t begin, int64_t end, int64_t thread) {
    const Layer *layer = pass->layer;
    const Workspace *work = pass->work;
    Rows rows = rows_from(work, thread * TILE_ROWS);
    int64_t hidden = layer->hidden, query_width = layer->query_heads * layer->head_size, count = end - begin;
    float *gated = work->gated + thread * TILE_ROWS * work->feed_forward, *out = pass->out + begin * hidden;
    float *mixed = work->mixed + thread * work->rows.stride;
    for (int64_t row = 0; row < count; row++)
        quantize_row(work->heads + (begin + row) * work->heads_width, 0, 0, query_width, layer->attention_out.hadamard,
                     mixed, &rows, row);
    Target attended = {ADD, out, pass->x + begin * hidden, hidden, hidden};
    multiply(&layer->attention_out, &rows, 0, count, 0, layer->attention_out.blocks, &attended);
    for (int64_t row = 0; row < count; row++)
        quantize_row(out + row * hidden, layer->post_norm, layer->norm_eps, hidden, layer->gate_up.hadamard, mixed,
                     &rows, row);
    Target gate = {GATE, gated, 0, work->feed_forward, work->feed_forward};
    multiply(&layer->gate_up, &rows, 0, count, 0, layer->gate_up.blocks, &gate);
    for (int64_t row = 0; row < count; row++)
        quantize_row(gated + row * work->feed_forward, 0, 0, work->feed_forward, layer->down.hadamard, mixed, &rows,
                     row);
    Target down = {ADD, out, out, hidden, hidden};
    multiply(&layer->down, &rows, 0, count, 0, layer->down.blocks, &down);
}

static void columns_of(const Matrix *matrix, const Rows *rows, int64_t count, const Target *target) {
#pragma omp for schedule(dynamic, COLUMN_SHARE)
    for (int64_t block = 0; block < matrix->blocks; block++)
        multiply(matrix, rows, 0, count, block, block + 1, target);
}

static void quantize_all(const float *from, int64_t stride, const float *norm, float eps, int64_t width, int64_t block,
                         float *mixed, const Rows *rows, int64_t count) {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < count; row++)
        quantize_row(from + row * stride, norm, eps, width, block, mixed, rows, row);
}

/* All rows, every operation shared out among the threads. */
static void few_rows(const Pass *pass, int64_t thread) {
    const Layer *layer = pass->layer;
    const Workspace *work = pass->work;
    const Rows *rows = &work->rows;
    int64_t hidden = layer->hidden, count = pass->batch->tokens, query_width = layer->query_heads * layer->head_size;
    Target heads = {STORE, work->heads, 0, work->heads_width, work->heads_width};
    Target attended = {ADD, pass->out, pass->x, hidden, hidden}, down = {ADD, pass->out, pass->out, hidden, hidden};
    Target gate = {GATE, work->gated, 0, work->feed_forward, work->feed_forward};
    float *mixed = work->mixed + thread * work->rows.stride;
    quantize_all(pass->x, hidden, layer->input_norm, layer->norm_eps, hidden, layer->qkv.hadamard, mixed, rows, count);
    columns_of(&layer->qkv, rows, count, &heads);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < count; row++) turn(pass, row);
    attend_all(pass, thread);
    quantize_all(work->heads, work->heads_width, 0, 0, query_width, layer->attention_out.hadamard, mixed, rows, count);
    columns_of(&layer->attention_out, rows, count, &attended);
    quantize_all(pass->out, hidden, layer->post_norm, layer->norm_eps, hidden, layer->gate_up.hadamard, mixed, rows,
                 count);
    columns_of(&layer->gate_up, rows, count, &gate);
    quantize_all(work->gated, work->feed_forward, 0, 0, work->feed_forward, layer->down.hadamard, mixed, rows, count);
    columns_of(&layer->down, rows, count, &down);
}

static void many_rows(const Pass *pass, int64_t threads, int64_t thread) {
    int64_t count = pass->batch->tokens, tiles = (count + TILE_ROWS - 1) / TILE_ROWS;
    tiles = (tiles + threads - 1) / threads * threads;
#pragma omp for schedule(dynamic, 1)
    for (int64_t tile = 0; tile < tiles; tile++)
        before_attention(pass, count * tile / tiles, count * (tile + 1) / tiles, thread);
    attend_all(pass, thread);
#pragma omp for schedule(dynamic, 1)
    for (int64_t tile = 0; tile < tiles; tile++)
        after_attention(pass, count * tile / tiles, count * (tile + 1) / tiles, thread);
}

/* x float32 [T, H] -> out float32 [T, H], another array. `keys` and `values` bfloat16 [B, block_tokens, NKV, D] are the
 * cache, or null; `workspace` has `onebeat_workspace_bytes` and begins at a multiple of 64. */
void onebeat_layer(const Layer *layer, const Batch *batch, const float *x, float *out, uint16_t *keys, uint16_t *values,
                   uint8_t *workspace, int64_t threads) {
    Workspace work;
    lay_out(layer, batch->tokens, batch->sequences, threads, workspace, &work);
    work.tiles[0] = 0;
    for (int64_t s = 0; s < batch->sequences; s++)
        work.tiles[s + 1] = work.tiles[s] + attention_tiles(layer, batch->cu_seqlens[s + 1] - batch->cu_seqlens[s]);
    Pass pass = {layer, batch, &work, x, out, keys ? keys : work.keys, values ? values : work.values};
#pragma omp parallel num_threads((int)threads)
    {
        int64_t thread = omp_get_thread_num(), team = omp_get_num_threads();
        if (batch->tokens < FEW_ROWS * team) few_rows(&pass, thread);
        else many_rows(&pass, team, thread);
    }
}
