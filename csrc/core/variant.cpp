#include "core/variant.h"

#include <atomic>
#include <cstring>
#include <string>

#if defined(TKG_X86)
#include <cpuid.h>
#endif
#if defined(TKG_X86) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tkg {

#if defined(TKG_X86)
extern const Variant variant_avx512_amx, variant_avx512_bf16, variant_avx512_vbmi, variant_avx512,
    variant_avx2;
#endif
extern const Variant variant_baseline;

namespace {

struct Candidate {
    const Variant* variant;
    bool runs;
    bool pays = true;  // whether it is faster than what comes after it
};

#if defined(TKG_X86)
// Some are not asked where their kernels have been left out.
bool runs_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
}

bool runs_avx512() {
    return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool runs_avx512_vbmi() { return runs_avx512() && __builtin_cpu_supports("avx512vbmi"); }

[[maybe_unused]] bool runs_avx512_bf16() {
    return runs_avx512_vbmi() && __builtin_cpu_supports("avx512bf16");
}

// A product of pairs takes Intel's processors longer than the float32 multiply-adds that it stands
// for: of a projection of 64 rows, measured on Emerald Rapids, 1.6 times as long.
[[maybe_unused]] bool pairs_pay() { return !__builtin_cpu_is("intel"); }

// AMX's registers are big, and Linux saves them only for processes that have asked for them.
bool may_use_amx() {
#if defined(__linux__)
    constexpr int request_permission = 0x1023, tile_data = 18;  // arch_prctl(2), asm/prctl.h
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return false;
#endif
}

[[maybe_unused]] bool runs_avx512_amx() {
    constexpr unsigned amx_bf16 = 1u << 22, amx_tile = 1u << 24;  // leaf 7, EDX
    unsigned a, b, c, d;
    if (!runs_avx512_bf16() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    return (d & amx_bf16) && (d & amx_tile) && may_use_amx();
}
#endif

const Candidate* candidates(int* count) {
    static const Candidate table[] = {
#if defined(TKG_HAS_avx512_amx)
        {&variant_avx512_amx, runs_avx512_amx()},
#endif
#if defined(TKG_HAS_avx512_bf16)
        {&variant_avx512_bf16, runs_avx512_bf16(), pairs_pay()},
#endif
#if defined(TKG_HAS_avx512_vbmi)
        {&variant_avx512_vbmi, runs_avx512_vbmi()},
#endif
#if defined(TKG_HAS_avx512)
        {&variant_avx512, runs_avx512()},
#endif
#if defined(TKG_HAS_avx2)
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
    while (!table[i].runs || !table[i].pays) ++i;
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
