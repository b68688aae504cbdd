// The kernels compiled for one instruction set, and the choice between them.
#pragma once

#include "core/calls.h"
#include "core/team.h"
#include "core/workspace.h"

namespace tkg {

struct Variant {
    const char* isa;
    int lanes;  // float32 lanes of a vector
    void (*attention_block)(const Layer&, const Step&, Team&, Workspace&);
    void (*output_projection)(const Projection&, Team&, Workspace&);
    // Multiply-adds in registers, `rounds` times a fixed number; returns FLOPs done.
    double (*fma_rounds)(std::int64_t rounds, float* sink);
    // Sum of n floats (n a multiple of 256), streaming: reads memory and nothing else.
    float (*stream_sum)(const float* data, std::int64_t n);
    // Where this one rounds operands to bfloat16: the like that does not.
    const Variant* exact;
};

// The variant in use: the best that this CPU runs, or the one forced by set_isa.
const Variant& variant();

// The same for calls with hidden states of a type: operands are rounded to bfloat16 only where the
// hidden states are bfloat16.
const Variant& variant_for(DType x);

// Names of the compiled variants that this CPU runs, best first, separated by spaces.
const char* runnable_isas();

// Force a variant by name. Returns whether it is compiled in and this CPU runs it.
bool set_isa(const char* isa);

}  // namespace tkg
