// FP8 as float32: through float16, or by tables of bytes where there is AVX512-VBMI.
#pragma once

#include <type_traits>

#include "core/panels.h"
#include "simd/avx512.h"

namespace tkg {
namespace {

// FP8 as float16 bits: with the exponent field moved into place the value is 2^-8 of the true one
// (biases 7 and 15), denormals included. The sign, extended and shifted, is in the top two bits.
inline __m512i fp8_halves(__m256i x) {
    return _mm512_and_si512(_mm512_slli_epi16(_mm512_cvtepi8_epi16(x), 7),
                            _mm512_set1_epi16(static_cast<short>(0xbfff)));
}

// Where FP8 bytes are infinite or NaN, the bits that make float16 say so.
inline __mmask64 special_bytes(__m512i x, e4m3) {
    return _mm512_cmpgt_epu8_mask(_mm512_and_si512(x, _mm512_set1_epi8(0x7f)),
                                  _mm512_set1_epi8(0x77));
}
inline __mmask64 special_bytes(__m512i x, e4m3fn) {
    return _mm512_cmpeq_epi8_mask(_mm512_and_si512(x, _mm512_set1_epi8(0x7f)),
                                  _mm512_set1_epi8(0x7f));
}
inline __m512i with_special(__m512i halves, __mmask32 special, short bits) {
    return _mm512_or_si512(halves, _mm512_maskz_mov_epi16(special, _mm512_set1_epi16(bits)));
}
constexpr short special_half(e4m3) { return 0x7c00; }
constexpr short special_half(e4m3fn) { return 0x7e00; }

// n <= 64 FP8 values as float16 of 2^-8 of their value; to holds 64.
template <class T>
inline void fp8_to_half(const T* p, int n, f16* to) {
    const __m512i x = n == 64 ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi8((1ull << n) - 1, p);
    __m512i low = fp8_halves(_mm512_castsi512_si256(x));
    __m512i high = fp8_halves(_mm512_extracti64x4_epi64(x, 1));
    const __mmask64 special = special_bytes(x, T{});
    if (__builtin_expect(special != 0, 0)) {
        const short bits = special_half(T{});
        low = with_special(low, static_cast<__mmask32>(special), bits);
        high = with_special(high, static_cast<__mmask32>(special >> 32), bits);
    }
    _mm512_storeu_si512(to, low);
    _mm512_storeu_si512(to + 32, high);
}

// One vector of them, by their value.
template <class T>
inline Vec widen_fp8(__m128i x, T) {
    __m512i half = fp8_halves(_mm256_castsi128_si256(x));
    const __mmask64 special = special_bytes(_mm512_zextsi128_si512(x), T{});
    half = with_special(half, static_cast<__mmask32>(special), special_half(T{}));
    return mul({_mm512_cvtph_ps(_mm512_castsi512_si256(half))}, set1(256.0f));
}

inline Vec load(const e4m3* p) {
    return widen_fp8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), e4m3{});
}
inline Vec load_n(const e4m3* p, int n) {
    return widen_fp8(_mm_maskz_loadu_epi8(first(n), p), e4m3{});
}
inline Vec load(const e4m3fn* p) {
    return widen_fp8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), e4m3fn{});
}
inline Vec load_n(const e4m3fn* p, int n) {
    return widen_fp8(_mm_maskz_loadu_epi8(first(n), p), e4m3fn{});
}

#if defined(TKG_ISA_AVX512_VBMI)
// 2^-8 of a value's magnitude as bfloat16, which holds it exactly: the two bytes, looked up by the
// seven bits of the magnitude.
struct Fp8Table {
    alignas(64) std::uint8_t low[128];
    alignas(64) std::uint8_t high[128];
};

template <class T>
constexpr Fp8Table fp8_table() {
    constexpr int bias = 127 - 7 - 8;
    Fp8Table table{};
    for (int bits = 0; bits < 128; ++bits) {
        int exponent = bits >> 3, mantissa = bits & 7;
        const bool infinite = std::is_same_v<T, e4m3> && bits == 0x78;
        const bool nan = std::is_same_v<T, e4m3> ? bits > 0x78 : bits == 0x7f;
        int wide = 0;
        if (infinite || nan) {
            wide = infinite ? 0x7f80 : 0x7fc0;
        } else if (bits) {
            if (exponent == 0) {  // denormal: 2^-6 * mantissa / 8
                for (exponent = 1; mantissa < 8; mantissa *= 2) --exponent;
                mantissa -= 8;
            }
            wide = (exponent + bias) << 7 | mantissa << 4;
        }
        table.low[bits] = static_cast<std::uint8_t>(wide);
        table.high[bits] = static_cast<std::uint8_t>(wide >> 8);
    }
    return table;
}

// Where the 64 bytes of a vector come from.
struct ByteOrder {
    alignas(64) std::uint8_t from[64];
};

// The order in which bytes are unpacked so that value i, which lies at place(i) in memory, comes
// out as the i-th of: two vectors of words; four vectors of float32, two of each words.
template <class Place>
constexpr ByteOrder order_of_words(Place place) {
    ByteOrder order{};
    for (int to = 0; to < 64; ++to)  // eight bytes of each 16 go to one vector
        order.from[to] = static_cast<std::uint8_t>(place(to % 16 / 8 * 32 + to / 16 * 8 + to % 8));
    return order;
}
template <class Place>
constexpr ByteOrder order_of_values(Place place) {
    return order_of_words([&](int word) {  // a word's two halves go to two vectors
        return place(word / 32 * 32 + word % 2 * 16 + word % 32 / 2);
    });
}

// 2^-8 of 64 FP8 values as bfloat16.
template <class T>
inline void look_up(__m512i bytes, const ByteOrder& order, __m512i* words) {
    static constexpr Fp8Table table = fp8_table<T>();
    const auto find = [](const std::uint8_t* t, __m512i x) {
        return _mm512_permutex2var_epi8(_mm512_load_si512(t), x, _mm512_load_si512(t + 64));
    };
    const __m512i x = _mm512_permutexvar_epi8(_mm512_load_si512(order.from), bytes);
    const __m512i low = find(table.low, x);
    // With the sign: a | (b & c).
    const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
    const __m512i high = _mm512_ternarylogic_epi64(find(table.high, x), x, sign, 0xf8);
    words[0] = _mm512_unpacklo_epi8(low, high);
    words[1] = _mm512_unpackhi_epi8(low, high);
}
template <class T>
inline void look_up(const T* p, const ByteOrder& order, Vec* to) {
    __m512i words[2];
    look_up<T>(_mm512_loadu_si512(p), order, words);
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    for (int i = 0; i < 2; ++i) {
        to[2 * i] = {_mm512_castsi512_ps(_mm512_slli_epi32(words[i], 16))};
        to[2 * i + 1] = {_mm512_castsi512_ps(_mm512_and_si512(words[i], upper))};
    }
}

constexpr ByteOrder word_order = order_of_words([](int i) { return i; });
constexpr ByteOrder plain_order = order_of_values([](int i) { return i; });
constexpr ByteOrder panel_order = order_of_values(place_of_pair);

// What rows of FP8 are widened to.
using WideFp8 = bf16;
template <class T>
inline void widen_row(const T* p, int n, WideFp8* to) {
    const __m512i x = n == 64 ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi8((1ull << n) - 1, p);
    __m512i words[2];
    look_up<T>(x, word_order, words);
    _mm512_storeu_si512(to, words[0]);
    _mm512_storeu_si512(to + 32, words[1]);
}

constexpr bool widens_fp8_in_registers = true;
template <class T>
inline void widen_64(const T* p, Vec* to) {
    look_up(p, plain_order, to);
}
template <class T>
inline void load_strip(const T* row, int, int, Vec* b) {
    static_assert(sizeof(T) == 1);
    look_up(row, panel_order, b);
}

#if defined(TKG_ISA_AVX512_BF16)
// The order of words that unpacking two rows turns into pairs of columns in order.
template <class Place>
constexpr ByteOrder order_of_rows(Place place) {
    return order_of_words([&](int word) {
        return place(word / 32 * 32 + word % 8 / 4 * 16 + word % 32 / 8 * 4 + word % 4);
    });
}
constexpr ByteOrder row_order = order_of_rows([](int i) { return i; });
constexpr ByteOrder panel_row_order = order_of_rows(place_of_pair);

// 64 columns of two rows.
template <class T>
inline void look_up(__m512i first_row, __m512i second_row, const ByteOrder& order, Pairs* to) {
    __m512i a[2], b[2];
    look_up<T>(first_row, order, a);
    look_up<T>(second_row, order, b);
    for (int i = 0; i < 2; ++i) {
        to[2 * i] = {_mm512_unpacklo_epi16(a[i], b[i])};
        to[2 * i + 1] = {_mm512_unpackhi_epi16(a[i], b[i])};
    }
}
template <class T>
    requires(sizeof(T) == 1)
inline void load_rows(const T* first_row, const T* second_row, Pairs* to) {
    look_up<T>(_mm512_loadu_si512(first_row), _mm512_loadu_si512(second_row), row_order, to);
}
// The 64 columns of two rows of a panel; the second may be missing.
template <class T>
    requires(sizeof(T) == 1)
inline void load_strip(const T* first_row, const T* second_row, Pairs* to) {
    const __m512i second = second_row ? _mm512_loadu_si512(second_row) : _mm512_setzero_si512();
    look_up<T>(_mm512_loadu_si512(first_row), second, panel_row_order, to);
}
// 64 neighbours of a row.
template <class T>
inline void widen_64(const T* p, Pairs* to) {
    __m512i words[2];
    look_up<T>(_mm512_loadu_si512(p), word_order, words);
    to[0] = {words[0]};
    to[1] = {words[1]};
}
#endif
#else
// A byte in the upper half of 16 bits, shifted right by one with its sign: float16 but for bit 14.
inline __m512i half_of_high_bytes(__m512i x) {
    return _mm512_and_si512(_mm512_srai_epi16(x, 1), _mm512_set1_epi16(static_cast<short>(0xbf80)));
}
template <class T>
inline void load_strip(const T* row, int, int, Vec* b) {
    static_assert(sizeof(T) == 1);
    const __m512i pairs = _mm512_loadu_si512(row);
    const __m512i low = half_of_high_bytes(_mm512_slli_epi16(pairs, 8));
    const __m512i high = half_of_high_bytes(pairs);
    b[0] = {_mm512_cvtph_ps(_mm512_castsi512_si256(low))};
    b[1] = {_mm512_cvtph_ps(_mm512_castsi512_si256(high))};
    b[2] = {_mm512_cvtph_ps(_mm512_extracti64x4_epi64(low, 1))};
    b[3] = {_mm512_cvtph_ps(_mm512_extracti64x4_epi64(high, 1))};
}
#endif

}  // namespace
}  // namespace tkg
