/* window_conv2d on a CPU, by differences: the equations are in cpu.py, the fields of Layer in native.py. */
#include "native.h"

/* Channels below which a row of taps is multiplied at once. */
#define NARROW 16

/* What every processor of a kind has: 16 vector registers of x86-64, 32 of others. */
#define NAME(x) x##_plain
#define LANES 4
#define VECTORS 4
#define VECTORS_VARY 0
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
#pragma GCC pop_options
#endif

typedef int Window(const Layer *, int64_t, Scratch *);
static Window *const WINDOWS[] = {
    window_plain,
#ifdef __x86_64__
    window_avx2,
    window_avx512,
#endif
};

/* How many of these instruction sets, from the first, the processor has. */
int glance_instruction_sets(void)
{
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx512f"))
        return 3;
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

typedef struct {
    const Layer *layer;
    Window *window;
    int64_t next;
    int failed;
} Run;

static void work(void *argument)
{
    Run *run = argument;
    Scratch scratch = {0};
    int64_t p;
    while ((p = take(&run->next)) < run->layer->count)
        if (!run->window(run->layer, p, &scratch)) {
            __atomic_store_n(&run->failed, 1, __ATOMIC_RELAXED);
            break;
        }
    free(scratch.field.data);
    free(scratch.places.data);
    free(scratch.counts.data);
    free(scratch.sums.data);
}

/* All windows. Returns 0, or 1 where memory ran out. */
int glance_window_conv(const Layer *layer, int instructions, Parallel *parallel, unsigned threads)
{
    Run run = {layer, WINDOWS[instructions], 0, 0};
    on_threads(parallel, work, &run, layer->count > 1 ? threads : 1);
    return run.failed;
}
