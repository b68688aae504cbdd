#include "core/machine.h"

#include <atomic>
#include <chrono>
#include <memory>

#include "core/variant.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace tkg {

namespace {

std::atomic<int>& thread_setting() {
#if defined(_OPENMP)
    static std::atomic<int> threads{omp_get_max_threads()};
#else
    static std::atomic<int> threads{1};
#endif
    return threads;
}

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

volatile float kept;  // results go here, so that the work is not optimised away

}  // namespace

int num_threads() { return thread_setting().load(std::memory_order_relaxed); }

void set_num_threads(int threads) { thread_setting().store(threads, std::memory_order_relaxed); }

bool has_openmp() {
#if defined(_OPENMP)
    return true;
#else
    return false;
#endif
}

double measure_read_bandwidth(long long bytes, int repeats) {
    const int threads = num_threads();
    const std::int64_t share = bytes / threads / 4096 * 1024;  // floats a thread, whole pages
    const std::unique_ptr<float[]> data(new float[static_cast<std::size_t>(share * threads)]);
    double best = 0;
    for (int pass = 0; pass <= repeats; ++pass) {
        const Clock::time_point start = Clock::now();
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int t = 0; t < threads; ++t) {
            float* mine = data.get() + t * share;
            if (pass == 0) {  // touched first by the thread that reads it
                for (std::int64_t i = 0; i < share; ++i) mine[i] = 1.0f;
            } else {
                kept = variant().stream_sum(mine, share);
            }
        }
        const double rate = static_cast<double>(share) * threads * 4 / seconds_since(start);
        if (pass > 0 && rate > best) best = rate;
    }
    return best;
}

double measure_fma_rate(int repeats) {
    const int threads = num_threads();
    constexpr std::int64_t rounds = 1000000;
    double best = 0;
    for (int pass = 0; pass < repeats; ++pass) {
        double flops = 0;
        const Clock::time_point start = Clock::now();
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : flops)
        for (int t = 0; t < threads; ++t) {
            float sink = 0;
            flops += variant().fma_rounds(rounds, &sink);
            kept = sink;
        }
        const double rate = flops / seconds_since(start);
        if (rate > best) best = rate;
    }
    return best;
}

}  // namespace tkg
