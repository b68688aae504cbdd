// Weights in the order in which the kernels read them: panels of 64 columns, each [in, 64], one
// after another, the last one filled up with zeros. A thread that works its way through them reads
// one stream.
//
// In a row of a panel, float32 and float16 lie in the order of the columns. What a vector holds two
// of in a word lies in pairs. Of bfloat16, rows k and k + 1 (k even) are neighbours, column by
// column, an odd last row beside zeros: a shift and a mask widen both, and units for bfloat16
// multiply such pairs. Of FP8, columns c and c + 16 of each 32 are neighbours.
#pragma once

#include <cstdint>

#include "core/calls.h"

namespace tkg {

constexpr int panel_columns = 64;

// Rows of the weight that lie in one row of its panel.
constexpr int rows_beside(DType dtype) { return dtype == DType::bfloat16 ? 2 : 1; }

// Where a column of FP8 lies in a panel's row.
constexpr int place_of_pair(int column) {
    return column / 32 * 32 + column % 16 * 2 + column % 32 / 16;
}

// Bytes of a weight [in, out] as panels.
std::int64_t panel_bytes(std::int64_t in, std::int64_t out, DType dtype);

// Writes a weight as panels to `to`, which is aligned to a cache line. Returns whether the kernels
// can use them: not if an FP8 weight is infinite or NaN, which they do not look for.
bool pack_panels(const Linear& plain, Address to);

}  // namespace tkg
