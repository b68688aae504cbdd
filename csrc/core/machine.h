// Threads, and this machine's measured ceilings.
#pragma once

namespace tkg {

// Threads that the next calls use; at first, usable_cpus().
int num_threads();
void set_num_threads(int threads);

// CPUs that this process may run on.
int usable_cpus();

// Streaming read from memory in bytes a second: the best of `repeats` passes over `size` floats,
// which are overwritten and must be more than the last-level cache holds.
double measure_read_bandwidth(float* memory, long long size, int repeats);

// Float32 multiply-adds in registers, in FLOPs a second (2 each): the best of `repeats`.
double measure_fma_rate(int repeats);

}  // namespace tkg
