/* One window, for one instruction set. native.c includes this once for each, with
 *   NAME(x)       the name of a function for this instruction set,
 *   LANES         floats of a vector register,
 *   PIXELS        pixels whose sums are in registers at a time,
 *   VECTORS       vectors of outputs of each pixel that are there; where
 *   VECTORS_VARY  this many at most,
 *   PAIRS         whether it multiplies two bfloat16 at once; the input and the weight are that, then.
 */

typedef float NAME(vector) __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

#if PAIRS
typedef uint16_t NAME(number);
typedef uint32_t NAME(factor) __attribute__((aligned(2), may_alias));
#else
typedef float NAME(number);
typedef float NAME(factor);
#endif

static inline __attribute__((always_inline)) NAME(vector) NAME(multiply_add)(
    NAME(vector) sum, NAME(factor) x, NAME(vector) weight)
{
#if PAIRS
    return (NAME(vector))_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32((int)x), (__m512bh)weight);
#else
    return sum + x * weight;
#endif
}

/* sums += W x, for so many pixels that all their sums fit the registers: an outer product a channel, or two. */
static inline __attribute__((always_inline)) void NAME(block)(
    const int pixels, const int vectors, const NAME(number) *x, float *sums, const Place *places,
    const float *weight, const int64_t depth)
{
    NAME(vector) held[PIXELS][VECTORS];
    const NAME(factor) *from[PIXELS];
#pragma GCC unroll 16
    for (int m = 0; m < pixels; m++) {
        from[m] = (const NAME(factor) *)(x + places[m].input);
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++)
            held[m][v] = *(const NAME(vector) *)(sums + places[m].sums + v * LANES);
    }
    for (int64_t c = 0; c < depth; c++) {
        NAME(vector) w[VECTORS];
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++)
            w[v] = *(const NAME(vector) *)(weight + (c * vectors + v) * LANES);
#pragma GCC unroll 16
        for (int m = 0; m < pixels; m++) {
            const NAME(factor) value = from[m][c];
#pragma GCC unroll 16
            for (int v = 0; v < vectors; v++)
                held[m][v] = NAME(multiply_add)(held[m][v], value, w[v]);
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < pixels; m++)
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++)
            *(NAME(vector) *)(sums + places[m].sums + v * LANES) = held[m][v];
}

#define CASE(pixels, vectors)                                          \
    case (pixels) * 8 + (vectors):                                     \
        NAME(block)(pixels, vectors, x, sums, places, weight, depth);  \
        break;
#if VECTORS_VARY
#define CASES(pixels) CASE(pixels, 1) CASE(pixels, 2) CASE(pixels, 3) CASE(pixels, 4)
#else
#define CASES(pixels) CASE(pixels, VECTORS)
#endif

/* sums += W x of one tap: weight [depth, vectors * LANES]. */
static void NAME(tap)(const NAME(number) *x, float *sums, const Place *places, int64_t count, const float *weight,
                      int64_t depth, int vectors)
{
    for (int64_t blocks = (count + PIXELS - 1) / PIXELS; blocks > 0; blocks--) {
        /* Of about one size: a short one would leave the units idle. */
        const int64_t pixels = (count + blocks - 1) / blocks;
        switch (pixels * 8 + vectors) {
#if PIXELS == 6
            CASES(6)
            CASES(5)
            CASES(4)
            CASES(3)
#endif
            CASES(2)
            CASES(1)
        }
        places += pixels;
        count -= pixels;
    }
}
#undef CASES
#undef CASE

/* to += sign * from[at:at + count]. */
static void NAME(add)(float *to, const void *from, int64_t at, int64_t count, float sign, int64_t bfloat16)
{
    if (bfloat16)
        for (int64_t c = 0; c < count; c++)
            to[c] += sign * widen(((const uint16_t *)from)[at + c]);
    else
        for (int64_t c = 0; c < count; c++)
            to[c] += sign * ((const float *)from)[at + c];
}

/* to[at:at + count] = from. */
static void NAME(put)(void *to, int64_t at, const float *from, int64_t count, int64_t bfloat16)
{
    if (bfloat16)
        for (int64_t c = 0; c < count; c++)
            ((uint16_t *)to)[at + c] = narrow(from[c]);
    else
        memcpy((float *)to + at, from, count * sizeof(float));
}

/* to = sign * from[at:at + count], sign 1 or -1. */
static void NAME(copy)(NAME(number) *to, const void *from, int64_t at, int64_t count, float sign, int64_t bfloat16)
{
#if PAIRS
    (void)bfloat16;
    for (int64_t c = 0; c < count; c++)
        to[c] = ((const uint16_t *)from)[at + c] ^ (sign < 0 ? 0x8000 : 0);
#else
    NAME(add)(to, from, at, count, sign, bfloat16);
#endif
}

/* What window p reads, as numbers that are multiplied. Returns whether there was memory. */
static int NAME(read)(const Layer *layer, int64_t p, Box box, Buffer *buffer, Field *field)
{
    const int64_t channels = layer->channels;
    Source source = source_of(layer, p);
    field->box = source.box, field->left = source.box.left;
    /* To an even number where they are taken in pairs. */
    field->channels = channels + (PAIRS && channels % 2);
    field->across = layer->kernel_width, field->depth = field->channels / (PAIRS + 1);
    const int packed = channels < NARROW;
    if (layer->window && !packed && field->channels == channels && layer->bfloat16 == PAIRS) {
        field->x = (const NAME(number) *)source.values + source.begin, field->step = source.step;
        return 1;
    }

    const int64_t rows = source.box.bottom - source.box.top;
    int64_t from = source.box.left, to = source.box.right, columns = to - from;
    if (packed) {
        /* Few channels: a row of taps at once, over columns that 0 fills up. */
        field->across = 1, field->depth *= layer->kernel_width;
        field->left = box.left * layer->stride - layer->padding;
        columns = (box.right - box.left - 1) * layer->stride + layer->kernel_width;
        from = most(from, field->left), to = least(to, field->left + columns);
        source.begin += (from - source.box.left) * channels;
        /* With these, list_places leaves out none of the outputs. */
        field->box.left = field->left, field->box.right = field->left + columns;
    }
    const size_t bytes = rows * columns * field->channels * sizeof(NAME(number));
    NAME(number) *x = reserve(buffer, bytes);
    field->x = x, field->step = columns * field->channels;
    if (!x)
        return bytes == 0;
    memset(x, 0, bytes);
    /* Pixels that lie together, or one by one. */
    const int64_t together = field->channels == channels ? most(to - from, 1) : 1;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = from; j < to; j += together)
            NAME(copy)(x + i * field->step + (j - field->left) * field->channels, source.values,
                       source.begin + i * source.step + (j - from) * channels, together * channels,
                       layer->window ? 1 : -1, layer->bfloat16);
    return 1;
}

/* Raw sums [O / block, pixels, block] of a window's box: the base's, and W times what the window changes. */
static void NAME(product)(const Layer *layer, int64_t image, Box box, const Field *field, const Place *places,
                          const int64_t *counts, float *sums)
{
    const int64_t block = layer->block, pixels = (box.bottom - box.top) * (box.right - box.left);
    const int64_t taps = layer->kernel_height * field->across;
    const float *weight = layer->weight;
    for (int64_t o = 0; o < layer->outputs; o += block, sums += pixels * block) {
        const int64_t some = least(layer->outputs - o, block);
        float *sum = sums;
        for (int64_t i = box.top; i < box.bottom; i++)
            for (int64_t j = box.left; j < box.right; j++, sum += block) {
                const int64_t at = (image * layer->out_height + i) * layer->out_width + j;
                memcpy(sum, layer->raw + at * layer->outputs + o, some * sizeof(float));
                memset(sum + some, 0, (block - some) * sizeof(float));
            }
        const Place *of_tap = places;
        for (int64_t tap = 0; tap < taps; tap++, weight += field->depth * block) {
            NAME(tap)((const NAME(number) *)field->x, sums, of_tap, counts[tap], weight, field->depth, (int)(block / LANES));
            of_tap += counts[tap];
        }
    }
}

/* Ratio, bias, residual and activation, less what the base has there. */
static void NAME(finish)(const Layer *layer, int64_t p, Box box, float *sums, char *out)
{
    const int64_t place = p % layer->places;
    const int64_t outputs = layer->outputs, image = layer->images[p], bfloat16 = layer->bfloat16;
    const int64_t columns = box.right - box.left, pixels = (box.bottom - box.top) * columns;
    const Box hole = within(layer->holes[place], layer->height, layer->width);
    const float full = (float)(layer->kernel_height * layer->kernel_width);
    const Origin origin = layer->origins[place];
    memset(out, 0, layer->size_height * layer->size_width * outputs * real_bytes(layer));
    for (int64_t n = 0; n < pixels; n++) {
        const int64_t row = box.top + n / columns, column = box.left + n % columns;
        const int64_t y = row * layer->stride - layer->padding, down = y + layer->kernel_height;
        const int64_t x = column * layer->stride - layer->padding, across = x + layer->kernel_width;
        const int64_t seen = overlap(0, layer->height, y, down) * overlap(0, layer->width, x, across)
                             - overlap(hole.top, hole.bottom, y, down) * overlap(hole.left, hole.right, x, across);
        const float ratio = full / (float)seen;
        const int64_t at = ((image * layer->out_height + row) * layer->out_width + column) * outputs;
        const int64_t to = ((row - origin.top) * layer->size_width + column - origin.left) * outputs;
        int64_t laid = -1;
        if (layer->residual_window) {
            const int64_t i = row - layer->residual_origins[place].top, j = column - layer->residual_origins[place].left;
            if (i >= 0 && i < layer->residual_height && j >= 0 && j < layer->residual_width)
                laid = ((p * layer->residual_height + i) * layer->residual_width + j) * outputs;
        }
        for (int64_t o = 0; o < outputs; o += layer->block) {
            const int64_t some = least(outputs - o, layer->block);
            float *sum = sums + o * pixels + n * layer->block;
            if (seen)
                for (int64_t c = 0; c < some; c++)
                    sum[c] = sum[c] * ratio + layer->bias[o + c];
            else
                memset(sum, 0, some * sizeof(float));
            if (layer->residual_base)
                NAME(add)(sum, layer->residual_base, at + o, some, 1, bfloat16);
            if (laid >= 0)
                NAME(add)(sum, layer->residual_window, laid + o, some, 1, bfloat16);
            if (layer->relu)
                /* Not a maximum, which would lose a NaN. */
                for (int64_t c = 0; c < some; c++)
                    sum[c] = sum[c] < 0 ? 0 : sum[c];
            NAME(add)(sum, layer->after, at + o, some, -1, bfloat16);
            NAME(put)(out, to + o, sum, some, bfloat16);
        }
    }
}

/* Window p. Returns whether there was memory. */
static int NAME(window)(const Layer *layer, int64_t p, Scratch *scratch)
{
    const size_t size = layer->size_height * layer->size_width * layer->outputs * real_bytes(layer);
    char *out = (char *)layer->out + p * size;
    const Box box = layer->boxes[p % layer->places];
    if (box.bottom <= box.top || box.right <= box.left) {
        memset(out, 0, size);
        return 1;
    }
    Field field;
    if (!NAME(read)(layer, p, box, &scratch->field, &field))
        return 0;
    const int64_t pixels = (box.bottom - box.top) * (box.right - box.left);
    const int64_t taps = layer->kernel_height * field.across;
    const int64_t padded = (layer->outputs + layer->block - 1) / layer->block * layer->block;
    Place *places = reserve(&scratch->places, taps * pixels * sizeof(Place));
    int64_t *counts = reserve(&scratch->counts, taps * sizeof(int64_t));
    float *sums = reserve(&scratch->sums, pixels * padded * sizeof(float));
    if (!places || !counts || !sums)
        return 0;
    list_places(layer, &field, box, places, counts);
    NAME(product)(layer, layer->images[p], box, &field, places, counts, sums);
    NAME(finish)(layer, p, box, sums, out);
    return 1;
}

/* Window p of products that others formed: y real [size_height, size_width, O]. Returns whether there was memory. */
static int NAME(finish_products)(const Layer *layer, int64_t p, const void *y, Scratch *scratch)
{
    const int64_t outputs = layer->outputs, image = layer->images[p], place = p % layer->places;
    const Box box = layer->boxes[place];
    const Origin origin = layer->origins[place];
    const int64_t pixels = most(box.bottom - box.top, 0) * most(box.right - box.left, 0);
    float *sums = reserve(&scratch->sums, pixels * outputs * sizeof(float)), *sum = sums;
    if (!sums && pixels)
        return 0;
    for (int64_t i = box.top; i < box.bottom; i++)
        for (int64_t j = box.left; j < box.right; j++, sum += outputs) {
            const int64_t at = (image * layer->out_height + i) * layer->out_width + j;
            const int64_t in = (i - origin.top) * layer->size_width + j - origin.left;
            memcpy(sum, layer->raw + at * outputs, outputs * sizeof(float));
            NAME(add)(sum, y, in * outputs, outputs, 1, layer->bfloat16);
        }
    const size_t size = layer->size_height * layer->size_width * outputs * real_bytes(layer);
    NAME(finish)(layer, p, box, sums, (char *)layer->out + p * size);
    return 1;
}
