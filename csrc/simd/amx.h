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
// One sum [16, 16] by itself.
inline void zero_sum() { _tile_zero(0); }
inline void store_sum(float* p) { _tile_stored(0, p, 64); }

inline void store_pairs(const Pairs& pairs, bf16* p) { _mm512_store_si512(p, pairs.v); }

// The compiler does not know that matrices are read from memory: what was stored must be there.
inline void finish_stores() { asm volatile("" ::: "memory"); }

// The order of columns in which interleaving leaves them: of each two registers the first has
// columns 0 to 3, 8 to 11, 16 to 19 and 24 to 27 of 32, the second what is between them.
constexpr ByteOrder interleaved_order =
    order_of_rows([](int i) { return i / 32 * 32 + i % 16 / 4 * 8 + i / 16 % 2 * 4 + i % 4; });

// Two rows as pairs, in that order: 32 columns of bfloat16, 64 of FP8 as 2^-8 of their value.
inline void interleave_rows(const bf16* first_row, const bf16* second_row, Pairs* to) {
    const __m512i a = _mm512_loadu_si512(first_row), b = _mm512_loadu_si512(second_row);
    to[0] = {_mm512_unpacklo_epi16(a, b)};
    to[1] = {_mm512_unpackhi_epi16(a, b)};
}
template <class T>
    requires(sizeof(T) == 1)
inline void interleave_rows(const T* first_row, const T* second_row, Pairs* to) {
    look_up<T>(_mm512_loadu_si512(first_row), _mm512_loadu_si512(second_row), interleaved_order,
               to);
}
// Columns 0 to 15 and 16 to 31 of two registers that are in that order.
inline void put_in_order(Vec* two) {
    const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    const __m512 a = two[0].v, b = two[1].v;
    two[0] = {_mm512_permutex2var_ps(a, low, b)};
    two[1] = {_mm512_permutex2var_ps(a, high, b)};
}

// Four columns of 16 rows of floats become four vectors; `row` floats from one row to the next.
inline void turn_four_columns(const float* p, std::int64_t row, Vec* to) {
    const auto place = [](__m512 x, __mmask16 where, const float* from) {
        return _mm512_mask_broadcast_f32x4(x, where, _mm_loadu_ps(from));
    };
    __m512 x[4];  // of rows i, 4 + i, 8 + i, 12 + i
    for (int i = 0; i < 4; ++i) {
        const float* from = p + i * row;
        x[i] = _mm512_castps128_ps512(_mm_loadu_ps(from));
        x[i] = place(x[i], 0x00f0, from + 4 * row);
        x[i] = place(x[i], 0x0f00, from + 8 * row);
        x[i] = place(x[i], 0xf000, from + 12 * row);
    }
    const __m512 low01 = _mm512_unpacklo_ps(x[0], x[1]), high01 = _mm512_unpackhi_ps(x[0], x[1]);
    const __m512 low23 = _mm512_unpacklo_ps(x[2], x[3]), high23 = _mm512_unpackhi_ps(x[2], x[3]);
    to[0] = {_mm512_shuffle_ps(low01, low23, 0x44)};
    to[1] = {_mm512_shuffle_ps(low01, low23, 0xee)};
    to[2] = {_mm512_shuffle_ps(high01, high23, 0x44)};
    to[3] = {_mm512_shuffle_ps(high01, high23, 0xee)};
}

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

// One sum [16, 16] += x * w: x [16, 32], w [32, 16] as 16 rows of pairs beside each other.
inline void multiply_one(const bf16* x, std::int64_t x_row, const bf16* w) {
    _tile_loadd(4, x, x_row * 2);
    _tile_loadd(5, w, 64);
    _tile_dpbf16ps(0, 4, 5);
}

}  // namespace
}  // namespace tkg
