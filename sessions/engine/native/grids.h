// Grids of integers that weights lie on, 32 inputs at a time, and how a panel of 16 outputs holds them:
//
//   4 bits   d [16] half | m [16] half | four groups of 8 inputs: [16 outputs] words of 16 bits, two per output, whose
//            nibble k is input 8 g + 2 k (first word) and 8 g + 2 k + 1 (second)
//   8 bits   d [16] half | sixteen pairs of inputs: [16 outputs, 2] bytes

#pragma once

#include "tiles.h"
#include "vectors.h"

namespace {

constexpr int BLOCK = 32;  // inputs that share a grid
constexpr int PANEL = 16;  // outputs that are packed together
constexpr int WORDS = 8;   // inputs of four bits in a pair of words

#if defined(__AVX512BW__)
// One vector is a panel: 16 outputs.
typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef int16_t vs __attribute__((vector_size(64)));
constexpr int WIDTH = 16;

inline vs splat_pair(const int16_t* p) { int32_t pair; memcpy(&pair, p, sizeof pair); return (vs)_mm512_set1_epi32(pair); }
inline vs load_words(const void* p) { return (vs)_mm512_loadu_si512(p); }
inline vi load_ints(const int32_t* p) { return (vi)_mm512_load_si512(p); }
inline vs widen_bytes(const void* p) { return (vs)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)p)); }
inline vf fused(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
inline vi add_pairs(vi sum, vs a, vs b) {
#if defined(__AVX512VNNI__)
    return (vi)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#else
    return sum + (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#endif
}
template <int K>
inline vs nibble(vs words) {
    return (vs)_mm512_and_si512(_mm512_srli_epi16((__m512i)words, 4 * K), _mm512_set1_epi16(15));
}
#else
// One vector is half a panel: 8 outputs.
typedef Of<8>::floats vf;
typedef Of<8>::ints vi;
typedef int16_t vs __attribute__((vector_size(32)));
constexpr int WIDTH = 8;

inline vs splat_pair(const int16_t* p) {
    int32_t pair;
    memcpy(&pair, p, sizeof pair);
    return (vs)vi{pair, pair, pair, pair, pair, pair, pair, pair};
}
inline vs load_words(const void* p) { vs v; memcpy(&v, p, sizeof v); return v; }
#if defined(__AVX2__)
inline vs widen_bytes(const void* p) { return (vs)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p)); }
template <int K>
inline vs nibble(vs words) {
    return (vs)_mm256_and_si256(_mm256_srli_epi16((__m256i)words, 4 * K), _mm256_set1_epi16(15));
}
#else
inline vs widen_bytes(const void* p) {
    vs v;
    for (int i = 0; i < 2 * WIDTH; i++) v[i] = ((const int8_t*)p)[i];
    return v;
}
template <int K>
inline vs nibble(vs words) {
    typedef uint16_t vu __attribute__((vector_size(32)));
    return (vs)(((vu)words >> (4 * K)) & 15);
}
#endif
#if defined(__FMA__)
inline vf fused(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
#else
inline vf fused(vf a, vf b, vf c) { return a * b + c; }
#endif
inline vi add_pairs(vi sum, vs a, vs b) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    return (vi)_mm256_dpwssd_epi32((__m256i)sum, (__m256i)a, (__m256i)b);
#elif defined(__AVXVNNI__)
    return (vi)_mm256_dpwssd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)b);
#elif defined(__AVX2__)
    return sum + (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    for (int c = 0; c < WIDTH; c++) sum[c] += (int32_t)a[2 * c] * b[2 * c] + (int32_t)a[2 * c + 1] * b[2 * c + 1];
    return sum;
#endif
}
#endif

// -- the two grids: a block's bytes, and how one is found for 32 weights --

struct Grid {
    float step, offset;
    int8_t q[BLOCK];
};

// Is every v exactly step q + offset, q a whole number from `least` to `most`? Fills q.
inline bool holds(Grid& grid, const float* v, int count, int least, int most) {
    const float inverse = grid.step != 0 ? 1 / grid.step : 0;
    for (int i = 0; i < count; i++) {
        const float q = rintf((v[i] - grid.offset) * inverse);
        if (!(q >= (float)least && q <= (float)most) || grid.step * q + grid.offset != v[i]) return false;
        grid.q[i] = (int8_t)q;
    }
    return true;
}

inline float largest(const float* v, int count) {
    float top = 0;
    for (int i = 0; i < count; i++) top = fabsf(v[i]) > fabsf(top) ? v[i] : top;
    return top;
}

struct Four {
    static constexpr bool HAS_OFFSET = true;
    static constexpr int64_t BYTES = 4 * PANEL + BLOCK * PANEL / 2;

    // By what llama.cpp's quantisers do: the ends of the block are the ends of the grid (Q4_1), or the value farthest
    // from zero is -8 steps (Q4_0). Then grids whose ends are not used: those of fewer steps, those of a nearer value.
    static bool find(const float* v, int count, Grid& grid) {
        const float far = largest(v, count);
        float low = v[0], high = v[0];
        for (int i = 1; i < count; i++) {
            low = v[i] < low ? v[i] : low;
            high = v[i] > high ? v[i] : high;
        }
        for (int unused = 0; unused < 15; unused++) {
            grid.step = from_half(to_half((high - low) / (float)(15 - unused)));
            grid.offset = from_half(to_half(low));
            if (holds(grid, v, count, 0, 15)) return true;
            if (unused < 8 && (holds_around_eight(grid, v, count, far / (float)(unused - 8)) ||
                               (unused > 0 && holds_around_eight(grid, v, count, far / (float)(8 - unused)))))
                return true;
        }
        return false;
    }

    // Q4_0: the value of integer 8 is zero.
    static bool holds_around_eight(Grid& grid, const float* v, int count, float step) {
        grid.step = from_half(to_half(step));
        grid.offset = from_half(to_half(-8 * grid.step));
        return holds(grid, v, count, 0, 15);
    }

    static void put(uint8_t* block, int output, const Grid& grid, int count) {
        const uint16_t halves[2] = {to_half(grid.step), to_half(grid.offset)};
        memcpy(block + 2 * output, &halves[0], 2);
        memcpy(block + 2 * PANEL + 2 * output, &halves[1], 2);
        for (int i = 0; i < count; i++) {
            uint8_t* word = block + 4 * PANEL + ((i / WORDS * PANEL + output) * 2 + i % 2) * 2;
            const int k = i % WORDS / 2;
            word[k / 2] |= (uint8_t)(grid.q[i] << (4 * (k % 2)));
        }
    }

    // For each pair of inputs in order: use(pair, its weights). half: of the panel, where a vector is half of one.
    template <class Use>
    static inline void each_pair(const uint8_t* block, int half, Use use) {
        for (int g = 0; g < BLOCK / WORDS; g++) {
            const vs words = load_words(block + 4 * PANEL + g * 4 * PANEL + half * 4 * WIDTH);
            use(4 * g, nibble<0>(words));
            use(4 * g + 1, nibble<1>(words));
            use(4 * g + 2, nibble<2>(words));
            use(4 * g + 3, nibble<3>(words));
        }
    }

#if HAS_TILES
    // to [8, PANEL, 4], as tiles take it
    static inline void spread(const uint8_t* block, uint8_t* to) {
        const __m512i nibbles = _mm512_set1_epi8(15);
        for (int g = 0; g < BLOCK / WORDS; g++, to += 128) {
            const __m512i words = _mm512_loadu_si512(block + 4 * PANEL + g * 4 * PANEL);
            _mm512_storeu_si512(to, _mm512_and_si512(words, nibbles));
            _mm512_storeu_si512(to + 64, _mm512_and_si512(_mm512_srli_epi16(words, 4), nibbles));
        }
    }
#endif
};

struct Eight {
    static constexpr bool HAS_OFFSET = false;
    static constexpr int64_t BYTES = 2 * PANEL + BLOCK * PANEL;

    // False for weights that are not finite, or too large for a step in half precision.
    static bool nearest(const float* v, int count, Grid& grid) {
        const float far = fabsf(largest(v, count));
        uint16_t step = to_half(far / 127);
        if (from_half(step) * 127.5f < far) step++;  // a subnormal may be far too small: nothing shall be cut
        grid.step = from_half(step);
        grid.offset = 0;
        for (int i = 0; i < count; i++) {
            const float q = grid.step > 0 ? rintf(v[i] / grid.step) : 0;
            if (!(fabsf(q) <= 127.5f)) return false;
            grid.q[i] = (int8_t)(q > 127 ? 127 : q < -127 ? -127 : q);
        }
        return grid.step < INFINITY;
    }

    static bool find(const float* v, int count, Grid& grid) {
        return nearest(v, count, grid) && holds(grid, v, count, -127, 127);
    }

    static void put(uint8_t* block, int output, const Grid& grid, int count) {
        const uint16_t step = to_half(grid.step);
        memcpy(block + 2 * output, &step, 2);
        for (int i = 0; i < count; i++)
            block[2 * PANEL + (i / 2 * PANEL + output) * 2 + i % 2] = (uint8_t)grid.q[i];
    }

    template <class Use>
    static inline void each_pair(const uint8_t* block, int half, Use use) {
        for (int pair = 0; pair < BLOCK / 2; pair++)
            use(pair, widen_bytes(block + 2 * PANEL + pair * 2 * PANEL + half * 2 * WIDTH));
    }

#if HAS_TILES
    static inline void spread(const uint8_t* block, uint8_t* to) {
        for (const uint8_t* pair = block + 2 * PANEL; pair < block + BYTES; pair += 8 * PANEL, to += 128)
            for (int k = 0; k < 2; k++) {
                const __m512i first = words_of(pair + k * 2 * PANEL), second = words_of(pair + (k + 2) * 2 * PANEL);
                _mm512_storeu_si512(to + 64 * k, _mm512_or_si512(first, _mm512_slli_epi16(second, 8)));
            }
    }

    static inline __m512i words_of(const uint8_t* bytes) {
        return _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)bytes));
    }
#endif
};

}  // namespace
