// A step of a decoder built like Llama, from token ids to logits, in one region of threads. kernels.py states the
// shapes, fused.py draws a layer. Python takes no part between two operators, and holds no lock meanwhile.

#include <omp.h>

#include <initializer_list>

#include "attention.h"
#include "team.h"

extern "C" {

// Weights of norms: fp32 [width].  q_norm, k_norm [head_dim]: null where heads have none.
struct DecoderLayer {
    const float *input_norm, *q_norm, *k_norm, *mlp_norm;
    Linear qkv, output, gate_up, down;
    int32_t q_heads, kv_heads, head_dim, window;
    float input_epsilon, head_epsilon, mlp_epsilon, scaling;
    int32_t rotates, unused;
};

// embed [num_ids, hidden].
struct Decoder {
    const DecoderLayer* layers;
    const float *embed, *norm;
    Linear head;
    int64_t num_layers, num_ids, hidden, rotary_dim;
    float epsilon;
    int32_t unused;
};

// token_ids, positions [rows].  cosine, sine: a row of [rotary_dim] for every position there is.  logit_rows [num_logits]:
// whose logits are wanted -> logits [num_logits, vocabulary].  room: anaphora_decoder_bytes, on a cache line.
// last_sequences: memory for as many as there are sequences.
struct DecoderCall {
    const Decoder* decoder;
    const LayerPool* pools;  // of every layer
    const Sequence* sequences;
    Sequence* last_sequences;
    const int64_t *token_ids, *positions, *logit_rows;
    const float *cosine, *sine;
    float* logits;
    uint8_t* room;
    float* scratch;  // of attention, as in AttentionCall
    int32_t* parts_done;
    int64_t rows, num_logits;
    int32_t num_sequences, num_threads;
};
}

namespace {

constexpr int64_t LINE = 64;

int64_t whole_lines(int64_t bytes) { return (bytes + LINE - 1) / LINE * LINE; }

int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

int64_t qkv_width(const DecoderLayer& layer) { return (int64_t)(layer.q_heads + 2 * layer.kv_heads) * layer.head_dim; }

// Where a step's intermediate results lie: one memory, cut up the same way in every step.
struct Room {
    float *x, *normed, *qkv, *attended, *gate_up, *activated, *delta;
    uint8_t* linear;
    int64_t bytes;

    Room(const Decoder& decoder, int64_t rows, int64_t num_logits, int num_threads, uint8_t* memory) : bytes(0) {
        int64_t qkv_most = 0, attended_most = 0, mlp_most = 0, linear_most = linear_bytes(decoder.head, num_logits, num_threads);
        for (int64_t i = 0; i < decoder.num_layers; i++) {
            const DecoderLayer& layer = decoder.layers[i];
            qkv_most = most(qkv_most, qkv_width(layer));
            attended_most = most(attended_most, (int64_t)layer.q_heads * layer.head_dim);
            mlp_most = most(mlp_most, layer.down.inputs);
            for (const Linear* linear : {&layer.qkv, &layer.output, &layer.gate_up, &layer.down})
                linear_most = most(linear_most, most(linear_bytes(*linear, rows, num_threads),
                                                     linear_bytes(*linear, num_logits, num_threads)));
        }
        const auto take = [&](int64_t taken) {
            uint8_t* at = memory + bytes;
            bytes += whole_lines(taken);
            return at;
        };
        const int64_t most_rows = most(rows, num_logits);
        const auto floats = [&](int64_t width) { return (float*)take(most_rows * width * (int64_t)sizeof(float)); };
        x = floats(decoder.hidden);
        normed = floats(decoder.hidden);
        qkv = floats(qkv_most);
        attended = floats(attended_most);
        gate_up = floats(2 * mlp_most);
        activated = floats(mlp_most);
        delta = floats(decoder.hidden);
        linear = take(linear_most);
    }
};

AttentionCall attention_of(const DecoderCall& call, const DecoderLayer& layer, const LayerPool& pool, const Room& room) {
    AttentionCall attention = {};
    const int64_t d = layer.head_dim;
    attention.pool = &pool;
    attention.sequences = call.sequences;
    attention.query = room.qkv;
    attention.key = room.qkv + d * layer.q_heads;
    attention.value = attention.key + d * layer.kv_heads;
    attention.out = room.attended;
    attention.scratch = call.scratch;
    attention.parts_done = call.parts_done;
    attention.query_row = attention.key_row = attention.value_row = qkv_width(layer);
    attention.query_head = attention.key_head = attention.value_head = d;
    attention.num_sequences = call.num_sequences;
    attention.q_heads = layer.q_heads;
    attention.window = layer.window;
    attention.num_threads = call.num_threads;
    attention.scaling = layer.scaling;
    return attention;
}

// Of every sequence the rows from the first whose logits are wanted on; returns how many sequences have one.
int32_t keep_wanted(const DecoderCall& call) {
    int32_t kept = 0;
    for (int32_t s = 0; s < call.num_sequences; s++) {
        Sequence wanted = call.sequences[s];
        const int64_t end = (int64_t)wanted.row + wanted.num_tokens;
        int64_t first = end;
        for (int64_t i = 0; i < call.num_logits; i++)
            if (call.logit_rows[i] >= wanted.row && call.logit_rows[i] < first) first = call.logit_rows[i];
        if (first == end) continue;
        wanted.start += (int32_t)(first - wanted.row);
        wanted.num_tokens = (int32_t)(end - first);
        wanted.row = (int32_t)first;
        call.last_sequences[kept++] = wanted;
    }
    return kept;
}

// to [count, width] = the rows of `from` that are named.
void gather(const float* from, const int64_t* rows, int64_t count, int64_t width, float* to) {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count; i++) memcpy(to + i * width, from + rows[i] * width, sizeof(float) * (size_t)width);
}

// num_wanted: sequences in call.last_sequences.
void run_layer(const DecoderCall& call, const Room& room, int64_t index, int32_t num_wanted) {
    const Decoder& decoder = *call.decoder;
    const DecoderLayer& layer = decoder.layers[index];
    const bool is_last = index == decoder.num_layers - 1;
    const float* delta = index ? room.delta : nullptr;
    float *x = room.x, *attended = room.attended;
    int64_t rows = call.rows;
    add_rms_norm(x, delta, layer.input_norm, room.normed, rows, decoder.hidden, layer.input_epsilon);
    multiply(layer.qkv, room.normed, room.qkv, rows, room.linear);
    if (layer.rotates)
        rope(room.qkv, call.positions, call.cosine, call.sine, layer.q_norm, layer.k_norm, rows, qkv_width(layer), layer.q_heads,
             layer.q_heads + layer.kv_heads, layer.head_dim, (int32_t)decoder.rotary_dim, layer.head_epsilon);
    AttentionCall attention = attention_of(call, layer, call.pools[index], room);
    store_kv(attention);
    if (is_last) {  // from here on only rows whose logits are wanted matter
        if (!call.num_logits) return;
        attention.num_sequences = num_wanted;
        attention.sequences = call.last_sequences;
    }
    attend(attention);
    if (is_last) {  // qkv and normed are free
        rows = call.num_logits;
        gather(attended, call.logit_rows, rows, (int64_t)layer.q_heads * layer.head_dim, room.qkv);
        gather(x, call.logit_rows, rows, decoder.hidden, room.normed);
        attended = room.qkv;
#pragma omp single
        memcpy(x, room.normed, sizeof(float) * (size_t)(rows * decoder.hidden));
    }
    multiply(layer.output, attended, room.delta, rows, room.linear);
    add_rms_norm(x, room.delta, layer.mlp_norm, room.normed, rows, decoder.hidden, layer.mlp_epsilon);
    multiply(layer.gate_up, room.normed, room.gate_up, rows, room.linear);
    silu_mul(room.gate_up, room.activated, rows, layer.down.inputs);
    multiply(layer.down, room.activated, room.delta, rows, room.linear);
}

}  // namespace

extern "C" {

// Bytes of memory that a step of so many rows works in.
int64_t anaphora_decoder_bytes(const Decoder* decoder, int64_t rows, int64_t num_logits, int32_t num_threads) {
    return Room(*decoder, rows, num_logits, num_threads, nullptr).bytes;
}

// 0 if a token's id is none of the model's.
int32_t anaphora_decoder(const DecoderCall* call) {
    const Decoder& decoder = *call->decoder;
    const Room room(decoder, call->rows, call->num_logits, call->num_threads, call->room);
    for (int64_t row = 0; row < call->rows; row++)
        if (call->token_ids[row] < 0 || call->token_ids[row] >= decoder.num_ids) return 0;
    const int32_t num_wanted = keep_wanted(*call);
#pragma omp parallel num_threads(call->num_threads)
    {
        gather(decoder.embed, call->token_ids, call->rows, decoder.hidden, room.x);
        for (int64_t index = 0; index < decoder.num_layers; index++) run_layer(*call, room, index, num_wanted);
        if (call->num_logits) {
            add_rms_norm(room.x, room.delta, decoder.norm, room.normed, call->num_logits, decoder.hidden, decoder.epsilon);
            multiply(decoder.head, room.normed, call->logits, call->num_logits, room.linear);
        }
    }
    return 1;
}
}
