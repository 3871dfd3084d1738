// Attention over one tile of keys by multiply-adds: any element type, any machine.

#pragma once

#include "attention.h"

namespace {

// A tile's K and V as floats, for tasks of many rows: [head_dim, TILE] and [TILE, value_dim].
struct Widened {
    alignas(64) float k[MAX_HEAD_DIM * MAX_TILE], v[MAX_TILE * MAX_HEAD_DIM];
};

template <int R, int W, int L, class T>
inline void scores_of(const float* q, int head_dim, const typename T::type* const* k, int64_t stride, float* out) {
    // q [R, head_dim]; k: W vectors of L keys, [head_dim] apart by stride -> out [R, MAX_TILE], L W columns
    typename Of<L>::floats sum[R][W];
    for (int r = 0; r < R; r++)
        for (int w = 0; w < W; w++) sum[r][w] = splat_of<L>(0);
    for (int d = 0; d < head_dim; d++) {
        typename Of<L>::floats key[W];
        for (int w = 0; w < W; w++) key[w] = T::template load<L>(k[w] + d * stride);
        for (int r = 0; r < R; r++) {
            typename Of<L>::floats x = splat_of<L>(q[r * head_dim + d]);
            for (int w = 0; w < W; w++) sum[r][w] += x * key[w];
        }
    }
    for (int r = 0; r < R; r++)
        for (int w = 0; w < W; w++) store_of<L>(out + r * MAX_TILE + w * L, sum[r][w]);
}

template <int R, int W, int L, class T>
inline void weigh_values(const float* p, const typename T::type* v, int64_t value_dim, int num_keys, float* out, int64_t stride) {
    // p [R, MAX_TILE], v [num_keys, value_dim] -> out [R, stride] += p v, L W columns
    typename Of<L>::floats sum[R][W];
    for (int r = 0; r < R; r++)
        for (int w = 0; w < W; w++) sum[r][w] = load_of<L>(out + r * stride + w * L);
    for (int j = 0; j < num_keys; j++) {
        typename Of<L>::floats value[W];
        for (int w = 0; w < W; w++) value[w] = T::template load<L>(v + j * value_dim + w * L);
        for (int r = 0; r < R; r++) {
            typename Of<L>::floats x = splat_of<L>(p[r * MAX_TILE + j]);
            for (int w = 0; w < W; w++) sum[r][w] += x * value[w];
        }
    }
    for (int r = 0; r < R; r++)
        for (int w = 0; w < W; w++) store_of<L>(out + r * stride + w * L, sum[r][w]);
}

// Vectors at once: enough independent sums to keep the multipliers busy, within the 16 registers of AVX2 or the 32 of AVX-512.
template <int R>
constexpr int AT_ONCE = WIDE > LANES || R <= 3 ? 4 : 2;

template <int R, int L, class T>
void score_rows(const float* q, int head_dim, const typename T::type* const* k, int columns, int64_t stride, float* out) {
    constexpr int W = AT_ONCE<R>;
    int w = 0;
    for (; w + W <= columns; w += W) scores_of<R, W, L, T>(q, head_dim, k + w, stride, out + w * L);
    for (; w < columns; w++) scores_of<R, 1, L, T>(q, head_dim, k + w, stride, out + w * L);
}

template <int R, class T>
void weigh_rows(const float* p, const typename T::type* v, int value_dim, int num_keys, float* out, int64_t stride) {
    constexpr int W = AT_ONCE<R>;
    int c = 0;
    for (; c + W * WIDE <= value_dim; c += W * WIDE)
        weigh_values<R, W, WIDE, T>(p, v + c, value_dim, num_keys, out + c, stride);
    for (; c + WIDE <= value_dim; c += WIDE) weigh_values<R, 1, WIDE, T>(p, v + c, value_dim, num_keys, out + c, stride);
    for (; c < value_dim; c += LANES) weigh_values<R, 1, LANES, T>(p, v + c, value_dim, num_keys, out + c, stride);
}

// L: keys of a vector; a block has a multiple of them.
template <int Lanes, class Element>
struct Vectors {
    typedef Element T;
    typedef typename T::type element;
    static constexpr int L = Lanes;
    static constexpr int ROWS = 6;  // that share one load of K or V: 6 x 4 sums of 32 registers, or 6 x 2 of 16
    static constexpr int TILE = MAX_TILE;

    struct Work {
        alignas(64) float q[MAX_ROWS * MAX_HEAD_DIM];
        alignas(64) float scores[ROWS * MAX_TILE];
        Widened wide;
        bool widened;
    };

    static void put_query(Work& work, int r, const float* from, int head_dim, float scaling) {
        for (int d = 0; d < head_dim; d++) work.q[r * head_dim + d] = from[d] * scaling;
    }

    static void prefetch_column(const LayerPool& pool, const Tile<L, T>& tile, int w) {
        for (int d = 0; d < pool.head_dim; d++) __builtin_prefetch(tile.k[w] + d * pool.block_size, 0, 2);
        prefetch(tile.v[w], sizeof(element) * L * pool.value_dim);
    }

    // Many rows share the conversion of a tile; few read it where it lies.  The products are the same.
    static void open(Work& work, const LayerPool& pool, const Tile<L, T>& tile, const Tile<L, T>& next, int num_rows) {
        work.widened = sizeof(element) < sizeof(float) && num_rows > ROWS;
        const int bs = pool.block_size, hd = pool.head_dim, vd = pool.value_dim;
        for (int w = 0; w < next.columns; w++) prefetch_column(pool, next, w);
        if (!work.widened) return;
        for (int w = 0; w < tile.columns; w++)
            for (int d = 0; d < hd; d++) store_of<L>(work.wide.k + d * TILE + w * L, T::template load<L>(tile.k[w] + d * bs));
        for (int j = 0; j < tile.num_keys; j++)
            for (int c = 0; c < vd; c += LANES)
                store_of<LANES>(work.wide.v + j * vd + c, T::template load<LANES>(tile.v[j / L] + j % L * vd + c));
    }

    template <int R>
    static void score(Work& work, const LayerPool& pool, const Tile<L, T>& tile, int r0) {
        const int hd = pool.head_dim;
        if (!work.widened) return score_rows<R, L, T>(work.q + r0 * hd, hd, tile.k, tile.columns, pool.block_size, work.scores);
        const float* k[TILE / L];
        for (int w = 0; w < tile.columns; w++) k[w] = work.wide.k + w * L;
        score_rows<R, L, F32>(work.q + r0 * hd, hd, k, tile.columns, TILE, work.scores);
    }

    template <int R>
    static void weigh(Work& work, const LayerPool& pool, const Tile<L, T>& tile, int r0, Running& run) {
        const int vd = pool.value_dim;
        float* sum = run.sum + r0 * run.stride;
        if (work.widened) return weigh_rows<R, F32>(work.scores, work.wide.v, vd, tile.num_keys, sum, run.stride);
        for (int j = 0; j < tile.num_keys; j += L)  // unwritten slots past num_keys are never read: 0 * NaN is NaN
            weigh_rows<R, T>(work.scores + j, tile.v[j / L], vd, tile.num_keys - j < L ? tile.num_keys - j : L, sum, run.stride);
    }

    // Never inlined: the compiler may fuse multiply and add differently in two copies, and the weights must be the same.
    __attribute__((noinline)) static void soften_row(Work& work, const Tile<L, T>& tile, int row, int r, int64_t low, int64_t high, Running& run) {
        float* s = work.scores + row * MAX_TILE;
        soften<L, T>(run, r, s, tile, (tile.columns + 1) / 2 * 2 * L, low, high,
                     [s](int j, typename Of<L>::floats a, typename Of<L>::floats b) {
                         store_of<L>(s + j, a);
                         store_of<L>(s + j + L, b);
                     });
    }

    template <int R, class Soften>
    static void attend_rows(Work& work, const LayerPool& pool, const Tile<L, T>& tile, int r0, Running& run, Soften soften) {
        score<R>(work, pool, tile, r0);
        for (int row = 0; row < R; row++) soften(row);
        weigh<R>(work, pool, tile, r0, run);
    }

    template <class Soften>
    static void attend(Work& work, const LayerPool& pool, const Tile<L, T>& tile, int r0, int rows, Running& run, Soften soften) {
        switch (rows) {
            case 1: return attend_rows<1>(work, pool, tile, r0, run, soften);
            case 2: return attend_rows<2>(work, pool, tile, r0, run, soften);
            case 3: return attend_rows<3>(work, pool, tile, r0, run, soften);
            case 4: return attend_rows<4>(work, pool, tile, r0, run, soften);
            case 5: return attend_rows<5>(work, pool, tile, r0, run, soften);
            default: attend_rows<6>(work, pool, tile, r0, run, soften);
        }
    }
};

}  // namespace
