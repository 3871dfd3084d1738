// The operators of a step as a team of threads runs them: every thread of an OpenMP region calls them with the same
// arguments, in the same order; each leaves with all of its results written. Outside of a region the team is one thread.
//
// A kernel of its own opens a region for one operator; a decoder's step (decoder.cpp) runs all of them in one, so that
// threads meet some three hundred times a step without going to sleep in between.

#pragma once

#include <stdint.h>

extern "C" {

struct AttentionCall;  // attention.h

// A packed linear layer: linear.cpp draws the bytes. bias [outputs]; may be null.
struct Linear {
    const uint8_t* packed;
    const float* bias;
    int64_t inputs, outputs;
    int32_t bits, unused;
};
}

// x [rows, width] += delta (unless null); out = x / rms(x) * weight.
void add_rms_norm(float* x, const float* delta, const float* weight, float* out, int64_t rows, int64_t width, float epsilon);

// gate_up [rows, 2 * width] -> out [rows, width] = silu(gate) * up.
void silu_mul(const float* gate_up, float* out, int64_t rows, int64_t width);

// qkv [rows, stride]: rotates the first `heads` heads of each row in place, halves layout ("rotate_half"); before that
// norms each head by norm weights [head_dim] where given: the first q_heads by q_norm, the others by k_norm.
// cosine, sine: rows of [rotary_dim], one for every position.  positions [rows]; null is 0, 1, 2 ..
void rope(float* qkv, const int64_t* positions, const float* cosine, const float* sine, const float* q_norm,
          const float* k_norm, int64_t rows, int64_t stride, int32_t q_heads, int32_t heads, int32_t head_dim,
          int32_t rotary_dim, float epsilon);

// out [rows, outputs] = x [rows, inputs] @ weight.T + bias.  scratch: linear_bytes of them, on a cache line.
int64_t linear_bytes(const Linear& linear, int64_t rows, int num_threads);
void multiply(const Linear& linear, const float* x, float* out, int64_t rows, uint8_t* scratch);

// Writes the step's K and V into the pool.
void store_kv(const AttentionCall& call);

// What the pool holds is read only. The call's key and value are not looked at.
void attend(const AttentionCall& call);
