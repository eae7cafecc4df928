/* Included once for every width of vectors: LANES floats each; MOST is how many rows of two vectors registers hold. */

#define INLINE static inline __attribute__((always_inline))

typedef float NAME(Vector) __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t NAME(Mask) __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
#define Vector NAME(Vector)
#define Mask NAME(Mask)

INLINE Vector NAME(load)(const float *from) { return *(const Vector *)from; }
INLINE void NAME(store)(float *to, Vector value) { *(Vector *)to = value; }
INLINE Vector NAME(where)(Mask mask, Vector value) { return (Vector)(mask & (Mask)value); }
#define load NAME(load)
#define store NAME(store)
#define where NAME(where)

INLINE float NAME(sum)(Vector value) {
#if LANES == 16
    typedef float Half __attribute__((vector_size(32)));
    Half half = __builtin_shufflevector(value, value, 0, 1, 2, 3, 4, 5, 6, 7) +
                __builtin_shufflevector(value, value, 8, 9, 10, 11, 12, 13, 14, 15);
#elif LANES == 8
    Vector half = value;
#endif
    typedef float Quarter __attribute__((vector_size(16)));
#if LANES >= 8
    Quarter quarter = __builtin_shufflevector(half, half, 0, 1, 2, 3) + __builtin_shufflevector(half, half, 4, 5, 6, 7);
#else
    Quarter quarter = value;
#endif
    return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
}

/* Rows of outputs, a tile of `R` rows and `N` vectors: bias + sum of a[segment][k] * b[segment][k].

   Rows of `a` are `step` bytes apart, its segments `segment` bytes; `b` has its rows one after the other. Every row has an
   address of its own that costs no instruction, because there are two bases and few multiples of the step. */
INLINE void NAME(multiply_tile)(const int R, const int N, const float *a, size_t step, size_t segments, size_t segment,
                                size_t length, const float *b, size_t ldb, const float *bias, float *c, size_t ldc, int relu) {
    Vector sums[MOST][2];
#pragma GCC unroll 14
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
        for (int n = 0; n < N; n++)
            sums[r][n] = bias != NULL ? load(bias + n * LANES) : (Vector){0.0f};
    const size_t three = 3 * step, five = 5 * step;
    for (size_t s = 0; s < segments; s++) {
        const char *low = (const char *)a + s * segment, *high = low + 7 * step;
        for (size_t k = 0; k < length; k++) {
            Vector weights[2];
#pragma GCC unroll 2
            for (int n = 0; n < N; n++)
                weights[n] = load(b + n * LANES);
#define ROW(r, address)                                                                                                \
    if (r < R) {                                                                                                       \
        Vector given = *(const float *)(address) - (Vector){0.0f};                                                     \
        for (int n = 0; n < N; n++)                                                                                    \
            sums[r < MOST ? r : 0][n] += given * weights[n];                                                           \
    }
            ROW(0, low)
            ROW(1, low + step)
            ROW(2, low + 2 * step)
            ROW(3, low + three)
            ROW(4, low + 4 * step)
            ROW(5, low + five)
            ROW(6, low + 2 * three)
            ROW(7, high)
            ROW(8, high + step)
            ROW(9, high + 2 * step)
            ROW(10, high + three)
            ROW(11, high + 4 * step)
            ROW(12, high + five)
            ROW(13, high + 2 * three)
#undef ROW
            low += 4;
            high += 4;
            b += ldb;
        }
    }
#pragma GCC unroll 14
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
        for (int n = 0; n < N; n++) {
            Vector value = sums[r][n];
            if (relu)
                value = where(~(value < 0.0f), value); /* what is no number stays none */
            store(c + r * ldc + n * LANES, value);
        }
}

/* A tile of a kernel's gradient, `R` rows and `N` vectors: the sum of a[pixel][r] * g[pixel][n], applied at once. */
INLINE void NAME(slope_tile)(const int R, const int N, const float *a, const Plane *in, const float *g, const Plane *out,
                             const Shape *shape, size_t rows, float *w, const float *anchor, size_t ldw, float rate, float mu) {
    Vector sums[MOST][2];
#pragma GCC unroll 14
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
        for (int n = 0; n < N; n++)
            sums[r][n] = (Vector){0.0f};
    const size_t a_step = (size_t)shape->stride_x * in->ld, g_step = out->step_x * out->ld;
    for (size_t row = 0; row < rows; row++)
        for (size_t y = 0; y < out->h; y++) {
            const float *from = a + (row * in->frame_h + y * (size_t)shape->stride_y) * in->frame_w * in->ld;
            const float *slope = g + (row * out->frame_h + y * out->step_y) * out->frame_w * out->ld;
            for (size_t x = 0; x < out->w; x++) {
                Vector slopes[2];
#pragma GCC unroll 2
                for (int n = 0; n < N; n++)
                    slopes[n] = load(slope + n * LANES);
#pragma GCC unroll 14
                for (int r = 0; r < R; r++) {
                    Vector given = from[r] - (Vector){0.0f};
#pragma GCC unroll 2
                    for (int n = 0; n < N; n++)
                        sums[r][n] += given * slopes[n];
                }
                from += a_step;
                slope += g_step;
            }
        }
#pragma GCC unroll 14
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
        for (int n = 0; n < N; n++) {
            float *to = w + r * ldw + n * LANES;
            Vector before = load(to), slope = sums[r][n];
            if (mu != 0.0f)
                slope += mu * (before - load(anchor + r * ldw + n * LANES));
            store(to, before - rate * slope);
        }
}

#define EVERY(TILE) TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6) TILE_WIDE(TILE)
#if MOST == 14
#define TILE_WIDE(TILE) TILE(7) TILE(8) TILE(9) TILE(10) TILE(11) TILE(12) TILE(13) TILE(14)
#else
#define TILE_WIDE(TILE)
#endif

#define MULTIPLY(R)                                                                                                    \
    case R:                                                                                                            \
        NAME(multiply_tile)(R, N, a, step, segments, segment, length, b, ldb, bias, c, ldc, relu);                     \
        break;
#define SLOPE(R)                                                                                                       \
    case R:                                                                                                            \
        NAME(slope_tile)(R, N, a, in, g, out, shape, rows, w, anchor, ldw, rate, mu);                                  \
        break;
#define MULTIPLY_OF(N_)                                                                                                \
    static __attribute__((noinline)) void NAME(multiply_##N_)(                                                         \
        size_t R, const float *a, size_t step, size_t segments, size_t segment, size_t length, const float *b,         \
        size_t ldb, const float *bias, float *c, size_t ldc, int relu) {                                               \
        enum { N = N_ };                                                                                               \
        switch (R) { EVERY(MULTIPLY) }                                                                                 \
    }                                                                                                                  \
    static __attribute__((noinline)) void NAME(slope_##N_)(                                                            \
        size_t R, const float *a, const Plane *in, const float *g, const Plane *out, const Shape *shape, size_t rows,  \
        float *w, const float *anchor, size_t ldw, float rate, float mu) {                                             \
        enum { N = N_ };                                                                                               \
        switch (R) { EVERY(SLOPE) }                                                                                    \
    }
MULTIPLY_OF(1)
MULTIPLY_OF(2)

/* `rows` rows of `columns` (whole vectors): tiles of about the same size, as high as registers allow. */
INLINE void NAME(multiply)(size_t rows, size_t columns, const float *a, size_t step, size_t segments, size_t segment,
                           size_t length, const float *b, size_t ldb, const float *bias, float *c, size_t ldc, int relu) {
    size_t tiles = (rows + MOST - 1) / MOST;
    for (size_t n = 0; n < columns; n += 2 * LANES)
        for (size_t tile = 0; tile < tiles; tile++) {
            size_t from = rows * tile / tiles, to = rows * (tile + 1) / tiles;
            const float *own = (const float *)((const char *)a + from * step), *shift = bias != NULL ? bias + n : NULL;
            if (columns - n > LANES)
                NAME(multiply_2)(to - from, own, step, segments, segment, length, b + n, ldb, shift, c + from * ldc + n, ldc, relu);
            else
                NAME(multiply_1)(to - from, own, step, segments, segment, length, b + n, ldb, shift, c + from * ldc + n, ldc, relu);
        }
}

static void NAME(apply_activation)(int64_t activation, const Plane *plane, size_t rows) {
    for (size_t row = 0; row < rows; row++)
        for (size_t y = 0; y < plane->h; y++)
            for (size_t x = 0; x < plane->w; x++) {
                float *value = at(plane, row, y, x);
                for (size_t c = 0; c < plane->c; c++)
                    value[c] = activation == TANH ? tanhf(value[c]) : 1.0f / (1.0f + expf(-value[c]));
            }
}

static void NAME(dense_forward)(const Layer *layer, size_t rows) {
    const Plane *in = &layer->value, *out = &layer[1].value;
    int64_t activation = layer->shape.activation;
    size_t out_step = out->frame_h * out->frame_w * out->ld;
    NAME(multiply)(rows, out->ld, in->data, in->ld * sizeof(float), 1, 0, in->c, layer->weights, out->ld, layer->bias,
                   at(out, 0, 0, 0), out_step, activation == RELU);
    if (activation > RELU)
        NAME(apply_activation)(activation, out, rows);
}

static void NAME(convolution_forward)(const Layer *layer, size_t rows) {
    const Plane *in = &layer->value, *out = &layer[1].value;
    const Shape *shape = &layer->shape;
    size_t line = in->frame_w * in->ld;
    for (size_t row = 0; row < rows; row++)
        for (size_t y = 0; y < out->h; y++) {
            const float *from = in->data + (row * in->frame_h + y * (size_t)shape->stride_y) * line;
            NAME(multiply)(out->w, out->ld, from, (size_t)shape->stride_x * in->ld * sizeof(float), (size_t)shape->kernel_h,
                           line * sizeof(float), (size_t)shape->kernel_w * in->ld, layer->weights, out->ld, layer->bias,
                           at(out, row, y, 0), out->ld, shape->activation == RELU);
        }
    if (shape->activation > RELU)
        NAME(apply_activation)(shape->activation, out, rows);
}

/* The gradient behind the activation from that after it, and its sums over all pixels, the bias's gradient. */
static void NAME(activation_backward)(const Layer *layer, size_t rows) {
    const Plane *value = &layer[1].value, *gradient = &layer[1].gradient;
    float *sums = layer->bias_sums;
    int64_t activation = layer->shape.activation;
    memset(sums, 0, gradient->ld * sizeof(float));
    for (size_t row = 0; row < rows; row++)
        for (size_t y = 0; y < value->h; y++) {
            const float *own = at(value, row, y, 0);
            float *slope = at(gradient, row, y, 0);
            for (size_t x = 0; x < value->w; x++, own += value->ld, slope += gradient->step_x * gradient->ld)
                for (size_t c = 0; c < value->ld; c += LANES) {
                    Vector before = load(slope + c), after = load(own + c);
                    if (activation == RELU)
                        before = where(after > 0.0f, before);
                    else if (activation == SIGMOID)
                        before = before * after * (1.0f - after);
                    else if (activation == TANH)
                        before = before * (1.0f - after * after);
                    store(slope + c, before);
                    store(sums + c, load(sums + c) + before);
                }
        }
}

static void NAME(step_bias)(const Layer *layer, float rate, float mu) {
    for (size_t c = 0; layer->shape.biased && c < layer[1].value.c; c++) {
        float slope = layer->bias_sums[c] + mu * (layer->bias[c] - layer->bias_anchor[c]);
        layer->bias[c] -= rate * slope;
    }
}

/* Two rows of a dense kernel, of up to MOST * 2 / 3 examples: the input's gradient by them, then their own step. */
INLINE void NAME(dense_tile)(const int M, const int K, int inner, const float *g, size_t ldg, const float *x, size_t ldx,
                             float *w, const float *anchor, size_t ldw, float *gx, size_t ldgx, int phase, float rate, float mu) {
    if (phase == 0) {
        if (!inner)
            return;
        Vector sums[10][2];
#pragma GCC unroll 10
        for (int i = 0; i < M; i++)
            sums[i][0] = sums[i][1] = (Vector){0.0f};
        for (size_t n = 0; n < ldw; n += LANES) {
            Vector first = load(w + n), second = K > 1 ? load(w + ldw + n) : first;
#pragma GCC unroll 10
            for (int i = 0; i < M; i++) {
                Vector slope = load(g + i * ldg + n);
                sums[i][0] += slope * first;
                if (K > 1)
                    sums[i][1] += slope * second;
            }
        }
#pragma GCC unroll 10
        for (int i = 0; i < M; i++)
            for (int k = 0; k < K; k++)
                gx[i * ldgx + k] = NAME(sum)(sums[i][k]);
        return;
    }
    Vector given[10][2];
#pragma GCC unroll 10
    for (int i = 0; i < M; i++)
        for (int k = 0; k < K; k++)
            given[i][k] = x[i * ldx + k] - (Vector){0.0f};
    for (size_t n = 0; n < ldw; n += LANES) {
        Vector first = {0.0f}, second = {0.0f};
#pragma GCC unroll 10
        for (int i = 0; i < M; i++) {
            Vector slope = load(g + i * ldg + n);
            first += slope * given[i][0];
            if (K > 1)
                second += slope * given[i][1];
        }
        __builtin_prefetch(w + 2 * ldw + n, 1); /* the next rows: they lie in the second cache at best */
        __builtin_prefetch(w + 3 * ldw + n, 1);
        Vector before = load(w + n);
        if (mu != 0.0f && phase == 1)
            first += mu * (before - load(anchor + n));
        store(w + n, before - rate * first);
        if (K > 1) {
            before = load(w + ldw + n);
            if (mu != 0.0f && phase == 1)
                second += mu * (before - load(anchor + ldw + n));
            store(w + ldw + n, before - rate * second);
        }
    }
}

#if LANES == 16
#define EXAMPLES 10
#define EVERY_EXAMPLES(TILE) TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6) TILE(7) TILE(8) TILE(9) TILE(10)
#else
#define EXAMPLES 5
#define EVERY_EXAMPLES(TILE) TILE(1) TILE(2) TILE(3) TILE(4) TILE(5)
#endif
#define DENSE_TILE(M)                                                                                                  \
    case M:                                                                                                            \
        for (size_t k = from; k + 1 < to; k += 2)                                                                      \
            NAME(dense_tile)(M, 2, inner, g, ldg, x + k, ldx, w + k * ldw, anchor + k * ldw, ldw, gx + k, ldgx, phase, rate, mu); \
        if ((to - from) % 2)                                                                                           \
            NAME(dense_tile)(M, 1, inner, g, ldg, x + to - 1, ldx, w + (to - 1) * ldw, anchor + (to - 1) * ldw, ldw, gx + to - 1, ldgx, phase, rate, mu); \
        break;

static __attribute__((noinline)) void NAME(dense_rows)(size_t M, size_t from, size_t to, int inner, const float *g, size_t ldg,
                                                       const float *x, size_t ldx, float *w, const float *anchor, size_t ldw,
                                                       float *gx, size_t ldgx, int phase, float rate, float mu) {
    switch (M) { EVERY_EXAMPLES(DENSE_TILE) }
}

/* A few rows of the kernel at a time: they come from memory once, for the input's gradient and for their own step. */
static void NAME(dense_backward)(const Layer *layer, size_t rows, float rate, float mu) {
    const Plane *in = &layer->value, *out = &layer[1].gradient;
    size_t ldw = out->ld, block = 2 * largest(1, 2048 / ldw), ldg = out->frame_h * out->frame_w * out->ld;
    const float *g = at(out, 0, 0, 0);
    float *gx = layer->inner ? layer->gradient.data : NULL;
    size_t tiles = (rows + EXAMPLES - 1) / EXAMPLES;
    for (size_t from = 0; from < in->c; from += block) {
        size_t to = from + block < in->c ? from + block : in->c;
        for (int pass = 0; pass < 2; pass++)
            for (size_t tile = 0; tile < tiles; tile++) {
                size_t first = rows * tile / tiles, last = rows * (tile + 1) / tiles;
                int phase = pass == 0 ? 0 : tile == 0 ? 1 : 2;
                if (phase == 0 && gx == NULL)
                    continue;
                NAME(dense_rows)(last - first, from, to, layer->inner, g + first * ldg, ldg, in->data + first * in->ld, in->ld,
                                 layer->weights, layer->anchor, ldw, gx + first * layer->gradient.ld, layer->gradient.ld,
                                 phase, rate, mu);
            }
    }
}

static void NAME(convolution_backward)(const Layer *layer, size_t rows, float rate, float mu) {
    const Plane *in = &layer->value, *out = &layer[1].gradient;
    const Shape *shape = &layer->shape;
    size_t high = (size_t)shape->kernel_h, wide = (size_t)shape->kernel_w;
    if (layer->inner) {
        const Plane *to = &layer->gradient;
        size_t ldf = up(in->ld, LANES);
        for (size_t y = 0; y < high; y++)
            for (size_t x = 0; x < wide; x++) {
                const float *from = layer->weights + (y * wide + x) * in->ld * out->ld;
                float *flipped = layer->flipped + ((high - 1 - y) * wide + wide - 1 - x) * out->ld * ldf;
                for (size_t o = 0; o < out->c; o++)
                    for (size_t i = 0; i < in->c; i++)
                        flipped[o * ldf + i] = from[i * out->ld + o];
            }
        size_t line = out->frame_w * out->ld;
        for (size_t row = 0; row < rows; row++)
            for (size_t y = 0; y < to->h; y++)
                NAME(multiply)(to->w, ldf, out->data + (row * out->frame_h + y) * line, out->ld * sizeof(float), high,
                               line * sizeof(float), wide * out->ld, layer->flipped, ldf, NULL, at(to, row, y, 0),
                               to->step_x * to->ld, 0);
    }
    size_t length = wide * in->ld, tiles = (length + MOST - 1) / MOST;
    const float *g = at(out, 0, 0, 0);
    for (size_t n = 0; n < out->ld; n += 2 * LANES)
        for (size_t y = 0; y < high; y++)
            for (size_t tile = 0; tile < tiles; tile++) {
                size_t from = length * tile / tiles, to = length * (tile + 1) / tiles;
                const float *a = in->data + y * in->frame_w * in->ld + from;
                size_t place = (y * length + from) * out->ld + n;
                if (out->ld - n > LANES)
                    NAME(slope_2)(to - from, a, in, g + n, out, shape, rows, layer->weights + place, layer->anchor + place,
                                  out->ld, rate, mu);
                else
                    NAME(slope_1)(to - from, a, in, g + n, out, shape, rows, layer->weights + place, layer->anchor + place,
                                  out->ld, rate, mu);
            }
}

static void NAME(clear)(const Plane *plane, size_t rows) {
    for (size_t row = 0; row < rows; row++)
        for (size_t y = 0; y < plane->h; y++)
            for (size_t x = 0; x < plane->w; x++)
                memset(at(plane, row, y, x), 0, plane->ld * sizeof(float));
}

/* One window of a pooling: the pixels of it that are in the picture. */
#define WINDOW(body)                                                                                                   \
    for (size_t dy = 0; dy < (size_t)shape->kernel_h; dy++)                                                            \
        for (size_t dx = 0; dx < (size_t)shape->kernel_w; dx++) {                                                      \
            size_t iy = y * (size_t)shape->stride_y + dy - (size_t)shape->pad_top;                                     \
            size_t ix = x * (size_t)shape->stride_x + dx - (size_t)shape->pad_left;                                    \
            if (iy < in->h && ix < in->w) {                                                                            \
                body                                                                                                   \
            }                                                                                                          \
        }

static void NAME(pooling_forward)(const Layer *layer, size_t rows) {
    const Plane *in = &layer->value, *out = &layer[1].value;
    const Shape *shape = &layer->shape;
    int most = shape->kind == MAX_POOLING;
    for (size_t row = 0; row < rows; row++)
        for (size_t y = 0; y < out->h; y++)
            for (size_t x = 0; x < out->w; x++) {
                float *to = at(out, row, y, x), count = 0.0f;
                for (size_t c = 0; c < out->ld; c += LANES) {
                    Vector value = (Vector){0.0f} + (most ? -INFINITY : 0.0f);
                    count = 0.0f;
                    WINDOW({
                        Vector own = load(at(in, row, iy, ix) + c);
                        Mask larger = own > value;
                        if (most)
                            value = where(larger, own) + where(~larger, value);
                        else
                            value += own;
                        count += 1.0f;
                    })
                    if (!most)
                        value /= count;
                    store(to + c, value);
                }
                for (size_t c = out->c; c < out->ld; c++)
                    to[c] = 0.0f; /* pixels that came without padding were read on into their neighbours */
            }
}

/* The largest pixel of a window gets its gradient, the first of equals; the pixels of an average share it. */
static void NAME(pooling_backward)(const Layer *layer, size_t rows) {
    const Plane *in = &layer->value, *out = &layer[1].value, *from = &layer[1].gradient, *gradient = &layer->gradient;
    const Shape *shape = &layer->shape;
    NAME(clear)(gradient, rows);
    for (size_t row = 0; row < rows; row++)
        for (size_t y = 0; y < out->h; y++)
            for (size_t x = 0; x < out->w; x++) {
                float count = 0.0f;
                WINDOW({ count += 1.0f; })
                for (size_t c = 0; c < out->ld; c += LANES) {
                    Vector value = load(at(out, row, y, x) + c), slope = load(at(from, row, y, x) + c);
                    Mask left = ~(Mask){0};
                    WINDOW({
                        float *to = at(gradient, row, iy, ix) + c;
                        if (shape->kind == MAX_POOLING) {
                            Mask here = (load(at(in, row, iy, ix) + c) == value) & left;
                            store(to, load(to) + where(here, slope));
                            left &= ~here;
                        } else
                            store(to, load(to) + slope / count);
                    })
                }
            }
}

/* The same numbers in their order, in another picture. */
static void NAME(reshape)(const Plane *in, const Plane *out, size_t rows) {
    for (size_t row = 0; row < rows; row++) {
        size_t y = 0, x = 0, c = 0;
        float *to = at(out, row, 0, 0);
        for (size_t iy = 0; iy < in->h; iy++)
            for (size_t ix = 0; ix < in->w; ix++) {
                const float *from = at(in, row, iy, ix);
                if (out->h * out->w == 1) {
                    memcpy(to + c, from, in->c * sizeof(float));
                    c += in->c;
                    continue;
                }
                for (size_t ic = 0; ic < in->c; ic++) {
                    at(out, row, y, x)[c] = from[ic];
                    if (++c == out->c) {
                        c = 0;
                        if (++x == out->w) {
                            x = 0;
                            y++;
                        }
                    }
                }
            }
    }
}

/* Softmax and cross entropy of the logits, and their gradient: the mean over the rows. */
static void NAME(loss)(const Net *net, const int64_t *order, const Course *course, size_t rows) {
    const Layer *last = &net->layers[net->count];
    double loss = 0.0;
    for (size_t row = 0; row < rows; row++) {
        const float *logits = at(&last->value, row, 0, 0);
        float *slopes = at(&last->gradient, row, 0, 0);
        size_t count = last->value.c, best = 0;
        for (size_t c = 1; c < count; c++)
            if (logits[c] > logits[best])
                best = c;
        float total = 0.0f;
        for (size_t c = 0; c < count; c++)
            total += slopes[c] = expf(logits[c] - logits[best]);
        size_t right = (size_t)course->y[order[row]];
        for (size_t c = 0; c < count; c++)
            slopes[c] = right < count ? (slopes[c] / total - (c == right ? 1.0f : 0.0f)) / (float)rows : NAN;
        loss += right < count ? logf(total) - (logits[right] - logits[best]) : NAN;
        course->sums[2] += best == right;
    }
    course->sums[0] += loss;
    course->sums[1] += (double)rows;
}

static void NAME(take)(const Net *net, const Course *course, const int64_t *order, size_t rows) {
    const Plane *in = &net->layers[0].value;
    size_t size = in->w * in->c;
    for (size_t row = 0; row < rows; row++)
        for (size_t y = 0; y < in->h; y++)
            memcpy(at(in, row, y, 0), course->x + ((size_t)order[row] * in->h + y) * size, size * sizeof(float));
}

static void NAME(step)(Net *net, const Course *course, const int64_t *order, size_t rows) {
    NAME(take)(net, course, order, rows);
    for (int64_t i = 0; i < net->count; i++) {
        Layer *layer = &net->layers[i];
        switch (layer->shape.kind) {
        case DENSE:
            NAME(dense_forward)(layer, rows);
            break;
        case CONVOLUTION:
            NAME(convolution_forward)(layer, rows);
            break;
        case RESHAPE:
            NAME(reshape)(&layer->value, &layer[1].value, rows);
            break;
        default:
            NAME(pooling_forward)(layer, rows);
        }
    }
    NAME(loss)(net, order, course, rows);
    for (int64_t i = net->count - 1; i >= 0; i--) {
        Layer *layer = &net->layers[i];
        switch (layer->shape.kind) {
        case DENSE:
            NAME(activation_backward)(layer, rows);
            NAME(dense_backward)(layer, rows, course->rate, course->mu);
            NAME(step_bias)(layer, course->rate, course->mu);
            break;
        case CONVOLUTION:
            NAME(activation_backward)(layer, rows);
            NAME(convolution_backward)(layer, rows, course->rate, course->mu);
            NAME(step_bias)(layer, course->rate, course->mu);
            break;
        case RESHAPE:
            if (layer->inner)
                NAME(reshape)(&layer[1].gradient, &layer->gradient, rows);
            break;
        default:
            if (layer->inner)
                NAME(pooling_backward)(layer, rows);
        }
    }
}

/* to = after - before; returns the sum of its squares. */
static double NAME(difference)(float *restrict to, const float *after, const float *before, size_t size) {
    double squares = 0.0;
#pragma omp simd reduction(+ : squares)
    for (size_t c = 0; c < size; c++) {
        float own = after[c] - before[c];
        to[c] = own;
        squares += (double)own * own;
    }
    return squares;
}

/* Weights as Keras keeps them, to and from the padded ones. */
static void NAME(weights)(const Net *net, const Course *course, int back) {
    size_t number = 0;
    double squares = 0.0;
    for (int64_t i = 0; i < net->count; i++) {
        const Layer *layer = &net->layers[i];
        if (layer->shape.kind != DENSE && layer->shape.kind != CONVOLUTION)
            continue;
        size_t taps = (size_t)(layer->shape.kernel_h * layer->shape.kernel_w), in = layer->value.c, out = layer[1].value.c;
        size_t ldi = layer->value.ld, ldo = layer[1].value.ld;
        const float *base = course->base[number], *bias = course->base[number + 1];
        for (size_t tap = 0; tap < taps; tap++)
            for (size_t k = 0; k < in; k++) {
                const float *from = base + (tap * in + k) * out;
                float *own = layer->weights + (tap * ldi + k) * ldo, *anchor = layer->anchor + (tap * ldi + k) * ldo;
                if (back)
                    squares += NAME(difference)(course->delta[number] + (tap * in + k) * out, own, from, out);
                else {
                    memcpy(own, from, out * sizeof(float));
                    if (course->mu != 0.0f)
                        memcpy(anchor, from, out * sizeof(float));
                }
            }
        if (layer->shape.biased && back)
            squares += NAME(difference)(course->delta[number + 1], layer->bias, bias, out);
        else if (layer->shape.biased) {
            memcpy(layer->bias, bias, out * sizeof(float));
            memcpy(layer->bias_anchor, bias, out * sizeof(float));
        }
        number += 2;
    }
    course->sums[3] = squares;
}

static void NAME(train)(Net *net, const Course *course) {
    NAME(weights)(net, course, 0);
    int64_t steps = 0, epochs = course->epochs;
    const int64_t *order = course->order;
    for (int64_t epoch = 0; epoch < epochs; epoch++, order += course->count)
        for (int64_t first = 0; first < course->count; first += net->batch) {
            int64_t rows = course->count - first < net->batch ? course->count - first : net->batch;
            NAME(step)(net, course, order + first, (size_t)rows);
            if (++steps == course->most_steps) {
                epoch = epochs;
                break;
            }
        }
    NAME(weights)(net, course, 1);
    if (!isfinite(course->sums[0]) || !isfinite(course->sums[3]))
        forget(net);
}

#undef load
#undef store
#undef where
#undef Vector
#undef Mask
#undef INLINE
#undef EVERY
#undef TILE_WIDE
#undef MULTIPLY
#undef SLOPE
#undef MULTIPLY_OF
#undef EXAMPLES
#undef EVERY_EXAMPLES
#undef DENSE_TILE
#undef WINDOW
