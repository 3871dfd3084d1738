// Tokens drawn from logits, one a row, each row as if it were alone: sampler.py says what a draw means, and does the same
// by torch. exp in fp32, sums of a stretch in fp32, of a row in fp64.

#include <omp.h>

#include <algorithm>
#include <functional>

#include "vectors.h"

extern "C" {

// How a row is drawn.  temperature 0: its largest logit, the first of equal ones.  uniform: in [0, 1).  top_k 0, top_p 1
// and min_p 0 let all pass.
struct DrawRow {
    double uniform, temperature, top_p, min_p;
    int64_t top_k;
};

// logits [count, width], rows [count] -> token_ids [count].  scratch: anaphora_draw_bytes, on a cache line.
struct DrawCall {
    const float* logits;
    const DrawRow* rows;
    int64_t* token_ids;
    uint8_t* scratch;
    int64_t count, width;
    int32_t num_threads, unused;
};
}

namespace {

constexpr int64_t STRETCH = 1024;  // weights that are summed on their own
constexpr float SURE_CUT = 0.999f;  // of the weight below which top-p cannot keep a token: rounding is far below the rest

struct Candidate {
    float weight;
    int32_t id;
    bool operator<(const Candidate& other) const { return weight != other.weight ? weight < other.weight : id > other.id; }
};

int64_t first_largest(const float* logits, int64_t width) {
    wide top = splat_of<WIDE>(-INFINITY);
    int64_t i = 0;
    for (; i + WIDE <= width; i += WIDE) {
        const wide v = load_of<WIDE>(logits + i);
        top = v > top ? v : top;
    }
    float largest = max_of<WIDE>(top);
    for (; i < width; i++) largest = logits[i] > largest ? logits[i] : largest;
    for (i = 0; i < width; i++)
        if (logits[i] == largest) return i;
    return 0;  // all are NaN
}

// Of how likely a token is beside the likeliest, whose weight is 1.
struct Weights {
    const float* logits;
    int64_t width;
    float largest, inverse_temperature;

    // weights [STRETCH] of the tokens from `first` on, 0 beyond the last; returns their sum
    float of_stretch(int64_t first, float* weights) const {
        const int64_t count = std::min(STRETCH, width - first);
        wide total = splat_of<WIDE>(0);
        for (int64_t i = 0; i < STRETCH; i += WIDE) {
            wide v = splat_of<WIDE>(-INFINITY);
            if (i + WIDE <= count) v = load_of<WIDE>(logits + first + i);
            else if (i < count) memcpy(&v, logits + first + i, sizeof(float) * (size_t)(count - i));
            v = exp_of<WIDE>((v - largest) * inverse_temperature);
            store_of<WIDE>(weights + i, v);
            total += v;
        }
        return sum_of<WIDE>(total);
    }
};

// Inverse transform over all tokens, in the order of their ids.
int64_t draw_from_all(const Weights& weights, double uniform, int64_t best) {
    alignas(64) float of[STRETCH];
    double total = 0;
    for (int64_t first = 0; first < weights.width; first += STRETCH) total += weights.of_stretch(first, of);
    const double target = uniform * total;
    double before = 0;
    int64_t last = best;
    for (int64_t first = 0; first < weights.width; first += STRETCH) {
        const double sum = weights.of_stretch(first, of);
        if (before + sum <= target) {
            before += sum;
            continue;
        }
        // Greater than the target: a token of weight 0 is never drawn. Added one by one, the sum may end a little lower.
        for (int64_t i = 0; i < STRETCH; i++) {
            if (of[i] <= 0) continue;
            before += of[i];
            last = first + i;
            if (before > target) break;
        }
        return last;
    }
    return last;
}

// No token below this weight is among the `count` likeliest: so many vectors have one that is not below it.  of [width];
// work: room for a float for every vector.
float least_of_likeliest(const float* of, int64_t width, int64_t count, float* work) {
    const int64_t vectors = width / WIDE;
    if (count > vectors) return 0;
    for (int64_t i = 0; i < vectors; i++) work[i] = max_of<WIDE>(load_of<WIDE>(of + i * WIDE));
    std::nth_element(work, work + count - 1, work + vectors, std::greater<float>());
    return work[count - 1];
}

// Inverse transform over those that the filters keep, the likeliest first.
int64_t draw_from_kept(const Weights& weights, const DrawRow& row, int64_t best, float* of, Candidate* candidates) {
    double total = 0;
    for (int64_t first = 0; first < weights.width; first += STRETCH) total += weights.of_stretch(first, of + first);
    if (!(total < INFINITY)) return best;  // some logit is NaN
    // All tokens below this weight together weigh less than what top-p leaves out.
    const double cut = row.top_p < 1 ? (1 - row.top_p) * total / (double)weights.width * SURE_CUT : 0;
    float least = (float)std::max(std::max(row.min_p, cut), 1e-38);
    if (row.top_k) least = std::max(least, least_of_likeliest(of, weights.width, row.top_k, (float*)candidates));
    int64_t count = 0;
    for (int64_t i = 0; i < weights.width; i += WIDE) {
        if (max_of<WIDE>(load_of<WIDE>(of + i)) < least) continue;
        for (int64_t j = i; j < i + WIDE; j++)
            if (of[j] >= least) candidates[count++] = {of[j], (int32_t)j};
    }
    std::make_heap(candidates, candidates + count);
    Candidate* const end = candidates + count;
    Candidate* next = end;  // the kept ones stand from here to the end, the likeliest last
    double kept = 0;
    while (next > candidates) {
        const int64_t rank = end - next;
        if (rank && ((row.top_k && rank >= row.top_k) || (row.top_p < 1 && kept >= row.top_p * total))) break;
        std::pop_heap(candidates, next--);
        kept += next->weight;
    }
    const double target = row.uniform * kept;
    double before = 0;
    for (const Candidate* at = end; at-- > next;) {
        before += at->weight;
        if (before > target) return at->id;
    }
    return next < end ? next->id : best;
}

int64_t whole_stretches(int64_t width) { return (width + STRETCH - 1) / STRETCH * STRETCH; }

int64_t bytes_of_thread(int64_t width) { return whole_stretches(width) * (int64_t)(sizeof(float) + sizeof(Candidate)); }

int64_t draw(const DrawCall& call, int64_t index) {
    const DrawRow& row = call.rows[index];
    const float* logits = call.logits + index * call.width;
    const int64_t best = first_largest(logits, call.width);
    const bool is_greedy = row.temperature <= 0 || row.top_k == 1 || row.min_p >= 1;
    if (is_greedy || !(fabsf(logits[best]) < INFINITY)) return best;
    // The smallest temperatures end in 0 elsewhere, not in NaN here.
    const float inverse = (float)std::min(1 / row.temperature, 1e30);
    const Weights weights = {logits, call.width, logits[best], inverse};
    if (row.top_k == 0 && row.top_p >= 1 && row.min_p <= 0) return draw_from_all(weights, row.uniform, best);
    float* of = (float*)(call.scratch + omp_get_thread_num() * bytes_of_thread(call.width));
    return draw_from_kept(weights, row, best, of, (Candidate*)(of + whole_stretches(call.width)));
}

}  // namespace

extern "C" {

int64_t anaphora_draw_bytes(int64_t width, int32_t num_threads) { return num_threads * bytes_of_thread(width); }

void anaphora_draw(const DrawCall* call) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(call->num_threads) if (call->count > 1)
    for (int64_t index = 0; index < call->count; index++) call->token_ids[index] = draw(*call, index);
}
}
