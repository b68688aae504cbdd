// One task of a projection, from weights of any type in either order.
#pragma once

#include "kernels/gemm_panels.h"
#include "kernels/gemm_plain.h"

namespace tkg {
namespace {

inline void gemm_task(const GemmPlan& plan, i64 task, const float* x, const Linear& linear,
                      float* partial) {
    with_type(linear.dtype, [&](auto type) {
        using T = decltype(type);
        const auto* operand = reinterpret_cast<const Operand<T>*>(x);
        if (linear.panels)
            panel_task(plan, task, operand, at<const T>(linear.weight), partial);
        else
            plain_task(plan, task, operand, at<const T>(linear.weight), linear.row_stride, partial);
        if (multiplies_matrices) release_matrices();
    });
}

}  // namespace
}  // namespace tkg
