/* Each kind of layer, forward and backward; a layer's weights take their step where their gradient is made. */

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
