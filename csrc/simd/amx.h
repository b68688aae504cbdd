// Matrices in registers: AMX, its tiles and its products of bfloat16. A thread shapes its registers
// before it uses them and releases them afterwards; until then every switch between threads saves
// 8 KiB more.
//
// Four registers hold sums, beside each other or, of four factors, below each other. What is added
// to them is summed by itself over 32 neighbours: the even ones in order, the odd ones in order,
// then both together.
#pragma once

#include "simd/avx512.h"

namespace tkg {
namespace {

constexpr bool multiplies_matrices = true;

// What will be needed is asked for into the second cache: processors that have these units take
// more such requests at a time than for the first. Measured: 3 % sooner.
constexpr int prefetch_locality = 2;

// Rows of a matrix, at most; neighbours of a sum that one product takes; columns of a register.
constexpr int matrix_rows = 16, matrix_terms = 32, matrix_columns = 16;

struct MatrixShape {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};
};

// The four sums and the left factor have so many rows, the right factor as many as there are pairs.
constexpr MatrixShape matrix_shape(int rows) {
    MatrixShape shape;
    for (int i = 0; i < 8; ++i) {
        shape.row_bytes[i] = 64;
        shape.rows[i] = static_cast<std::uint8_t>(i < 5 ? rows : matrix_terms / 2);
    }
    return shape;
}
struct MatrixShapes {
    alignas(64) MatrixShape of[matrix_rows + 1];
    constexpr MatrixShapes() {
        for (int rows = 1; rows <= matrix_rows; ++rows) of[rows] = matrix_shape(rows);
    }
};

inline void shape_matrices(int rows) {
    static constexpr MatrixShapes shapes;
    _tile_loadconfig(&shapes.of[rows]);
}
inline void release_matrices() { _tile_release(); }

// While there is one, vectors round as matrices do: denormal numbers count as zero.
class RoundingOfMatrices {
public:
    RoundingOfMatrices() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }  // DAZ, FTZ
    ~RoundingOfMatrices() { _mm_setcsr(before_); }
    RoundingOfMatrices(const RoundingOfMatrices&) = delete;
    RoundingOfMatrices& operator=(const RoundingOfMatrices&) = delete;

private:
    unsigned before_;
};

inline void zero_sums() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}
// The four sums, beside each other; `row` elements from one of their rows to the next.
inline void load_sums(const float* p, std::int64_t row) {
    const long bytes = row * 4;
    _tile_loadd(0, p, bytes);
    _tile_loadd(1, p + 16, bytes);
    _tile_loadd(2, p + 32, bytes);
    _tile_loadd(3, p + 48, bytes);
}
inline void store_sums(float* p, std::int64_t row) {
    const long bytes = row * 4;
    _tile_stored(0, p, bytes);
    _tile_stored(1, p + 16, bytes);
    _tile_stored(2, p + 32, bytes);
    _tile_stored(3, p + 48, bytes);
}
// The four sums [16, 16] below each other.
inline void store_column(float* p) {
    _tile_stored(0, p, 64);
    _tile_stored(1, p + 256, 64);
    _tile_stored(2, p + 512, 64);
    _tile_stored(3, p + 768, 64);
}

inline void store_pairs(const Pairs& pairs, bf16* p) { _mm512_store_si512(p, pairs.v); }

// The compiler does not know that matrices are read from memory: what was stored must be there.
inline void finish_stores() { asm volatile("" ::: "memory"); }

// sums += x * w: x [rows, 32], `x_row` elements from row to row; w [32, 64] as 16 rows of pairs,
// each of 64 columns. between() is called before each quarter.
template <class F>
[[gnu::always_inline]] inline void multiply_matrices(const bf16* x, std::int64_t x_row,
                                                     const bf16* w, F&& between) {
    constexpr long pairs = 256;
    between();
    _tile_loadd(4, x, x_row * 2);
    _tile_loadd(5, w, pairs);
    _tile_dpbf16ps(0, 4, 5);
    between();
    _tile_loadd(6, w + 32, pairs);
    _tile_dpbf16ps(1, 4, 6);
    between();
    _tile_loadd(7, w + 64, pairs);
    _tile_dpbf16ps(2, 4, 7);
    between();
    _tile_loadd(5, w + 96, pairs);
    _tile_dpbf16ps(3, 4, 5);
}

// The same with other factors: each of the four sums += its own x * w, x [16, 32] at x[i] with
// x_row[i] elements from row to row; w [32, 16] as 16 rows of pairs beside each other.
template <class F>
[[gnu::always_inline]] inline void multiply_four(const bf16* const* x, const std::int64_t* x_row,
                                                 const bf16* w, F&& between) {
    between();
    _tile_loadd(4, x[0], x_row[0] * 2);
    _tile_loadd(5, w, 64);
    _tile_dpbf16ps(0, 4, 5);
    between();
    _tile_loadd(6, x[1], x_row[1] * 2);
    _tile_dpbf16ps(1, 6, 5);
    between();
    _tile_loadd(7, x[2], x_row[2] * 2);
    _tile_dpbf16ps(2, 7, 5);
    between();
    _tile_loadd(4, x[3], x_row[3] * 2);
    _tile_dpbf16ps(3, 4, 5);
}

}  // namespace
}  // namespace tkg
