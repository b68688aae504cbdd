#include "core/panels.h"

#include <algorithm>

namespace tkg {

namespace {

// Where element (i, column) of a panel lies.
std::int64_t place(DType dtype, std::int64_t i, int column) {
    if (dtype == DType::bfloat16) return i / 2 * 2 * panel_columns + 2 * column + i % 2;
    return i * panel_columns + (size_of(dtype) == 1 ? place_of_pair(column) : column);
}

std::int64_t panel_elements(std::int64_t in, DType dtype) {
    const int beside = rows_beside(dtype);
    return (in + beside - 1) / beside * beside * panel_columns;
}

template <class Bits>
void pack(const Linear& plain, Bits* to) {
    const Bits* w = at<const Bits>(plain.weight);
    const std::int64_t elements = panel_elements(plain.in, plain.dtype);
    for (std::int64_t n = 0; n < plain.out; n += panel_columns, to += elements) {
        const int columns = static_cast<int>(std::min<std::int64_t>(panel_columns, plain.out - n));
        std::fill_n(to, elements, Bits{0});
        for (std::int64_t i = 0; i < plain.in; ++i) {
            const Bits* row = w + i * plain.row_stride + n;
            for (int j = 0; j < columns; ++j) to[place(plain.dtype, i, j)] = row[j];
        }
    }
}

bool is_special(std::uint8_t bits, DType dtype) {
    const int magnitude = bits & 0x7f;
    return dtype == DType::float8_e4m3 ? magnitude >= 0x78 : magnitude == 0x7f;
}

}  // namespace

std::int64_t panel_bytes(std::int64_t in, std::int64_t out, DType dtype) {
    return (out + panel_columns - 1) / panel_columns * panel_elements(in, dtype) * size_of(dtype);
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
