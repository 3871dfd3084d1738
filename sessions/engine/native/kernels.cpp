// The small operators between a layer's linears and its attention, for CPU. Plain C interface (no torch headers: compiles
// in seconds, works with any torch), called from kernels.py, which states each argument's shape. Nothing in these files
// throws, or allocates what a client sizes; of calls before, only linear.cpp keeps anything: memory for one chunk.

#include "team.h"
#include "vectors.h"

void add_rms_norm(float* x, const float* delta, const float* weight, float* out, int64_t rows, int64_t width,
                  float epsilon) {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        float* at = x + row * width;
        if (delta) {
            const float* d = delta + row * width;
            for (int64_t i = 0; i < width; i++) at[i] += d[i];
        }
        wide square = splat_of<WIDE>(0);
        int64_t i = 0;
        for (; i + WIDE <= width; i += WIDE) { wide v = load_of<WIDE>(at + i); square += v * v; }
        float total = sum_of<WIDE>(square);
        for (; i < width; i++) total += at[i] * at[i];
        const float scale = 1.0f / sqrtf(total / (float)width + epsilon);
        float* to = out + row * width;
        for (int64_t j = 0; j < width; j++) to[j] = at[j] * scale * weight[j];
    }
}

void silu_mul(const float* gate_up, float* out, int64_t rows, int64_t width) {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const float *gate = gate_up + row * 2 * width, *up = gate + width;
        float* to = out + row * width;
        int64_t i = 0;
        for (; i + WIDE <= width; i += WIDE) {
            wide g = load_of<WIDE>(gate + i), magnitude = g < 0 ? g : -g;
            wide e = exp_of<WIDE>(magnitude), half = 1.0f / (1.0f + e);  // e = exp(-|g|): never overflows
            wide sigmoid = g < 0 ? e * half : half;
            store_of<WIDE>(to + i, g * sigmoid * load_of<WIDE>(up + i));
        }
        for (; i < width; i++) to[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
    }
}

void rope(float* qkv, const int64_t* positions, const float* cosine, const float* sine, const float* q_norm,
          const float* k_norm, int64_t rows, int64_t stride, int32_t q_heads, int32_t heads, int32_t head_dim,
          int32_t rotary_dim, float epsilon) {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const int64_t position = positions ? positions[row] : row;
        const float *c = cosine + position * rotary_dim, *s = sine + position * rotary_dim;
        const int half = rotary_dim / 2;
        for (int h = 0; h < heads; h++) {
            float* at = qkv + row * stride + (int64_t)h * head_dim;
            const float* weight = h < q_heads ? q_norm : k_norm;
            if (weight) {
                float total = 0;
                for (int d = 0; d < head_dim; d++) total += at[d] * at[d];
                const float scale = 1.0f / sqrtf(total / (float)head_dim + epsilon);
                for (int d = 0; d < head_dim; d++) at[d] = at[d] * scale * weight[d];
            }
            for (int d = 0; d < half; d++) {
                const float a = at[d], b = at[d + half];
                at[d] = a * c[d] - b * s[d];
                at[d + half] = b * c[d + half] + a * s[d + half];
            }
        }
    }
}

extern "C" {

void anaphora_add_rms_norm(float* x, const float* delta, const float* weight, float* out, int64_t rows, int64_t width,
                           float epsilon, int32_t num_threads) {
#pragma omp parallel num_threads(num_threads) if (rows * width > 16384)
    add_rms_norm(x, delta, weight, out, rows, width, epsilon);
}

void anaphora_silu_mul(const float* gate_up, float* out, int64_t rows, int64_t width, int32_t num_threads) {
#pragma omp parallel num_threads(num_threads) if (rows * width > 8192)
    silu_mul(gate_up, out, rows, width);
}

void anaphora_rope(float* qkv, const float* cosine, const float* sine, const float* q_norm, const float* k_norm,
                   int64_t rows, int64_t stride, int32_t q_heads, int32_t heads, int32_t head_dim, int32_t rotary_dim,
                   float epsilon, int32_t num_threads) {
#pragma omp parallel num_threads(num_threads) if (rows * stride > 16384)
    rope(qkv, nullptr, cosine, sine, q_norm, k_norm, rows, stride, q_heads, heads, head_dim, rotary_dim, epsilon);
}
}
