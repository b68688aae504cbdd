#include "core/machine.h"

#include <atomic>
#include <chrono>
#include <thread>

#include "core/team.h"
#include "core/variant.h"

namespace tkg {

namespace {

std::atomic<int>& thread_setting() {
    static std::atomic<int> threads{usable_cpus()};
    return threads;
}

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

// Results go here, so that the work is not optimised away.
void keep(float result) {
    static std::atomic<float> kept;
    kept.store(result, std::memory_order_relaxed);
}

template <class F>
void on_each(Team& threads, F&& f) {
    threads.run([](void* context, int thread) { (*static_cast<F*>(context))(thread); }, &f);
}

}  // namespace

int num_threads() { return thread_setting().load(std::memory_order_relaxed); }

void set_num_threads(int threads) { thread_setting().store(threads, std::memory_order_relaxed); }

int usable_cpus() {
    const unsigned cpus = std::thread::hardware_concurrency();
    return cpus ? static_cast<int>(cpus) : 1;
}

double measure_read_bandwidth(float* memory, long long size, int repeats) {
    Team& threads = team();
    const std::int64_t share = size / threads.size() / 1024 * 1024;  // whole pages
    double best = 0;
    for (int pass = 0; pass <= repeats; ++pass) {
        const Clock::time_point start = Clock::now();
        on_each(threads, [&](int thread) {
            float* mine = memory + thread * share;
            if (pass == 0) {  // touched first by the thread that reads it
                for (std::int64_t i = 0; i < share; ++i) mine[i] = 1.0f;
            } else {
                keep(variant().stream_sum(mine, share));
            }
        });
        const double rate = static_cast<double>(share) * threads.size() * 4 / seconds_since(start);
        if (pass > 0 && rate > best) best = rate;
    }
    return best;
}

double measure_fma_rate(int repeats) {
    Team& threads = team();
    constexpr std::int64_t rounds = 1000000;
    double best = 0;
    for (int pass = 0; pass < repeats; ++pass) {
        std::atomic<double> flops = 0;
        const Clock::time_point start = Clock::now();
        on_each(threads, [&](int) {
            float sink = 0;
            flops += variant().fma_rounds(rounds, &sink);
            keep(sink);
        });
        const double rate = flops / seconds_since(start);
        if (rate > best) best = rate;
    }
    return best;
}

}  // namespace tkg
