#include "plan.h"

#include "../element.h"

enum {
    VECTOR_BYTES = 16,
    WARP = 32,
    COLUMN_THREADS = 128, /* most threads of a block along the columns of channels-first batches */
    LARGE_IMAGE = 1024,   /* bytes of a channel of an image from which on ABN_CUDA_PLANES is faster */
    FEW_IMAGES = 8,       /* with fewer, ABN_CUDA_COLUMNS has too few rows per thread */
    PLANE_BLOCKS = 2,     /* blocks of the sums per multiprocessor, with ABN_CUDA_PLANES */
    COLUMN_BLOCKS = 3,    /* the same with ABN_CUDA_COLUMNS */
    SUMS_VECTORS = 8,     /* vectors per thread of the sums, at least */
    APPLY_VECTORS = 8,    /* vectors per thread of the second pass */
    LEAST_LANES = 16,
    MOST_LANES = 128,
    FINISH_CHANNELS = 8, /* channels of a block between the passes (channel_sums.h) */
};

static int64_t divided(int64_t count, int64_t by) { return (count + by - 1) / by; }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* The longest vector of which `length` elements are a multiple. */
static int width_of(abn_dtype dtype, int64_t length) {
    int width = VECTOR_BYTES / (int)abn_dtype_size(dtype);
    while (length % width) width /= 2;
    return width;
}

static int64_t common_divisor(int64_t a, int64_t b) { return b ? common_divisor(b, a % b) : a; }

/* Channels-last: a row is a position. */
static void use_positions(abn_cuda_plan *plan, abn_dtype dtype) {
    abn_cuda_pass *g = &plan->geometry;
    plan->layout = ABN_CUDA_COLUMNS;
    plan->width = width_of(dtype, g->channels);
    const int64_t vectors = g->channels / plan->width;
    g->units = g->images * g->positions;
    g->columns = g->channels;
    g->repeat = 1;
    g->tiles = (int32_t)divided(vectors, WARP);
    g->tile_x = (int32_t)divided(vectors, g->tiles);
}

/* Channels-first with small images: a row is an image. Tiles are whole channels. Returns 0 if they do not fit. */
static int use_images(abn_cuda_plan *plan, abn_dtype dtype) {
    abn_cuda_pass *g = &plan->geometry;
    const int width = width_of(dtype, g->channels * g->positions);
    const int64_t channels = width / common_divisor(g->positions, width); /* the fewest that are whole vectors */
    const int64_t threads = channels * g->positions / width, repeat = COLUMN_THREADS / threads;
    const int64_t bytes = g->positions * (int64_t)abn_dtype_size(dtype);
    if (threads > ABN_CUDA_THREADS || g->images < FEW_IMAGES || bytes >= LARGE_IMAGE) return 0;
    plan->layout = ABN_CUDA_COLUMNS;
    plan->width = width;
    g->units = g->images;
    g->columns = g->channels * g->positions;
    g->repeat = g->positions;
    g->tile_x = (int32_t)(threads * most(repeat, 1));
    g->tiles = (int32_t)divided(g->columns, (int64_t)g->tile_x * width);
    return 1;
}

static void use_planes(abn_cuda_plan *plan, abn_dtype dtype) {
    abn_cuda_pass *g = &plan->geometry;
    plan->layout = ABN_CUDA_PLANES;
    plan->width = width_of(dtype, g->positions);
    g->units = g->images * g->positions / plan->width;
    g->tile_x = 1;
    g->tiles = (int32_t)g->channels;
}

/* Parts of at least `per_part` units, at most as many as give `blocks` blocks, and splits of about `per_split`
 * units. */
static void divide(abn_cuda_pass *g, int64_t per_part, int64_t blocks, int64_t per_split) {
    const int64_t parts = most(1, least(divided(g->units, per_part), blocks / g->tiles));
    g->part_length = most(1, divided(g->units, parts));
    g->parts = (int32_t)divided(g->units, g->part_length);
    g->split_length = divided(g->part_length, divided(g->part_length, per_split));
    g->splits = (int32_t)divided(g->part_length, g->split_length);
}

/* Threads that share a channel between the passes. */
static int lanes_of(int parts) {
    int lanes = LEAST_LANES;
    while (lanes < parts && lanes < MOST_LANES) lanes *= 2;
    return lanes;
}

static size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

static void set_memory(abn_cuda_plan *plan, abn_dtype dtype) {
    const size_t real = abn_real_size(dtype), channels = (size_t)plan->geometry.channels;
    plan->saved_bytes = channels * (ABN_SAVED * real + sizeof(int32_t));
    plan->guarded_at = 0;
    plan->constants_at = aligned(ABN_COUNTERS * sizeof(int32_t));
    plan->partial_at = plan->constants_at + aligned(ABN_APPLY * channels * real);
    plan->scratch_bytes = plan->partial_at + ABN_PARTIALS * (size_t)plan->geometry.parts * channels * real;
}

abn_cuda_plan abn_cuda_plan_of(abn_dtype dtype, int64_t images, int64_t channels, int64_t positions, int channels_last,
                               int multiprocessors) {
    abn_cuda_plan plan = {.geometry = {.images = images, .channels = channels, .positions = positions}};
    abn_cuda_pass *g = &plan.geometry;
    g->channels_last = channels_last || positions == 1; /* one position: both layouts are the same */
    if (g->channels_last)
        use_positions(&plan, dtype);
    else if (!use_images(&plan, dtype))
        use_planes(&plan, dtype);
    const int blocks = plan.layout == ABN_CUDA_PLANES ? PLANE_BLOCKS : COLUMN_BLOCKS;
    g->tile_y = ABN_CUDA_THREADS / g->tile_x;
    plan.threads = g->tile_x * g->tile_y;
    divide(g, (int64_t)SUMS_VECTORS * g->tile_y, (int64_t)blocks * multiprocessors, (int64_t)APPLY_VECTORS * g->tile_y);
    plan.sums_blocks = (int64_t)g->parts * g->tiles;
    plan.apply_blocks = plan.sums_blocks * g->splits;
    plan.finish_threads = FINISH_CHANNELS * lanes_of(g->parts);
    plan.finish_blocks = divided(channels, FINISH_CHANNELS);
    set_memory(&plan, dtype);
    return plan;
}
