/* The passes over float32 updates in which a round's aggregation spends its time; `passes.py` says what they are for. */

#include <math.h>
#include <pthread.h>
#include <stddef.h>

/* The oldest names of these functions, which newer C libraries keep: a library compiled here loads with glibc 2.27 and later. */
#if defined(__GLIBC__) && defined(__x86_64__)
__asm__(".symver pthread_create, pthread_create@GLIBC_2.2.5");
__asm__(".symver pthread_join, pthread_join@GLIBC_2.2.5");
#elif defined(__GLIBC__) && defined(__aarch64__)
__asm__(".symver pthread_create, pthread_create@GLIBC_2.17");
__asm__(".symver pthread_join, pthread_join@GLIBC_2.17");
#endif

#ifdef UMBEL_WIDE
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

#define ROWS 8
#define LANES 64
#define RUN 8
#define TINY 0x1p-90

typedef struct {
    size_t size;
    const float *values;
    double sum;
} Squares;

/* Sums of their own for LANES neighbours, so that no addition waits for the one before; their order is fixed. */
CLONES static double sum_wide(const float *values, size_t size) {
    double lanes[LANES] = {0.0}, sum = 0.0;
    size_t whole = size - size % LANES;
    for (size_t i = 0; i < whole; i += LANES)
        for (size_t lane = 0; lane < LANES; lane++) {
            double value = values[i + lane];
            lanes[lane] += value * value;
        }
    for (size_t i = whole; i < size; i++) {
        double value = values[i];
        lanes[i - whole] += value * value;
    }
    for (size_t lane = 0; lane < LANES; lane++)
        sum += lanes[lane];
    return sum;
}

/* The same in float32, RUN squares a sum, where that neither overflows nor loses small ones: half as many instructions. */
CLONES static double sum_narrow(const float *values, size_t size) {
    double sums[LANES] = {0.0}, sum = 0.0;
    for (size_t start = 0; start < size; start += RUN * LANES) {
        float lanes[LANES] = {0.0f};
        for (size_t i = start; i < start + RUN * LANES; i += LANES)
            for (size_t lane = 0; lane < LANES; lane++)
                lanes[lane] += values[i + lane] * values[i + lane];
        for (size_t lane = 0; lane < LANES; lane++)
            sums[lane] += lanes[lane];
    }
    for (size_t lane = 0; lane < LANES; lane++)
        sum += sums[lane];
    return sum;
}

static void sum_squares(Squares *task) {
    size_t whole = task->size - task->size % (RUN * LANES);
    double sum = sum_narrow(task->values, whole);
    if (!(sum > TINY && sum < INFINITY))
        sum = sum_wide(task->values, whole);
    task->sum = sum + sum_wide(task->values + whole, task->size - whole);
}

typedef struct {
    size_t start, stop, block, blocks;
    const float *const *rows;
    const double *weights;
    double *sums, *squares, *lost;
} Fold;

/* What rounding takes from a + b (Knuth, The Art of Computer Programming 2, 4.2.2). */
static inline double loss(double a, double b, double sum) {
    double kept = sum - a;
    return __builtin_fabs((a - (sum - kept)) + (b - kept));
}

/* Eight updates at a time: from memory come the sums once for all of them. */
CLONES static void fold_blocks(Fold *task) {
    const float *a = task->rows[0], *b = task->rows[1], *c = task->rows[2], *d = task->rows[3];
    const float *e = task->rows[4], *f = task->rows[5], *g = task->rows[6], *h = task->rows[7];
    double wa = task->weights[0], wb = task->weights[1], wc = task->weights[2], wd = task->weights[3];
    double we = task->weights[4], wf = task->weights[5], wg = task->weights[6], wh = task->weights[7];
    double *sums = task->sums;
    for (size_t start = task->start; start < task->stop; start += task->block) {
        size_t stop = start + task->block < task->stop ? start + task->block : task->stop;
        double qa = 0.0, qb = 0.0, qc = 0.0, qd = 0.0, qe = 0.0, qf = 0.0, qg = 0.0, qh = 0.0, lost = 0.0;
#pragma omp simd reduction(+ : qa, qb, qc, qd, qe, qf, qg, qh, lost)
        for (size_t i = start; i < stop; i++) {
            double va = a[i], vb = b[i], vc = c[i], vd = d[i], ve = e[i], vf = f[i], vg = g[i], vh = h[i];
            double pa = wa * va, pb = wb * vb, pc = wc * vc, pd = wd * vd;
            double pe = we * ve, pf = wf * vf, pg = wg * vg, ph = wh * vh;
            double ab = pa + pb, cd = pc + pd, ef = pe + pf, gh = pg + ph;
            double low = ab + cd, high = ef + gh, group = low + high, before = sums[i], sum = before + group;
            sums[i] = sum;
            lost += ((loss(pa, pb, ab) + loss(pc, pd, cd)) + (loss(pe, pf, ef) + loss(pg, ph, gh))) +
                    ((loss(ab, cd, low) + loss(ef, gh, high)) + (loss(low, high, group) + loss(before, group, sum)));
            qa += va * va;
            qb += vb * vb;
            qc += vc * vc;
            qd += vd * vd;
            qe += ve * ve;
            qf += vf * vf;
            qg += vg * vg;
            qh += vh * vh;
        }
        double *squares = task->squares + start / task->block, all[ROWS] = {qa, qb, qc, qd, qe, qf, qg, qh};
        for (size_t row = 0; row < ROWS; row++)
            squares[row * task->blocks] = all[row];
        task->lost[start / task->block] = lost;
    }
}

static void *run_squares(void *task) {
    sum_squares(task);
    return NULL;
}

static void *run_fold(void *task) {
    fold_blocks(task);
    return NULL;
}

/* Run both halves, at once where a thread can be had: memory gives two readers more than one. */
static void both(void *(*run)(void *), void *first, void *second, int threads) {
    pthread_t thread;
    int beside = threads > 1 && pthread_create(&thread, NULL, run, second) == 0;
    run(first);
    if (beside)
        pthread_join(thread, NULL);
    else
        run(second);
}

double umbel_squares(size_t size, const float *values, int threads) {
    size_t half = size / 2 / LANES * LANES;
    Squares first = {half, values, 0.0}, second = {size - half, values + half, 0.0};
    both(run_squares, &first, &second, threads);
    return first.sum + second.sum;
}

void umbel_fold(size_t size, size_t block, const float *const *rows, const double *weights, double *sums,
                double *squares, double *lost, int threads) {
    size_t blocks = (size + block - 1) / block, half = blocks / 2 * block;
    Fold first = {0, half, block, blocks, rows, weights, sums, squares, lost};
    Fold second = {half, size, block, blocks, rows, weights, sums, squares, lost};
    both(run_fold, &first, &second, threads);
}
