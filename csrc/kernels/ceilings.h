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

float stream_sum(const float* data, i64 n) {
    Vec total[4] = {zero(), zero(), zero(), zero()};
    for (i64 i = 0; i < n; i += 4 * lanes) {
        __builtin_prefetch(data + i + 1024);
        for (int v = 0; v < 4; ++v) total[v] = add(total[v], load(data + i + v * lanes));
    }
    return sum(add(add(total[0], total[1]), add(total[2], total[3])));
}

}  // namespace
}  // namespace tkg
