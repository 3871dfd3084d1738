// Vectors of eight floats, and of WIDE where the machine has longer ones; what the kernels share of them. GCC/Clang vector
// extensions: AVX2 or AVX-512 where there is one, two NEON registers on ARM.

#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__F16C__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

constexpr int LANES = 8;

// Of<L>: a vector of L floats.
template <int L>
struct Of {
    typedef float floats __attribute__((vector_size(4 * L)));
    typedef int32_t ints __attribute__((vector_size(4 * L)));
};
#if defined(__AVX512F__)
constexpr int WIDE = 16;
#else
constexpr int WIDE = LANES;
#endif

template <int L>
inline typename Of<L>::floats load_of(const float* p) { typename Of<L>::floats v; memcpy(&v, p, sizeof v); return v; }
template <int L>
inline void store_of(float* p, typename Of<L>::floats v) { memcpy(p, &v, sizeof v); }
template <int L>
inline typename Of<L>::floats splat_of(float x) { return x - typename Of<L>::floats{}; }

typedef Of<WIDE>::floats wide;

inline float from_half(uint16_t bits) {
#if defined(__F16C__)
    return _cvtsh_ss(bits);
#else
    _Float16 half;
    memcpy(&half, &bits, sizeof half);
    return (float)half;
#endif
}

inline uint16_t to_half(float x) {  // to nearest, ties to even
#if defined(__F16C__)
    return (uint16_t)_cvtss_sh(x, 0);
#else
    _Float16 half = (_Float16)x;
    uint16_t bits;
    memcpy(&bits, &half, sizeof bits);
    return bits;
#endif
}

template <int L>
inline typename Of<L>::floats halves_of(const void* p) {
#if defined(__AVX512F__)
    if constexpr (L == 16) return (typename Of<L>::floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#endif
#if defined(__F16C__)
    if constexpr (L == LANES) return (typename Of<L>::floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
    typename Of<L>::floats v;
    for (int i = 0; i < L; i++) {
        uint16_t bits;
        memcpy(&bits, (const char*)p + 2 * i, sizeof bits);
        v[i] = from_half(bits);
    }
    return v;
#endif
}

// Over lanes, in halves: the order is that of the lanes alone.
template <int L>
inline float sum_of(typename Of<L>::floats v) {
    float lane[L];
    store_of<L>(lane, v);
    for (int half = L / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lane[i] += lane[i + half];
    return lane[0];
}

template <int L>
inline float max_of(typename Of<L>::floats v) {
#if defined(__AVX512F__)
    if constexpr (L == 16) return _mm512_reduce_max_ps((__m512)v);
#endif
    float lane[L];
    store_of<L>(lane, v);
    for (int half = L / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lane[i] = lane[i] > lane[i + half] ? lane[i] : lane[i + half];
    return lane[0];
}

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
