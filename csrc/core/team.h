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

    // Inside run: waits until every thread is here; the shares below start anew.
    void barrier();

    // Inside run, of the `size` pieces that are a thread's share: the next one that nobody has
    // taken, from the front for the thread itself, from the back for others; -1 if there is none.
    std::int64_t take(int owner, std::int64_t size, bool own);

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
    // Of each thread's share: pieces taken from the front, and from the back in the upper half.
    struct alignas(64) Taken {
        std::atomic<std::uint64_t> counts{0};
    };
    std::vector<Taken> taken_;
};

// The calling thread's own team of num_threads() threads, made when first needed. Each calling
// thread has its own, so calls from several threads do not wait for each other.
Team& team();

}  // namespace tkg
