#include "core/team.h"

#include <unistd.h>

#include <memory>

#include "core/machine.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tkg {

namespace {

// Pauses (20 to 60 nanoseconds each) before sleeping. At a barrier: about as long as a phase may be
// out of balance. Between runs: about as long as a decode loop takes from call to call, since
// waking a sleeping thread takes tens of microseconds.
constexpr int barrier_spins = 1000, idle_spins = 10000;

void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("isb");
#endif
}

void wait_while(const std::atomic<std::uint32_t>& value, std::uint32_t old, int spins) {
    for (int i = 0; i < spins; ++i) {
        if (value.load(std::memory_order_acquire) != old) return;
        pause();
    }
    value.wait(old, std::memory_order_acquire);
}

}  // namespace

Team::Team(int threads)
    : size_(threads), missing_(threads), taken_(static_cast<std::size_t>(threads)) {
    for (int i = 1; i < threads; ++i) threads_.emplace_back([this, i] { loop(i); });
}

Team::~Team() {
    stopping_ = true;
    started_.fetch_add(1);
    started_.notify_all();
    for (std::thread& thread : threads_) thread.join();
}

void Team::loop(int thread) {
    for (std::uint32_t seen = 0;; ++seen) {
        wait_while(started_, seen, idle_spins);
        if (stopping_) return;
        work_(context_, thread);
        barrier();
    }
}

void Team::run(void (*work)(void*, int), void* context) {
    work_ = work;
    context_ = context;
    if (size_ > 1) {
        started_.fetch_add(1);
        started_.notify_all();
    }
    work(context, 0);
    barrier();
}

void Team::barrier() {
    const std::uint32_t generation = passed_.load(std::memory_order_relaxed);
    if (missing_.fetch_sub(1, std::memory_order_acq_rel) > 1) {
        wait_while(passed_, generation, barrier_spins);
        return;
    }
    missing_.store(size_, std::memory_order_relaxed);
    for (Taken& taken : taken_) taken.counts.store(0, std::memory_order_relaxed);
    // Sequentially consistent: it must not pass the look at who sleeps, inside notify_all.
    passed_.store(generation + 1);
    if (size_ > 1) passed_.notify_all();
}

std::int64_t Team::take(int owner, std::int64_t size, bool own) {
    std::atomic<std::uint64_t>& counts = taken_[static_cast<std::size_t>(owner)].counts;
    const auto pieces_left = [&](std::uint64_t taken) {
        return static_cast<std::int64_t>((taken & 0xffffffffu) + (taken >> 32)) < size;
    };
    if (!pieces_left(counts.load(std::memory_order_relaxed))) return -1;
    const std::uint64_t taken =
        counts.fetch_add(own ? 1 : std::uint64_t{1} << 32, std::memory_order_relaxed);
    if (!pieces_left(taken)) return -1;
    return own ? static_cast<std::int64_t>(taken & 0xffffffffu)
               : size - 1 - static_cast<std::int64_t>(taken >> 32);
}

Team& team() {
    struct Owned {
        std::unique_ptr<Team> team;
        pid_t process = 0;
    };
    thread_local Owned mine;
    if (mine.process != getpid()) {
        mine.team.release();  // after a fork its threads exist in the parent only
        mine.process = getpid();
    }
    const int wanted = num_threads();
    if (!mine.team || mine.team->size() != wanted) {
        mine.team.reset();
        mine.team = std::make_unique<Team>(wanted);
    }
    return *mine.team;
}

}  // namespace tkg
