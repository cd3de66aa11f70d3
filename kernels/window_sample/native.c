/* window_sample on a CPU: the equation is in reference.py, the fields of Reading in cpu.py. */
#include "../native.h"

/* Field by field as in cpu.py. Maps are channels-last, "real" is bfloat16 or float. */
typedef struct {
    int64_t count;          /* P, windows */
    int64_t places;         /* n, of which window p has those of p % n */
    int64_t points;         /* R */
    int64_t channels, height, width;
    int64_t window_height, window_width;
    int64_t bfloat16;
    const void *base;       /* real [N, H, W, C] */
    const void *window;     /* real [P, window_height, window_width, C] or NULL */
    const int64_t *origins; /* [n, 2] */
    const int64_t *images;  /* [P] */
    const float *cells;     /* [n, R, 2], (x, y) */
    float *out;             /* [P, R, C] */
} Reading;

/* The places before and after a cell on an axis; returns how far between them it lies. */
static float neighbours(float cell, int64_t size, int64_t places[2])
{
    const float last = (float)(size - 1);
    cell = cell < 0 ? 0 : cell > last ? last : cell;
    places[0] = least((int64_t)cell, most(size - 2, 0));
    places[1] = least(places[0] + 1, size - 1);
    return cell - (float)places[0];
}

/* to += share * from[at:at + count]. */
static void add(float *to, const void *from, int64_t at, int64_t count, float share, int64_t bfloat16)
{
    if (bfloat16)
        for (int64_t c = 0; c < count; c++)
            to[c] += share * widen(((const uint16_t *)from)[at + c]);
    else
        for (int64_t c = 0; c < count; c++)
            to[c] += share * ((const float *)from)[at + c];
}

/* out [C] = what window p has at a cell. */
static void read_cell(const Reading *r, int64_t p, const float *cell, float *out)
{
    const int64_t *origin = r->window ? r->origins + 2 * (p % r->places) : NULL;
    int64_t x[2], y[2];
    const float right = neighbours(cell[0], r->width, x), down = neighbours(cell[1], r->height, y);
    const float across[2] = {1 - right, right}, along[2] = {1 - down, down};
    memset(out, 0, r->channels * sizeof(float));
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2; j++) {
            const float share = along[i] * across[j];
            const int64_t at = ((r->images[p] * r->height + y[i]) * r->width + x[j]) * r->channels;
            add(out, r->base, at, r->channels, share, r->bfloat16);
            if (!origin)
                continue;
            const int64_t row = y[i] - origin[0], column = x[j] - origin[1];
            if (row < 0 || row >= r->window_height || column < 0 || column >= r->window_width)
                continue;
            const int64_t in = ((p * r->window_height + row) * r->window_width + column) * r->channels;
            add(out, r->window, in, r->channels, share, r->bfloat16);
        }
}

typedef struct {
    const Reading *reading;
    int64_t next;
} Run;

static void work(void *argument)
{
    Run *run = argument;
    const Reading *r = run->reading;
    int64_t p;
    while ((p = take(&run->next)) < r->count)
        for (int64_t n = 0; n < r->points; n++)
            read_cell(r, p, r->cells + 2 * (p % r->places * r->points + n), r->out + (p * r->points + n) * r->channels);
}

/* All windows. */
void glance_window_sample(const Reading *reading, Parallel *parallel, unsigned threads)
{
    Run run = {reading, 0};
    on_threads(parallel, work, &run, reading->count > 1 ? threads : 1);
}
