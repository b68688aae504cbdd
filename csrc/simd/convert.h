// Exact scalar conversions between float32 and the stored types. Rounding is to nearest even.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace tkg {
namespace {

inline float from_bits(std::uint32_t bits) {
    float x;
    __builtin_memcpy(&x, &bits, 4);
    return x;
}

inline std::uint32_t to_bits(float x) {
    std::uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    return bits;
}

inline float to_float(float x) { return x; }

inline float to_float(bf16 x) { return from_bits(static_cast<std::uint32_t>(x.bits) << 16); }

// The magnitude bits of a finite small float with `mantissa` mantissa bits and this bias. Denormals
// go through an integer: float32 denormals on the way would be slow, or flushed to zero.
inline float widen_magnitude(std::uint32_t magnitude, int mantissa, int bias) {
    if (magnitude >> mantissa == 0)
        return static_cast<float>(magnitude) *
               from_bits(static_cast<std::uint32_t>(128 - bias - mantissa) << 23);
    return from_bits((magnitude << (23 - mantissa)) +
                     (static_cast<std::uint32_t>(127 - bias) << 23));
}

inline float with_sign(float magnitude, std::uint32_t sign_bit) {
    return from_bits(to_bits(magnitude) | sign_bit << 31);
}

inline float to_float(f16 x) {
    const std::uint32_t magnitude = x.bits & 0x7fffu;
    const float value = magnitude >= 0x7c00u ? from_bits(0x7f800000u | (magnitude & 0x3ffu) << 13)
                                             : widen_magnitude(magnitude, 10, 15);
    return with_sign(value, x.bits >> 15);
}

inline float to_float(e4m3 x) {
    const std::uint32_t magnitude = x.bits & 0x7fu;
    const float value = magnitude >= 0x78u ? from_bits(0x7f800000u | (magnitude & 7u) << 20)
                                           : widen_magnitude(magnitude, 3, 7);
    return with_sign(value, x.bits >> 7);
}

inline float to_float(e4m3fn x) {
    const std::uint32_t magnitude = x.bits & 0x7fu;
    const float value =
        magnitude == 0x7fu ? from_bits(0x7fc00000u) : widen_magnitude(magnitude, 3, 7);
    return with_sign(value, x.bits >> 7);
}

// FP8 as float16 of 2^-8 of the value: the exponent field in place (biases 7 and 15).
inline f16 half_of(std::uint8_t bits, std::uint32_t first_special, std::uint32_t special) {
    const std::uint32_t magnitude = bits & 0x7fu, sign = (bits & 0x80u) << 8;
    return {static_cast<std::uint16_t>(sign | magnitude << 7 |
                                       (magnitude >= first_special ? special : 0u))};
}
inline f16 half_of(e4m3 x) { return half_of(x.bits, 0x78u, 0x7c00u); }
inline f16 half_of(e4m3fn x) { return half_of(x.bits, 0x7fu, 0x7e00u); }

inline void from_float(float x, float* p) { *p = x; }

inline void from_float(float x, bf16* p) {
    const std::uint32_t bits = to_bits(x);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    const std::uint32_t rounded = bits + 0x7fffu + (bits >> 16 & 1u);
    p->bits = static_cast<std::uint16_t>((nan ? bits | 0x400000u : rounded) >> 16);
}

// |x| as a format with `mantissa` mantissa bits and `bias`, rounded to nearest even; denormals by
// adding a number whose last bit weighs as much as the smallest denormal.
inline std::uint32_t narrow_magnitude(float x, int mantissa, int bias) {
    const std::uint32_t bits = to_bits(x);
    const int shift = 23 - mantissa;
    if (bits < static_cast<std::uint32_t>(128 - bias) << 23) {
        const float magic = from_bits(static_cast<std::uint32_t>(127 + 1 - bias + shift) << 23);
        return to_bits(x + magic) - to_bits(magic);
    }
    const std::uint32_t rebased = bits - (static_cast<std::uint32_t>(127 - bias) << 23);
    const std::uint32_t half = (1u << (shift - 1)) - 1u + (rebased >> shift & 1u);
    return (rebased + half) >> shift;
}

inline void from_float(float x, f16* p) {
    const std::uint32_t sign = to_bits(x) >> 31 << 15, magnitude = to_bits(x) & 0x7fffffffu;
    std::uint32_t bits;
    if (magnitude > 0x7f800000u) {
        bits = 0x7e00u;
    } else if (magnitude >= 0x47800000u) {  // 65536 and more
        bits = 0x7c00u;
    } else {
        bits = narrow_magnitude(from_bits(magnitude), 10, 15);
    }
    p->bits = static_cast<std::uint16_t>(sign | bits);
}

constexpr float fp8_max = 240.0f;  // NKI's float8_e4m3; the clip for both formats

// fp8(clip(x, +-240)), the same byte in either format.
inline std::uint8_t fp8_bits(float x) {
    const std::uint32_t sign = to_bits(x) >> 31 << 7;
    float magnitude = from_bits(to_bits(x) & 0x7fffffffu);
    if (magnitude != magnitude) return static_cast<std::uint8_t>(sign | 0x7fu);
    if (magnitude > fp8_max) magnitude = fp8_max;
    return static_cast<std::uint8_t>(sign | narrow_magnitude(magnitude, 3, 7));
}

inline void from_float(float x, e4m3* p) { p->bits = fp8_bits(x); }
inline void from_float(float x, e4m3fn* p) { p->bits = fp8_bits(x); }

}  // namespace
}  // namespace tkg
