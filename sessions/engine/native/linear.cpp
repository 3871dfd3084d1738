// Linear layers whose weights are integers on a grid of their own for every block of 32 inputs of an output: w = d q + m.
//
//   4 bits   q in 0..15; d and m in half: GGUF's Q4_0 and Q4_1, exactly
//   8 bits   q in -127..127, m = 0: GGUF's Q8_0, exactly; or any weights, rounded
//
// Packed: panels of 16 outputs, in each the blocks in order, in each block the scales and then the integers, so that a
// step reads memory front to back.
//
//   4 bits   d [16] half | m [16] half | four groups of 8 inputs: [16 outputs] words of 16 bits, two per output, whose
//            nibble k is input 8 g + 2 k (first word) and 8 g + 2 k + 1 (second)
//   8 bits   d [16] half | sixteen pairs of inputs: [16 outputs, 2] bytes
//
// x is rounded to 16-bit integers, each row and block with a scale of its own. The products of a block are added as
// integers, exactly; blocks are added in order, in fp32. So a row's result has the same bits alone and in any batch.

#include "vectors.h"

namespace {

constexpr int BLOCK = 32;                // inputs that share a grid
constexpr int PANEL = 16;                // outputs that are packed together
constexpr int WORDS = 8;                 // inputs of four bits in a pair of words
constexpr float STEPS = 32767;           // integers on each side of zero that x is rounded to
constexpr int64_t L2_ELEMENTS = 196608;  // of rounded rows that are multiplied with all panels before the next

#if defined(__AVX512BW__)
// One vector is a panel: 16 outputs.
typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef int16_t vs __attribute__((vector_size(64)));
constexpr int WIDTH = 16;
constexpr int MAX_ROWS = 12;  // whose 32-bit and fp32 sums, and a weight, fill 32 registers

inline vs splat_pair(const int16_t* p) { int32_t pair; memcpy(&pair, p, sizeof pair); return (vs)_mm512_set1_epi32(pair); }
inline vs load_words(const void* p) { return (vs)_mm512_loadu_si512(p); }
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
constexpr int MAX_ROWS = 4;  // likewise, of 16

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
};

// -- multiplying --

// x [R, blocks, BLOCK] rounded; of each block its step and its step times its sum; panel: of one grid -> out [R, columns]
template <class G, int R>
void multiply_panel(const int16_t* x, const float* steps, int64_t blocks, const uint8_t* panel, const float* bias,
                    int columns, float* out, int64_t out_stride) {
    for (int half = 0; half < PANEL / WIDTH; half++) {
        vf sum[R];
        for (int r = 0; r < R; r++) sum[r] = splat_of<WIDTH>(0);
        for (int64_t b = 0; b < blocks; b++) {
            const uint8_t* block = panel + b * G::BYTES;
            vi dot[R];
            for (int r = 0; r < R; r++) dot[r] = vi{};
            G::each_pair(block, half, [&](int pair, vs weights) {
                for (int r = 0; r < R; r++)
                    dot[r] = add_pairs(dot[r], weights, splat_pair(x + (r * blocks + b) * BLOCK + 2 * pair));
            });
            const vf step = halves_of<WIDTH>(block + half * 2 * WIDTH);
            vf offset;
            if constexpr (G::HAS_OFFSET) offset = halves_of<WIDTH>(block + 2 * PANEL + half * 2 * WIDTH);
            for (int r = 0; r < R; r++) {
                const float* of = steps + (r * blocks + b) * 2;
                sum[r] = fused(__builtin_convertvector(dot[r], vf), step * splat_of<WIDTH>(of[0]), sum[r]);
                if constexpr (G::HAS_OFFSET) sum[r] = fused(offset, splat_of<WIDTH>(of[1]), sum[r]);
            }
        }
        const int from = half * WIDTH, width = columns - from < WIDTH ? columns - from : WIDTH;
        for (int r = 0; r < R; r++) {
            float y[WIDTH];
            memcpy(y, &sum[r], sizeof y);
            for (int c = 0; c < width; c++) out[r * out_stride + from + c] = bias ? y[c] + bias[from + c] : y[c];
        }
    }
}

template <class G, int R>
void multiply_rows(int64_t rows, const int16_t* x, const float* steps, int64_t blocks, const uint8_t* panel,
                   const float* bias, int columns, float* out, int64_t out_stride) {
    if (rows >= R) return multiply_panel<G, R>(x, steps, blocks, panel, bias, columns, out, out_stride);
    if constexpr (R > 1) multiply_rows<G, R - 1>(rows, x, steps, blocks, panel, bias, columns, out, out_stride);
}

// to [blocks, BLOCK], steps [blocks, 2]: of one row. What is beyond the row's end is zero.
void round_row(const float* from, int64_t inputs, int16_t* to, float* steps) {
    for (int64_t b = 0; b * BLOCK < inputs; b++, to += BLOCK, steps += 2) {
        float v[BLOCK] = {};
        const int64_t left = inputs - b * BLOCK;
        memcpy(v, from + b * BLOCK, sizeof(float) * (left < BLOCK ? left : BLOCK));
        float top = 0, broken = 0;
        for (int i = 0; i < BLOCK; i++) {
            top = fabsf(v[i]) > top ? fabsf(v[i]) : top;
            broken += v[i] * 0;  // NaN if one is not finite: no integer would show it
        }
        const float inverse = top > 0 ? STEPS / top : 0;
        int32_t total = 0;
        for (int i = 0; i < BLOCK; i++) {
            const float q = rintf(v[i] * inverse);
            const int32_t rounded = q >= -STEPS && q <= STEPS ? (int32_t)q : 0;
            to[i] = (int16_t)rounded;
            total += rounded;
        }
        steps[0] = top / STEPS + broken;
        steps[1] = steps[0] * (float)total;
    }
}

template <class G>
void multiply(const float* x, const uint8_t* packed, const float* bias, float* out, int16_t* rounded, float* steps,
              int64_t rows, int64_t inputs, int64_t outputs, int num_threads) {
    const int64_t blocks = (inputs + BLOCK - 1) / BLOCK, panels = (outputs + PANEL - 1) / PANEL, width = blocks * BLOCK;
    const int64_t most = L2_ELEMENTS / width + 1, num_groups = (rows + most - 1) / most;
    const int64_t group = ((rows + num_groups - 1) / num_groups + MAX_ROWS - 1) / MAX_ROWS * MAX_ROWS;
#pragma omp parallel num_threads(num_threads)
    {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++)
            round_row(x + row * inputs, inputs, rounded + row * width, steps + row * 2 * blocks);
        for (int64_t first = 0; first < rows; first += group) {
            const int64_t last = first + group < rows ? first + group : rows;
#pragma omp for schedule(static) nowait
            for (int64_t panel = 0; panel < panels; panel++) {
                const uint8_t* at = packed + panel * blocks * G::BYTES;
                const int columns = (int)(outputs - panel * PANEL < PANEL ? outputs - panel * PANEL : PANEL);
                for (int64_t row = first; row < last; row += MAX_ROWS)
                    multiply_rows<G, MAX_ROWS>(last - row, rounded + row * width, steps + row * 2 * blocks, blocks, at,
                                               bias ? bias + panel * PANEL : nullptr, columns,
                                               out + row * outputs + panel * PANEL, outputs);
            }
        }
    }
}

// Packs a panel; false if a block lies on no grid, or `rounds` and can be brought to none.
template <class G>
bool pack_panel(const float* weight, uint8_t* panel, int64_t outputs, int64_t inputs, bool rounds) {
    for (int64_t b = 0; b * BLOCK < inputs; b++)
        for (int64_t o = 0; o < outputs; o++) {
            const float* v = weight + o * inputs + b * BLOCK;
            const int count = (int)(inputs - b * BLOCK < BLOCK ? inputs - b * BLOCK : BLOCK);
            Grid grid;
            if (!(rounds ? Eight::nearest(v, count, grid) : G::find(v, count, grid))) return false;
            G::put(panel + b * G::BYTES, (int)o, grid, count);
        }
    return true;
}

template <class G>
bool pack(const float* weight, uint8_t* packed, int64_t outputs, int64_t inputs, bool rounds) {
    const int64_t blocks = (inputs + BLOCK - 1) / BLOCK, panels = (outputs + PANEL - 1) / PANEL;
    memset(packed, 0, (size_t)(panels * blocks * G::BYTES));
    for (int64_t panel = 0; panel < panels; panel++) {
        const int64_t first = panel * PANEL, left = outputs - first;
        if (!pack_panel<G>(weight + first * inputs, packed + panel * blocks * G::BYTES, left < PANEL ? left : PANEL,
                           inputs, rounds))
            return false;
    }
    return true;
}

}  // namespace

extern "C" {

int32_t anaphora_linear_block(void) { return BLOCK; }

// Bytes that weights of [outputs, inputs] take; bits: 4 or 8.
int64_t anaphora_packed_bytes(int64_t outputs, int64_t inputs, int32_t bits) {
    return (outputs + PANEL - 1) / PANEL * ((inputs + BLOCK - 1) / BLOCK) * (bits == 4 ? Four::BYTES : Eight::BYTES);
}

// weight [outputs, inputs] fp32 -> packed. rounds: to the nearest grid (8 bits only). 0 if weights lie on
// none, or can be brought to none.
int32_t anaphora_pack_linear(const float* weight, uint8_t* packed, int64_t outputs, int64_t inputs, int32_t bits,
                             int32_t rounds) {
    return bits == 4 ? pack<Four>(weight, packed, outputs, inputs, false)
                     : pack<Eight>(weight, packed, outputs, inputs, rounds);
}

// out [rows, outputs] = x [rows, inputs] @ weight.T + bias.  Scratch: rounded [rows, blocks, 32], steps [rows, blocks, 2].
void anaphora_linear(const float* x, const uint8_t* packed, const float* bias, float* out, int16_t* rounded, float* steps,
                     int64_t rows, int64_t inputs, int64_t outputs, int32_t bits, int32_t num_threads) {
    if (bits == 4) multiply<Four>(x, packed, bias, out, rounded, steps, rows, inputs, outputs, num_threads);
    else multiply<Eight>(x, packed, bias, out, rounded, steps, rows, inputs, outputs, num_threads);
}
}
