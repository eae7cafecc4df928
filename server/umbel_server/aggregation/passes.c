/* The passes over float32 updates in which a round's aggregation spends its time; `passes.py` says what they are for. */

#include <pthread.h>
#include <stddef.h>

#ifdef UMBEL_WIDE
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

#define ROWS 4
#define LANES 64

typedef struct {
    size_t size;
    const float *values;
    double sum;
} Squares;

/* Sums of their own for LANES neighbours, so that no addition waits for the one before; their order is fixed. */
CLONES static void sum_squares(Squares *task) {
    double lanes[LANES] = {0.0}, sum = 0.0;
    size_t whole = task->size - task->size % LANES;
    for (size_t i = 0; i < whole; i += LANES)
        for (size_t lane = 0; lane < LANES; lane++) {
            double value = task->values[i + lane];
            lanes[lane] += value * value;
        }
    for (size_t i = whole; i < task->size; i++) {
        double value = task->values[i];
        lanes[i - whole] += value * value;
    }
    for (size_t lane = 0; lane < LANES; lane++)
        sum += lanes[lane];
    task->sum = sum;
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

CLONES static void fold_blocks(Fold *task) {
    const float *a = task->rows[0], *b = task->rows[1], *c = task->rows[2], *d = task->rows[3];
    double wa = task->weights[0], wb = task->weights[1], wc = task->weights[2], wd = task->weights[3];
    double *sums = task->sums;
    for (size_t start = task->start; start < task->stop; start += task->block) {
        size_t stop = start + task->block < task->stop ? start + task->block : task->stop;
        double qa = 0.0, qb = 0.0, qc = 0.0, qd = 0.0, lost = 0.0;
#pragma omp simd reduction(+ : qa, qb, qc, qd, lost)
        for (size_t i = start; i < stop; i++) {
            double va = a[i], vb = b[i], vc = c[i], vd = d[i];
            double pa = wa * va, pb = wb * vb, pc = wc * vc, pd = wd * vd;
            double low = pa + pb, high = pc + pd, group = low + high, before = sums[i], sum = before + group;
            sums[i] = sum;
            lost += (loss(pa, pb, low) + loss(pc, pd, high)) + (loss(low, high, group) + loss(before, group, sum));
            qa += va * va;
            qb += vb * vb;
            qc += vc * vc;
            qd += vd * vd;
        }
        double *squares = task->squares + start / task->block;
        squares[0] = qa;
        squares[task->blocks] = qb;
        squares[2 * task->blocks] = qc;
        squares[3 * task->blocks] = qd;
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
