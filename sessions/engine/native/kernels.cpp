// The CPU kernels: attention that reads the pool's blocks where they lie, and the small operators between a layer's
// linears. Plain C interface (no torch headers: compiles in seconds, works with any torch), called from kernels.py,
// which states each argument's shape. Nothing here allocates what a client sizes, throws, or keeps state between calls.
//
// A row's result never depends on the other rows of the step: every sum runs in an order fixed by the row's own
// position. So cold = warm = chunked = batched, bit for bit.

#include "vectors.h"

namespace {

enum Dtype : int32_t { FLOAT32 = 0, FLOAT16 = 1, BFLOAT16 = 2, INT8 = 3 };

constexpr int ROW_GROUP = 6;      // rows that share one load of K or V: 6 x 2 accumulators fill 16 registers
constexpr int MAX_ROWS = 48;      // (token, query head) rows of one task
constexpr int TILE_KEYS = 128;    // keys between two rescalings of the running softmax
constexpr int PARTITION = 512;    // keys whose softmax is summed on its own, then merged in order
constexpr int MAX_CUT_TASKS = 4;  // a thread: tasks whose keys are cut into partitions
constexpr int MAX_HEAD_DIM = 256;
constexpr float NEGATIVE = -INFINITY;
constexpr float STEPS = 127;        // integers on each side of zero that int8 KV is rounded to
constexpr float SMALLEST = 1e-30f;  // below, K or V of a head is stored as zeros: 1 / scale would overflow

// -- element types of the pool: `put_all` stores one token's K or V, elements `stride` apart; only I8 has a scale --

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

template <class E>
inline void prefetch(const E* from, int64_t count) {
    for (const char *p = (const char*)from, *end = (const char*)(from + count); p < end; p += 64) __builtin_prefetch(p, 0, 2);
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
    float lane[L];
    store_of<L>(lane, v);
    for (int half = L / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lane[i] = lane[i] > lane[i + half] ? lane[i] : lane[i + half];
    return lane[0];
}

}  // namespace

// -- what crosses the boundary; mirrored field by field in kernels.py --

extern "C" {

// One scheduled entry: rows [row, row + num_tokens) are tokens [start, start + num_tokens) of one request.
struct Sequence {
    const int32_t* block_table;
    int32_t row, start, num_tokens, unused;
};

// One layer of the pool.  keys [num_blocks, kv_heads, head_dim, block_size]: transposed inside the block, so that eight
// neighbouring keys are one load.  values [num_blocks, kv_heads, block_size, value_dim].  scales [num_blocks, kv_heads,
// block_size], of int8 only.
struct LayerPool {
    void *keys, *values;
    float *key_scales, *value_scales;
    int32_t dtype, block_size, kv_heads, head_dim, value_dim, unused;
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

// -- attention --

template <int R, int W, int L, class T>
inline void scores_of(const float* q, int head_dim, const typename T::type* const* k, int64_t stride,
                      const float* key_scale, float* out) {
    // q [R, head_dim]; k: W vectors of L keys, [head_dim] apart by stride -> out [R, TILE_KEYS], L W columns
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
        for (int w = 0; w < W; w++) {
            if constexpr (T::SCALED) sum[r][w] *= load_of<L>(key_scale + w * L);
            store_of<L>(out + r * TILE_KEYS + w * L, sum[r][w]);
        }
}

template <int R, int W, int L, class T>
inline void weigh_values(const float* p, const typename T::type* v, int64_t value_dim, int num_keys, float* out) {
    // p [R, TILE_KEYS], v [num_keys, value_dim] -> out [R, MAX_HEAD_DIM] += p v, L W columns
    typename Of<L>::floats sum[R][W];
    for (int r = 0; r < R; r++)
        for (int w = 0; w < W; w++) sum[r][w] = load_of<L>(out + r * MAX_HEAD_DIM + w * L);
    for (int j = 0; j < num_keys; j++) {
        typename Of<L>::floats value[W];
        for (int w = 0; w < W; w++) value[w] = T::template load<L>(v + j * value_dim + w * L);
        for (int r = 0; r < R; r++) {
            typename Of<L>::floats x = splat_of<L>(p[r * TILE_KEYS + j]);
            for (int w = 0; w < W; w++) sum[r][w] += x * value[w];
        }
    }
    for (int r = 0; r < R; r++)
        for (int w = 0; w < W; w++) store_of<L>(out + r * MAX_HEAD_DIM + w * L, sum[r][w]);
}

// Vectors at once: enough independent sums to keep the multipliers busy, within the 16 registers of AVX2 or the 32 of AVX-512.
template <int R>
constexpr int AT_ONCE = WIDE > LANES || R <= 3 ? 4 : 2;

template <int R, int L, class T>
void score_rows(const float* q, int head_dim, const typename T::type* const* k, int columns, int64_t stride,
                const float* key_scale, float* out) {
    constexpr int W = AT_ONCE<R>;
    int w = 0;
    for (; w + W <= columns; w += W)
        scores_of<R, W, L, T>(q, head_dim, k + w, stride, key_scale + w * L, out + w * L);
    for (; w < columns; w++) scores_of<R, 1, L, T>(q, head_dim, k + w, stride, key_scale + w * L, out + w * L);
}

template <int R, class T>
void weigh_rows(const float* p, const typename T::type* v, int value_dim, int num_keys, float* out) {
    constexpr int W = AT_ONCE<R>;
    int c = 0;
    for (; c + W * WIDE <= value_dim; c += W * WIDE)
        weigh_values<R, W, WIDE, T>(p, v + c, value_dim, num_keys, out + c);
    for (; c + WIDE <= value_dim; c += WIDE) weigh_values<R, 1, WIDE, T>(p, v + c, value_dim, num_keys, out + c);
    for (; c < value_dim; c += LANES) weigh_values<R, 1, LANES, T>(p, v + c, value_dim, num_keys, out + c);
}

// Softmax state of a task's rows over the keys seen so far.
struct Running {
    float peak[MAX_ROWS], total[MAX_ROWS], sum[MAX_ROWS * MAX_HEAD_DIM];

    void clear(int num_rows, int value_dim) {
        for (int r = 0; r < num_rows; r++) {
            peak[r] = NEGATIVE;
            total[r] = 0;
            memset(sum + r * MAX_HEAD_DIM, 0, sizeof(float) * value_dim);
        }
    }
};

// Never inlined: the compiler may fuse multiply and add differently in two copies, and the sums must be the same.
__attribute__((noinline)) void merge_row(float* peak, float* total, float* sum, float other_peak, float other_total,
                                         const float* other, int value_dim) {
    if (other_peak == NEGATIVE) return;
    float top = *peak > other_peak ? *peak : other_peak;
    float mine = *peak == NEGATIVE ? 0.0f : expf(*peak - top), theirs = expf(other_peak - top);
    *peak = top;
    *total = *total * mine + other_total * theirs;
    for (int d = 0; d < value_dim; d++) sum[d] = sum[d] * mine + other[d] * theirs;
}

// A task: rows (token, head of the group) of one sequence under one KV head.
struct Task {
    const Sequence* sequence;
    int kv_head, first_token, num_tokens, part;  // part -1: all partitions, merged in place
};

// Rescale what is there and turn scores into weights, of the integers where V is scaled; masks what the row may not see.
template <int L, class T>
inline void soften(Running& run, float* scores, int r, int64_t first_key, int width, int64_t low, int64_t high,
                   int value_dim, const float* value_scale) {
    float* s = scores + r * TILE_KEYS;
    int from = low > first_key ? (int)(low - first_key < width ? low - first_key : width) : 0;
    int to = high - first_key < width ? (int)(high - first_key > 0 ? high - first_key : 0) : width;
    for (int j = 0; j < from; j++) s[j] = NEGATIVE;
    for (int j = to; j < width; j++) s[j] = NEGATIVE;
    typedef typename Of<L>::floats v;
    v top = load_of<L>(s);
    for (int j = L; j < width; j += L) { v x = load_of<L>(s + j); top = x > top ? x : top; }
    float peak = max_of<L>(top);
    if (peak == NEGATIVE) {
        memset(s, 0, sizeof(float) * width);
        return;
    }
    peak = run.peak[r] > peak ? run.peak[r] : peak;
    v total = splat_of<L>(0);
    for (int j = 0; j < width; j += L) {
        v weight = exp_of<L>(load_of<L>(s + j) - peak);
        total += weight;
        if constexpr (T::SCALED) weight *= load_of<L>(value_scale + j);
        store_of<L>(s + j, weight);
    }
    float* sum = run.sum + r * MAX_HEAD_DIM;
    if (run.peak[r] == NEGATIVE) {
        run.total[r] = sum_of<L>(total);
    } else if (run.peak[r] == peak) {
        run.total[r] += sum_of<L>(total);
    } else {
        float keep = expf(run.peak[r] - peak);
        run.total[r] = run.total[r] * keep + sum_of<L>(total);
        for (int d = 0; d < value_dim; d += LANES) store_of<LANES>(sum + d, load_of<LANES>(sum + d) * keep);
    }
    run.peak[r] = peak;
}

// L: keys of a vector; a block has a multiple of them.
template <int L, class T>
void attend_partition(const AttentionCall& call, const Task& task, const float* q, int num_rows, int64_t begin,
                      int64_t end, Running& run) {
    typedef typename T::type element;
    const LayerPool& pool = *call.pool;
    const int group = call.q_heads / pool.kv_heads, bs = pool.block_size, hd = pool.head_dim, vd = pool.value_dim;
    const Sequence& seq = *task.sequence;
    const int64_t first_position = seq.start + task.first_token, last_position = first_position + task.num_tokens - 1;
    const int64_t key_stride = (int64_t)hd * bs, value_stride = (int64_t)bs * vd;
    alignas(64) float scores[MAX_ROWS * TILE_KEYS];
    alignas(64) float key_scale[TILE_KEYS], value_scale[TILE_KEYS];
    run.clear(num_rows, vd);
    if (end > last_position + 1) end = last_position + 1;
    if (call.window) {
        int64_t low = first_position - call.window + 1;
        if (low > begin) begin = low / TILE_KEYS * TILE_KEYS;
    }
    for (int64_t tile = begin; tile < end; tile += TILE_KEYS) {
        const int num_keys = (int)(end - tile < TILE_KEYS ? end - tile : TILE_KEYS);
        const int columns = (num_keys + L - 1) / L;
        const element* k[TILE_KEYS / L];
        for (int w = 0; w < columns; w++) {
            const int64_t position = tile + w * L, block = seq.block_table[position / bs];
            k[w] = (const element*)pool.keys + (block * pool.kv_heads + task.kv_head) * key_stride + position % bs;
            if constexpr (T::SCALED) {
                const int64_t slot = (block * pool.kv_heads + task.kv_head) * bs + position % bs;
                store_of<L>(key_scale + w * L, load_of<L>(pool.key_scales + slot));
                store_of<L>(value_scale + w * L, load_of<L>(pool.value_scales + slot));
            }
        }
        if (tile + TILE_KEYS < end)  // blocks lie anywhere: no hardware prefetcher finds the next tile's
            for (int64_t position = tile + TILE_KEYS; position < end && position < tile + 2 * TILE_KEYS; position += bs) {
                const int64_t place = seq.block_table[position / bs] * (int64_t)pool.kv_heads + task.kv_head;
                prefetch((const element*)pool.keys + place * key_stride, key_stride);
                prefetch((const element*)pool.values + place * value_stride, value_stride);
                if constexpr (T::SCALED) {
                    prefetch(pool.key_scales + place * bs, bs);
                    prefetch(pool.value_scales + place * bs, bs);
                }
            }
        for (int r0 = 0; r0 < num_rows; r0 += ROW_GROUP) {
            const int rows = num_rows - r0 < ROW_GROUP ? num_rows - r0 : ROW_GROUP;
            float* out = scores + r0 * TILE_KEYS;
            const float* from = q + r0 * hd;
            switch (rows) {
                case 1: score_rows<1, L, T>(from, hd, k, columns, bs, key_scale, out); break;
                case 2: score_rows<2, L, T>(from, hd, k, columns, bs, key_scale, out); break;
                case 3: score_rows<3, L, T>(from, hd, k, columns, bs, key_scale, out); break;
                case 4: score_rows<4, L, T>(from, hd, k, columns, bs, key_scale, out); break;
                case 5: score_rows<5, L, T>(from, hd, k, columns, bs, key_scale, out); break;
                default: score_rows<6, L, T>(from, hd, k, columns, bs, key_scale, out);
            }
            for (int r = r0; r < r0 + rows; r++) {
                const int64_t position = first_position + r / group;
                const int64_t low = call.window ? position - call.window + 1 : 0;
                soften<L, T>(run, scores, r, tile, columns * L, low, position + 1, vd, value_scale);
            }
            for (int j = 0; j < num_keys;) {  // unwritten slots past num_keys are never read: 0 * NaN is NaN
                const int64_t position = tile + j, block = seq.block_table[position / bs];
                const int offset = (int)(position % bs);
                const element* v = (const element*)pool.values +
                                   (block * pool.kv_heads + task.kv_head) * value_stride + (int64_t)offset * vd;
                const int count = bs - offset < num_keys - j ? bs - offset : num_keys - j;
                const float* p = scores + r0 * TILE_KEYS + j;
                float* sum = run.sum + r0 * MAX_HEAD_DIM;
                switch (rows) {
                    case 1: weigh_rows<1, T>(p, v, vd, count, sum); break;
                    case 2: weigh_rows<2, T>(p, v, vd, count, sum); break;
                    case 3: weigh_rows<3, T>(p, v, vd, count, sum); break;
                    case 4: weigh_rows<4, T>(p, v, vd, count, sum); break;
                    case 5: weigh_rows<5, T>(p, v, vd, count, sum); break;
                    default: weigh_rows<6, T>(p, v, vd, count, sum);
                }
                j += count;
            }
        }
    }
}

template <class T>
void partition(const AttentionCall& call, const Task& task, const float* q, int num_rows, int64_t begin, int64_t end,
               Running& run) {
    if (call.pool->block_size % WIDE == 0) attend_partition<WIDE, T>(call, task, q, num_rows, begin, end, run);
    else attend_partition<LANES, T>(call, task, q, num_rows, begin, end, run);
}

template <class T>
void run_task(const AttentionCall& call, const Task& task, int64_t scratch_row) {
    const LayerPool& pool = *call.pool;
    const int group = call.q_heads / pool.kv_heads, hd = pool.head_dim, vd = pool.value_dim;
    const int num_rows = task.num_tokens * group;
    const int first_row = task.sequence->row + task.first_token, first_head = task.kv_head * group;
    static thread_local Running part, all;
    alignas(64) float q[MAX_ROWS * MAX_HEAD_DIM];
    for (int r = 0; r < num_rows; r++) {
        const float* from =
            call.query + (first_row + r / group) * call.query_row + (first_head + r % group) * call.query_head;
        for (int d = 0; d < hd; d++) q[r * hd + d] = from[d] * call.scaling;
    }
    const int64_t length = (int64_t)task.sequence->start + task.first_token + task.num_tokens;
    if (task.part >= 0) {
        const int64_t begin = (int64_t)task.part * PARTITION;
        partition<T>(call, task, q, num_rows, begin, begin + PARTITION, part);
        const int64_t width = vd + 2;
        for (int r = 0; r < num_rows; r++) {
            float* to = call.scratch + (scratch_row + r) * width;
            to[0] = part.peak[r];
            to[1] = part.total[r];
            memcpy(to + 2, part.sum + r * MAX_HEAD_DIM, sizeof(float) * vd);
        }
        return;
    }
    all.clear(num_rows, vd);
    int64_t begin = 0;
    if (call.window) {
        const int64_t low = (int64_t)task.sequence->start + task.first_token - call.window + 1;
        if (low > 0) begin = low / PARTITION * PARTITION;
    }
    for (; begin < length; begin += PARTITION) {
        partition<T>(call, task, q, num_rows, begin, begin + PARTITION, part);
        for (int r = 0; r < num_rows; r++)
            merge_row(&all.peak[r], &all.total[r], all.sum + r * MAX_HEAD_DIM, part.peak[r], part.total[r],
                      part.sum + r * MAX_HEAD_DIM, vd);
    }
    for (int r = 0; r < num_rows; r++) {
        float* to = call.out + ((int64_t)(first_row + r / group) * call.q_heads + first_head + r % group) * vd;
        const float inverse = 1.0f / all.total[r];
        for (int d = 0; d < vd; d++) to[d] = all.sum[r * MAX_HEAD_DIM + d] * inverse;
    }
}

template <class T>
void store_rows(const AttentionCall& call) {
    const LayerPool& pool = *call.pool;
    const int bs = pool.block_size, hd = pool.head_dim, vd = pool.value_dim;
    for (int s = 0; s < call.num_sequences; s++) {
        const Sequence& seq = call.sequences[s];
        for (int t = 0; t < seq.num_tokens; t++) {
            const int64_t position = (int64_t)seq.start + t, block = seq.block_table[position / bs];
            const int offset = (int)(position % bs);
            for (int h = 0; h < pool.kv_heads; h++) {
                const float* k = call.key + (seq.row + t) * call.key_row + h * call.key_head;
                const float* v = call.value + (seq.row + t) * call.value_row + h * call.value_head;
                const int64_t place = block * pool.kv_heads + h, slot = place * bs + offset;
                typename T::type* keys = (typename T::type*)pool.keys + place * hd * bs + offset;
                typename T::type* values = (typename T::type*)pool.values + slot * vd;
                T::put_all(k, hd, keys, bs, T::SCALED ? pool.key_scales + slot : nullptr);
                T::put_all(v, vd, values, 1, T::SCALED ? pool.value_scales + slot : nullptr);
            }
        }
    }
}

// How a step's work is cut: tasks of up to tokens_per_task tokens under one KV head.  A task that is a large share of the
// step is also cut into partitions of its keys, so that no thread waits for another's long prefix.  The sums are the same.
struct Plan {
    const AttentionCall& call;
    const int kv_heads, group, tokens_per_task;
    int64_t total = 0;

    explicit Plan(const AttentionCall& of)
        : call(of), kv_heads(of.pool->kv_heads), group(of.q_heads / kv_heads), tokens_per_task(MAX_ROWS / group) {
        for (int s = 0; s < call.num_sequences; s++) total += tasks(call.sequences[s]) * cost(call.sequences[s]);
    }

    int64_t tasks(const Sequence& seq) const {
        return (int64_t)((seq.num_tokens + tokens_per_task - 1) / tokens_per_task) * kv_heads;
    }

    // Pairs of row and key in the longest of its tasks, which all count as much.
    int64_t cost(const Sequence& seq) const {
        const int64_t tokens = seq.num_tokens < tokens_per_task ? seq.num_tokens : tokens_per_task;
        const int64_t seen = (int64_t)seq.start + seq.num_tokens, most = call.window ? call.window + tokens : seen;
        return tokens * group * (seen < most ? seen : most);
    }

    // 1 is uncut.  A cut task is more than one in MAX_CUT_TASKS * num_threads: there are fewer, and the scratch has room.
    int64_t parts(const Sequence& seq) const {
        if (cost(seq) * MAX_CUT_TASKS * call.num_threads <= total) return 1;
        return ((int64_t)seq.start + seq.num_tokens + PARTITION - 1) / PARTITION;
    }

    int64_t rows_per_part() const { return (int64_t)tokens_per_task * group; }
    int64_t items(const Sequence& seq) const { return tasks(seq) * parts(seq); }
};

// Add up a cut task's parts, in order.  scratch_row: of its first part's first row.
void merge_parts(const Plan& plan, const Task& task, int64_t parts, int64_t scratch_row) {
    const AttentionCall& call = plan.call;
    const int vd = call.pool->value_dim, group = plan.group;
    const int64_t first_row = task.sequence->row + task.first_token, first_head = (int64_t)task.kv_head * group;
    for (int r = 0; r < task.num_tokens * group; r++) {
        float peak = NEGATIVE, total = 0;
        float* to = call.out + ((first_row + r / group) * call.q_heads + first_head + r % group) * vd;
        memset(to, 0, sizeof(float) * vd);
        for (int64_t part = 0; part < parts; part++) {
            const float* from = call.scratch + (scratch_row + part * plan.rows_per_part() + r) * (vd + 2);
            merge_row(&peak, &total, to, from[0], from[1], from + 2, vd);
        }
        const float inverse = 1.0f / total;
        for (int d = 0; d < vd; d++) to[d] *= inverse;
    }
}

// item: a task, or a part of one, of all of the step's.  Whoever does the last part of a task adds its parts up.
template <class T>
void run_item(const Plan& plan, int64_t item) {
    int64_t cut_tasks = 0, scratch_row = 0;
    const Sequence* seq = plan.call.sequences;
    for (; item >= plan.items(*seq); seq++) {
        item -= plan.items(*seq);
        if (plan.parts(*seq) == 1) continue;
        cut_tasks += plan.tasks(*seq);
        scratch_row += plan.items(*seq) * plan.rows_per_part();
    }
    const int64_t parts = plan.parts(*seq), number = item / parts, part = item % parts;
    const int first = (int)(number / plan.kv_heads) * plan.tokens_per_task, left = seq->num_tokens - first;
    const Task task = {seq, (int)(number % plan.kv_heads), first, left < plan.tokens_per_task ? left : plan.tokens_per_task,
                       parts > 1 ? (int)part : -1};
    scratch_row += number * parts * plan.rows_per_part();
    run_task<T>(plan.call, task, scratch_row + part * plan.rows_per_part());
    if (parts == 1) return;
    const int32_t done = __atomic_add_fetch(plan.call.parts_done + cut_tasks + number, 1, __ATOMIC_ACQ_REL);
    if (done == parts) merge_parts(plan, task, parts, scratch_row);
}

template <class T>
void attend(const AttentionCall& call) {
    store_rows<T>(call);
    const Plan plan(call);
    int64_t items = 0;
    for (int s = 0; s < call.num_sequences; s++) items += plan.items(call.sequences[s]);
    memset(call.parts_done, 0, sizeof(int32_t) * MAX_CUT_TASKS * call.num_threads);
#pragma omp parallel for schedule(dynamic, 1) num_threads(call.num_threads)
    for (int64_t index = 0; index < items; index++) run_item<T>(plan, items - 1 - index);  // chunks come last: first
}

}  // namespace

extern "C" {

int32_t anaphora_partition(void) { return PARTITION; }
int32_t anaphora_max_rows(void) { return MAX_ROWS; }
int32_t anaphora_max_cut_tasks(void) { return MAX_CUT_TASKS; }
int32_t anaphora_max_head_dim(void) { return MAX_HEAD_DIM; }

// Write the step's K and V into the pool, then attend.
void anaphora_attention(const AttentionCall* call) {
    switch (call->pool->dtype) {
        case FLOAT16: attend<F16>(*call); break;
        case BFLOAT16: attend<BF16>(*call); break;
        case INT8: attend<I8>(*call); break;
        default: attend<F32>(*call);
    }
}

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
