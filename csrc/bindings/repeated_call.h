// Drop-in calls like one that was checked.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "bindings/repeat.h"

namespace tkg {

// A call in the core's form, but for what is made of its values at each call.
struct CallParts {
    Layer layer;
    Step step;
    Indices positions, slots;
    Address k_scale = 0, v_scale = 0;         // of a float32 each, or 0
    std::vector<std::vector<float>> widened;  // arrays of bfloat16 that the core wants in float32
};

// Where an array argument goes.
struct ArrayArgument {
    const char* name;
    Address& (*place)(CallParts&);
    bool written = false;
};

inline constexpr ArrayArgument kArrayArguments[] = {
    {"X", [](CallParts& to) -> Address& { return to.step.x; }},
    {"rmsnorm_X_gamma", [](CallParts& to) -> Address& { return to.layer.input_norm.weight; }},
    {"W_qkv", [](CallParts& to) -> Address& { return to.layer.qkv.weight; }},
    {"bias_qkv", [](CallParts& to) -> Address& { return to.layer.qkv.bias; }},
    {"weight_dequant_scale_qkv",
     [](CallParts& to) -> Address& { return to.layer.qkv.column_scale; }},
    {"rmsnorm_QK_pre_rope_W_Q", [](CallParts& to) -> Address& { return to.layer.pre_q.weight; }},
    {"rmsnorm_QK_pre_rope_W_K", [](CallParts& to) -> Address& { return to.layer.pre_k.weight; }},
    {"cos", [](CallParts& to) -> Address& { return to.step.cos; }},
    {"sin", [](CallParts& to) -> Address& { return to.step.sin; }},
    {"rmsnorm_QK_post_rope_W_Q", [](CallParts& to) -> Address& { return to.layer.post_q.weight; }},
    {"rmsnorm_QK_post_rope_W_K", [](CallParts& to) -> Address& { return to.layer.post_k.weight; }},
    {"active_blocks_table", [](CallParts& to) -> Address& { return to.step.block_table; }},
    {"K_cache", [](CallParts& to) -> Address& { return to.step.k.data; }, true},
    {"V_cache", [](CallParts& to) -> Address& { return to.step.v.data; }, true},
    {"pos_ids", [](CallParts& to) -> Address& { return to.positions.data; }},
    {"sink", [](CallParts& to) -> Address& { return to.layer.sink; }},
    {"kv_cache_update_idx", [](CallParts& to) -> Address& { return to.slots.data; }},
    {"k_scale", [](CallParts& to) -> Address& { return to.k_scale; }},
    {"v_scale", [](CallParts& to) -> Address& { return to.v_scale; }},
    {"W_out", [](CallParts& to) -> Address& { return to.layer.out.weight; }},
    {"bias_out", [](CallParts& to) -> Address& { return to.layer.out.bias; }},
    {"weight_dequant_scale_out",
     [](CallParts& to) -> Address& { return to.layer.out.column_scale; }},
};

inline std::vector<float> widened(Address bfloat16, std::size_t count) {
    std::vector<float> values(count);
    for (std::size_t i = 0; i < count; ++i)
        values[i] = std::bit_cast<float>(std::uint32_t{at<const bf16>(bfloat16)[i].bits} << 16);
    return values;
}

// One keyword argument of a call, to be found again.
class Argument {
public:
    // `widened` has the number of elements of each array of bfloat16 to be widened, by its name.
    Argument(nb::handle name, nb::handle value, const nb::dict& widened)
        : name_(nb::borrow(name)), value_(nb::none()), form_(nb::none()) {
        const char* spelled = nb::cast<const char*>(name);
        for (const ArrayArgument& known : kArrayArguments)
            if (!value.is_none() && std::strcmp(spelled, known.name) == 0) array_ = &known;
        if (array_)
            form_ = Form(value);
        else
            value_ = nb::borrow(value);
        if (widened.contains(name)) widened_ = nb::cast<std::size_t>(widened[name]);
    }

    // Whether this is the argument again: an array of the same form, whose address goes to `parts`;
    // anything else of the same type and value.
    bool find(nb::handle name, nb::handle value, CallParts& parts) const {
        if (!name.is(name_)) return false;
        if (array_) return find_array(value, array_->place(parts), parts);
        if (value.is(value_)) return true;
        return value.type().is(value_.type()) && value.equal(value_);
    }

private:
    bool find_array(nb::handle value, Address& address, CallParts& parts) const {
        if (!form_.find(value, address, array_->written)) return false;
        if (!widened_) return true;
        parts.widened.push_back(widened(address, widened_));
        address = reinterpret_cast<Address>(parts.widened.back().data());
        return true;
    }

    nb::object name_, value_;
    Form form_;
    const ArrayArgument* array_ = nullptr;
    std::size_t widened_ = 0;
};

// A drop-in call, to be made again with other arrays. What was checked of it holds for a call whose
// arrays have the same forms and whose other arguments are equal. What depends on values is looked
// at each time: positions, slots and block table (core/placement.h), and the scales of the cache.
class RepeatedCall {
public:
    RepeatedCall(const Layer& layer, const Step& step, const nb::dict& arguments,
                 const nb::dict& widened, StepTypes types, Outputs outputs)
        : parts_{layer, step, {0, types.positions}, {0, types.slots}},
          types_(types),
          outputs_(std::move(outputs)) {
        for (const auto& [name, value] : arguments) arguments_.emplace_back(name, value, widened);
    }

    // The output; None, and nothing is done, for a call that must be checked like a first one.
    nb::object run(const nb::dict& arguments) const {
        CallParts parts = parts_;
        if (!find(arguments, parts)) return nb::none();
        return run_placed(parts.layer, parts.step, types_, parts.positions, parts.slots, outputs_);
    }

private:
    bool find(const nb::dict& arguments, CallParts& parts) const {
        if (arguments.size() != arguments_.size()) return false;
        auto known = arguments_.begin();
        try {
            for (const auto& [name, value] : arguments)
                if (!(known++)->find(name, value, parts)) return false;
        } catch (const nb::python_error&) {  // such as a tensor without memory
            return false;
        }
        return scale(parts.k_scale, parts.step.k_scale) &&
               scale(parts.v_scale, parts.step.v_scale) && parts.step.k.data != parts.step.v.data;
    }

    // Reads a cache's scale; false if it breaks a rule.
    static bool scale(Address from, float& to) {
        if (from) to = *at<const float>(from);
        return std::isfinite(to) && to > 0;
    }

    CallParts parts_;
    StepTypes types_;
    Outputs outputs_;
    std::vector<Argument> arguments_;
};

}  // namespace tkg
