// The vector layer of one instruction set: every stored value widened exactly, in full and partial
// loads; narrowing to nearest even; exp. Compiled once for each instruction set.
#include "simd/simd.h"

#include <cfenv>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "check.h"
#include "core/panels.h"
#include "core/variant.h"
#include "simd/convert.h"

using namespace tkg;

namespace {

// The value of a small float, from its definition: sign, exponent, mantissa.
double value_of(unsigned bits, int exponent_bits, int mantissa_bits, bool has_infinity) {
    const unsigned mantissa = bits & ((1u << mantissa_bits) - 1);
    const unsigned exponent = bits >> mantissa_bits & ((1u << exponent_bits) - 1);
    const int bias = (1 << (exponent_bits - 1)) - 1;
    const double sign = bits >> (exponent_bits + mantissa_bits) & 1 ? -1 : 1;
    const bool top = exponent == (1u << exponent_bits) - 1;
    if (top && has_infinity) return mantissa ? NAN : sign * INFINITY;
    if (top && mantissa == (1u << mantissa_bits) - 1) return NAN;  // OCP: the only NaN
    if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
    const double whole = mantissa + (1u << mantissa_bits);
    return sign * std::ldexp(whole, static_cast<int>(exponent) - bias - mantissa_bits);
}

bool same(float x, double expected) {
    return std::isnan(expected)
               ? std::isnan(x)
               : static_cast<double>(x) == expected && std::signbit(x) == std::signbit(expected);
}

template <class T>
void check_widening(const char* name, int exponent_bits, int mantissa_bits, bool has_infinity) {
    const unsigned count = 1u << (1 + exponent_bits + mantissa_bits);
    for (unsigned first = 0; first < count; first += static_cast<unsigned>(lanes)) {
        // Exactly as many elements as are loaded: reading more is an error that ASan reports.
        for (int n = 1; n <= lanes; ++n) {
            std::vector<T> stored(static_cast<std::size_t>(n));
            for (int i = 0; i < n; ++i)
                stored[static_cast<std::size_t>(i)].bits =
                    static_cast<decltype(T::bits)>(first + static_cast<unsigned>(i));
            float lane[lanes];
            store(lane, n == lanes ? load(stored.data()) : load_n(stored.data(), n));
            for (int i = 0; i < lanes; ++i) {
                const unsigned bits = first + static_cast<unsigned>(i);
                const double expected =
                    i < n ? value_of(bits, exponent_bits, mantissa_bits, has_infinity) : 0.0;
                CHECK(same(lane[i], expected), "%s bits %#x: %g, not %g", name, bits,
                      static_cast<double>(lane[i]), expected);
                if (i < n)
                    CHECK(same(to_float(stored[static_cast<std::size_t>(i)]), expected),
                          "%s scalar, bits %#x", name, bits);
            }
        }
    }
}

// FP8 as float16 of 2^-8 of the value, any number of them up to 64.
template <class T>
void check_halves(const char* name, bool has_infinity) {
    for (unsigned start = 0; start < 256; start += 64)
        for (int n = 1; n <= 64; ++n) {
            std::vector<T> stored(static_cast<std::size_t>(n));
            std::vector<f16> half(64);
            for (int i = 0; i < n; ++i)
                stored[static_cast<std::size_t>(i)].bits =
                    static_cast<std::uint8_t>(start + static_cast<unsigned>(i));
            fp8_to_half(stored.data(), n, half.data());
            for (int i = 0; i < n; ++i) {
                const unsigned bits = start + static_cast<unsigned>(i);
                const double expected = value_of(bits, 4, 3, has_infinity) / 256;
                CHECK(same(to_float(half[static_cast<std::size_t>(i)]), expected),
                      "%s bits %#x as half: %g, not %g", name, bits,
                      static_cast<double>(to_float(half[static_cast<std::size_t>(i)])), expected);
            }
        }
}

#if defined(TKG_ISA_AVX512_VBMI)
// All 256 values, by tables: 2^-8 of them, in order.
template <class T>
void check_tables(const char* name, bool has_infinity) {
    for (unsigned start = 0; start < 256; start += 64) {
        std::vector<T> stored(64);
        for (unsigned i = 0; i < 64; ++i) stored[i].bits = static_cast<std::uint8_t>(start + i);
        Vec wide[4];
        widen_64(stored.data(), wide);
        float got[64];
        for (int v = 0; v < 4; ++v) store(got + v * lanes, wide[v]);
        for (unsigned i = 0; i < 64; ++i) {
            const double expected = value_of(start + i, 4, 3, has_infinity) / 256;
            CHECK(same(got[i], expected), "%s bits %#x by table: %g, not %g", name, start + i,
                  static_cast<double>(got[i]), expected);
        }
        for (unsigned n = 1; n <= 64; ++n) {
            const std::vector<T> some(stored.begin(), stored.begin() + n);
            std::vector<WideFp8> row(64);
            widen_row(some.data(), static_cast<int>(n), row.data());
            for (unsigned i = 0; i < n; ++i)
                CHECK(same(to_float(row[i]), static_cast<double>(got[i])), "%s bits %#x in a row",
                      name, start + i);
        }
    }
}
#endif

// Between every two neighbours: just below, at and just above the middle.
template <class T>
void check_narrowing(const char* name, int exponent_bits, int mantissa_bits, unsigned last,
                     bool clipped) {
    for (unsigned bits = 0; bits < last; ++bits) {
        const double low = value_of(bits, exponent_bits, mantissa_bits, true);
        const double high = value_of(bits + 1, exponent_bits, mantissa_bits, true);
        const float middle = static_cast<float>((low + high) / 2);
        const unsigned even = bits % 2 ? bits + 1 : bits;
        const struct {
            float x;
            unsigned expected;
        } points[] = {
            {static_cast<float>(low), bits},
            {std::nextafterf(middle, 0.0f), bits},
            {middle, even},
            {std::nextafterf(middle, INFINITY), bits + 1},
        };
        for (const auto& point : points) {
            T up, down;
            from_float(point.x, &up);
            from_float(-point.x, &down);
            CHECK(up.bits == point.expected, "%s(%.9g) = %#x, not %#x", name,
                  static_cast<double>(point.x), up.bits, point.expected);
            CHECK(down.bits == (point.expected | 1u << (exponent_bits + mantissa_bits)), "%s(%.9g)",
                  name, static_cast<double>(-point.x));
        }
    }
    T top, nan;
    from_float(INFINITY, &top);
    from_float(NAN, &nan);
    const double largest = value_of(last, exponent_bits, mantissa_bits, true);
    CHECK(clipped ? same(to_float(top), largest) : std::isinf(to_float(top)), "%s(inf)", name);
    CHECK(std::isnan(to_float(nan)), "%s(nan)", name);
}

void check_exp() {
    double worst = 0;
    for (int i = 0; i <= 1000000; ++i) {
        const float x = -87.3f * static_cast<float>(i) / 1000000.0f;
        const double exact = std::exp(static_cast<double>(x));
        const double ulp = std::ldexp(1.0, std::ilogb(exact) - 23);
        worst = std::fmax(worst, std::fabs(exp_nonpositive(x) - exact) / ulp);
    }
    CHECK(worst <= 2.0, "exp is off by %g units in the last place", worst);
    CHECK(exp_nonpositive(0.0f) == 1.0f, "exp(0)");
    CHECK(exp_nonpositive(-INFINITY) == 0.0f, "exp(-inf)");
    CHECK(exp_nonpositive(-100.0f) == 0.0f, "exp(-100)");
    CHECK(std::isnan(exp_nonpositive(NAN)), "exp(nan)");
    // Denormal numbers are slow.
    std::feclearexcept(FE_ALL_EXCEPT);
    for (float x = -87.3364f; x > -87.3367f; x = std::nextafter(x, -100.0f)) {
        const float got = exp_nonpositive(x);
        CHECK(got == 0 || got >= 0x1p-126f, "exp(%.9g) is denormal", static_cast<double>(x));
    }
    for (const float x : {-88.0f, -104.0f, -1e30f, -INFINITY}) {
        const volatile float got = exp_nonpositive(x);
        CHECK(got == 0, "exp(%g)", static_cast<double>(x));
    }
    CHECK(!std::fetestexcept(FE_UNDERFLOW), "exp has a denormal number on the way");
}

void check_reductions() {
    float x[lanes], expected = 0;
    for (int i = 0; i < lanes; ++i) expected += x[i] = static_cast<float>(i * i - 20);
    CHECK(sum(load(x)) == expected, "sum");
    CHECK(largest(load(x)) == x[lanes - 1], "largest");
    Vec c[dot_sums];
    float each[dot_sums];
    for (int i = 0; i < dot_sums; ++i) {
        float lane[lanes];
        for (int j = 0; j < lanes; ++j) lane[j] = std::sin(static_cast<float>(i * lanes + j));
        c[i] = load(lane);
    }
    sum_each(c, each);
    for (int i = 0; i < dot_sums; ++i) CHECK(each[i] == sum(c[i]), "sum_each %d", i);
    for (int n = 0; n <= lanes; ++n) {
        std::vector<float> out(static_cast<std::size_t>(n), -1.0f);
        store_n(out.data(), load(x), n);
        for (int i = 0; i < n; ++i)
            CHECK(out[static_cast<std::size_t>(i)] == x[i], "store_n %d", n);
    }
}

// Strips of a panel are its columns in order, of as many rows as lie beside each other; FP8 as 2^-8
// of the value.
template <class T>
void check_strips(const char* name, DType dtype) {
    constexpr int beside = std::is_same_v<T, bf16> ? 2 : 1, strip = 4 * lanes;
    const float factor = sizeof(T) == 1 ? 256.0f : 1.0f;
    CHECK(beside == rows_beside(dtype), "%s", name);
    for (int in = 1; in <= beside; ++in) {
        T rows[beside][panel_columns], panel[beside * panel_columns];
        for (int i = 0; i < beside; ++i)
            for (int j = 0; j < panel_columns; ++j)
                from_float(i < in ? static_cast<float>(j - 20 - 70 * i) : 0.0f, rows[i] + j);
        Linear plain;
        plain.weight = reinterpret_cast<Address>(rows);
        plain.dtype = dtype;
        plain.in = in;
        plain.out = plain.row_stride = panel_columns;
        CHECK(panel_bytes(in, panel_columns, dtype) == static_cast<int>(sizeof panel), "%s", name);
        pack_panels(plain, reinterpret_cast<Address>(panel));
        for (int column = 0; column < panel_columns; column += strip) {
            for (int i = 0; i < beside; ++i) {
                Vec b[4];
                float got[strip];
                load_strip(panel, column, i, b);
                for (int v = 0; v < 4; ++v) store(got + v * lanes, b[v]);
                for (int j = 0; j < strip; ++j)
                    CHECK(got[j] * factor == to_float(rows[i][column + j]), "%s row %d column %d",
                          name, i, column + j);
            }
        }
    }
}

#if defined(TKG_ISA_AVX512_BF16)
// Products of pairs with (3, -5): lane i must have 3 a(i) - 5 b(i).
template <class A, class B>
void check_products(const char* what, Pairs pairs, int n, A a, B b) {
    bf16 x[2];
    from_float(3.0f, x);
    from_float(-5.0f, x + 1);
    float got[lanes];
    store(got, fma(spread(x), pairs, set1(1)));
    for (int i = 0; i < lanes; ++i)
        CHECK(got[i] == 1.0f + (i < n ? 3.0f * a(i) - 5.0f * b(i) : 0.0f), "%s %d of %d", what, i,
              n);
}

// A function of i: factor * values[first + step * i].
template <class T>
auto element(const std::vector<T>& values, int first, int step, float factor = 1.0f) {
    return [&values, first, step, factor](int i) {
        return factor * to_float(values[static_cast<std::size_t>(first + step * i)]);
    };
}

// `count` values that FP8 and bfloat16 have, in a buffer of their size.
template <class T>
std::vector<T> some_values(int count, int seed) {
    std::vector<T> values(static_cast<std::size_t>(count));
    for (int j = 0; j < count; ++j)
        from_float(static_cast<float>((j * 7 + seed) % 29 - 14),
                   &values[static_cast<std::size_t>(j)]);
    return values;
}

void check_pairs() {
    for (int n = 1; n <= lanes; ++n) {
        const auto a = some_values<bf16>(n, 1), b = some_values<bf16>(n, 2);
        const Pairs pairs = pairs_of(load_n(a.data(), n), load_n(b.data(), n));
        check_products("pairs_of", pairs, n, element(a, 0, 1), element(b, 0, 1));
        const Pairs single = pairs_of(load_n(a.data(), n), zero());
        check_products("a missing partner", single, n, element(a, 0, 1), [](int) { return 0.0f; });
        const auto row = some_values<bf16>(2 * n, 3);
        check_products("load_pairs_n", load_pairs_n(row.data(), 2 * n), n, element(row, 0, 2),
                       element(row, 1, 2));
    }
    const auto panel = some_values<bf16>(2 * panel_columns, 4);
    Pairs strip[4];
    load_strip(panel.data(), 0, strip);
    for (int v = 0; v < 4; ++v)
        check_products("a panel's strip", strip[v], lanes, element(panel, 2 * v * lanes, 2),
                       element(panel, 2 * v * lanes + 1, 2));
    for (int n = 0; n <= lanes; ++n) {  // to nearest even, and nothing behind n
        std::vector<bf16> to(static_cast<std::size_t>(n));
        store_n(to.data(), set1(1.0f + 1.5f / 128), n);
        for (const bf16& value : to) CHECK(value.bits == 0x3f82, "store_n %d", n);
    }
}

// Two rows of bfloat16 or FP8 beside each other, columns in order; FP8 as 2^-8 of the value.
template <class T>
void check_rows_of_pairs(const char* name) {
    constexpr int columns = sizeof(T) == 1 ? 64 : 32;
    constexpr float factor = sizeof(T) == 1 ? 1.0f / 256 : 1.0f;
    const auto a = some_values<T>(columns, 1), b = some_values<T>(columns, 2);
    Pairs pairs[columns / lanes];
    load_rows(a.data(), b.data(), pairs);
    for (int v = 0; v < columns / lanes; ++v)
        check_products(name, pairs[v], lanes, element(a, v * lanes, 1, factor),
                       element(b, v * lanes, 1, factor));
}

// FP8: neighbours of a row, and the rows of a panel, the second of which may be missing.
template <class T>
void check_fp8_pairs(const char* name, DType dtype) {
    const auto row = some_values<T>(64, 5);
    Pairs wide[2], strip[4];
    widen_64(row.data(), wide);
    constexpr float factor = 1.0f / 256;
    for (int v = 0; v < 2; ++v)
        check_products(name, wide[v], lanes, element(row, v * 32, 2, factor),
                       element(row, v * 32 + 1, 2, factor));
    const auto plain = some_values<T>(2 * panel_columns, 7);
    T panel[2 * panel_columns];
    Linear matrix;
    matrix.weight = reinterpret_cast<Address>(plain.data());
    matrix.dtype = dtype;
    matrix.in = 2;
    matrix.out = matrix.row_stride = panel_columns;
    pack_panels(matrix, reinterpret_cast<Address>(panel));
    for (const bool both : {true, false}) {
        load_strip(panel, both ? panel + panel_columns : nullptr, strip);
        for (int v = 0; v < 4; ++v)
            check_products(name, strip[v], lanes, element(plain, v * lanes, 1, factor),
                           element(plain, panel_columns + v * lanes, 1, both ? factor : 0.0f));
    }
}
#endif

// Rows of n words each, turned and widened again. Exactly as many are stored: reading more is an
// error that ASan reports.
template <class T>
void check_turned(const char* name) {
    constexpr int per_word = static_cast<int>(4 / sizeof(T)), before = 3, stride = 2 * lanes;
    for (int n = 1; n <= lanes; ++n) {
        const int values = (before + n) * per_word;
        std::vector<std::vector<T>> rows(lanes, std::vector<T>(static_cast<std::size_t>(values)));
        const void* row[lanes];
        for (int i = 0; i < lanes; ++i) {
            T* to = rows[static_cast<std::size_t>(i)].data();
            for (int j = 0; j < values; ++j)
                from_float(static_cast<float>((i * 29 + j * 13) % 127), to + j);
            row[i] = to;
        }
        alignas(64) std::uint32_t words[lanes * stride];
        for (std::uint32_t& word : words) word = 0xffffffffu;
        turn_words(row, before, n, words, stride);
        for (int w = 0; w < lanes; ++w) {
            Vec b[per_word];
            widen_words(words + w * stride, T{}, b);
            for (int e = 0; e < per_word; ++e) {
                float got[lanes];
                store(got, b[e]);
                for (int i = 0; i < lanes && w < n; ++i) {
                    const T* from = rows[static_cast<std::size_t>(i)].data();
                    CHECK(got[i] == to_float(from[(before + w) * per_word + e]),
                          "%s row %d, word %d of %d", name, i, w, n);
                }
            }
            for (int i = w < n ? lanes : 0; i < stride; ++i)
                CHECK(words[w * stride + i] == 0xffffffffu, "%s: written behind word %d", name, n);
        }
    }
}

#if defined(TKG_ISA_AMX)
constexpr int strip = 4 * matrix_columns;

// A left factor [16, terms] and a right one [terms, strip] in rows of pairs, with numbers of
// `make`.
struct Factors {
    int terms;
    std::vector<bf16> left, right;

    template <class Make>
    Factors(int k, Make make)
        : terms(k),
          left(static_cast<std::size_t>(matrix_rows * k)),
          right(static_cast<std::size_t>(k * strip)) {
        for (bf16& x : left) x = make();
        for (bf16& x : right) x = make();
    }
    float x(int row, int i) const {
        return to_float(left[static_cast<std::size_t>(row * terms + i)]);
    }
    float w(int i, int column) const {
        return to_float(right[static_cast<std::size_t>(i / 2 * 2 * strip + 2 * column + i % 2)]);
    }
};

bf16 rounded(float x) {
    bf16 to;
    from_float(x, &to);
    return to;
}

bf16 small_whole_number() { return rounded(static_cast<float>(std::rand() % 17 - 8)); }

// Of all sizes that bfloat16 has, denormal ones too.
bf16 any_number() {
    bf16 x;
    do x.bits = static_cast<std::uint16_t>(std::rand() & 0xffff);
    while ((x.bits & 0x7fff) > 0x5f00);  // products stay finite
    return x;
}

// What units for matrices add to a sum, by their definition (Intel's manual, TDPBF16PS).
float sum_in_order(const Factors& f, int row, int column, float sum) {
    const auto flushed = [](float x) {
        return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x;
    };
    for (int begin = 0; begin < f.terms; begin += matrix_terms) {
        float half[2] = {0, 0};
        for (int i = begin; i < begin + matrix_terms; ++i)
            half[i % 2] =
                flushed(std::fma(flushed(f.x(row, i)), flushed(f.w(i, column)), half[i % 2]));
        sum = flushed(sum + flushed(half[0] + half[1]));
    }
    return sum;
}

template <class Make>
void check_products_of_matrices(const char* name, Make make) {
    for (int rows = 1; rows <= matrix_rows; ++rows) {
        const Factors f(2 * matrix_terms, make);
        std::vector<float> sums(static_cast<std::size_t>(rows * strip), 1.0f);
        int asked = 0;
        shape_matrices(rows);
        load_sums(sums.data(), strip);
        for (int i = 0; i < f.terms; i += matrix_terms)
            multiply_matrices(f.left.data() + i, f.terms, f.right.data() + i * strip,
                              [&] { ++asked; });
        store_sums(sums.data(), strip);
        release_matrices();
        CHECK(asked == 8, "asked %d times", asked);
        for (int r = 0; r < rows; ++r)
            for (int c = 0; c < strip; ++c) {
                const float got = sums[static_cast<std::size_t>(r * strip + c)];
                const float expected = sum_in_order(f, r, c, 1.0f);
                CHECK(std::memcmp(&got, &expected, sizeof got) == 0,
                      "%s, %d rows: [%d, %d] is %a, not %a", name, rows, r, c,
                      static_cast<double>(got), static_cast<double>(expected));
            }
    }
}

// By the first 16 columns of f's right factor.
void check_one_product() {
    const Factors f(matrix_terms, small_whole_number);
    std::vector<bf16> right(static_cast<std::size_t>(matrix_terms * matrix_columns));
    for (int i = 0; i < matrix_terms; ++i)
        for (int c = 0; c < matrix_columns; ++c)
            right[static_cast<std::size_t>(i / 2 * 2 * matrix_columns + 2 * c + i % 2)] =
                rounded(f.w(i, c));
    for (const int distance : {matrix_terms, 3 * matrix_terms}) {
        std::vector<bf16> left(static_cast<std::size_t>(matrix_rows * distance));
        for (bf16& x : left) x = small_whole_number();
        float sums[matrix_rows * matrix_columns];
        shape_matrices(matrix_rows);
        zero_sum();
        multiply_one(left.data(), distance, right.data());
        store_sum(sums);
        release_matrices();
        for (int r = 0; r < matrix_rows; ++r)
            for (int c = 0; c < matrix_columns; ++c) {
                float expected = 0;
                for (int i = 0; i < matrix_terms; ++i)
                    expected +=
                        to_float(left[static_cast<std::size_t>(r * distance + i)]) * f.w(i, c);
                const float got = sums[r * matrix_columns + c];
                CHECK(got == expected, "[%d, %d] is %g, not %g", r, c, static_cast<double>(got),
                      static_cast<double>(expected));
            }
    }
}

// Products of two interleaved rows, put in order.
template <class T>
void check_interleaved(const char* name) {
    constexpr int columns = sizeof(T) == 1 ? 64 : 32;
    constexpr float factor = sizeof(T) == 1 ? 1.0f / 256 : 1.0f;
    const auto a = some_values<T>(columns, 1), b = some_values<T>(columns, 2);
    Pairs pairs[columns / lanes];
    interleave_rows(a.data(), b.data(), pairs);
    bf16 x[2];
    from_float(3.0f, x);
    from_float(-5.0f, x + 1);
    for (int first = 0; first < columns; first += 2 * lanes) {
        Vec two[2];
        for (int v = 0; v < 2; ++v) two[v] = fma(spread(x), pairs[first / lanes + v], set1(1));
        put_in_order(two);
        float got[2 * lanes];
        for (int v = 0; v < 2; ++v) store(got + v * lanes, two[v]);
        for (int i = 0; i < 2 * lanes; ++i) {
            const float expected = 1.0f + 3.0f * element(a, first, 1, factor)(i) -
                                   5.0f * element(b, first, 1, factor)(i);
            CHECK(got[i] == expected, "%s column %d: %g, not %g", name, first + i,
                  static_cast<double>(got[i]), static_cast<double>(expected));
        }
    }
}

void check_four_columns() {
    constexpr int row = 5;
    std::vector<float> numbers(static_cast<std::size_t>((matrix_rows - 1) * row + 4));
    for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<float>(i);
    Vec column[4];
    turn_four_columns(numbers.data(), row, column);
    for (int c = 0; c < 4; ++c) {
        float got[lanes];
        store(got, column[c]);
        for (int r = 0; r < matrix_rows; ++r)
            CHECK(got[r] == static_cast<float>(r * row + c), "row %d, column %d", r, c);
    }
}

void check_rounding_of_matrices() {
    volatile float factor = 0x1p-70f;
    const auto denormal = [&] { return sum(mul(set1(factor), set1(factor))); };
    CHECK(denormal() > 0, "2^-140 is a denormal number");
    {
        const RoundingOfMatrices rounding;
        CHECK(denormal() == 0, "denormal numbers count as zero");
    }
    CHECK(denormal() > 0, "only meanwhile");
}
#endif

const char* isa() {
#if defined(TKG_ISA_AMX)
    return "avx512_amx";
#elif defined(TKG_ISA_AVX512_BF16)
    return "avx512_bf16";
#elif defined(TKG_ISA_AVX512_VBMI)
    return "avx512_vbmi";
#elif defined(TKG_ISA_AVX512)
    return "avx512";
#elif defined(TKG_ISA_AVX2)
    return "avx2";
#else
    return "baseline";
#endif
}

bool runs() {
#if defined(TKG_ISA_AVX2)
    // Its kernels may have been left out (TKG_LEAVE_OUT).
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
#else
    return std::strstr(runnable_isas(), isa());
#endif
}

}  // namespace

int main() {
    if (!runs()) {
        std::printf("this CPU does not run %s\n", isa());
        return 77;
    }
    check_widening<f16>("float16", 5, 10, true);
    check_widening<bf16>("bfloat16", 8, 7, true);
    check_widening<e4m3>("float8_e4m3", 4, 3, true);
    check_widening<e4m3fn>("float8_e4m3fn", 4, 3, false);
    check_halves<e4m3>("float8_e4m3", true);
    check_halves<e4m3fn>("float8_e4m3fn", false);
#if defined(TKG_ISA_AVX512_VBMI)
    check_tables<e4m3>("float8_e4m3", true);
    check_tables<e4m3fn>("float8_e4m3fn", false);
#endif
    check_narrowing<f16>("float16", 5, 10, 0x7bff, false);
    check_narrowing<bf16>("bfloat16", 8, 7, 0x7f7f, false);
    check_narrowing<e4m3>("float8_e4m3", 4, 3, 0x77, true);
    check_narrowing<e4m3fn>("float8_e4m3fn", 4, 3, 0x77, true);
    check_exp();
    check_reductions();
    check_strips<float>("float32", DType::float32);
    check_strips<f16>("float16", DType::float16);
    check_strips<bf16>("bfloat16", DType::bfloat16);
    check_strips<e4m3>("float8_e4m3", DType::float8_e4m3);
    check_strips<e4m3fn>("float8_e4m3fn", DType::float8_e4m3fn);
#if defined(TKG_ISA_AVX512_BF16)
    check_pairs();
    check_rows_of_pairs<bf16>("rows of bfloat16");
    check_rows_of_pairs<e4m3>("rows of e4m3");
    check_rows_of_pairs<e4m3fn>("rows of e4m3fn");
    check_fp8_pairs<e4m3>("e4m3 in pairs", DType::float8_e4m3);
    check_fp8_pairs<e4m3fn>("e4m3fn in pairs", DType::float8_e4m3fn);
#endif
#if defined(TKG_ISA_AMX)
    check_products_of_matrices("whole numbers", small_whole_number);
    check_products_of_matrices("numbers of all sizes", any_number);
    check_one_product();
    check_interleaved<bf16>("rows of bfloat16");
    check_interleaved<e4m3>("rows of e4m3");
    check_interleaved<e4m3fn>("rows of e4m3fn");
    check_four_columns();
    check_rounding_of_matrices();
#endif
    check_turned<float>("float32");
    check_turned<f16>("float16");
    check_turned<bf16>("bfloat16");
    std::printf("%s: %d failures\n", isa(), failures);
    return failures != 0;
}
