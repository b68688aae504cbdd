// The register tile of a projection: some rows of x by a strip of columns of w.
//
// A source has `rows` rows of w beside each other: `load(i, e, b)` puts row i + e of the strip into
// b, widened, `load(i, b)` all of them as pairs. Where it lies in pairs, `pairs()` is where, and
// `ask_for_rows` asks memory for what comes instead of so many rows. `share(g, n, k)` is the source
// for the g-th of n groups of rows of x, which reads k rows; each asks memory for its share of what
// comes next.
#pragma once

#include "kernels/gemm_matrices.h"

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

// c[m] += x[m][i + e] * w[begin + i + e], for one e.
template <int e, int MR, class Source>
TKG_INLINE void add_row(const float (&x)[MR][matrix_terms], Source& source, i64 begin, i64 i,
                        Vec (&c)[MR][strip_vecs]) {
    Vec b[strip_vecs];
    source.load(begin + i, e, b);
    for (int m = 0; m < MR; ++m) {
        const Vec a = set1(x[m][i + e]);
        for (int v = 0; v < strip_vecs; ++v) c[m][v] = fma(a, b[v], c[m][v]);
    }
}

// `multiply` in the order of units for matrices, which few rows do without: of n <= 32 rows of w
// the even ones in order and the odd ones in order, from zero; then both are added.
template <int MR, class X, class Source>
    requires std::is_same_v<X, bf16>
TKG_INLINE void multiply_in_order(const X* x, Source& source, i64 begin, i64 n,
                                  Vec (&c)[MR][strip_vecs]) {
    alignas(64) float wide[MR][matrix_terms];
    for (int m = 0; m < MR; ++m)
        for (int i = 0; i < matrix_terms; i += lanes) store(wide[m] + i, load(x + m * part + i));
    Vec even[MR][strip_vecs], odd[MR][strip_vecs];
    for (int m = 0; m < MR; ++m)
        for (int v = 0; v < strip_vecs; ++v) even[m][v] = odd[m][v] = zero();
    for (i64 i = 0; i + 1 < n; i += 2) {
        add_row<0>(wide, source, begin, i, even);
        add_row<1>(wide, source, begin, i, odd);
    }
    if (n % 2) add_row<0>(wide, source, begin, n - 1, even);
    for (int m = 0; m < MR; ++m)
        for (int v = 0; v < strip_vecs; ++v) c[m][v] = add(c[m][v], add(even[m][v], odd[m][v]));
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
        if constexpr (multiplies_matrices && std::is_same_v<X, bf16>)
            for (i64 i = 0; i < min_of(part, k - begin); i += matrix_terms)
                multiply_in_order(x + i, source, begin + i, min_of(matrix_terms, k - begin - i), c);
        else
            for (i64 i = 0; i < min_of(part, k - begin); i += Source::rows)
                multiply(x, source, begin, i, c);
    for (int m = 0; m < MR; ++m)
        for (int v = 0; v < strip_vecs; ++v) store(sums + m * part + v * lanes, c[m][v]);
}

// A strip that has been widened.
struct WideStrip {
    static constexpr int rows = 1;
    static constexpr bool lies_in_pairs = false;
    const float* row;

    WideStrip share(i64, i64, i64) const { return *this; }
    void load(i64 i, int, Vec* b) const {
        for (int v = 0; v < strip_vecs; ++v) b[v] = tkg::load(row + i * strip_n + v * lanes);
    }
};

// Rows of w that a tile works on, at most.
constexpr i64 max_block_k = 256;

// Up to so many rows are multiplied without units for matrices: as many as registers hold.
constexpr i64 rows_in_order = 2;

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
        if constexpr (multiplies_matrices && std::is_same_v<X, bf16>) {
            if (rows > rows_in_order) return run_matrices(source);
            const RoundingOfMatrices rounding;
            return run_groups(source);
        }
        if constexpr (widens_slowly) {
            if (rows > gemm_rows) return run_wide(source);
        }
        run_groups(source);
    }

private:
    // By units for matrices: a strip where it lies if it lies in pairs, else it is copied so.
    template <class Source>
    void run_matrices(const Source& source) const {
        i64 done = 0;
        if constexpr (Source::lies_in_pairs) {
            done = k - k % matrix_terms;
            if (done) multiply_rows(x, rows, source, done, from_zero, sums);
            if (done == k) return;
        }
        Source from = source.share(0, 1, k);
        if (rows <= matrix_rows) return run_chunks(from, done);
        alignas(64) bf16 copy[max_block_k * strip_n];
        for (i64 i = done; i < k; i += matrix_terms)
            copy_pairs(from, i, copy + (i - done) * strip_n);
        multiply_rows(x + done / part * rows * part + done % part, rows, PairedStrip{copy},
                      round_up(k - done, matrix_terms), from_zero && !done, sums);
    }

    // Up to 16 rows: what is copied is multiplied once. It is copied to two buffers in turn, while
    // the units multiply by what was copied before: so small, they stay in the first cache.
    template <class Source>
    void run_chunks(Source& from, i64 done) const {
        alignas(64) bf16 chunk[2][matrix_terms * strip_n];
        shape_matrices(static_cast<int>(rows));
        if (from_zero && !done)
            zero_sums();
        else
            load_sums(sums, part);
        copy_pairs(from, done, chunk[0]);
        for (i64 i = done, n = 0; i < k; i += matrix_terms, ++n) {
            if (i + matrix_terms < k) copy_pairs(from, i + matrix_terms, chunk[(n + 1) % 2]);
            multiply_matrices(x + i / part * rows * part + i % part, part, chunk[n % 2], [] {});
        }
        store_sums(sums, part);
    }

    // Rows [i, i + 32) of w in pairs, zeros behind the last one.
    template <class Source>
    void copy_pairs(Source& from, i64 i, bf16* to) const {
        for (i64 end = i + matrix_terms; i < end; i += 2) {
            Pairs b[strip_vecs] = {};
            if (i < k) from.load(i, b);
            for (int v = 0; v < strip_vecs; ++v, to += 2 * lanes) store_pairs(b[v], to);
        }
        finish_stores();
    }

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
