// Steps and projections like one that was checked.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>

#include "bindings/arrays.h"
#include "core/placement.h"
#include "core/team.h"
#include "core/variant.h"
#include "core/workspace.h"

namespace tkg {

// The arrays of a step, as the caller has them.
struct StepArrays {
    nb::handle x, k, v, block_table, pos_ids, cos, sin, slots;
};

// What a step's cache holds, and what numbers its positions and slots are.
struct StepTypes {
    std::int64_t blocks, row_slots;  // of a block cache, of a flat one
    Indices::Type positions, slots;
};

// Makes outputs: a NumPy array, and of it what the caller gets.
class Outputs {
public:
    // `make` makes an array; `wrap` makes of it what the caller gets, or is None.
    Outputs(nb::object make, nb::object wrap) : make_(std::move(make)), wrap_(std::move(wrap)) {}

    // What `run` of an output's address has written.
    template <class Run>
    nb::object of(Run&& run) const {
        nb::object out = make_();
        const Address to = View(out).address();
        {
            const nb::gil_scoped_release release;
            run(to);
        }
        return wrap_.is_none() ? out : wrap_(out);
    }

private:
    nb::object make_, wrap_;
};

// Runs a step whose positions and slots are known. None, and nothing is done, if they, or the block
// table, may break a rule (core/placement.h).
inline nb::object run_placed(const Layer& layer, Step step, const StepTypes& types,
                             Indices positions, Indices slots, const Outputs& outputs) {
    const Placement placement(step, layer.window, types.blocks, types.row_slots, positions, slots);
    if (!placement.legal()) return nb::none();
    step.start = placement.start();
    step.slots = placement.slots();
    const std::int64_t bytes =
        step.batch * step.tokens * layer.kv_heads * layer.d_head * size_of(step.cache_dtype);
    const auto added =
        std::make_unique_for_overwrite<std::byte[]>(static_cast<std::size_t>(2 * bytes));
    step.k_new = reinterpret_cast<Address>(added.get());
    step.v_new = step.k_new + static_cast<Address>(bytes);
    return outputs.of([&](Address out) {
        step.out = out;
        variant_for(step.x_dtype).attention_block(layer, step, team(), workspace());
    });
}

// A step over a cache, to be taken again. What was checked of it holds for a step whose arrays have
// the same forms and whose caches are the same memory. What depends on values, positions and the
// block table, is looked at each time (core/placement.h).
class RepeatedStep {
public:
    RepeatedStep(const Layer& layer, const Step& step, const StepArrays& arrays, StepTypes types,
                 Outputs outputs)
        : layer_(layer),
          step_(step),
          x_(arrays.x),
          k_(arrays.k),
          v_(arrays.v),
          block_table_(arrays.block_table),
          pos_ids_(arrays.pos_ids),
          cos_(arrays.cos),
          sin_(arrays.sin),
          slots_(arrays.slots),
          types_(types),
          outputs_(std::move(outputs)) {}

    // The output; None, and nothing is done, for a step that must be checked like a first one.
    nb::object run(const StepArrays& arrays) const {
        Step step = step_;
        Indices positions{0, types_.positions}, slots{0, types_.slots};
        if (!find(arrays, step) || !pos_ids_.find(arrays.pos_ids, positions.data) ||
            !slots_.find(arrays.slots, slots.data))
            return nb::none();
        return run_placed(layer_, step, types_, positions, slots, outputs_);
    }

private:
    // Whether the arrays that the kernels read have their forms; where they are.
    bool find(const StepArrays& arrays, Step& step) const {
        Address k = 0, v = 0;
        return x_.find(arrays.x, step.x) && cos_.find(arrays.cos, step.cos) &&
               sin_.find(arrays.sin, step.sin) &&
               block_table_.find(arrays.block_table, step.block_table) &&
               k_.find(arrays.k, k, true) && k == step.k.data && v_.find(arrays.v, v, true) &&
               v == step.v.data;
    }

    Layer layer_;
    Step step_;
    Form x_, k_, v_, block_table_, pos_ids_, cos_, sin_, slots_;
    StepTypes types_;
    Outputs outputs_;
};

// A projection of x [..., in], to be made again of an array of the same form.
class RepeatedProjection {
public:
    RepeatedProjection(const Projection& projection, nb::handle x, Outputs outputs)
        : projection_(projection), x_(x), outputs_(std::move(outputs)) {}

    // As `RepeatedStep::run`.
    nb::object run(nb::handle x) const {
        Projection call = projection_;
        if (!x_.find(x, call.attention)) return nb::none();
        return outputs_.of([&](Address out) {
            call.out = out;
            variant_for(call.x_dtype).output_projection(call, team(), workspace());
        });
    }

private:
    Projection projection_;
    Form x_;
    Outputs outputs_;
};

}  // namespace tkg
