// AMX: products of bytes by tiles of 16 rows of 64 bytes (https://www.intel.com/sdm, volume 1, chapter 18). Owns when they
// may be used and what a tile holds. x goes in as two bytes, 256 high + low, so that the sums are those of 16-bit integers:
//
//   a tile's rows of x, a block:    high [rows, 32] bytes | low [rows, 32] bytes
//   a panel's weights, a block:     [8 fours of inputs, 16 outputs, 4] bytes
//
// In both, of every eight inputs the order is 0 4 1 5 2 6 3 7: as nibbles come out of packed words.

#pragma once

#include "vectors.h"

#if defined(__AMX_INT8__) && defined(__AVX512BW__) && defined(__linux__)
#define HAS_TILES 1
#include <sys/syscall.h>
#include <unistd.h>

namespace {

constexpr int TILE_ROWS = 16;

// Linux gives the tiles' registers to a process that asks (Documentation/arch/x86/xstate.rst).
inline bool ask_for_tiles() {
    constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

inline bool may_use_tiles() {
    static const bool may = ask_for_tiles();
    return may;
}

// 0 to 3: results. 4, 5: rows of x, high and low. 6, 7: weights.
inline void configure_tiles(int rows) {
    struct {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t bytes[16] = {64, 64, 64, 64, 32, 32, 64, 64};
        uint8_t rows[16] = {};
    } shape;
    for (int tile = 0; tile < 6; tile++) shape.rows[tile] = (uint8_t)rows;
    shape.rows[6] = shape.rows[7] = 8;
    __asm__ volatile("" : : "r"(&shape) : "memory");  // GCC 12 believes that loading reads eight bytes, and drops the rest
    _tile_loadconfig(&shape);
}

inline void split_bytes(const int16_t* from, uint8_t* high, uint8_t* low) {
    const __m512i low_then_high =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 8, 2, 10, 4, 12, 6, 14, 1, 9, 3, 11, 5, 13, 7, 15));
    const __m512i lows_first = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    const __m512i bytes = _mm512_shuffle_epi8(_mm512_loadu_si512(from), low_then_high);
    const __m512i halves = _mm512_permutexvar_epi64(lows_first, bytes);
    _mm256_storeu_si256((__m256i*)low, _mm512_castsi512_si256(halves));
    _mm256_storeu_si256((__m256i*)high, _mm512_extracti64x4_epi64(halves, 1));
}

// dots [blocks, 2, H, 16]: the sums of high bytes, and of low ones; blocks: 1 or 2. A tile is stored only after the next
// product is on its way: stored at once, it would hold up everything.
template <int H>
inline void multiply_bytes(const uint8_t* x, const uint8_t* weights, int blocks, int32_t (*dots)[2][H][16]) {
    _tile_loadd(4, x, 32);
    _tile_loadd(5, x + 32 * H, 32);
    _tile_loadd(6, weights, 64);
    _tile_zero(0);
    _tile_dpbssd(0, 4, 6);
    _tile_zero(1);
    _tile_dpbusd(1, 5, 6);
    if (blocks == 2) {
        _tile_loadd(4, x + 64 * H, 32);
        _tile_loadd(5, x + 96 * H, 32);
        _tile_loadd(7, weights + 512, 64);
        _tile_zero(2);
        _tile_dpbssd(2, 4, 7);
        _tile_stored(0, dots[0][0], 64);
        _tile_zero(3);
        _tile_dpbusd(3, 5, 7);
        _tile_stored(1, dots[0][1], 64);
        _tile_stored(2, dots[1][0], 64);
        _tile_stored(3, dots[1][1], 64);
    } else {
        _tile_stored(0, dots[0][0], 64);
        _tile_stored(1, dots[0][1], 64);
    }
}

}  // namespace
#endif
