/* One layer of windows as cpu.py hands it over, and what all instruction sets share. */
#include "../native.h"

#include <stdlib.h>

/* Half-open, in pixels of a map. */
typedef struct {
    int64_t top, left, bottom, right;
} Box;

typedef struct {
    int64_t top, left;
} Origin;

/* Field by field as in native.py. Maps are channels-last, "real" is bfloat16 or float. */
typedef struct {
    int64_t count;                  /* P, windows */
    int64_t places;                 /* n, of which window p is at that of p % n */
    int64_t channels, outputs;      /* C, O */
    int64_t kernel_height, kernel_width, stride, padding;
    int64_t height, width;          /* H, W, of the layer's input */
    int64_t out_height, out_width;  /* H', W', of its output */
    int64_t size_height, size_width;
    int64_t window_height, window_width;
    int64_t residual_height, residual_width;
    int64_t relu, bfloat16;
    int64_t block;                  /* outputs that stand together in weight */
    const void *base;               /* real [N, H, W, C], read where there is no window */
    const void *window;             /* real [P, window_height, window_width, C] or NULL */
    const Origin *window_origins;   /* [n] */
    const Box *window_boxes;        /* [n], outside which window is 0 */
    const float *raw;               /* [N, H', W', O] */
    const void *after;              /* real [N, H', W', O] */
    const float *weight;            /* [O / block, k_h, k_w, C, block], or pairs of bfloat16: [.., C / 2, block] */
    const float *bias;              /* [O] */
    const void *residual_base;      /* real [N, H', W', O] or NULL */
    const void *residual_window;    /* real [P, residual_height, residual_width, O] or NULL */
    const Origin *residual_origins; /* [n] */
    const Box *holes;               /* [n], in the input */
    const int64_t *images;          /* [P] */
    const Origin *origins;          /* [n] */
    const Box *boxes;               /* [n], the part of each window that is computed */
    void *out;                      /* real [P, size_height, size_width, O] */
} Layer;

/* A pixel that a tap adds to: where the input's channels and its own sums begin. */
typedef struct {
    int32_t input, sums;
} Place;

/* Memory of one thread, which grows as windows ask for more. */
typedef struct {
    void *data;
    size_t bytes;
} Buffer;

typedef struct {
    Buffer field, places, counts, sums;
} Scratch;

/* What differs in the input of a window: the window of the layer before, or what the hole hides, to be taken away. */
typedef struct {
    const void *values; /* real */
    int64_t begin;      /* of the pixel (box.top, box.left) */
    int64_t step;       /* from a row to the next */
    Box box;
} Source;

/* Of a window's input, the pixels that are not 0, as floats; as bfloat16 where it is multiplied in pairs. */
typedef struct {
    const void *x;    /* of the pixel (box.top, left) */
    int64_t step;     /* from a row to the next */
    int64_t channels; /* from a pixel to the next */
    int64_t left;
    Box box;
    int64_t across;   /* taps of a row that are multiplied one by one */
    int64_t depth;    /* channels of one of these, or pairs of them */
} Field;

static inline void *reserve(Buffer *buffer, size_t bytes)
{
    if (buffer->bytes < bytes) {
        free(buffer->data);
        buffer->data = aligned_alloc(64, (bytes + 63) / 64 * 64);
        buffer->bytes = buffer->data ? bytes : 0;
    }
    return buffer->data;
}

/* Length that [start, stop) and [first, last) share. */
static inline int64_t overlap(int64_t start, int64_t stop, int64_t first, int64_t last)
{
    return most(least(stop, last) - most(start, first), 0);
}

/* a / b rounded up; b > 0. */
static inline int64_t ceil_div(int64_t a, int64_t b) { return a > 0 ? (a + b - 1) / b : -(-a / b); }

/* What of a box lies in a map; of no extent where nothing does. */
static inline Box within(Box box, int64_t height, int64_t width)
{
    Box in = {most(box.top, 0), most(box.left, 0), least(box.bottom, height), least(box.right, width)};
    if (in.bottom <= in.top || in.right <= in.left)
        in = (Box){0, 0, 0, 0};
    return in;
}

static inline size_t real_bytes(const Layer *layer) { return layer->bfloat16 ? sizeof(uint16_t) : sizeof(float); }

static inline Source source_of(const Layer *layer, int64_t p)
{
    const int64_t channels = layer->channels, place = p % layer->places;
    if (!layer->window) {
        Source source = {layer->base, 0, layer->width * channels, within(layer->holes[place], layer->height, layer->width)};
        source.begin = (layer->images[p] * layer->height + source.box.top) * source.step + source.box.left * channels;
        return source;
    }
    Source source = {layer->window, 0, layer->window_width * channels, layer->window_boxes[place]};
    const Origin origin = layer->window_origins[place];
    if (source.box.bottom <= source.box.top || source.box.right <= source.box.left)
        source.box = (Box){origin.top, origin.left, origin.top, origin.left};
    source.begin = (p * layer->window_height + source.box.top - origin.top) * source.step
                   + (source.box.left - origin.left) * channels;
    return source;
}

/* The pixels of a window's box that each tap adds to, tap after tap, and how many. */
static void list_places(const Layer *layer, const Field *field, Box box, Place *place, int64_t *counts)
{
    const int64_t stride = layer->stride, columns = box.right - box.left;
    for (int64_t tap = 0; tap < layer->kernel_height * field->across; tap++) {
        const int64_t y = box.top * stride - layer->padding + tap / field->across;
        const int64_t x = box.left * stride - layer->padding + tap % field->across;
        const int64_t start = most(ceil_div(field->box.top - y, stride), 0);
        const int64_t stop = least(ceil_div(field->box.bottom - y, stride), box.bottom - box.top);
        const int64_t first = most(ceil_div(field->box.left - x, stride), 0);
        const int64_t last = least(ceil_div(field->box.right - x, stride), columns);
        counts[tap] = most(stop - start, 0) * most(last - first, 0);
        for (int64_t i = start; i < stop; i++)
            for (int64_t j = first; j < last; j++, place++) {
                place->input = (int32_t)((y + i * stride - field->box.top) * field->step
                                         + (x + j * stride - field->left) * field->channels);
                place->sums = (int32_t)((i * columns + j) * layer->block);
            }
    }
}
