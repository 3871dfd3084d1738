// What attention's parts share: the call, the rows of a task, where a tile's keys lie, and the softmax that runs over them.

#pragma once

#include "pool.h"

extern "C" {

// One scheduled entry: rows [row, row + num_tokens) are tokens [start, start + num_tokens) of one request.
struct Sequence {
    const int32_t* block_table;
    int32_t row, start, num_tokens, unused;
};

// query [T, q_heads, head_dim], key [T, kv_heads, head_dim], value [T, kv_heads, value_dim]: fp32, strides in floats,
// innermost contiguous.  out [T, q_heads, value_dim] contiguous.  window: keys a token sees, itself included; 0 is all.
struct AttentionCall {
    const LayerPool* pool;
    const Sequence* sequences;
    const float *query, *key, *value;
    float* out;
    float* scratch;       // of cut tasks' parts: rows of value_dim + 2 floats
    int32_t* parts_done;  // of every cut task; no more of them than MAX_CUT_TASKS a thread
    int64_t query_row, query_head, key_row, key_head, value_row, value_head;
    int32_t num_sequences, q_heads, window, num_threads;
    float scaling;
};
}

namespace {

constexpr int MAX_ROWS = 96;    // (token, query head) rows of one task
constexpr int MAX_TILE = 128;   // keys between two looks at the running softmax, at most
constexpr int PARTITION = 512;  // keys whose softmax is summed on its own, then merged in order
constexpr float NEGATIVE = -INFINITY;
constexpr float SLACK = 8;  // how far scores may rise above the peak before it moves: weights are up to 2 to the 8th
constexpr float LOG2_E = 1.44269504088896341f;

// A task: rows (KV head, token, query head of the group) of one sequence under some neighbouring KV heads.
struct Task {
    const Sequence* sequence;
    int kv_head, num_heads, first_token, num_tokens, part;  // part -1: all partitions, merged in place
    int group;                                              // query heads of a KV head

    int64_t first_position() const { return (int64_t)sequence->start + first_token; }
    int64_t length() const { return first_position() + num_tokens; }
    int rows_per_head() const { return num_tokens * group; }
    int num_rows() const { return num_heads * rows_per_head(); }
    // Row r of the task: the step's row, and the query head.
    int64_t token(int r) const { return sequence->row + first_token + r % rows_per_head() / group; }
    int64_t query_head(int r) const { return (int64_t)(kv_head + r / rows_per_head()) * group + r % group; }
};

// Softmax state of a task's rows over the keys seen so far.  peak: of scores in base 2.  sum: rows `stride` apart.
struct Running {
    alignas(64) float total[MAX_ROWS * WIDE];  // lane by lane
    alignas(64) float sum[MAX_ROWS * MAX_HEAD_DIM];
    float peak[MAX_ROWS];
    int stride;

    void clear(int num_rows, int value_dim) {
        stride = (value_dim + 15) / 16 * 16;
        for (int r = 0; r < num_rows; r++) peak[r] = NEGATIVE;
        memset(total, 0, sizeof(float) * WIDE * num_rows);
        memset(sum, 0, sizeof(float) * stride * num_rows);
    }
};

// Where a tile's keys lie: columns of L neighbouring keys in one block, whatever the order of the blocks.
template <int L, class T>
struct Tile {
    typedef typename T::type element;
    int64_t first = 0;
    int num_keys = 0, columns = 0;
    const element *k[MAX_TILE / L], *v[MAX_TILE / L];
    alignas(64) float key_scale[T::SCALED ? MAX_TILE : L], value_scale[T::SCALED ? MAX_TILE : L];

    void locate(const AttentionCall& call, const Task& task, int kv_head, int64_t tile, int64_t end, int most) {
        const LayerPool& pool = *call.pool;
        const int bs = pool.block_size;
        first = tile;
        num_keys = end - tile < most ? (end > tile ? (int)(end - tile) : 0) : most;
        columns = (num_keys + L - 1) / L;
        for (int w = 0; w < columns; w++) {
            const int64_t position = tile + w * L, block = task.sequence->block_table[position / bs];
            const int64_t place = block * pool.kv_heads + kv_head, offset = position % bs;
            k[w] = (const element*)pool.keys + place * bs * pool.head_dim + offset;
            v[w] = (const element*)pool.values + (place * bs + offset) * pool.value_dim;
            if constexpr (T::SCALED) {
                store_of<L>(key_scale + w * L, load_of<L>(pool.key_scales + place * bs + offset));
                store_of<L>(value_scale + w * L, load_of<L>(pool.value_scales + place * bs + offset));
            }
        }
        if constexpr (T::SCALED)  // a weight of 0 times a stranger's NaN is NaN
            for (int j = num_keys; j < (columns + 1) / 2 * 2 * L; j++) value_scale[j] = 0;
    }
};

inline void prefetch(const void* from, int64_t bytes) {
    for (const char *p = (const char*)from, *end = p + bytes; p < end; p += 64) __builtin_prefetch(p, 0, 2);
}

// 2 to the x for x from -1/2 to 1/2.
template <int L>
inline typename Of<L>::floats exp2_of_rest(typename Of<L>::floats x) {
    typename Of<L>::floats y = splat_of<L>(1.3276471874e-3f);
    y = y * x + 9.6755413335e-3f;
    y = y * x + 5.5507132739e-2f;
    y = y * x + 2.4022119724e-1f;
    y = y * x + 6.9314696706e-1f;
    return y * x + 1.0f;
}

// 2 to the x for x <= SLACK or so: relative error about 2e-7; 0 below -126.5 (-125.5 with AVX-512).
template <int L>
inline typename Of<L>::floats exp2_of(typename Of<L>::floats x) {
    typedef typename Of<L>::floats v;
    typedef typename Of<L>::ints vi;
#if defined(__AVX512F__)
    if constexpr (L == 16) {
        const __m512 whole = _mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        const v y = exp2_of_rest<L>(x - (v)whole);
        return (v)_mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(whole, _mm512_set1_ps(-126), _CMP_NLE_UQ), (__m512)y, whole);
    }
#endif
    const v floor_at = splat_of<L>(-127.0f);
    x = x < floor_at ? floor_at : x;  // NaN stays
    const vi whole = __builtin_convertvector(x + 128.5f, vi) - 128;  // conversion truncates: to nearest
    return exp2_of_rest<L>(x - __builtin_convertvector(whole, v)) * (v)((whole + 127) << 23);
}

// Is any lane of v above?
template <int L>
inline bool any_above(typename Of<L>::floats v, float bound) {
#if defined(__AVX512F__)
    if constexpr (L == 16) return _mm512_cmp_ps_mask((__m512)v, _mm512_set1_ps(bound), _CMP_GT_OQ);
#endif
#if defined(__AVX2__)
    if constexpr (L == 8) return _mm256_movemask_ps(_mm256_cmp_ps((__m256)v, _mm256_set1_ps(bound), _CMP_GT_OQ));
#endif
    return max_of<L>(v) > bound;
}

template <int L>
__attribute__((noinline)) void raise_peak(Running& run, int r, float top) {
    const float keep = run.peak[r] == NEGATIVE ? 0.0f : exp2f(run.peak[r] - top);
    run.peak[r] = top;
    float *total = run.total + r * WIDE, *sum = run.sum + r * run.stride;
    store_of<L>(total, load_of<L>(total) * keep);
    for (int d = 0; d < run.stride; d += LANES) store_of<LANES>(sum + d, load_of<LANES>(sum + d) * keep);
}

// Turn a row's scores s [width] of a tile into weights, of the integers where V is scaled; keys outside [from, to) weigh
// nothing.  width: a multiple of 2 L.  put(j, a, b) takes the weights of 2 L keys.
template <int L, class T, class Put>
inline void soften(Running& run, int r, float* s, const Tile<L, T>& tile, int width, int64_t low, int64_t high, Put put) {
    typedef typename Of<L>::floats v;
    const int from = low > tile.first ? (int)(low - tile.first < width ? low - tile.first : width) : 0;
    const int to = high - tile.first < width ? (int)(high > tile.first ? high - tile.first : 0) : width;
    if (from >= to) {
        for (int j = 0; j < width; j += 2 * L) put(j, splat_of<L>(0), splat_of<L>(0));
        return;
    }
    if constexpr (T::SCALED)
        for (int w = 0; w < tile.columns; w++) store_of<L>(s + w * L, load_of<L>(s + w * L) * load_of<L>(tile.key_scale + w * L));
    for (int j = 0; j < from; j++) s[j] = NEGATIVE;
    for (int j = to; j < width; j++) s[j] = NEGATIVE;
    v top = splat_of<L>(NEGATIVE), other = top;
    for (int j = 0; j < width; j += 2 * L) {
        const v a = load_of<L>(s + j), b = load_of<L>(s + j + L);
        top = a > top ? a : top;
        other = b > other ? b : other;
    }
    top = other > top ? other : top;
    if (any_above<L>(top, run.peak[r] + SLACK)) raise_peak<L>(run, r, max_of<L>(top));
    const float peak = run.peak[r];
    v total = load_of<L>(run.total + r * WIDE);
    for (int j = 0; j < width; j += 2 * L) {
        v a = exp2_of<L>(load_of<L>(s + j) - peak), b = exp2_of<L>(load_of<L>(s + j + L) - peak);
        total += a;
        total += b;
        if constexpr (T::SCALED) {
            a *= load_of<L>(tile.value_scale + j);
            b *= load_of<L>(tile.value_scale + j + L);
        }
        put(j, a, b);
    }
    store_of<L>(run.total + r * WIDE, total);
}

}  // namespace
