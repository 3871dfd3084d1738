// Linear layers whose weights are integers on a grid of their own for every block of 32 inputs of an output: w = d q + m.
//
//   4 bits   q in 0..15; d and m in half: GGUF's Q4_0 and Q4_1, exactly
//   8 bits   q in -127..127, m = 0: GGUF's Q8_0, exactly; or any weights, rounded
//
// Packed: panels of 16 outputs, in each the blocks in order, in each block the scales and then the integers (grids.h), so
// that a step reads memory front to back.
//
// x is rounded to 16-bit integers, each row and block with a scale of its own. The products of a block are added as
// integers, exactly; blocks are added in order, in fp32. So a row's result has the same bits alone and in any batch, by
// vectors and by tiles.

#include <omp.h>

#include <memory>
#include <new>

#include "grids.h"
#include "team.h"
#include "tiles.h"

namespace {

constexpr float STEPS = 32767;           // integers on each side of zero that x is rounded to
constexpr int64_t L2_ELEMENTS = 196608;  // of rounded rows that are multiplied with all panels before the next
constexpr int64_t AHEAD = 8192;          // bytes that weights are fetched before use: the processor alone stops at pages
// Rows at once, whose 32-bit and fp32 sums, and a weight, fill the registers: 32, or 16.
constexpr int MAX_ROWS = WIDTH == 16 ? 12 : 4;

struct Layer : Linear {
    int64_t blocks() const { return (inputs + BLOCK - 1) / BLOCK; }
    int64_t panels() const { return (outputs + PANEL - 1) / PANEL; }
    const float* bias_of(int64_t panel) const { return bias ? bias + panel * PANEL : nullptr; }
    int columns_of(int64_t panel) const { return (int)(outputs - panel * PANEL < PANEL ? outputs - panel * PANEL : PANEL); }
};

// -- rounding x --

// to [BLOCK], steps: one, and one times the sum. What is beyond the row's end is zero.
inline void round_block(const float* from, int64_t count, int16_t* to, float* step, float* step_sum) {
    float v[BLOCK] = {};
    memcpy(v, from, sizeof(float) * (size_t)(count < BLOCK ? count : BLOCK));
    int32_t bits[BLOCK], most = 0;
    memcpy(bits, v, sizeof bits);
    for (int i = 0; i < BLOCK; i++) {  // magnitudes are in the order of their bits
        const int32_t magnitude = bits[i] & 0x7fffffff;
        most = magnitude > most ? magnitude : most;
    }
    float top;
    memcpy(&top, &most, sizeof top);
    const float inverse = top > 0 ? STEPS / top : 0;
    int32_t total = 0;
    for (int i = 0; i < BLOCK; i++) {
        const float q = rintf(v[i] * inverse);
        const int32_t rounded = q >= -STEPS && q <= STEPS ? (int32_t)q : 0;
        to[i] = (int16_t)rounded;
        total += rounded;
    }
    *step = top / STEPS + top * 0;  // NaN if one is not finite: no integer would show it
    *step_sum = *step * (float)total;
}

// sum [WIDTH] + bias -> out [columns], at most WIDTH; bias may be null
inline void write_row(vf sum, const float* bias, int columns, float* out) {
    if (columns >= WIDTH) return store_of<WIDTH>(out, bias ? sum + load_of<WIDTH>(bias) : sum);
    for (int c = 0; c < columns; c++) out[c] = bias ? sum[c] + bias[c] : sum[c];
}

// -- multiplying by vectors --

template <class G>
inline void fetch_ahead(const uint8_t* block) {
    for (int64_t at = 0; at < G::BYTES; at += 64) __builtin_prefetch(block + AHEAD + at);
}

// x [R, blocks, BLOCK] rounded; of each block its step and its step times its sum; panel: of one grid -> out [R, columns]
template <class G, int R>
void multiply_panel(const int16_t* x, const float* steps, int64_t blocks, const uint8_t* panel, const float* bias,
                    int columns, float* out, int64_t out_stride) {
    for (int half = 0; half < PANEL / WIDTH; half++) {
        vf sum[R];
        for (int r = 0; r < R; r++) sum[r] = splat_of<WIDTH>(0);
        for (int64_t b = 0; b < blocks; b++) {
            const uint8_t* block = panel + b * G::BYTES;
            fetch_ahead<G>(block);
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
        const int from = half * WIDTH;
        for (int r = 0; r < R; r++)
            write_row(sum[r], bias ? bias + from : nullptr, columns - from, out + r * out_stride + from);
    }
}

template <class G, int R>
void multiply_rows(int64_t rows, const int16_t* x, const float* steps, int64_t blocks, const uint8_t* panel,
                   const float* bias, int columns, float* out, int64_t out_stride) {
    if (rows >= R) return multiply_panel<G, R>(x, steps, blocks, panel, bias, columns, out, out_stride);
    if constexpr (R > 1) multiply_rows<G, R - 1>(rows, x, steps, blocks, panel, bias, columns, out, out_stride);
}

int64_t bytes_by_vectors(const Layer& layer, int64_t rows) {
    return rows * layer.blocks() * (2 * BLOCK + 8);
}

template <class G>
void multiply_by_vectors(const Layer& layer, const float* x, float* out, int64_t rows, uint8_t* scratch) {
    const int64_t blocks = layer.blocks(), panels = layer.panels(), width = blocks * BLOCK;
    const int64_t most = L2_ELEMENTS / width + 1, num_groups = (rows + most - 1) / most;
    const int64_t group = ((rows + num_groups - 1) / num_groups + MAX_ROWS - 1) / MAX_ROWS * MAX_ROWS;
    int16_t* rounded = (int16_t*)scratch;             // [rows, blocks, BLOCK]
    float* steps = (float*)(rounded + rows * width);  // [rows, blocks, 2]
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; row++)
        for (int64_t b = 0; b < blocks; b++) {
            float* step = steps + (row * blocks + b) * 2;
            round_block(x + row * layer.inputs + b * BLOCK, layer.inputs - b * BLOCK, rounded + row * width + b * BLOCK,
                        step, step + 1);
        }
    for (int64_t first = 0; first < rows; first += group) {
        const int64_t last = first + group < rows ? first + group : rows;
#pragma omp for schedule(static) nowait
        for (int64_t panel = 0; panel < panels; panel++)
            for (int64_t row = first; row < last; row += MAX_ROWS)
                multiply_rows<G, MAX_ROWS>(last - row, rounded + row * width, steps + row * 2 * blocks, blocks,
                                           layer.packed + panel * blocks * G::BYTES, layer.bias_of(panel),
                                           layer.columns_of(panel), out + row * layer.outputs + panel * PANEL,
                                           layer.outputs);
    }
#pragma omp barrier
}

#if HAS_TILES
// -- multiplying by tiles --

constexpr int64_t MIN_TILE_ROWS = 6;  // fewer are faster by vectors
constexpr int64_t PANELS_AT_ONCE = 2;

// Rows of x as tiles take them: [tiles, blocks, 2, height, BLOCK] bytes, and steps [tiles, blocks, 2, height].
struct Tiles {
    int64_t count;
    int height;
    uint8_t* bytes;
    float* steps;
};

void round_into_tile(const Layer& layer, const float* x, const Tiles& tiles, int64_t row, bool is_there) {
    const int64_t blocks = layer.blocks(), height = tiles.height, tile = row / height, at = row % height;
    for (int64_t b = 0; b < blocks; b++) {
        int16_t rounded[BLOCK] = {};
        float step = 0, step_sum = 0;
        if (is_there)
            round_block(x + row * layer.inputs + b * BLOCK, layer.inputs - b * BLOCK, rounded, &step, &step_sum);
        uint8_t* high = tiles.bytes + ((tile * blocks + b) * 2 * height + at) * BLOCK;
        split_bytes(rounded, high, high + height * BLOCK);
        float* steps = tiles.steps + (tile * blocks + b) * 2 * height + at;
        steps[0] = step;
        steps[height] = step_sum;
    }
}

// A tile of H rows, of which `rows` are there; weights: the panel's, spread -> out [rows, columns]
template <class G, int H>
void multiply_tile(const uint8_t* x, const float* steps, int64_t blocks, const uint8_t* panel, const uint8_t* weights,
                   int64_t rows, const float* bias, int columns, float* out, int64_t out_stride) {
    alignas(64) int32_t dots[2][2][H][PANEL];
    for (int64_t r = 0; r < rows; r++) __builtin_prefetch(out + r * out_stride, 1);
    vf sum[H];
    for (int r = 0; r < H; r++) sum[r] = splat_of<WIDTH>(0);
    for (int64_t b = 0; b < blocks; b += 2) {
        const int turn = blocks - b < 2 ? 1 : 2;
        multiply_bytes<H>(x + b * 2 * H * BLOCK, weights + b * BLOCK * PANEL, turn, dots);
        for (int k = 0; k < turn; k++) {
            const uint8_t* block = panel + (b + k) * G::BYTES;
            const float* of = steps + (b + k) * 2 * H;
            const vf step = halves_of<WIDTH>(block);
            vf offset;
            if constexpr (G::HAS_OFFSET) offset = halves_of<WIDTH>(block + 2 * PANEL);
#pragma GCC unroll 16
            for (int r = 0; r < H; r++) {
                const vi dot = load_ints(dots[k][0][r]) * 256 + load_ints(dots[k][1][r]);
                sum[r] = fused(__builtin_convertvector(dot, vf), step * splat_of<WIDTH>(of[r]), sum[r]);
                if constexpr (G::HAS_OFFSET) sum[r] = fused(offset, splat_of<WIDTH>(of[H + r]), sum[r]);
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < H; r++)
        if (r < rows) write_row(sum[r], bias, columns, out + r * out_stride);
}

template <class G, int H>
void multiply_tile_of(int height, const uint8_t* x, const float* steps, int64_t blocks, const uint8_t* panel,
                      const uint8_t* weights, int64_t rows, const float* bias, int columns, float* out,
                      int64_t out_stride) {
    if constexpr (H > 2)
        if (height < H)
            return multiply_tile_of<G, H - 2>(height, x, steps, blocks, panel, weights, rows, bias, columns, out,
                                              out_stride);
    multiply_tile<G, H>(x, steps, blocks, panel, weights, rows, bias, columns, out, out_stride);
}

struct TilePlan {
    Tiles tiles;
    int64_t group, at_once, spread;  // tiles and panels of a turn; bytes of a thread's unpacked weights

    TilePlan(const Layer& layer, int64_t rows) {
        const int64_t width = layer.blocks() * BLOCK;
        tiles.count = (rows + TILE_ROWS - 1) / TILE_ROWS;
        tiles.height = (int)((rows + 2 * tiles.count - 1) / (2 * tiles.count) * 2);
        group = L2_ELEMENTS / (width * tiles.height) + 1;
        at_once = tiles.count > 2 ? PANELS_AT_ONCE : 1;
        spread = at_once * width * PANEL;
    }

    int64_t places() const { return tiles.count * tiles.height; }
};

int64_t bytes_by_tiles(const Layer& layer, int64_t rows, int num_threads) {
    const TilePlan plan(layer, rows);
    return num_threads * plan.spread + plan.places() * layer.blocks() * (2 * BLOCK + 8);
}

template <class G>
void multiply_by_tiles(const Layer& layer, const float* x, float* out, int64_t rows, uint8_t* scratch) {
    const int64_t blocks = layer.blocks(), panels = layer.panels();
    TilePlan plan(layer, rows);
    Tiles& tiles = plan.tiles;
    const int64_t height = tiles.height, at_once = plan.at_once;
    uint8_t* weights = scratch + omp_get_thread_num() * plan.spread;
    tiles.bytes = scratch + omp_get_num_threads() * plan.spread;
    tiles.steps = (float*)(tiles.bytes + plan.places() * blocks * 2 * BLOCK);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < plan.places(); row++) round_into_tile(layer, x, tiles, row, row < rows);
    configure_tiles(tiles.height);
    for (int64_t first = 0; first < tiles.count; first += plan.group) {
        const int64_t last = first + plan.group < tiles.count ? first + plan.group : tiles.count;
#pragma omp for schedule(static) nowait
        for (int64_t from = 0; from < panels; from += at_once) {
            const int64_t to = from + at_once < panels ? from + at_once : panels;
            for (int64_t b = 0; b < (to - from) * blocks; b++) {
                const uint8_t* block = layer.packed + (from * blocks + b) * G::BYTES;
                fetch_ahead<G>(block);
                G::spread(block, weights + b * BLOCK * PANEL);
            }
            __asm__ volatile("" ::: "memory");  // written before tiles are loaded: not every compiler knows
            for (int64_t tile = first; tile < last; tile++)
                for (int64_t panel = from; panel < to; panel++)
                    multiply_tile_of<G, TILE_ROWS>(
                        tiles.height, tiles.bytes + tile * blocks * 2 * height * BLOCK,
                        tiles.steps + tile * blocks * 2 * height, blocks, layer.packed + panel * blocks * G::BYTES,
                        weights + (panel - from) * blocks * BLOCK * PANEL,
                        rows - tile * height < height ? rows - tile * height : height, layer.bias_of(panel),
                        layer.columns_of(panel), out + tile * height * layer.outputs + panel * PANEL, layer.outputs);
        }
    }
    _tile_release();
#pragma omp barrier
}
#endif

bool goes_by_tiles(int64_t rows) {
#if HAS_TILES
    return rows >= MIN_TILE_ROWS && may_use_tiles();
#else
    return false;
#endif
}

template <class G>
void multiply_by(const Layer& layer, const float* x, float* out, int64_t rows, uint8_t* scratch) {
#if HAS_TILES
    if (goes_by_tiles(rows)) return multiply_by_tiles<G>(layer, x, out, rows, scratch);
#endif
    multiply_by_vectors<G>(layer, x, out, rows, scratch);
}

// -- packing --

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

// -- memory --

// Memory of this thread, aligned for any vector; kept from call to call, it grows to the longest chunk's. Null if there is
// no more.
inline uint8_t* scratch(int64_t bytes) {
    static thread_local std::unique_ptr<uint8_t[]> memory;
    static thread_local int64_t held = 0;
    if (held < bytes) {
        memory.reset();
        memory.reset(new (std::nothrow) uint8_t[(size_t)bytes + 64]);
        held = memory ? bytes : 0;
    }
    return memory ? memory.get() + (64 - (uintptr_t)memory.get() % 64) % 64 : nullptr;
}

}  // namespace

int64_t linear_bytes(const Linear& linear, int64_t rows, int num_threads) {
    const Layer layer{linear};
#if HAS_TILES
    if (goes_by_tiles(rows)) return bytes_by_tiles(layer, rows, num_threads);
#endif
    return bytes_by_vectors(layer, rows);
}

void multiply(const Linear& linear, const float* x, float* out, int64_t rows, uint8_t* scratch) {
    if (rows == 0) return;
    const Layer layer{linear};
    layer.bits == 4 ? multiply_by<Four>(layer, x, out, rows, scratch) : multiply_by<Eight>(layer, x, out, rows, scratch);
}

extern "C" {

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

// out [rows, outputs] = x [rows, inputs] @ weight.T + bias. 0 if there is no memory to round x into.
int32_t anaphora_linear(const Linear* linear, const float* x, float* out, int64_t rows, int32_t num_threads) {
    uint8_t* room = scratch(linear_bytes(*linear, rows, num_threads));
    if (!room) return 0;
#pragma omp parallel num_threads(num_threads)
    multiply(*linear, x, out, rows, room);
    return 1;
}
}
