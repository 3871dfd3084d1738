// Attention that reads the pool's blocks where they lie, on CPU: how a step is cut into tasks, and what becomes of them.
//
// A row's result never depends on the other rows of the step: every sum runs in an order fixed by the row's own
// position. So cold = warm = chunked = batched, bit for bit.

#include <omp.h>

#include "attend_vectors.h"
#include "team.h"

namespace {

constexpr int AHEAD = 128;       // keys between what is asked of memory and what is read
constexpr int SEQUENCES_A_THREAD = 4;  // so many, and a task is a whole sequence
constexpr int MAX_CUT_TASKS = 4;  // a thread: tasks whose keys are cut into partitions

// Never inlined: the compiler may fuse multiply and add differently in two copies, and the sums must be the same.
__attribute__((noinline)) void merge_row(float* peak, float* total, float* sum, float other_peak, float other_total,
                                         const float* other, int value_dim) {
    if (other_peak == NEGATIVE) return;
    float top = *peak > other_peak ? *peak : other_peak;
    float mine = *peak == NEGATIVE ? 0.0f : exp2f(*peak - top), theirs = exp2f(other_peak - top);
    *peak = top;
    *total = *total * mine + other_total * theirs;
    for (int d = 0; d < value_dim; d++) sum[d] = sum[d] * mine + other[d] * theirs;
}

template <class Engine>
void attend_partition(const AttentionCall& call, const Task& task, int64_t begin, int64_t end, typename Engine::Work& work, Running& run) {
    constexpr int TILE = Engine::TILE;
    const LayerPool& pool = *call.pool;
    const int rows_per_head = task.rows_per_head();
    const int64_t first_position = task.first_position();
    run.clear(task.num_rows(), pool.value_dim);
    if (end > task.length()) end = task.length();
    const int64_t last = task.part < 0 ? task.length() : end;  // of the keys that this thread reads next
    if (call.window) {
        const int64_t low = first_position - call.window + 1;
        if (low > begin) begin = low / TILE * TILE;
    }
    Tile<Engine::L, typename Engine::T> tile, ahead;
    for (int64_t first = begin; first < begin + AHEAD && first < last; first += TILE)
        for (int head = 0; head < task.num_heads; head++) {
            ahead.locate(call, task, task.kv_head + head, first, last, TILE);
            for (int w = 0; w < ahead.columns; w++) Engine::prefetch_column(pool, ahead, w);
        }
    for (int64_t first = begin; first < end; first += TILE)
        for (int head = 0; head < task.num_heads; head++) {
            tile.locate(call, task, task.kv_head + head, first, end, TILE);
            ahead.locate(call, task, task.kv_head + head, first + AHEAD, last, TILE);
            Engine::open(work, pool, tile, ahead, rows_per_head);
            for (int of_head = 0; of_head < rows_per_head; of_head += Engine::ROWS) {
                const int r0 = head * rows_per_head + of_head, left = rows_per_head - of_head;
                Engine::attend(work, pool, tile, r0, left < Engine::ROWS ? left : Engine::ROWS, run, [&](int row) {
                    const int64_t position = first_position + (of_head + row) / task.group;
                    const int64_t low = call.window ? position - call.window + 1 : 0;
                    Engine::soften_row(work, tile, row, r0 + row, low, position + 1, run);
                });
            }
        }
}

// What a thread works in: one memory for whichever engine it is.
template <class Engine>
struct Desk {
    typename Engine::Work work;
    Running run;
    float peak[MAX_ROWS], total[MAX_ROWS];
};

alignas(64) thread_local unsigned char desk_memory[sizeof(Desk<Vectors<WIDE, F32>>)];

template <class Engine>
void run_task(const AttentionCall& call, const Task& task, int64_t scratch_row) {
    static_assert(sizeof(Desk<Engine>) <= sizeof desk_memory, "room for the largest");
    Desk<Engine>& desk = *(Desk<Engine>*)desk_memory;
    const LayerPool& pool = *call.pool;
    const int vd = pool.value_dim, num_rows = task.num_rows();
    const auto out = [&](int r) { return call.out + (task.token(r) * call.q_heads + task.query_head(r)) * vd; };
    for (int r = 0; r < num_rows; r++)
        Engine::put_query(desk.work, r, call.query + task.token(r) * call.query_row + task.query_head(r) * call.query_head,
                          pool.head_dim, call.scaling * LOG2_E);
    Running& run = desk.run;
    if (task.part >= 0) {
        const int64_t begin = (int64_t)task.part * PARTITION;
        attend_partition<Engine>(call, task, begin, begin + PARTITION, desk.work, run);
        for (int r = 0; r < num_rows; r++) {
            float* to = call.scratch + (scratch_row + r) * (vd + 2);
            to[0] = run.peak[r];
            to[1] = sum_of<Engine::L>(load_of<Engine::L>(run.total + r * WIDE));
            memcpy(to + 2, run.sum + r * run.stride, sizeof(float) * vd);
        }
        return;
    }
    int64_t begin = 0;
    if (call.window) {
        const int64_t low = task.first_position() - call.window + 1;
        if (low > 0) begin = low / PARTITION * PARTITION;
    }
    for (int r = 0; r < num_rows; r++) {
        desk.peak[r] = NEGATIVE;
        desk.total[r] = 0;
        memset(out(r), 0, sizeof(float) * vd);
    }
    for (; begin < task.length(); begin += PARTITION) {
        attend_partition<Engine>(call, task, begin, begin + PARTITION, desk.work, run);
        for (int r = 0; r < num_rows; r++)
            merge_row(&desk.peak[r], &desk.total[r], out(r), run.peak[r], sum_of<Engine::L>(load_of<Engine::L>(run.total + r * WIDE)), run.sum + r * run.stride, vd);
    }
    for (int r = 0; r < num_rows; r++) {
        float* to = out(r);
        const float inverse = 1.0f / desk.total[r];
        for (int d = 0; d < vd; d++) to[d] *= inverse;
    }
}

template <class T>
void store_rows(const AttentionCall& call) {
    const LayerPool& pool = *call.pool;
    const int bs = pool.block_size, hd = pool.head_dim, vd = pool.value_dim;
    for (int s = 0; s < call.num_sequences; s++) {
        const Sequence& seq = call.sequences[s];
        // A run of neighbours each, whose keys share lines; single tokens go round.
        const int64_t threads = omp_get_num_threads(), me = (omp_get_thread_num() + s) % threads;
        for (int64_t t = seq.num_tokens * me / threads; t < seq.num_tokens * (me + 1) / threads; t++) {
            const int64_t position = seq.start + t, block = seq.block_table[position / bs];
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

// How a step's work is cut: tasks of up to tokens_per_task tokens under one KV head; of few tokens, where there are many
// sequences, under all: a block's heads lie side by side, and memory is read in longer runs.  A task that is a large share
// of the step is also cut into partitions of its keys, so that no thread waits for another's long prefix.  The sums are
// the same.
struct Plan {
    const AttentionCall& call;
    const int kv_heads, group, tokens_per_task;
    int64_t total = 0;

    explicit Plan(const AttentionCall& of)
        : call(of), kv_heads(of.pool->kv_heads), group(of.q_heads / kv_heads), tokens_per_task(MAX_ROWS / group) {
        for (int s = 0; s < call.num_sequences; s++) total += tasks(call.sequences[s]) * cost(call.sequences[s]);
    }

    // Of a task of this sequence, its last aside: as even as can be.
    int tokens(const Sequence& seq) const {
        const int chunks = (seq.num_tokens + tokens_per_task - 1) / tokens_per_task;
        return (seq.num_tokens + chunks - 1) / chunks;
    }

    int heads(const Sequence& seq) const {
        const bool are_many = call.num_sequences >= SEQUENCES_A_THREAD * call.num_threads;
        return are_many && seq.num_tokens * call.q_heads <= MAX_ROWS ? kv_heads : 1;
    }

    int64_t tasks(const Sequence& seq) const {
        return (int64_t)((seq.num_tokens + tokens(seq) - 1) / tokens(seq)) * (kv_heads / heads(seq));
    }

    // Pairs of row and key in the longest of its tasks, which all count as much.
    int64_t cost(const Sequence& seq) const {
        const int64_t together = tokens(seq), seen = (int64_t)seq.start + seq.num_tokens;
        const int64_t most = call.window ? call.window + together : seen;
        return together * group * heads(seq) * (seen < most ? seen : most);
    }

    // 1 is uncut.  A cut task is more than one in MAX_CUT_TASKS * num_threads: there are fewer, and the scratch has room.
    int64_t parts(const Sequence& seq) const {
        if (cost(seq) * MAX_CUT_TASKS * call.num_threads <= total) return 1;
        return ((int64_t)seq.start + seq.num_tokens + PARTITION - 1) / PARTITION;
    }

    int64_t items(const Sequence& seq) const { return tasks(seq) * parts(seq); }
};

// Add up a cut task's parts, in order.  scratch_row: of its first part's first row.
void merge_parts(const Plan& plan, const Task& task, int64_t parts, int64_t scratch_row) {
    const AttentionCall& call = plan.call;
    const int vd = call.pool->value_dim;
    for (int r = 0; r < task.num_rows(); r++) {
        float peak = NEGATIVE, total = 0;
        float* to = call.out + (task.token(r) * call.q_heads + task.query_head(r)) * vd;
        memset(to, 0, sizeof(float) * vd);
        for (int64_t part = 0; part < parts; part++) {
            const float* from = call.scratch + (scratch_row + part * MAX_ROWS + r) * (vd + 2);
            merge_row(&peak, &total, to, from[0], from[1], from + 2, vd);
        }
        const float inverse = 1.0f / total;
        for (int d = 0; d < vd; d++) to[d] *= inverse;
    }
}

// item: a task, or a part of one, of all of the step's.  Whoever does the last part of a task adds its parts up.
template <class Engine>
void run_item(const Plan& plan, int64_t item) {
    int64_t cut_tasks = 0, scratch_row = 0;
    const Sequence* seq = plan.call.sequences;
    for (; item >= plan.items(*seq); seq++) {
        item -= plan.items(*seq);
        if (plan.parts(*seq) == 1) continue;
        cut_tasks += plan.tasks(*seq);
        scratch_row += plan.items(*seq) * MAX_ROWS;
    }
    const int64_t parts = plan.parts(*seq), number = item / parts, part = item % parts;
    const int heads = plan.heads(*seq), heads_tasks = plan.kv_heads / heads, tokens = plan.tokens(*seq);
    const int first = (int)(number / heads_tasks) * tokens, left = seq->num_tokens - first;
    const Task task = {seq,   (int)(number % heads_tasks) * heads, heads,     first, left < tokens ? left : tokens,
                       parts > 1 ? (int)part : -1, plan.group};
    scratch_row += number * parts * MAX_ROWS;
    run_task<Engine>(plan.call, task, scratch_row + part * MAX_ROWS);
    if (parts == 1) return;
    const int32_t done = __atomic_add_fetch(plan.call.parts_done + cut_tasks + number, 1, __ATOMIC_ACQ_REL);
    if (done == parts) merge_parts(plan, task, parts, scratch_row);
}

template <class Engine>
void run_all(const AttentionCall& call) {
    const Plan plan(call);
    int64_t items = 0;
    for (int s = 0; s < call.num_sequences; s++) items += plan.items(call.sequences[s]);
#pragma omp single
    memset(call.parts_done, 0, sizeof(int32_t) * MAX_CUT_TASKS * call.num_threads);
#pragma omp for schedule(dynamic, 1)
    for (int64_t index = 0; index < items; index++) run_item<Engine>(plan, items - 1 - index);  // chunks come last: first
}

template <class T>
void run(const AttentionCall& call) {
    if (call.pool->block_size % WIDE) return run_all<Vectors<LANES, T>>(call);
    run_all<Vectors<WIDE, T>>(call);
}

}  // namespace

void store_kv(const AttentionCall& call) {
    switch (call.pool->dtype) {
        case FLOAT16: store_rows<F16>(call); break;
        case BFLOAT16: store_rows<BF16>(call); break;
        case INT8: store_rows<I8>(call); break;
        default: store_rows<F32>(call);
    }
#pragma omp barrier
}

void attend(const AttentionCall& call) {
    switch (call.pool->dtype) {
        case FLOAT16: return run<F16>(call);
        case BFLOAT16: return run<BF16>(call);
        case INT8: return run<I8>(call);
        default: run<F32>(call);
    }
}

extern "C" {

int32_t anaphora_partition(void) { return PARTITION; }
int32_t anaphora_max_rows(void) { return MAX_ROWS; }
int32_t anaphora_max_cut_tasks(void) { return MAX_CUT_TASKS; }
int32_t anaphora_max_head_dim(void) { return MAX_HEAD_DIM; }

// Write the step's K and V into the pool, then attend.
void anaphora_attention(const AttentionCall* call) {
#pragma omp parallel num_threads(call->num_threads)
    {
        store_kv(*call);
        attend(*call);
    }
}
}
