// The element types of tensors in memory. Arithmetic is always float32.
#pragma once

#include <cstdint>

namespace tkg {

enum class DType : std::int32_t { float32, float16, bfloat16, float8_e4m3, float8_e4m3fn };

// One tag type an element type, so that loads are chosen at compile time.
struct f16 {
    std::uint16_t bits;
};
struct bf16 {
    std::uint16_t bits;
};
struct e4m3 {  // NKI's: largest value 240, with infinities
    std::uint8_t bits;
};
struct e4m3fn {  // OCP's: largest value 448, no infinities
    std::uint8_t bits;
};

constexpr std::int64_t size_of(DType dtype) {
    switch (dtype) {
        case DType::float32: return 4;
        case DType::float16:
        case DType::bfloat16: return 2;
        default: return 1;
    }
}

}  // namespace tkg
