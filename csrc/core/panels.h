// Weights in the order in which the kernels read them: panels of 64 columns, each [in, 64], one
// after another, the last one filled up with zeros. A thread that works its way through them reads
// one stream.
//
// In a row of a panel, float32 and float16 lie in the order of the columns. Of bfloat16 and FP8,
// columns c and c + 16 of each 32 are neighbours: in a vector of twice their width a shift and a
// mask widen both.
#pragma once

#include <cstdint>

#include "core/calls.h"

namespace tkg {

constexpr int panel_columns = 64;

constexpr bool lies_in_pairs(DType dtype) {
    return dtype != DType::float32 && dtype != DType::float16;
}

// Where a column lies in a panel's row, if it lies in pairs.
constexpr int place_of_pair(int column) {
    return column / 32 * 32 + column % 16 * 2 + column % 32 / 16;
}

// Bytes of a weight [in, out] as panels.
std::int64_t panel_bytes(std::int64_t in, std::int64_t out, DType dtype);

// Writes a weight as panels to `to`, which is aligned to a cache line. Returns whether the kernels
// can use them: not if an FP8 weight is infinite or NaN, which they do not look for.
bool pack_panels(const Linear& plain, Address to);

}  // namespace tkg
