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
