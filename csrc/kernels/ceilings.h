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

// Four streams side by side, asked for 2 KiB ahead: of 1, 2, 4 and 8 streams and up to 16 KiB the
// most on a Zen 5 server, by 0 to 5 %, from huge pages.
float stream_sum(const float* data, i64 n) {
    constexpr int streams = 4, line = 16, ahead = 512;  // floats
    const i64 length = n / streams / line * line;
    Vec total[streams];
    for (int s = 0; s < streams; ++s) total[s] = zero();
    for (i64 i = 0; i < length; i += line)
        for (int s = 0; s < streams; ++s) {
            const float* p = data + s * length + i;
            __builtin_prefetch(p + ahead);
            for (int v = 0; v < line; v += lanes) total[s] = add(total[s], load(p + v));
        }
    Vec all = zero();
    for (int s = 0; s < streams; ++s) all = add(all, total[s]);
    return sum(all);
}

}  // namespace
}  // namespace tkg
