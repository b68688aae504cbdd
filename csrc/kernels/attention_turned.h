// The scores of many rows: K of a tile is turned first, so that positions are the lanes and no dot
// product is added up over lanes. That costs as much as the sums of some rows.
#pragma once

#include "kernels/attention_scores.h"

namespace tkg {
namespace {

// Vectors of positions beside each other.
constexpr int turned_vecs = 2;
static_assert(tile_len % (turned_vecs * lanes) == 0);

// A tile of K, turned: word[w][i] has the values of position i that lie in its w-th 32 bits. Behind
// the last position are copies of it.
struct TurnedTile {
    alignas(64) std::uint32_t word[max_d_head][tile_len];

    template <class T>
    void turn(const T* const* k, int count, i64 d) {
        const i64 words = d * static_cast<i64>(sizeof(T)) / 4;
        for (int i = 0; i < round_up(count, turned_vecs * lanes); i += lanes) {
            const void* some[lanes];
            for (int p = 0; p < lanes; ++p) some[p] = k[min_of(i + p, count - 1)];
            for (i64 w = 0; w < words; w += lanes)
                turn_words(some, w, valid_lanes(w, words), &word[w][i], tile_len);
        }
    }
};

// scores[r][0..turned_vecs * lanes) for R rows.
template <int R, class T, class V>
TKG_INLINE void turned_dots(const Factor<T>* q, const std::uint32_t* words, i64 d, float* scores,
                            Ahead<V>& ahead) {
    constexpr int per_word = static_cast<int>(4 / sizeof(T));
    Vec c[R][turned_vecs];
    for (int r = 0; r < R; ++r)
        for (int x = 0; x < turned_vecs; ++x) c[r][x] = zero();
    for (i64 w = 0; w < d / per_word; ++w, words += tile_len) {
        Factors<T> key[turned_vecs][per_word / terms<T>];
        for (int x = 0; x < turned_vecs; ++x) widen_words(words + x * lanes, T{}, key[x]);
        ahead.template ask<turned_vecs * per_word>();
        for (int e = 0; e < per_word / terms<T>; ++e)
            for (int r = 0; r < R; ++r) {
                const auto query = spread(q + r * d + w * per_word + e);
                for (int x = 0; x < turned_vecs; ++x) c[r][x] = fma(query, key[x][e], c[r][x]);
            }
    }
    for (int r = 0; r < R; ++r)
        for (int x = 0; x < turned_vecs; ++x) store(scores + r * tile_len + x * lanes, c[r][x]);
}

// The first rows ask for what comes next. Behind the last of the `count` positions some scores are
// written that mean nothing.
template <class T, class V>
inline void score_tile_turned(const Factor<T>* q, int rows, TurnedTile& tile, const T* const* k,
                              int count, i64 d, float* scores, Ahead<V>& next) {
    tile.turn(k, count, d);
    for_row_groups<attention_rows>(rows, [&](auto group, i64 r) {
        Ahead<V> ahead = r == 0 ? next : Ahead<V>{};
        for (int i = 0; i < count; i += turned_vecs * lanes)
            turned_dots<group(), T>(q + r * d, &tile.word[0][i], d, scores + r * tile_len + i,
                                    ahead);
        if (r == 0) next = ahead;
    });
}

}  // namespace
}  // namespace tkg
