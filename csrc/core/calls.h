// What a kernel gets: a layer, one step of it, or a projection. Plain data; the caller owns all
// memory and has checked everything.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace tkg {

// Addresses are integers here because they come from Python; `at` gives them their type back.
using Address = std::uintptr_t;

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

enum class Rope : std::int32_t { none, half, interleaved };

// y = x @ w * column_scale + bias. With input_scale > 0 (STATIC), x is rounded to FP8 first.
struct Linear {
    Address weight = 0;  // [in, out], rows contiguous; or panels of it
    DType dtype = DType::float32;
    std::int64_t in = 0, out = 0;
    std::int64_t row_stride = 0;  // elements
    Address bias = 0;             // [out] float32, or 0
    Address column_scale = 0;     // [out] float32, or 0
    float input_scale = 0;
    bool panels = false;
};

// RMSNorm over a vector. Off if eps < 0; weight 0 means all ones.
struct Norm {
    Address weight = 0;  // float32
    float eps = -1;
};

// Everything about an attention layer that does not change from step to step.
struct Layer {
    Linear qkv, out;  // out.weight 0: no output projection
    Norm input_norm;  // of qkv.in elements
    Norm pre_q, pre_k, post_q, post_k;
    std::int64_t q_heads = 0, kv_heads = 0, d_head = 0;
    Rope rope = Rope::none;
    Address sink = 0;         // [q_heads] float32, or 0
    std::int64_t window = 0;  // 0: none
    bool transposed_out = false;
    std::int64_t lnc = 1;
    bool skip_attention = false;
};

// A cache as [outer, slot, kv_head, d]; strides in elements. K has either d or slot contiguous,
// V has d contiguous.
struct CacheView {
    Address data = 0;
    std::int64_t outer_stride = 0, slot_stride = 0, head_stride = 0, d_stride = 1;
};

// One step of a layer.
struct Step {
    std::int64_t batch = 0, tokens = 0;
    Address x = 0;  // [batch, tokens, x_stride], the first qkv.in elements count
    DType x_dtype = DType::float32;
    std::int64_t x_stride = 0;
    Address cos = 0, sin = 0;  // [d/2, batch, tokens] float32

    CacheView k, v;
    DType cache_dtype = DType::float32;
    std::int64_t block_len = 0;  // slots a block; 0: flat cache
    Address block_table = 0;     // [batch, table_columns] int32
    std::int64_t table_columns = 0;
    float k_scale = 1, v_scale = 1;  // before the cast to FP8

    std::int64_t prior = 0;  // S_ctx - S_tkg
    Address start = 0;       // [batch] int64 valid slots, -1 padded row; 0: a mask is given
    Address mask = 0;        // uint8, strides below
    std::int64_t mask_strides[4] = {0, 0, 0, 0};  // S_ctx, batch, q_heads, tokens

    Address slots = 0;             // [batch, tokens] int64, -1 skip; 0: no update
    Address k_new = 0, v_new = 0;  // [batch, tokens, kv_heads, d] in the cache's dtype, written

    float softmax_scale = 1, attention_scale = 1;
    Address out = 0;  // X's dtype
};

// out[b*S + s, h] = sum over n, d of attention[d, b, n, s] * weight[n*D + d, h] + bias[h]
struct Projection {
    Linear linear;
    Address attention = 0;  // x_dtype; strides in elements
    std::int64_t d_head = 0, batch = 0, heads = 0, tokens = 0;
    std::int64_t strides[4] = {0, 0, 0, 0};  // d, batch, head, token
    DType x_dtype = DType::float32;
    bool transposed_out = false;
    std::int64_t lnc = 1;
    Address out = 0;  // x_dtype
};

}  // namespace tkg
