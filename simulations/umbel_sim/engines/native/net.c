/* A device's whole training in one call: forward, backward and SGD of a chain of layers; `layers.py` says of which.

   `tiles.h`, `layers.h` and `training.h` are compiled here for each width of vectors that the machine may have. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { DENSE, CONVOLUTION, MAX_POOLING, AVERAGE_POOLING, RESHAPE };
enum { LINEAR, RELU, SIGMOID, TANH };

/* As Python describes a layer: int64 each, in this order. */
typedef struct {
    int64_t kind, activation, in_h, in_w, in_c, out_h, out_w, out_c, kernel_h, kernel_w, stride_y, stride_x, pad_top, pad_left, biased;
} Shape;

/* Rows of images: `h` by `w` pixels of `c` channels, `step` apart in a padded frame of `frame_h` by `frame_w`, whose pixels
   are `ld` floats. A vector is an image of one pixel. What is not a pixel stays 0. */
typedef struct {
    size_t h, w, c, ld, frame_h, frame_w, top, left, step_y, step_x;
    float *data;
} Plane;

typedef struct {
    Shape shape;
    Plane value, gradient;                  /* what comes in, and the loss's gradient with respect to it */
    float *weights, *flipped, *anchor;      /* [kernel_h][kernel_w * in.ld][out.ld]; for the input's gradient; FedProx's */
    float *bias, *bias_anchor, *bias_sums;  /* [out.ld] */
    int inner;                              /* whether a layer with weights comes before it */
} Layer;

struct Course;

typedef struct Net {
    int64_t count, batch;
    Layer *layers;           /* [count + 1]: of the last one there are only the planes */
    float *losses;           /* [batch] */
    void (*train)(struct Net *, const struct Course *);
    size_t lanes;
} Net;

/* What a device does: `order` are rows of `x` and `y`, `count` of them an epoch; `base` and `delta` are kernel and bias of each
   layer that has weights, as Keras keeps them. `sums` becomes the sums of the loss, of rows, of right answers, and of the
   delta's squares. */
typedef struct Course {
    const float *const *base;
    float *const *delta;
    const float *x;
    const int32_t *y;
    const int64_t *order;
    int64_t count, epochs, most_steps;
    float rate, mu;
    double *sums;
} Course;

static size_t up(size_t number, size_t to) { return (number + to - 1) / to * to; }

static size_t floats_of(const Plane *plane, int64_t batch) {
    return (size_t)batch * plane->frame_h * plane->frame_w * plane->ld;
}

static inline float *at(const Plane *plane, size_t row, size_t y, size_t x) {
    size_t line = row * plane->frame_h + plane->top + y * plane->step_y;
    return plane->data + (line * plane->frame_w + plane->left + x * plane->step_x) * plane->ld;
}

static size_t largest(size_t a, size_t b) { return a > b ? a : b; }

static float *zeros(size_t floats) {
    size_t bytes = up(floats * sizeof(float) + 64, 64); /* kernels may load a vector from the last float on */
    float *made = aligned_alloc(64, bytes);
    if (made != NULL)
        memset(made, 0, bytes);
    return made;
}

static size_t weights_of(const Layer *layer) {
    const Shape *shape = &layer->shape;
    return (size_t)shape->kernel_h * (size_t)shape->kernel_w * layer->value.ld * layer[1].value.ld;
}

static void clear(float *floats, size_t count) {
    if (floats != NULL)
        memset(floats, 0, count * sizeof(float));
}

static size_t flipped_of(const Layer *layer, size_t lanes) {
    return (size_t)(layer->shape.kernel_h * layer->shape.kernel_w) * layer[1].value.ld * up(layer->value.ld, lanes);
}

/* Make it as new: what is no number has got to where zeros belong, and would be the next device's too. */
static void forget(const Net *net) {
    for (int64_t i = 0; i <= net->count; i++) {
        const Layer *layer = &net->layers[i];
        clear(layer->value.data, floats_of(&layer->value, net->batch));
        clear(layer->gradient.data, floats_of(&layer->gradient, net->batch));
        if (layer->weights == NULL)
            continue;
        size_t out = layer[1].value.ld;
        clear(layer->weights, weights_of(layer));
        clear(layer->anchor, weights_of(layer));
        clear(layer->flipped, flipped_of(layer, net->lanes));
        clear(layer->bias, out);
        clear(layer->bias_anchor, out);
        clear(layer->bias_sums, out);
    }
}

#if defined(UMBEL_WIDE) && defined(__x86_64__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")
#define LANES 16
#define MOST 14
#define NAME(name) name##_16
#include "tiles.h"
#include "layers.h"
#include "training.h"
#undef LANES
#undef MOST
#undef NAME
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define LANES 8
#define MOST 6
#define NAME(name) name##_8
#include "tiles.h"
#include "layers.h"
#include "training.h"
#undef LANES
#undef MOST
#undef NAME
#pragma GCC pop_options
#define WIDER
#endif
#define LANES 4
#define MOST 6
#define NAME(name) name##_4
#include "tiles.h"
#include "layers.h"
#include "training.h"

static void choose(Net *net, int64_t widest) {
    net->train = train_4;
    net->lanes = 4;
#ifdef WIDER
    __builtin_cpu_init();
    if (widest >= 16 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw")) {
        net->train = train_16;
        net->lanes = 16;
    } else if (widest >= 8 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        net->train = train_8;
        net->lanes = 8;
    }
#else
    (void)widest;
#endif
}

/* The plane of what a layer takes in: `value` with the border that its convolution looks at. */
static void frame_value(Plane *plane, const Shape *shape) {
    plane->frame_h = plane->h;
    plane->frame_w = plane->w;
    if (shape != NULL && shape->kind == CONVOLUTION) {
        plane->top = (size_t)shape->pad_top;
        plane->left = (size_t)shape->pad_left;
        plane->frame_h = largest(plane->top + plane->h, (size_t)((shape->out_h - 1) * shape->stride_y + shape->kernel_h));
        plane->frame_w = largest(plane->left + plane->w, (size_t)((shape->out_w - 1) * shape->stride_x + shape->kernel_w));
    }
}

/* The plane of the gradient of what a layer gives out: a convolution's is looked at from every pixel that came in. */
static void frame_gradient(Plane *plane, const Shape *before) {
    plane->frame_h = plane->h;
    plane->frame_w = plane->w;
    if (before->kind == CONVOLUTION) {
        plane->step_y = (size_t)before->stride_y;
        plane->step_x = (size_t)before->stride_x;
        plane->top = (size_t)(before->kernel_h - 1 - before->pad_top);
        plane->left = (size_t)(before->kernel_w - 1 - before->pad_left);
        plane->frame_h = largest(plane->top + (plane->h - 1) * plane->step_y + 1, (size_t)(before->in_h + before->kernel_h - 1));
        plane->frame_w = largest(plane->left + (plane->w - 1) * plane->step_x + 1, (size_t)(before->in_w + before->kernel_w - 1));
    }
}

void umbel_net_free(Net *net) {
    if (net == NULL)
        return;
    for (int64_t i = 0; net->layers != NULL && i <= net->count; i++) {
        Layer *layer = &net->layers[i];
        float *owned[] = {layer->value.data, layer->gradient.data, layer->weights,     layer->flipped,
                          layer->anchor,     layer->bias,          layer->bias_anchor, layer->bias_sums};
        for (size_t j = 0; j < sizeof owned / sizeof *owned; j++)
            free(owned[j]);
    }
    free(net->layers);
    free(net->losses);
    free(net);
}

/* A net for batches of up to `batch` rows in vectors of at most `widest` floats; NULL when there is no memory for it. */
Net *umbel_net_new(const Shape *shapes, int64_t count, int64_t batch, int64_t widest) {
    Net *net = calloc(1, sizeof(Net));
    if (net == NULL)
        return NULL;
    choose(net, widest);
    net->count = count;
    net->batch = batch;
    net->layers = calloc((size_t)count + 1, sizeof(Layer));
    net->losses = zeros((size_t)batch);
    if (net->layers == NULL || net->losses == NULL)
        goto failed;
    int inner = 0;
    for (int64_t i = 0; i <= count; i++) {
        Layer *layer = &net->layers[i];
        const Shape *before = i ? &shapes[i - 1] : NULL, *shape = i < count ? &shapes[i] : NULL;
        Plane *value = &layer->value;
        value->h = (size_t)(shape ? shape->in_h : before->out_h);
        value->w = (size_t)(shape ? shape->in_w : before->out_w);
        value->c = (size_t)(shape ? shape->in_c : before->out_c);
        value->step_y = value->step_x = 1;
        int vectors = before != NULL && !(before->kind == RESHAPE && value->h * value->w == 1);
        value->ld = vectors ? up(value->c, net->lanes) : value->c;
        layer->inner = inner;
        layer->gradient = *value;
        frame_value(value, shape);
        value->data = zeros(floats_of(value, batch));
        if (value->data == NULL)
            goto failed;
        if (inner) {
            frame_gradient(&layer->gradient, before);
            layer->gradient.data = zeros(floats_of(&layer->gradient, batch));
            if (layer->gradient.data == NULL)
                goto failed;
        }
        if (shape != NULL) {
            layer->shape = *shape;
            inner |= shape->kind == DENSE || shape->kind == CONVOLUTION;
        }
    }
    for (int64_t i = 0; i < count; i++) {
        Layer *layer = &net->layers[i];
        if (layer->shape.kind != DENSE && layer->shape.kind != CONVOLUTION)
            continue;
        size_t size = weights_of(layer), out = layer[1].value.ld;
        layer->weights = zeros(size);
        layer->anchor = zeros(size);
        layer->bias = zeros(out);
        layer->bias_anchor = zeros(out);
        layer->bias_sums = zeros(out);
        if (!layer->weights || !layer->anchor || !layer->bias || !layer->bias_anchor || !layer->bias_sums)
            goto failed;
        if (layer->shape.kind == CONVOLUTION && layer->inner) {
            layer->flipped = zeros(flipped_of(layer, net->lanes));
            if (layer->flipped == NULL)
                goto failed;
        }
    }
    return net;
failed:
    umbel_net_free(net);
    return NULL;
}

void umbel_net_train(Net *net, const Course *course) { net->train(net, course); }
