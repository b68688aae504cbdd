#include "core/variant.h"

#include <atomic>
#include <cstring>
#include <string>

namespace tkg {

#if defined(TKG_X86)
extern const Variant variant_avx512_bf16, variant_avx512_vbmi, variant_avx512, variant_avx2;
#endif
extern const Variant variant_baseline;

namespace {

struct Candidate {
    const Variant* variant;
    bool runs;
};

#if defined(TKG_X86)
bool runs_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
}

bool runs_avx512() {
    return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool runs_avx512_vbmi() { return runs_avx512() && __builtin_cpu_supports("avx512vbmi"); }

bool runs_avx512_bf16() { return runs_avx512_vbmi() && __builtin_cpu_supports("avx512bf16"); }
#endif

const Candidate* candidates(int* count) {
    static const Candidate table[] = {
#if defined(TKG_X86)
        {&variant_avx512_bf16, runs_avx512_bf16()},
        {&variant_avx512_vbmi, runs_avx512_vbmi()},
        {&variant_avx512, runs_avx512()},
        {&variant_avx2, runs_avx2()},
#endif
        {&variant_baseline, true},
    };
    *count = static_cast<int>(sizeof table / sizeof table[0]);
    return table;
}

const Variant* best() {
    int count = 0;
    const Candidate* table = candidates(&count);
    int i = 0;
    while (!table[i].runs) ++i;
    return table[i].variant;
}

std::atomic<const Variant*>& chosen() {
    static std::atomic<const Variant*> current{best()};
    return current;
}

}  // namespace

const Variant& variant() { return *chosen().load(std::memory_order_relaxed); }

const Variant& variant_for(DType x) {
    const Variant& current = variant();
    return current.exact && x != DType::bfloat16 ? *current.exact : current;
}

const char* runnable_isas() {
    static const std::string names = [] {
        std::string text;
        int count = 0;
        const Candidate* table = candidates(&count);
        for (int i = 0; i < count; ++i) {
            if (!table[i].runs) continue;
            if (!text.empty()) text += ' ';
            text += table[i].variant->isa;
        }
        return text;
    }();
    return names.c_str();
}

bool set_isa(const char* isa) {
    int count = 0;
    const Candidate* table = candidates(&count);
    for (int i = 0; i < count; ++i) {
        if (table[i].runs && std::strcmp(table[i].variant->isa, isa) == 0) {
            chosen().store(table[i].variant, std::memory_order_relaxed);
            return true;
        }
    }
    return false;
}

}  // namespace tkg
