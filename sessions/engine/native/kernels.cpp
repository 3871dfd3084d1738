// The small operators between a layer's linears and its attention, for CPU. Plain C interface (no torch headers: compiles
// in seconds, works with any torch), called from kernels.py, which states each argument's shape. Nothing in these files
// throws, or allocates what a client sizes; of calls before, only linear.cpp keeps anything: memory for one chunk.

#include "vectors.h"

namespace {

// exp(x) for x <= 0: Cephes' polynomial, relative error about 2e-7; 0 below -87.
template <int L>
inline typename Of<L>::floats exp_of(typename Of<L>::floats x) {
    typedef typename Of<L>::floats v;
    typedef typename Of<L>::ints vi;
    const v floor_at = splat_of<L>(-87.0f), zero = splat_of<L>(0);
    const vi underflow = x < floor_at;
    x = underflow ? floor_at : x;
    v n = x * 1.44269504088896341f;
    vi whole = __builtin_convertvector(n - 0.5f, vi);  // rounds to nearest: n <= 0 and conversion truncates
    v k = __builtin_convertvector(whole, v);
    x = x - k * 0.693359375f;
    x = x - k * -2.12194440e-4f;
    v y = splat_of<L>(1.9875691500e-4f);
    y = y * x + 1.3981999507e-3f;
    y = y * x + 8.3334519073e-3f;
    y = y * x + 4.1665795894e-2f;
    y = y * x + 1.6666665459e-1f;
    y = y * x + 5.0000001201e-1f;
    y = y * x * x + x + 1.0f;
    v scaled = y * (v)((whole + 127) << 23);
    return underflow ? zero : scaled;
}

}  // namespace

extern "C" {

// x [rows, width] += delta (unless null); out = x / rms(x) * weight.
void anaphora_add_rms_norm(float* x, const float* delta, const float* weight, float* out, int64_t rows, int64_t width,
                           float epsilon, int32_t num_threads) {
#pragma omp parallel for schedule(static) num_threads(num_threads) if (rows * width > 16384)
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

// gate_up [rows, 2 * width] -> out [rows, width] = silu(gate) * up.
void anaphora_silu_mul(const float* gate_up, float* out, int64_t rows, int64_t width, int32_t num_threads) {
#pragma omp parallel for schedule(static) num_threads(num_threads) if (rows * width > 8192)
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

// qkv [rows, stride]: rotates the first `heads` heads of each row in place, halves layout ("rotate_half"); before that
// norms each head by norm weights [head_dim] where given: the first q_heads by q_norm, the others by k_norm.
// cos, sin [rows, rotary_dim].
void anaphora_rope(float* qkv, const float* cosine, const float* sine, const float* q_norm, const float* k_norm,
                   int64_t rows, int64_t stride, int32_t q_heads, int32_t heads, int32_t head_dim, int32_t rotary_dim,
                   float epsilon, int32_t num_threads) {
#pragma omp parallel for schedule(static) num_threads(num_threads) if (rows * stride > 16384)
    for (int64_t row = 0; row < rows; row++) {
        const float *c = cosine + row * rotary_dim, *s = sine + row * rotary_dim;
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
}
