// The register tile of a projection: some rows of x by a strip of columns of w.
//
// A source gives rows of w, widened: `load(i, b)` puts row i of the strip into b and asks memory
// for what will be needed later.
#pragma once

#include "kernels/gemm_plan.h"

namespace tkg {
namespace {

// Vectors of columns in a strip.
constexpr int strip_vecs = 4;
constexpr i64 strip_n = strip_vecs * lanes;

// sums[m][0..strip_n) (+)= sum over i < k of x[m][i] * w[i][0..strip_n), rows of x and sums `part`
// apart.
template <int MR, class Source>
inline void gemm_tile(const float* x, const Source& source, i64 k, bool from_zero, float* sums) {
    Vec c[MR][strip_vecs];
    for (int m = 0; m < MR; ++m)
        for (int v = 0; v < strip_vecs; ++v)
            c[m][v] = from_zero ? zero() : load(sums + m * part + v * lanes);
    for (i64 i = 0; i < k; ++i) {
        Vec b[strip_vecs];
        source.load(i, b);
        for (int m = 0; m < MR; ++m) {
            const Vec a = set1(x[m * part + i]);
            for (int v = 0; v < strip_vecs; ++v) c[m][v] = fma(a, b[v], c[m][v]);
        }
    }
    for (int m = 0; m < MR; ++m)
        for (int v = 0; v < strip_vecs; ++v) store(sums + m * part + v * lanes, c[m][v]);
}

// A strip that has been widened.
struct WideStrip {
    const float* row;

    void load(i64 i, Vec* b) const {
        for (int v = 0; v < strip_vecs; ++v) b[v] = tkg::load(row + i * strip_n + v * lanes);
    }
};

// What a tile works on: rows [0, k) of x and of a strip of w, and the sums.
struct GemmBlock {
    const float* x;
    i64 rows, k;
    bool from_zero;
    float* sums;

    // All rows; the first group reads `first`, the others `later`. Where widening is slow, that is
    // done once for all groups.
    template <class First, class Later>
    void run(const First& first, const Later& later) const {
        if (widens_slowly && rows > gemm_rows) {
            run_wide(first);
            return;
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
        for (i64 i = 0; i < k; ++i) {
            Vec b[strip_vecs];
            source.load(i, b);
            for (int v = 0; v < strip_vecs; ++v) store(wide + i * strip_n + v * lanes, b[v]);
        }
        const WideStrip strip{wide};
        for_row_groups<gemm_rows>(rows, [&](auto group, i64 m) {
            gemm_tile<group()>(x + m * part, strip, k, from_zero, sums + m * part);
        });
    }
};

}  // namespace
}  // namespace tkg
