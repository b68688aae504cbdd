#include "core/panels.h"

#include <algorithm>

namespace tkg {

namespace {

template <class Bits>
void pack(const Linear& plain, Bits* to) {
    const bool pairs = lies_in_pairs(plain.dtype);
    const Bits* w = at<const Bits>(plain.weight);
    for (std::int64_t n = 0; n < plain.out; n += panel_columns) {
        const int columns = static_cast<int>(std::min<std::int64_t>(panel_columns, plain.out - n));
        for (std::int64_t i = 0; i < plain.in; ++i, to += panel_columns) {
            const Bits* row = w + i * plain.row_stride + n;
            std::fill_n(to, panel_columns, Bits{0});
            for (int j = 0; j < columns; ++j) to[pairs ? place_of_pair(j) : j] = row[j];
        }
    }
}

bool is_special(std::uint8_t bits, DType dtype) {
    const int magnitude = bits & 0x7f;
    return dtype == DType::float8_e4m3 ? magnitude >= 0x78 : magnitude == 0x7f;
}

}  // namespace

std::int64_t panel_bytes(std::int64_t in, std::int64_t out, DType dtype) {
    return (out + panel_columns - 1) / panel_columns * panel_columns * in * size_of(dtype);
}

bool pack_panels(const Linear& plain, Address to) {
    switch (size_of(plain.dtype)) {
        case 4: pack(plain, at<std::uint32_t>(to)); return true;
        case 2: pack(plain, at<std::uint16_t>(to)); return true;
        default: pack(plain, at<std::uint8_t>(to));
    }
    const std::uint8_t* packed = at<const std::uint8_t>(to);
    return std::none_of(packed, packed + panel_bytes(plain.in, plain.out, plain.dtype),
                        [&](std::uint8_t bits) { return is_special(bits, plain.dtype); });
}

}  // namespace tkg
