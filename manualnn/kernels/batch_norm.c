/* Batch normalisation of images that lie by planes (N, C, S), to the last bit as ATen's kernels for the CPU.

   forward:   mu = Σ x / m;  var = Σ (x − mu)² / m;  rstd = 1 / √(var + ε), 0 of 0;  y = x scale + shift
   backward:  dbeta = Σ dy;  dgamma = rstd Σ dy (x − mu);  dx = rstd gamma (dy − mean(dy) − (x − mu) k)
   with m = N S, scale = rstd gamma, shift = beta − mu scale, k = rstd² Σ dy (x − mu) / m

   A sum depends on its order. ATen's forward adds the numbers of a channel one after the other, in double: here
   up to eight channels are added side by side, so that no addition waits for the one before it. Its backward adds
   eight partial sums of a plane in float, and the sums of the planes in double: so does this. Between two passes
   over the same channels they stay in the cache. */

#include <math.h>
#include <string.h>

#pragma GCC optimize("O3") /* the groups of channels below are unrolled before anything else */

typedef long long count;
typedef float eight __attribute__((vector_size(32)));
typedef int order __attribute__((vector_size(32)));
typedef float eight_anywhere __attribute__((vector_size(32), aligned(4)));

enum { GROUP = 8, LANES = 8 };

typedef struct {
    count examples, channels, places;
} shape;

static const float *plane(const float *t, shape s, count n, count c) { return t + (n * s.channels + c) * s.places; }

/* --- forward ------------------------------------------------------------------------------------------------- */

/* Those of GROUP channels from c on; beyond `some` the first one's once more. */
static void planes(const float *x, shape s, count n, count c, int some, const float **p)
{
    for (int j = 0; j < GROUP; j++)
        p[j] = plane(x, s, n, c + (j < some ? j : 0));
}

/* Σ x of each of GROUP channels from c on */
static void sums(const float *x, shape s, count c, int some, double *out)
{
    double sum[GROUP] = {0};
    for (count n = 0; n < s.examples; n++) {
        const float *p[GROUP];
        planes(x, s, n, c, some, p);
        for (count i = 0; i < s.places; i++)
            #pragma GCC unroll 8
            for (int j = 0; j < GROUP; j++)
                sum[j] += p[j][i];
    }
    memcpy(out, sum, sizeof sum);
}

/* Σ (x − mu)², as sums() */
static void squares(const float *x, shape s, count c, int some, const float *mu, double *out)
{
    double sum[GROUP] = {0};
    for (count n = 0; n < s.examples; n++) {
        const float *p[GROUP];
        planes(x, s, n, c, some, p);
        for (count i = 0; i < s.places; i++)
            #pragma GCC unroll 8
            for (int j = 0; j < GROUP; j++) {
                float d = p[j][i] - mu[j];
                sum[j] += d * d;
            }
    }
    memcpy(out, sum, sizeof sum);
}

/* tensors: y, mu, rstd, x, gamma, beta, running mean, running variance; the last four may be NULL. */
void batch_norm_forward(count N, count C, count S, int threads, double eps, double momentum, void **tensors)
{
    shape s = {N, C, S};
    float *y = tensors[0], *mu = tensors[1], *rstd = tensors[2], *mean = tensors[6], *var = tensors[7];
    const float *x = tensors[3], *gamma = tensors[4], *beta = tensors[5];
    const float part = momentum, rest = 1 - part;
    const count m = N * S;
    count group = C / threads < 1 ? 1 : C / threads < GROUP ? C / threads : GROUP;
    #pragma omp parallel for num_threads(threads) if(threads > 1) schedule(static)
    for (count c = 0; c < C; c += group) {
        int some = C - c < group ? C - c : group;
        double total[GROUP];
        float at[GROUP];
        sums(x, s, c, some, total);
        for (int j = 0; j < GROUP; j++)
            at[j] = total[j] / m;
        squares(x, s, c, some, at, total);
        for (int j = 0; j < some; j++) {
            float square = total[j];
            float variance = square / (float)m;
            rstd[c + j] = variance == 0 && eps == 0 ? 0 : 1 / sqrt(variance + eps);
            mu[c + j] = at[j];
            if (mean) {
                float kept = rest * mean[c + j];
                mean[c + j] = part * at[j] + kept;
            }
            if (var)
                var[c + j] = __builtin_fmaf(part, square / (float)(m - 1), rest * var[c + j]);
            float scale = rstd[c + j] * (gamma ? gamma[c + j] : 1);
            float shift = __builtin_fmaf(-at[j], scale, beta ? beta[c + j] : 0);
            for (count n = 0; n < N; n++) {
                const float *from = plane(x, s, n, c + j);
                float *to = (float *)plane(y, s, n, c + j);
                for (count i = 0; i < S; i++)
                    to[i] = __builtin_fmaf(from[i], scale, shift);
            }
        }
    }
}

/* --- backward ------------------------------------------------------------------------------------------------ */

static eight loaded(const float *p) { return *(const eight_anywhere *)p; }

/* The sum of the lanes: halves, then quarters, then neighbours. */
static float total(eight v)
{
    v += __builtin_shuffle(v, (order){4, 5, 6, 7, 0, 1, 2, 3});
    v += __builtin_shuffle(v, (order){2, 3, 0, 1, 6, 7, 4, 5});
    v += __builtin_shuffle(v, (order){1, 0, 3, 2, 5, 4, 7, 6});
    return v[0];
}

/* Σ dy and Σ dy (x − mu) of one plane. */
static void products(const float *x, const float *dy, count S, float mu, float *sum, float *dot)
{
    if (S < LANES) {
        float a = dy[0], b = (x[0] - mu) * dy[0];
        for (count i = 1; i < S; i++) {
            float product = (x[i] - mu) * dy[i];
            a += dy[i];
            b += product;
        }
        *sum = a, *dot = b;
        return;
    }
    eight d = loaded(dy), a = d, b = (loaded(x) - mu) * d;
    count i = LANES;
    for (; i + LANES <= S; i += LANES) {
        d = loaded(dy + i);
        a = a + d;
        b = b + (loaded(x + i) - mu) * d;
    }
    for (int j = 0; i + j < S; j++) { /* the last, rounded once with its sum */
        a[j] = a[j] + dy[i + j];
        b[j] = __builtin_fmaf(x[i + j] - mu, dy[i + j], b[j]);
    }
    *sum = total(a), *dot = total(b);
}

/* tensors: dx, dgamma, dbeta, x, dy, mu, rstd, gamma; dx and gamma may be NULL, and dx may be dy: each number is
   read before its place is written. */
void batch_norm_backward(count N, count C, count S, int threads, double eps, double momentum, void **tensors)
{
    shape s = {N, C, S};
    float *dx = tensors[0], *dgamma = tensors[1], *dbeta = tensors[2];
    const float *x = tensors[3], *dy = tensors[4], *mu = tensors[5], *rstd = tensors[6], *gamma = tensors[7];
    const count m = N * S;
    #pragma omp parallel for num_threads(threads) if(threads > 1) schedule(static)
    for (count c = 0; c < C; c++) {
        double sum = 0, dot = 0;
        for (count n = 0; n < N; n++) {
            float a, b;
            products(plane(x, s, n, c), plane(dy, s, n, c), S, mu[c], &a, &b);
            sum += a;
            dot += b;
        }
        dgamma[c] = dot * rstd[c];
        dbeta[c] = sum;
        if (!dx)
            continue;
        const float k = (float)dot * rstd[c] * rstd[c] / m, mean = sum / m;
        const float at = mu[c], r = rstd[c], g = gamma ? gamma[c] : 1;
        for (count n = 0; n < N; n++) {
            const float *px = plane(x, s, n, c), *pd = plane(dy, s, n, c);
            float *to = (float *)plane(dx, s, n, c);
            #pragma GCC ivdep
            for (count i = 0; i < S; i++)
                to[i] = __builtin_fmaf(-(px[i] - at), k, pd[i] - mean) * r * g;
        }
    }
}
