/* What the C code of all operators shares. */
#include <stdint.h>
#include <string.h>

/* GOMP_parallel of the OpenMP that torch has: runs a function with its argument on so many of torch's threads. */
typedef void Parallel(void (*)(void *), void *, unsigned, unsigned);

/* Run it, alone where that suffices. */
static inline void on_threads(Parallel *parallel, void (*work)(void *), void *argument, unsigned threads)
{
    if (threads > 1)
        parallel(work, argument, threads, 0);
    else
        work(argument);
}

/* The next of the indices that threads share. */
static inline int64_t take(int64_t *next) { return __atomic_fetch_add(next, 1, __ATOMIC_RELAXED); }

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

static inline float widen(uint16_t bits)
{
    const uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* Bits of the nearest bfloat16, ties to even; NaN stays NaN. */
static inline uint16_t narrow(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits += 0x7FFF + (bits >> 16 & 1);
    return value != value ? 0x7FC0 : (uint16_t)(bits >> 16);
}
