// A team of threads that runs one function at a time, with barriers in it.
//
// Why not OpenMP: its barriers spin for milliseconds before they sleep, and a machine that runs
// anything else beside us then loses most of its speed. Here a thread that waits spins for tens of
// microseconds (a few hundred between calls) and then sleeps.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace tkg {

class Team {
public:
    explicit Team(int threads);
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;
    ~Team();

    int size() const { return size_; }

    // Runs work(context, thread) on every thread, 0 being the caller; returns when all are done.
    void run(void (*work)(void* context, int thread), void* context);

    // Inside run: waits until every thread is here, and starts the shared count anew.
    void barrier();

    // Inside run: the next number of a count that all threads share, from 0.
    std::int64_t next() { return count_.fetch_add(1, std::memory_order_relaxed); }

private:
    void loop(int thread);

    const int size_;
    std::vector<std::thread> threads_;
    void (*work_)(void*, int) = nullptr;
    void* context_ = nullptr;
    bool stopping_ = false;
    // Each on its own cache line: they are written by different threads at different times.
    alignas(64) std::atomic<std::uint32_t> started_{0};  // runs so far
    alignas(64) std::atomic<std::uint32_t> passed_{0};   // barriers so far
    alignas(64) std::atomic<int> missing_;               // threads not yet at the barrier
    alignas(64) std::atomic<std::int64_t> count_{0};
};

// The calling thread's own team of num_threads() threads, made when first needed. Each calling
// thread has its own, so calls from several threads do not wait for each other.
Team& team();

}  // namespace tkg
