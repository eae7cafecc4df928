/* A device's training: batches, the loss, and weights as Keras keeps them. Ends what the three headers defined. */

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
