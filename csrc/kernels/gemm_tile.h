// The register tile of a projection: some rows of x by a strip of columns of w.
//
// A source has `rows` rows of w beside each other: `load(i, e, b)` puts row i + e of the strip into
// b, widened, `load(i, b)` all of them as pairs. It asks memory for what will be needed later.
#pragma once

#include "kernels/gemm_plan.h"

namespace tkg {
namespace {

// Vectors of columns in a strip.
constexpr int strip_vecs = 4;
constexpr i64 strip_n = strip_vecs * lanes;

// c[m][v] += x[m][i..i + rows of a source) * w[i..i + rows)[v]
template <int MR, class Source>
TKG_INLINE void multiply(const float* x, const Source& source, i64 i, Vec (&c)[MR][strip_vecs]) {
    for (int e = 0; e < Source::rows; ++e) {
        Vec b[strip_vecs];
        source.load(i, e, b);
        for (int m = 0; m < MR; ++m) {
            const Vec a = set1(x[m * part + i + e]);
            for (int v = 0; v < strip_vecs; ++v) c[m][v] = fma(a, b[v], c[m][v]);
        }
    }
}

// The same by units for bfloat16.
template <int MR, class X, class Source>
    requires std::is_same_v<X, bf16>
TKG_INLINE void multiply(const X* x, const Source& source, i64 i, Vec (&c)[MR][strip_vecs]) {
    Pairs b[strip_vecs];
    source.load(i, b);
    for (int m = 0; m < MR; ++m) {
        const auto a = set1_pair(x + m * part + i);
        for (int v = 0; v < strip_vecs; ++v) c[m][v] = dot(a, b[v], c[m][v]);
    }
}

// sums[m][0..strip_n) (+)= sum over i < k of x[m][i] * w[i][0..strip_n), rows of x and sums `part`
// apart.
template <int MR, class X, class Source>
inline void gemm_tile(const X* x, const Source& source, i64 k, bool from_zero, float* sums) {
    Vec c[MR][strip_vecs];
    for (int m = 0; m < MR; ++m)
        for (int v = 0; v < strip_vecs; ++v)
            c[m][v] = from_zero ? zero() : load(sums + m * part + v * lanes);
    for (i64 i = 0; i < k; i += Source::rows) multiply(x, source, i, c);
    for (int m = 0; m < MR; ++m)
        for (int v = 0; v < strip_vecs; ++v) store(sums + m * part + v * lanes, c[m][v]);
}

// A strip that has been widened.
struct WideStrip {
    static constexpr int rows = 1;
    const float* row;

    void load(i64 i, int, Vec* b) const {
        for (int v = 0; v < strip_vecs; ++v) b[v] = tkg::load(row + i * strip_n + v * lanes);
    }
};

// What a tile works on: rows [0, k) of x and of a strip of w, and the sums.
template <class X>
struct GemmBlock {
    const X* x;
    i64 rows, k;
    bool from_zero;
    float* sums;

    // All rows; the first group reads `first`, the others `later`. Where widening is slow, that is
    // done once for all groups.
    template <class First, class Later>
    void run(const First& first, const Later& later) const {
        if constexpr (widens_slowly) {
            if (rows > gemm_rows) return run_wide(first);
        }
        for_row_groups<gemm_rows>(rows, [&](auto group, i64 m) {
            if (m == 0)
                gemm_tile<group()>(x, first, k, from_zero, sums);
            else
                gemm_tile<group()>(x + m * part, later, k, from_zero, sums + m * part);
        });
    }

private:
    template <class Source>
    void run_wide(const Source& source) const {
        alignas(64) float wide[part * strip_n];
        for (i64 i = 0; i < k; i += Source::rows)
            for (int e = 0; e < Source::rows; ++e) {
                Vec b[strip_vecs];
                source.load(i, e, b);
                for (int v = 0; v < strip_vecs; ++v)
                    store(wide + (i + e) * strip_n + v * lanes, b[v]);
            }
        const WideStrip strip{wide};
        for_row_groups<gemm_rows>(rows, [&](auto group, i64 m) {
            gemm_tile<group()>(x + m * part, strip, k, from_zero, sums + m * part);
        });
    }
};

}  // namespace
}  // namespace tkg
