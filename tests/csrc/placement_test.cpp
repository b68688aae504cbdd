// Placement against the rules of docs/contract.md, written out slot by slot.
#include "core/placement.h"

#include <cstdint>
#include <random>
#include <set>
#include <vector>

#include "check.h"

using namespace tkg;
using i64 = std::int64_t;

namespace {

struct Positions {
    i64 batch, tokens, length, columns, blocks, window;  // columns 0: a flat cache of `length`
    std::vector<i64> positions;
    std::vector<std::int32_t> table;

    i64 context() const { return columns ? columns * length : length; }
    bool known(i64 row, i64 slot) const {
        const std::int32_t entry = table[static_cast<std::size_t>(row * columns + slot / length)];
        return 0 <= entry && entry < blocks;
    }

    // Where each token goes; false if a rule is broken.
    bool expected(std::vector<i64>& slots) const {
        std::set<i64> taken;
        for (i64 row = 0; row < batch; ++row) {
            const i64 start = positions[static_cast<std::size_t>(row * tokens)];
            if (start < -1 || start > context() - tokens) return false;
            if (start >= 0 && columns)
                for (i64 slot = window ? std::max<i64>(0, start - window + 1) : 0; slot < start;
                     ++slot)
                    if (!known(row, slot)) return false;
            for (i64 s = 0; s < tokens; ++s) {
                const i64 p = positions[static_cast<std::size_t>(row * tokens + s)];
                if (start == -1) {
                    slots.push_back(-1);
                    continue;
                }
                if (p != start + s || (columns && !known(row, p))) return false;
                const i64 column = columns ? row * columns + p / length : 0;
                const i64 slot =
                    columns ? table[static_cast<std::size_t>(column)] * length + p % length : p;
                if (columns && !taken.insert(slot).second) return false;
                slots.push_back(slot);
            }
        }
        return true;
    }
};

template <class Index>
void check(const Positions& given, int& legal) {
    const std::vector<Index> positions(given.positions.begin(), given.positions.end());
    Step step;
    step.batch = given.batch;
    step.tokens = given.tokens;
    step.prior = given.context() - given.tokens;
    step.block_len = given.columns ? given.length : 0;
    step.block_table = reinterpret_cast<Address>(given.table.data());
    step.table_columns = given.columns;
    const Placement placement(step, given.window, given.blocks, positions.data());
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
        Positions given{
            1 + below(3), 1 + below(3), 2 + below(5), 0, 0, below(2) * below(9), {}, {}};
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
        check<std::int32_t>(given, legal);
        check<i64>(given, legal);
    }
    CHECK(legal > rounds / 5 && legal < rounds * 9 / 5, "%d legal", legal);
    std::printf("placement: %d failures, %d of %d legal\n", failures, legal, 2 * rounds);
    return failures != 0;
}
