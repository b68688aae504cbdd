// Where the new tokens of a step lie in its cache, from their positions.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/calls.h"

namespace tkg {

// A step's `start` and `slots`, in one piece of memory.
class Placement {
public:
    // Of tokens that go where they belong: position p to slot p, in a block cache of `blocks`
    // blocks through the table. `positions` is [batch, tokens]; a row that begins with -1 is
    // padded.
    template <class Index>
    Placement(const Step& step, std::int64_t window, std::int64_t blocks, const Index* positions)
        : numbers_(static_cast<std::size_t>(step.batch * (1 + step.tokens))),
          slots_(numbers_.data() + step.batch) {
        for (std::int64_t row = 0; legal_ && row < step.batch; ++row)
            legal_ = place_row(step, window, blocks, row, positions + row * step.tokens);
        if (legal_ && step.block_len) legal_ = distinct();
    }

    // Whether positions and table break no rule of docs/contract.md.
    bool legal() const { return legal_; }
    Address start() const { return reinterpret_cast<Address>(numbers_.data()); }
    Address slots() const { return reinterpret_cast<Address>(slots_); }

private:
    template <class Index>
    bool place_row(const Step& step, std::int64_t window, std::int64_t blocks, std::int64_t row,
                   const Index* positions) {
        const std::int64_t start = positions[0];
        std::int64_t* slots = slots_ + row * step.tokens;
        numbers_[static_cast<std::size_t>(row)] = start;
        if (start == -1) {
            std::fill(slots, slots + step.tokens, -1);
            return true;
        }
        if (start < 0 || start > step.prior) return false;
        for (std::int64_t s = 0; s < step.tokens; ++s) {
            if (positions[s] != start + s) return false;
            slots[s] = start + s;
        }
        return !step.block_len || through_table(step, window, blocks, row, start, slots);
    }

    bool through_table(const Step& step, std::int64_t window, std::int64_t blocks, std::int64_t row,
                       std::int64_t start, std::int64_t* slots) {
        const auto* table = at<const std::int32_t>(step.block_table) + row * step.table_columns;
        const std::int64_t length = step.block_len;
        const std::int64_t oldest = window ? std::max<std::int64_t>(0, start - window + 1) : 0;
        const std::int64_t newest = start + step.tokens - 1;
        for (std::int64_t column = oldest / length; column <= newest / length; ++column)
            if (table[column] < 0 || table[column] >= blocks) return false;
        for (std::int64_t s = 0; s < step.tokens; ++s)
            slots[s] = table[slots[s] / length] * length + slots[s] % length;
        return true;
    }

    // Whether no two tokens go to one slot.
    bool distinct() const {
        std::vector<std::int64_t> taken(numbers_.begin() + (slots_ - numbers_.data()),
                                        numbers_.end());
        std::sort(taken.begin(), taken.end());
        for (std::size_t i = 1; i < taken.size(); ++i)
            if (taken[i] >= 0 && taken[i] == taken[i - 1]) return false;
        return true;
    }

    std::vector<std::int64_t> numbers_;  // start [batch], then slots [batch, tokens]
    std::int64_t* slots_;
    bool legal_ = true;
};

}  // namespace tkg
