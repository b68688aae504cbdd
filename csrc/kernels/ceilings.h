// What this CPU gives at best, one thread's share: multiply-adds in registers, reading memory.
#pragma once

#include "kernels/support.h"

namespace tkg {
namespace {

// Twelve independent chains cover the latency (4 to 5 cycles) of two multiply-add units.
double fma_rounds(i64 rounds, float* sink) {
    constexpr int chains = 12;
    Vec c[chains];
    for (int i = 0; i < chains; ++i) c[i] = set1(static_cast<float>(i));
    const Vec a = set1(0.999999f), b = set1(1e-6f);
    for (i64 round = 0; round < rounds; ++round)
        for (int i = 0; i < chains; ++i) c[i] = fma(c[i], a, b);
    for (int i = 0; i < chains; ++i) *sink += sum(c[i]);
    return 2.0 * lanes * chains * static_cast<double>(rounds);
}

// Eight streams side by side, asked for half a kilobyte ahead: one stream alone leaves a third of
// the bandwidth of recent server CPUs unused.
float stream_sum(const float* data, i64 n) {
    constexpr int streams = 8, vectors = 128 / static_cast<int>(sizeof(float)) / lanes;
    const i64 length = n / streams / 32 * 32;
    Vec total[streams];
    for (int s = 0; s < streams; ++s) total[s] = zero();
    for (i64 i = 0; i < length; i += 32)
        for (int s = 0; s < streams; ++s) {
            const float* p = data + s * length + i;
            __builtin_prefetch(p + 128);
            __builtin_prefetch(p + 144);
            for (int v = 0; v < vectors; ++v) total[s] = add(total[s], load(p + v * lanes));
        }
    Vec all = zero();
    for (int s = 0; s < streams; ++s) all = add(all, total[s]);
    return sum(all);
}

}  // namespace
}  // namespace tkg
