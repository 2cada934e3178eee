/* A slow prototype for test_benchmarks_limit.py. FACTOR other than 1 makes its z wrong. */
#include <math.h>
#include <stddef.h>

static float *at(float *x, ptrdiff_t n, ptrdiff_t c, ptrdiff_t s, ptrdiff_t C, ptrdiff_t S, int last) {
    return x + (last ? (n * S + s) * C + c : (n * C + c) * S + s);
}

void abn_prototype_forward(float *x, ptrdiff_t N, ptrdiff_t C, ptrdiff_t S, int last, const float *weight,
                           const float *bias, float *mean, float *inv_std, float slope, int threads) {
    for (ptrdiff_t c = 0; c < C; c++) {
        double sum = 0, squares = 0;
        for (ptrdiff_t i = 0; i < N * S; i++) sum += *at(x, i / S, c, i % S, C, S, last);
        mean[c] = (float)(sum / (N * S));
        for (ptrdiff_t i = 0; i < N * S; i++) squares += pow(*at(x, i / S, c, i % S, C, S, last) - mean[c], 2);
        inv_std[c] = (float)(1 / sqrt(squares / (N * S) + 1e-5));
        for (ptrdiff_t i = 0; i < N * S; i++) {
            float *p = at(x, i / S, c, i % S, C, S, last), y = (*p - mean[c]) * inv_std[c] * weight[c] + bias[c];
            *p = y >= 0 ? y : y * slope * FACTOR;
        }
    }
}

void abn_prototype_backward(const float *z, float *dz, ptrdiff_t N, ptrdiff_t C, ptrdiff_t S, int last,
                            const float *weight, const float *bias, const float *inv_std, float slope, float *dweight,
                            float *dbias, int threads) {
    for (ptrdiff_t c = 0; c < C; c++) {
        double sum = 0, products = 0;
        for (int pass = 0; pass < 2; pass++)
            for (ptrdiff_t i = 0; i < N * S; i++) {
                const float v = *at((float *)z, i / S, c, i % S, C, S, last);
                float *d = at(dz, i / S, c, i % S, C, S, last);
                const double dy = *d * (v >= 0 ? 1 : slope), xhat = ((v >= 0 ? v : v / slope) - bias[c]) / weight[c];
                if (pass)
                    *d = (float)(weight[c] * inv_std[c] * (dy - sum / (N * S) - xhat * products / (N * S)));
                else
                    sum += dy, products += dy * xhat;
            }
        dweight[c] = (float)products;
        dbias[c] = (float)sum;
    }
}
