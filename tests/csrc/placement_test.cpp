// Placement against the rules of docs/contract.md, written out slot by slot.
#include "core/placement.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "check.h"

using namespace tkg;
using i64 = std::int64_t;

namespace {

struct Positions {
    i64 batch, tokens, length, columns, blocks, window;  // columns 0: a flat cache of `length`
    std::vector<i64> positions, slots;                   // no slots: tokens go where they belong
    std::vector<std::int32_t> table;

    i64 context() const { return columns ? columns * length : length; }
    bool known(i64 row, i64 slot) const {
        const std::int32_t entry = table[static_cast<std::size_t>(row * columns + slot / length)];
        return 0 <= entry && entry < blocks;
    }

    // Where a token at position p goes, -1 for nowhere; -2 if that breaks a rule.
    i64 place(std::size_t token, i64 row, i64 p) const {
        if (!slots.empty()) {
            const i64 slot = slots[token], capacity = columns ? blocks * length : length;
            return slot >= -1 && slot < capacity ? slot : -2;
        }
        if (!columns) return p;
        if (!known(row, p)) return -2;
        return table[static_cast<std::size_t>(row * columns + p / length)] * length + p % length;
    }

    // Where each token goes; false if a rule is broken.
    bool expected(std::vector<i64>& found) const {
        std::set<std::pair<i64, i64>> taken;
        for (i64 row = 0; row < batch; ++row) {
            const i64 start = positions[static_cast<std::size_t>(row * tokens)];
            if (start < -1 || start > context() - tokens) return false;
            if (start >= 0 && columns)
                for (i64 slot = window ? std::max<i64>(0, start - window + 1) : 0; slot < start;
                     ++slot)
                    if (!known(row, slot)) return false;
            for (i64 s = 0; s < tokens; ++s) {
                const auto token = static_cast<std::size_t>(row * tokens + s);
                if (start >= 0 && positions[token] != start + s) return false;
                i64 slot = start < 0 && slots.empty() ? -1 : place(token, row, start + s);
                if (slot == -2) return false;
                if (start < 0) slot = -1;
                if (slot >= 0 && !taken.insert({columns ? 0 : row, slot}).second) return false;
                found.push_back(slot);
            }
        }
        return true;
    }
};

// As numbers of type `Index`; what is -1 is 2^32-1 where that is not.
template <class Index>
void check(const Positions& given, Indices::Type type, int& legal) {
    std::vector<Index> positions, given_slots;
    for (const i64 p : given.positions) positions.push_back(static_cast<Index>(p));
    for (const i64 slot : given.slots)
        given_slots.push_back(
            static_cast<Index>(slot == -1 && type != Indices::Type::int32 ? 0xffffffff : slot));
    Step step;
    step.batch = given.batch;
    step.tokens = given.tokens;
    step.prior = given.context() - given.tokens;
    step.block_len = given.columns ? given.length : 0;
    step.block_table = reinterpret_cast<Address>(given.table.data());
    step.table_columns = given.columns;
    const Indices where{reinterpret_cast<Address>(positions.data()), type};
    const Indices slots_where{
        given.slots.empty() ? 0 : reinterpret_cast<Address>(given_slots.data()), type};
    const Placement placement(step, given.window, given.blocks, given.length, where, slots_where);
    std::vector<i64> slots;
    const bool expected = given.expected(slots);
    CHECK(placement.legal() == expected, "window %lld", static_cast<long long>(given.window));
    if (!placement.legal() || !expected) return;
    ++legal;
    for (std::size_t i = 0; i < slots.size(); ++i)
        CHECK(at<const i64>(placement.slots())[i] == slots[i], "slot %zu", i);
    for (i64 row = 0; row < given.batch; ++row)
        CHECK(at<const i64>(placement.start())[row] ==
                  given.positions[static_cast<std::size_t>(row * given.tokens)],
              "row %lld", static_cast<long long>(row));
}

}  // namespace

int main() {
    std::mt19937 random(1);
    const auto below = [&](i64 n) { return static_cast<i64>(random() % static_cast<unsigned>(n)); };
    int legal = 0;
    constexpr int rounds = 4000;
    for (int round = 0; round < rounds; ++round) {
        Positions given{1 + below(3),        1 + below(3), 2 + below(5), 0, 0,
                        below(2) * below(9), {},           {},           {}};
        if (below(2)) given.columns = 2 + below(3);
        given.blocks = given.batch * given.columns + 2;
        for (i64 i = 0; i < given.batch * given.columns; ++i) {
            const bool wrong = below(12) == 0;
            const i64 entry = wrong ? (below(2) ? -1 : given.blocks) : i;
            given.table.push_back(
                static_cast<std::int32_t>(below(20) ? entry : below(given.blocks)));
        }
        for (i64 row = 0; row < given.batch; ++row) {
            const i64 start = below(given.context() + 3) - 2;
            for (i64 s = 0; s < given.tokens; ++s)
                given.positions.push_back(start + s + (below(30) ? 0 : 1));
        }
        if (below(2)) {
            const i64 capacity = given.columns ? given.blocks * given.length : given.length;
            for (i64 i = 0; i < given.batch * given.tokens; ++i)
                given.slots.push_back(below(capacity + 2) - (below(30) ? 1 : 2));
        }
        check<std::int32_t>(given, Indices::Type::int32, legal);
        check<i64>(given, Indices::Type::int64, legal);
        bool negative = false;  // other than -1, which an unsigned number cannot say
        for (const auto& numbers : {given.positions, given.slots})
            for (const i64 number : numbers) negative = negative || number < -1;
        if (!negative) check<std::uint32_t>(given, Indices::Type::uint32, legal);
    }
    CHECK(legal > rounds / 5 && legal < rounds * 2, "%d legal", legal);
    std::printf("placement: %d failures, %d legal in %d rounds\n", failures, legal, rounds);
    return failures != 0;
}
