// Threads, and this machine's measured ceilings.
#pragma once

namespace tkg {

// Threads that the next calls use; at first what OpenMP gives this process.
int num_threads();
void set_num_threads(int threads);

// Whether parallel regions use more than one thread at all (built with OpenMP).
bool has_openmp();

// Streaming read from memory in bytes a second: the best of `repeats` passes over a buffer of
// `bytes`, which must be larger than the last-level cache.
double measure_read_bandwidth(long long bytes, int repeats);

// Float32 multiply-adds in registers, in FLOPs a second (2 each): the best of `repeats`.
double measure_fma_rate(int repeats);

}  // namespace tkg
