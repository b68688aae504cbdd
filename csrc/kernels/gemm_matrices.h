// A projection by a processor's units for matrices: groups of up to 16 rows of x by a strip of
// columns of w whose rows lie in pairs, 32 of them a product. Groups read the strip again and
// again from the first cache.
#pragma once

#include "kernels/gemm_plan.h"

namespace tkg {
namespace {

// A strip that lies as it is multiplied: each two rows as pairs, column by column.
struct PairedStrip {
    const bf16* rows;

    PairedStrip share(i64, i64, i64) const { return *this; }
    const bf16* pairs() const { return rows; }
    void ask_for_rows(int) {}
};

// sums[m][0..strip) (+)= sum over i < k of x[m][i] * w[i][0..strip), k a multiple of 32; the
// registers have the shape of the rows.
template <class Source>
inline void multiply_strip(const bf16* x, i64 next_part, Source source, i64 k, bool from_zero,
                           float* sums) {
    if (from_zero)
        zero_sums();
    else
        load_sums(sums, part);
    const bf16* w = source.pairs();
    for (i64 i = 0; i < k; i += matrix_terms, w += matrix_terms * 4 * matrix_columns)
        multiply_matrices(x + i / part * next_part + i % part, part, w,
                          [&] { source.ask_for_rows(matrix_terms / 4); });
    store_sums(sums, part);
}

// The same for all rows, in groups of nearly the same size.
template <class Source>
inline void multiply_rows(const bf16* x, i64 rows, const Source& source, i64 k, bool from_zero,
                          float* sums) {
    const i64 groups = ceil_div(rows, matrix_rows);
    int shaped = 0;
    for (i64 g = 0; g < groups; ++g) {
        const i64 first = rows * g / groups;
        const int count = static_cast<int>(rows * (g + 1) / groups - first);
        if (count != shaped) shape_matrices(shaped = count);
        multiply_strip(x + first * part, rows * part, source.share(g, groups, k), k, from_zero,
                       sums + first * part);
    }
}

}  // namespace
}  // namespace tkg
