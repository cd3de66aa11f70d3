/* window_conv2d on a CPU, by differences: the equations are in cpu.py, the fields of Layer in native.py. */
#include "native.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

/* Channels below which a row of taps is multiplied at once. */
#define NARROW 16

/* What every processor of a kind has: 16 vector registers of x86-64, 32 of others. */
#define NAME(x) x##_plain
#define LANES 4
#define VECTORS 4
#define VECTORS_VARY 0
#define PAIRS 0
#ifdef __x86_64__
#define PIXELS 2
#else
#define PIXELS 6
#endif
#include "native_window.h"
#undef NAME
#undef LANES
#undef VECTORS
#undef VECTORS_VARY
#undef PIXELS

#ifdef __x86_64__
#define PIXELS 6

#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define NAME(x) x##_avx2
#define LANES 8
#define VECTORS 2
#define VECTORS_VARY 0
#include "native_window.h"
#undef NAME
#undef LANES
#undef VECTORS
#undef VECTORS_VARY
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f")
#define NAME(x) x##_avx512
#define LANES 16
#define VECTORS 4
#define VECTORS_VARY 1
#include "native_window.h"
#undef NAME
#undef PAIRS
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bf16")
#define NAME(x) x##_avx512_bf16
#define PAIRS 1
#include "native_window.h"
#pragma GCC pop_options
#endif

typedef int Window(const Layer *, int64_t, Scratch *);
typedef int Finish(const Layer *, int64_t, const void *, Scratch *);
static Window *const WINDOWS[] = {
    window_plain,
#ifdef __x86_64__
    window_avx2,
    window_avx512,
    window_avx512_bf16,
#endif
};
static Finish *const FINISHES[] = {
    finish_products_plain,
#ifdef __x86_64__
    finish_products_avx2,
    finish_products_avx512,
    finish_products_avx512_bf16,
#endif
};

/* How many of these instruction sets, from the first, the processor has. */
int glance_instruction_sets(void)
{
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx512f"))
        return __builtin_cpu_supports("avx512bf16") ? 4 : 3;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return 2;
#endif
    return 1;
}

/* Outputs that stand together in the weight that an instruction set takes. */
int64_t glance_window_conv_block(int instructions, int64_t outputs)
{
    const int64_t sixteens = (outputs + 15) / 16, blocks = (sixteens + 3) / 4;
    return instructions < 2 ? 16 : (sixteens + blocks - 1) / blocks * 16;
}

/* Work on the windows from next to stop, for each of which a thread runs one. */
typedef struct Run Run;
struct Run {
    int (*one)(const Run *, int64_t, Scratch *); /* returns whether there was memory */
    const Layer *layer;
    int instructions;
    int64_t first, next, stop;
    void *field; /* real [stop - first, rows, columns, C], or y of finish_products */
    int64_t rows, columns;
    int failed;
};

static void work(void *argument)
{
    Run *run = argument;
    Scratch scratch = {0};
    int64_t p;
    while ((p = take(&run->next)) < run->stop)
        if (!run->one(run, p, &scratch)) {
            __atomic_store_n(&run->failed, 1, __ATOMIC_RELAXED);
            break;
        }
    free(scratch.field.data);
    free(scratch.places.data);
    free(scratch.counts.data);
    free(scratch.sums.data);
}

static int window(const Run *run, int64_t p, Scratch *scratch)
{
    return WINDOWS[run->instructions](run->layer, p, scratch);
}

/* What window p reads, laid into zeros. */
static int fill(const Run *run, int64_t p, Scratch *scratch)
{
    (void)scratch;
    const Layer *layer = run->layer;
    const Source source = source_of(layer, p);
    const Origin origin = layer->origins[p % layer->places];
    const int64_t top = origin.top * layer->stride - layer->padding, left = origin.left * layer->stride - layer->padding;
    const int64_t from = most(source.box.left, left), to = least(source.box.right, left + run->columns);
    const size_t pixel = layer->channels * real_bytes(layer), row = run->columns * pixel;
    char *field = (char *)run->field + (p - run->first) * run->rows * row;
    memset(field, 0, run->rows * row);
    for (int64_t y = most(source.box.top, top); y < least(source.box.bottom, top + run->rows) && from < to; y++) {
        const int64_t at = source.begin + (y - source.box.top) * source.step + (from - source.box.left) * layer->channels;
        char *into = field + (y - top) * row + (from - left) * pixel;
        const int64_t count = (to - from) * layer->channels;
        if (layer->window)
            memcpy(into, (const char *)source.values + at * real_bytes(layer), (to - from) * pixel);
        else if (layer->bfloat16)
            for (int64_t c = 0; c < count; c++)
                ((uint16_t *)into)[c] = ((const uint16_t *)source.values)[at + c] ^ 0x8000;
        else
            for (int64_t c = 0; c < count; c++)
                ((float *)into)[c] = -((const float *)source.values)[at + c];
    }
    return 1;
}

static int finish(const Run *run, int64_t p, Scratch *scratch)
{
    const Layer *layer = run->layer;
    const size_t size = layer->size_height * layer->size_width * layer->outputs * real_bytes(layer);
    const char *y = (const char *)run->field + (p - run->first) * size;
    return FINISHES[run->instructions](layer, p, y, scratch);
}

/* All windows. Returns 0, or 1 where memory ran out; so do the others. */
int glance_window_conv(const Layer *layer, int instructions, Parallel *parallel, unsigned threads)
{
    Run run = {.one = window, .layer = layer, .instructions = instructions, .stop = layer->count};
    on_threads(parallel, work, &run, layer->count > 1 ? threads : 1);
    return run.failed;
}

/* What the windows from first to stop read: field real [stop - first, rows, columns, C]. */
int glance_window_conv_fill(const Layer *layer, int64_t first, int64_t stop, void *field, int64_t rows,
                            int64_t columns, Parallel *parallel, unsigned threads)
{
    Run run = {.one = fill, .layer = layer, .first = first, .next = first, .stop = stop,
               .field = field, .rows = rows, .columns = columns};
    on_threads(parallel, work, &run, threads);
    return run.failed;
}

/* The windows from first to stop, of their products y real [stop - first, size_height, size_width, O]. */
int glance_window_conv_finish(const Layer *layer, int64_t first, int64_t stop, void *y, int instructions,
                              Parallel *parallel, unsigned threads)
{
    Run run = {.one = finish, .layer = layer, .instructions = instructions,
               .first = first, .next = first, .stop = stop, .field = y};
    on_threads(parallel, work, &run, threads);
    return run.failed;
}
