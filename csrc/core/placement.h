// Where the new tokens of a step lie in its cache, from their positions.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/calls.h"

namespace tkg {

// An array of positions or slots: 32 bits, signed or not, or 64. 2^32-1 is -1 in all of them.
struct Indices {
    enum class Type { int32, uint32, int64 };

    Address data = 0;
    Type type = Type::int32;

    std::int64_t operator[](std::int64_t i) const {
        if (type == Type::int32) return at<const std::int32_t>(data)[i];
        const std::int64_t value = type == Type::int64
                                       ? at<const std::int64_t>(data)[i]
                                       : std::int64_t{at<const std::uint32_t>(data)[i]};
        return value == 0xffffffff ? -1 : value;
    }
};

// A step's `start` and `slots`, in one piece of memory.
class Placement {
public:
    // `positions` is [batch, tokens]; a row that begins with -1 is padded. `slots` likewise, or no
    // array (data 0): position p goes to slot p, in a block cache of `blocks` blocks through the
    // table. A flat cache has `row_slots` a row.
    Placement(const Step& step, std::int64_t window, std::int64_t blocks, std::int64_t row_slots,
              Indices positions, Indices slots)
        : step_(step),
          window_(window),
          blocks_(blocks),
          capacity_(step.block_len ? blocks * step.block_len : row_slots),
          positions_(positions),
          given_(slots),
          numbers_(static_cast<std::size_t>(step.batch * (1 + step.tokens))),
          slots_(numbers_.data() + step.batch) {
        for (std::int64_t row = 0; legal_ && row < step.batch; ++row) legal_ = place(row);
        if (!legal_ || (!step.block_len && !slots.data)) return;
        const std::int64_t all = step.batch * step.tokens;
        const std::int64_t size = step.block_len ? all : step.tokens;
        for (std::int64_t first = 0; legal_ && first < all; first += size)
            legal_ = distinct(slots_ + first, size);
    }

    // Whether positions, table and slots break no rule of docs/contract.md.
    bool legal() const { return legal_; }
    Address start() const { return reinterpret_cast<Address>(numbers_.data()); }
    Address slots() const { return reinterpret_cast<Address>(slots_); }

private:
    bool place(std::int64_t row) {
        const std::int64_t first = row * step_.tokens, start = positions_[first];
        std::int64_t* slots = slots_ + first;
        numbers_[static_cast<std::size_t>(row)] = start;
        if (start < -1 || start > step_.prior) return false;
        for (std::int64_t s = 0; s < step_.tokens; ++s) {
            if (start >= 0 && positions_[first + s] != start + s) return false;
            slots[s] = given_.data ? given_[first + s] : start + s;
            if (given_.data && (slots[s] < -1 || slots[s] >= capacity_)) return false;
        }
        if (start >= 0 && step_.block_len && !through_table(row, start, slots)) return false;
        if (start < 0) std::fill(slots, slots + step_.tokens, -1);
        return true;
    }

    // Looks at the table's entries that the row needs, and turns positions into slots.
    bool through_table(std::int64_t row, std::int64_t start, std::int64_t* slots) const {
        const auto* table = at<const std::int32_t>(step_.block_table) + row * step_.table_columns;
        const std::int64_t length = step_.block_len;
        const std::int64_t oldest = window_ ? std::max<std::int64_t>(0, start - window_ + 1) : 0;
        const std::int64_t end = given_.data ? start : start + step_.tokens;
        for (std::int64_t column = oldest / length; oldest < end && column * length < end; ++column)
            if (table[column] < 0 || table[column] >= blocks_) return false;
        for (std::int64_t s = 0; !given_.data && s < step_.tokens; ++s)
            slots[s] = table[slots[s] / length] * length + slots[s] % length;
        return true;
    }

    // Whether no two tokens go to one slot.
    static bool distinct(const std::int64_t* slots, std::int64_t size) {
        if (size == 1) return true;
        std::vector<std::int64_t> taken(slots, slots + size);
        std::sort(taken.begin(), taken.end());
        for (std::size_t i = 1; i < taken.size(); ++i)
            if (taken[i] >= 0 && taken[i] == taken[i - 1]) return false;
        return true;
    }

    const Step& step_;
    const std::int64_t window_, blocks_, capacity_;
    const Indices positions_, given_;
    std::vector<std::int64_t> numbers_;  // start [batch], then slots [batch, tokens]
    std::int64_t* slots_;
    bool legal_ = true;
};

}  // namespace tkg
