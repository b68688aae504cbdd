// The register tile of a projection: some rows of x by a strip of columns of w.
//
// A source has `rows` rows of w beside each other: `load(i, e, b)` puts row i + e of the strip into
// b, widened, `load(i, b)` all of them as pairs. `share(g, n, k)` is the source for the g-th of n
// groups of rows of x, which reads k rows; each asks memory for its share of what comes next.
#pragma once

#include "kernels/gemm_plan.h"

namespace tkg {
namespace {

// Vectors of columns in a strip.
constexpr int strip_vecs = 4;
constexpr i64 strip_n = strip_vecs * lanes;

// c[m][v] += x[m][i..i + rows of a source) * w[begin + i..begin + i + rows)[v]
template <int MR, class Source>
TKG_INLINE void multiply(const float* x, Source& source, i64 begin, i64 i,
                         Vec (&c)[MR][strip_vecs]) {
    for (int e = 0; e < Source::rows; ++e) {
        Vec b[strip_vecs];
        source.load(begin + i, e, b);
        for (int m = 0; m < MR; ++m) {
            const Vec a = set1(x[m * part + i + e]);
            for (int v = 0; v < strip_vecs; ++v) c[m][v] = fma(a, b[v], c[m][v]);
        }
    }
}

// The same by units for bfloat16.
template <int MR, class X, class Source>
    requires std::is_same_v<X, bf16>
TKG_INLINE void multiply(const X* x, Source& source, i64 begin, i64 i, Vec (&c)[MR][strip_vecs]) {
    Pairs b[strip_vecs];
    source.load(begin + i, b);
    for (int m = 0; m < MR; ++m) {
        const auto a = spread(x + m * part + i);
        for (int v = 0; v < strip_vecs; ++v) c[m][v] = fma(a, b[v], c[m][v]);
    }
}

// sums[m][0..strip_n) (+)= sum over i < k of x[m][i] * w[i][0..strip_n), rows of x and sums `part`
// apart, parts of x `next_part`.
template <int MR, class X, class Source>
inline void gemm_tile(const X* x, i64 next_part, Source source, i64 k, bool from_zero,
                      float* sums) {
    Vec c[MR][strip_vecs];
    for (int m = 0; m < MR; ++m)
        for (int v = 0; v < strip_vecs; ++v)
            c[m][v] = from_zero ? zero() : load(sums + m * part + v * lanes);
    for (i64 begin = 0; begin < k; begin += part, x += next_part)
        for (i64 i = 0; i < min_of(part, k - begin); i += Source::rows)
            multiply(x, source, begin, i, c);
    for (int m = 0; m < MR; ++m)
        for (int v = 0; v < strip_vecs; ++v) store(sums + m * part + v * lanes, c[m][v]);
}

// A strip that has been widened.
struct WideStrip {
    static constexpr int rows = 1;
    const float* row;

    WideStrip share(i64, i64, i64) const { return *this; }
    void load(i64 i, int, Vec* b) const {
        for (int v = 0; v < strip_vecs; ++v) b[v] = tkg::load(row + i * strip_n + v * lanes);
    }
};

// Rows of w that a tile works on, at most.
constexpr i64 max_block_k = 256;

// What a tile works on: rows [0, k) of x and of a strip of w, and the sums.
template <class X>
struct GemmBlock {
    const X* x;
    i64 rows, k;
    bool from_zero;
    float* sums;

    // All rows. Where widening is slow, that is done once for all groups of them.
    template <class Source>
    void run(const Source& source) const {
        if constexpr (widens_slowly) {
            if (rows > gemm_rows) return run_wide(source);
        }
        run_groups(source);
    }

private:
    template <class Source>
    void run_groups(const Source& source) const {
        const i64 groups = ceil_div(rows, gemm_rows);
        i64 g = 0;
        for_row_groups<gemm_rows>(rows, [&](auto group, i64 m) {
            gemm_tile<group()>(x + m * part, rows * part, source.share(g++, groups, k), k,
                               from_zero, sums + m * part);
        });
    }

    template <class Source>
    void run_wide(const Source& all) const {
        alignas(64) float wide[max_block_k * strip_n];
        Source source = all.share(0, 1, k);
        for (i64 i = 0; i < k; i += Source::rows)
            for (int e = 0; e < Source::rows; ++e) {
                Vec b[strip_vecs];
                source.load(i, e, b);
                for (int v = 0; v < strip_vecs; ++v)
                    store(wide + (i + e) * strip_n + v * lanes, b[v]);
            }
        run_groups(WideStrip{wide});
    }
};

}  // namespace
}  // namespace tkg
