// One layer of the block pool as the kernels see it, and the element types that K and V are kept in.

#pragma once

#include "vectors.h"

namespace {

enum Dtype : int32_t { FLOAT32 = 0, FLOAT16 = 1, BFLOAT16 = 2, INT8 = 3 };

constexpr int MAX_HEAD_DIM = 256;
constexpr float STEPS = 127;        // integers on each side of zero that int8 KV is rounded to
constexpr float SMALLEST = 1e-30f;  // below, K or V of a head is stored as zeros: 1 / scale would overflow

// `put_all` stores one token's K or V, elements `stride` apart; only I8 has a scale.
template <class T>
struct Plain {
    static constexpr bool SCALED = false;
    template <class E>
    static inline void put_all(const float* from, int count, E* to, int64_t stride, float*) {
        for (int d = 0; d < count; d++) T::put(to + d * stride, from[d]);
    }
};

struct F32 : Plain<F32> {
    typedef float type;
    template <int L>
    static inline typename Of<L>::floats load(const float* p) { return load_of<L>(p); }
    static inline void put(float* p, float x) { *p = x; }
};

struct F16 : Plain<F16> {
    typedef uint16_t type;
    template <int L>
    static inline typename Of<L>::floats load(const uint16_t* p) { return halves_of<L>(p); }
    static inline void put(uint16_t* p, float x) { *p = to_half(x); }
};

struct BF16 : Plain<BF16> {
    typedef uint16_t type;
    template <int L>
    static inline typename Of<L>::floats load(const uint16_t* p) {
        uint16_t halves __attribute__((vector_size(2 * L)));
        memcpy(&halves, p, sizeof halves);
        return (typename Of<L>::floats)(__builtin_convertvector(halves, typename Of<L>::ints) << 16);
    }
    static inline void put(uint16_t* p, float x) {  // round to nearest even, as torch does
        uint32_t bits; memcpy(&bits, &x, 4);
        *p = isnan(x) ? 0x7FC0 : (uint16_t)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
    }
};

struct I8 {
    typedef int8_t type;
    static constexpr bool SCALED = true;
    template <int L>
    static inline typename Of<L>::floats load(const int8_t* p) {
#if defined(__AVX512F__)
        if constexpr (L == 16) return (typename Of<L>::floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#endif
#if defined(__AVX2__)
        if constexpr (L == LANES)
            return (typename Of<L>::floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
        int8_t narrow __attribute__((vector_size(L)));
        memcpy(&narrow, p, sizeof narrow);
        return __builtin_convertvector(narrow, typename Of<L>::floats);
#endif
    }
    // The bits of kv_cache.round_to_int8. What is not finite leaves a scale that is not, and so shows when it is read.
    static inline void put_all(const float* from, int count, int8_t* to, int64_t stride, float* scale) {
        int32_t top = 0;  // magnitudes compare as their bits do, and NaN is above all
        for (int d = 0; d < count; d++) {
            int32_t bits;
            memcpy(&bits, from + d, sizeof bits);
            bits &= INT32_MAX;
            top = bits > top ? bits : top;
        }
        float largest;
        memcpy(&largest, &top, sizeof largest);
        *scale = largest <= SMALLEST ? 0 : largest * (1 / STEPS);
        if (largest <= SMALLEST || !(largest < INFINITY)) {
            for (int d = 0; d < count; d++) to[d * stride] = 0;
            return;
        }
        const float inverse = STEPS * (1 / largest);
        int8_t rounded[MAX_HEAD_DIM];
        for (int d = 0; d < count; d++) rounded[d] = (int8_t)rintf(from[d] * inverse);
        for (int d = 0; d < count; d++) to[d * stride] = rounded[d];
    }
};

}  // namespace

extern "C" {

// One layer of the pool.  keys [num_blocks, kv_heads, head_dim, block_size]: transposed inside the block, so that eight
// neighbouring keys are one load.  values [num_blocks, kv_heads, block_size, value_dim].  scales [num_blocks, kv_heads,
// block_size], of int8 only.
struct LayerPool {
    void *keys, *values;
    float *key_scales, *value_scales;
    int32_t dtype, block_size, kv_heads, head_dim, value_dim, unused;
};
}
