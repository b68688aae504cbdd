// The attention block and the output projection against plain loops in double, over random small
// shapes, layouts, types and threads, for every instruction set that this CPU runs. Every buffer
// has its exact size.
#include <cmath>
#include <cstring>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "check.h"
#include "core/panels.h"
#include "core/variant.h"
#include "simd/convert.h"

using namespace tkg;

namespace {

using i64 = std::int64_t;
std::mt19937 engine(20240917);

i64 pick(i64 low, i64 high) { return std::uniform_int_distribution<i64>(low, high)(engine); }

float normal() { return std::normal_distribution<float>()(engine); }

// A tensor of some stored type: its bytes, and the values that they hold.
struct Tensor {
    DType dtype;
    std::vector<unsigned char> bytes;

    Tensor(DType type, i64 count, float scale) : dtype(type) {
        bytes.resize(static_cast<std::size_t>(count * size_of(type)));
        for (i64 i = 0; i < count; ++i) set(i, normal() * scale);
    }

    template <class F>
    auto with(i64 i, F f) {
        unsigned char* p = bytes.data() + i * size_of(dtype);
        switch (dtype) {
            case DType::float32: return f(reinterpret_cast<float*>(p));
            case DType::float16: return f(reinterpret_cast<f16*>(p));
            case DType::bfloat16: return f(reinterpret_cast<bf16*>(p));
            case DType::float8_e4m3: return f(reinterpret_cast<e4m3*>(p));
            default: return f(reinterpret_cast<e4m3fn*>(p));
        }
    }

    void set(i64 i, float x) {
        with(i, [x](auto* p) { from_float(x, p); });
    }
    double get(i64 i) {
        return with(i, [](auto* p) { return static_cast<double>(to_float(*p)); });
    }
    Address address() { return reinterpret_cast<Address>(bytes.data()); }
};

template <class T>
Address address(std::vector<T>& values) {
    return values.empty() ? 0 : reinterpret_cast<Address>(values.data());
}

constexpr DType stored[] = {DType::float32, DType::float16, DType::bfloat16, DType::float8_e4m3,
                            DType::float8_e4m3fn};

struct Case {
    i64 batch = pick(1, 3), tokens = pick(1, 4), hidden = pick(1, 90), kv_heads = pick(1, 2);
    i64 group = pick(1, 5), d = 2 * pick(1, 40), capacity = pick(4, 90);
    i64 q_heads = kv_heads * group, columns = (q_heads + 2 * kv_heads) * d, out = pick(1, 150);
    i64 window = pick(0, 2) ? 0 : pick(1, 40);
    bool block = pick(0, 1), transposed = !block && pick(0, 1), has_sink = pick(0, 1);
    i64 block_len = pick(1, 9), threads = pick(1, 3);
    Rope rope = static_cast<Rope>(pick(0, 2));
    DType weight_type = stored[pick(0, 4)], cache_type = stored[pick(0, 4)];

    std::string text() const {
        std::ostringstream s;
        s << "B" << batch << " S" << tokens << " H" << hidden << " heads " << q_heads << "/"
          << kv_heads << " d" << d << " cap" << capacity << " window" << window << " block" << block
          << " bl" << block_len << " kT" << transposed << " w" << static_cast<int>(weight_type)
          << " c" << static_cast<int>(cache_type) << " threads" << threads;
        return s.str();
    }
};

struct Reference {
    std::vector<double> out, k, v;
};

struct Problem {
    Case c;
    Tensor x, w_qkv, w_out, k, v;
    std::vector<float> gamma, sink, cos, sin;
    std::vector<i64> start, slots;
    std::vector<std::int32_t> table;
    i64 table_columns = 0, outer, length;

    static i64 cache_outer(const Case& c) {
        return c.block ? c.batch * ((c.capacity + c.block_len - 1) / c.block_len) + 1 : c.batch;
    }
    static i64 cache_length(const Case& c) { return c.block ? c.block_len : c.capacity; }
    static i64 cache_size(const Case& c) {
        return cache_outer(c) * cache_length(c) * c.kv_heads * c.d;
    }

    explicit Problem(const Case& shape)
        : c(shape),
          x(DType::float32, c.batch * c.tokens * c.hidden, 1),
          w_qkv(c.weight_type, c.hidden * c.columns, 1 / std::sqrt(static_cast<float>(c.hidden))),
          w_out(c.weight_type, c.q_heads * c.d * c.out,
                1 / std::sqrt(static_cast<float>(c.q_heads * c.d))),
          k(c.cache_type, cache_size(c), 1),
          v(c.cache_type, cache_size(c), 1),
          outer(cache_outer(c)),
          length(cache_length(c)) {
        for (i64 i = 0; i < c.hidden; ++i) gamma.push_back(1 + 0.1f * normal());
        for (i64 i = 0; c.has_sink && i < c.q_heads; ++i) sink.push_back(normal());
        for (i64 i = 0; i < c.d / 2 * c.batch * c.tokens; ++i) {
            const float angle = 3 * normal();
            cos.push_back(std::cos(angle));
            sin.push_back(std::sin(angle));
        }
        for (i64 b = 0; b < c.batch; ++b) {
            start.push_back(pick(0, 9) ? pick(0, c.capacity - c.tokens) : -1);
            for (i64 s = 0; s < c.tokens; ++s) slots.push_back(start[b] < 0 ? -1 : start[b] + s);
            for (i64 i = 0; start[b] < 0 && i < c.tokens * c.hidden; ++i)
                x.set(b * c.tokens * c.hidden + i, NAN);  // a padded row may hold anything
        }
        if (c.block) make_table();
    }

    // Physical blocks in an order of their own; what no valid position needs is -1.
    void make_table() {
        table_columns = (c.capacity + c.block_len - 1) / c.block_len;
        for (i64 i = 0; i < c.batch * table_columns; ++i)
            table.push_back(static_cast<std::int32_t>(outer - 1 - i));
        for (i64 b = 0; b < c.batch; ++b) {
            for (i64 s = 0; s < c.tokens; ++s) {
                i64& slot = slots[b * c.tokens + s];
                if (slot >= 0)
                    slot = table[b * table_columns + slot / c.block_len] * c.block_len +
                           slot % c.block_len;
            }
            for (i64 j = 0; j < table_columns; ++j)
                if (j * c.block_len >= start[b]) table[b * table_columns + j] = -1;
        }
    }

    // Element of a cache at [outer, slot, head, d].
    i64 index(i64 o, i64 slot, i64 head, i64 j, bool transposed) const {
        if (c.block) return ((o * length + slot) * c.kv_heads + head) * c.d + j;
        if (transposed) return ((o * c.kv_heads + head) * c.d + j) * length + slot;
        return ((o * c.kv_heads + head) * length + slot) * c.d + j;
    }
    i64 logical(i64 b, i64 position, i64 head, i64 j, bool transposed) const {
        if (!c.block) return index(b, position, head, j, transposed);
        return index(table[b * table_columns + position / c.block_len], position % c.block_len,
                     head, j, false);
    }
    CacheView view(Tensor& cache, bool transposed) const {
        CacheView view;
        view.data = cache.address();
        view.outer_stride = length * c.kv_heads * c.d;
        view.slot_stride = index(0, 1, 0, 0, transposed);
        view.head_stride = index(0, 0, 1, 0, transposed);
        view.d_stride = index(0, 0, 0, 1, transposed);
        return view;
    }
};

void rotate_reference(std::vector<double>& y, Rope rope, const Problem& p, i64 m) {
    if (rope == Rope::none) return;
    const i64 half = p.c.d / 2, stride = p.c.batch * p.c.tokens;
    for (i64 i = 0; i < half; ++i) {
        const i64 re = rope == Rope::half ? i : 2 * i,
                  im = rope == Rope::half ? half + i : 2 * i + 1;
        const double c = p.cos[i * stride + m], s = p.sin[i * stride + m];
        const double r = y[re] * c - y[im] * s, t = y[re] * s + y[im] * c;
        y[re] = r;
        y[im] = t;
    }
}

// K and V of the new tokens come from the core (rounded), so that a value near a rounding boundary
// is the same on both sides; they are checked by themselves.
Reference reference(Problem& p, Tensor& k_new, Tensor& v_new) {
    const Case& c = p.c;
    const i64 m_count = c.batch * c.tokens;
    Reference result;
    std::vector<double> q, attended;
    for (i64 m = 0; m < m_count; ++m) {
        const bool padded = p.start[m / c.tokens] < 0;
        std::vector<double> x;
        double squares = 0;
        for (i64 i = 0; i < c.hidden; ++i) {
            x.push_back(p.x.get(m * c.hidden + i));
            squares += x[i] * x[i];
        }
        for (i64 i = 0; i < c.hidden; ++i)
            x[i] *= p.gamma[i] / std::sqrt(squares / static_cast<double>(c.hidden) + 1e-5);
        for (i64 head = 0; head < c.q_heads + 2 * c.kv_heads; ++head) {
            std::vector<double> y(c.d, 0);
            for (i64 j = 0; j < c.d; ++j)
                for (i64 i = 0; i < c.hidden; ++i)
                    y[j] += x[i] * p.w_qkv.get(i * c.columns + head * c.d + j);
            if (head < c.q_heads + c.kv_heads) rotate_reference(y, c.rope, p, m);
            if (padded) y.assign(c.d, 0);
            auto& to = head < c.q_heads ? q : head < c.q_heads + c.kv_heads ? result.k : result.v;
            to.insert(to.end(), y.begin(), y.end());
        }
    }
    const double scale = 1 / std::sqrt(static_cast<double>(c.d));
    for (i64 m = 0; m < m_count; ++m)
        for (i64 head = 0; head < c.q_heads; ++head) {
            const i64 b = m / c.tokens, s = m % c.tokens, kv = head / c.group, start = p.start[b];
            std::vector<double> logits, acc(c.d, 0);
            std::vector<i64> where;
            for (i64 position = 0; start >= 0 && position <= start + s; ++position) {
                if (c.window && position <= start + s - c.window) continue;
                double dot = 0;
                for (i64 j = 0; j < c.d; ++j) {
                    const double key =
                        position < start
                            ? p.k.get(p.logical(b, position, kv, j, c.transposed))
                            : k_new.get(
                                  ((b * c.tokens + position - start) * c.kv_heads + kv) * c.d + j);
                    dot += q[(m * c.q_heads + head) * c.d + j] * key;
                }
                logits.push_back(dot * scale);
                where.push_back(position);
            }
            double top = c.has_sink ? p.sink[head] : -INFINITY, total = 0;
            for (double logit : logits) top = std::fmax(top, logit);
            if (c.has_sink) total = std::exp(p.sink[head] - top);
            for (std::size_t i = 0; i < where.size(); ++i) {
                const double weight = std::exp(logits[i] - top);
                total += weight;
                for (i64 j = 0; j < c.d; ++j)
                    acc[j] +=
                        weight *
                        (where[i] < start
                             ? p.v.get(p.logical(b, where[i], kv, j, false))
                             : v_new.get(((b * c.tokens + where[i] - start) * c.kv_heads + kv) *
                                             c.d +
                                         j));
            }
            for (i64 j = 0; j < c.d; ++j) attended.push_back(where.empty() ? 0 : acc[j] / total);
        }
    const i64 features = c.q_heads * c.d;
    for (i64 m = 0; m < m_count; ++m)
        for (i64 h = 0; h < c.out; ++h) {
            double y = 0;
            for (i64 j = 0; j < features; ++j)
                y += attended[m * features + j] * p.w_out.get(j * c.out + h);
            result.out.push_back(y);
        }
    return result;
}

void fill(Linear& linear, Tensor& weight, i64 in, i64 out) {
    linear.weight = weight.address();
    linear.dtype = weight.dtype;
    linear.in = in;
    linear.out = out;
    linear.row_stride = out;
}

// The same projection from weights that lie as panels; `storage` keeps them.
Linear as_panels(const Linear& plain, std::vector<unsigned char>& storage) {
    const i64 bytes = panel_bytes(plain.in, plain.out, plain.dtype);
    storage.resize(static_cast<std::size_t>(bytes));
    Linear linear = plain;
    linear.weight = address(storage);
    linear.panels = true;
    CHECK(pack_panels(plain, linear.weight), "panels of finite weights");
    return linear;
}

// Whether a variant rounds the other factor of products with a type to bfloat16. Each term is then
// off by up to 2^-9 of itself, at random: 6 * 2^-9 / sqrt(3) = 7e-3 of a sum of size 1 is six
// standard deviations.
bool rounds_operand(const char* isa, DType dtype) {
    return (std::strcmp(isa, "avx512_bf16") == 0 || std::strcmp(isa, "avx512_amx") == 0) &&
           (dtype == DType::bfloat16 || size_of(dtype) == 1);
}

void check_block(const char* isa) {
    Problem p{Case{}};
    const Case& c = p.c;
    const i64 m = c.batch * c.tokens, new_size = m * c.kv_heads * c.d;
    Tensor k_new(c.cache_type, new_size, 0), v_new(c.cache_type, new_size, 0);
    Tensor before_k = p.k, before_v = p.v;
    Problem untouched = p;
    std::vector<float> out(static_cast<std::size_t>(m * c.out), NAN);

    Layer layer;
    fill(layer.qkv, p.w_qkv, c.hidden, c.columns);
    fill(layer.out, p.w_out, c.q_heads * c.d, c.out);
    layer.input_norm = {address(p.gamma), 1e-5f};
    layer.q_heads = c.q_heads;
    layer.kv_heads = c.kv_heads;
    layer.d_head = c.d;
    layer.rope = c.rope;
    layer.sink = address(p.sink);
    layer.window = c.window;
    Step step;
    step.batch = c.batch;
    step.tokens = c.tokens;
    step.x = p.x.address();
    step.x_stride = c.hidden;
    step.cos = address(p.cos);
    step.sin = address(p.sin);
    step.k = p.view(p.k, c.transposed);
    step.v = p.view(p.v, false);
    step.cache_dtype = c.cache_type;
    step.block_len = c.block ? c.block_len : 0;
    step.block_table = address(p.table);
    step.table_columns = p.table_columns;
    step.prior = c.capacity - c.tokens;
    step.start = address(p.start);
    step.slots = address(p.slots);
    step.k_new = k_new.address();
    step.v_new = v_new.address();
    step.softmax_scale = 1 / std::sqrt(static_cast<float>(c.d));
    step.out = address(out);
    Workspace workspace;
    Team team(static_cast<int>(c.threads));
    variant().attention_block(layer, step, team, workspace);
    const std::vector<float> from_plain = out;
    std::vector<unsigned char> qkv_panels, out_panels;
    layer.qkv = as_panels(layer.qkv, qkv_panels);
    layer.out = as_panels(layer.out, out_panels);
    variant().attention_block(layer, step, team, workspace);
    CHECK(std::memcmp(out.data(), from_plain.data(), out.size() * sizeof(float)) == 0,
          "%s %s: other bits from panels", isa, c.text().c_str());

    const Reference expected = reference(untouched, k_new, v_new);
    double worst = 0;
    for (std::size_t i = 0; i < out.size(); ++i)
        worst =
            std::fmax(worst, std::isnan(out[i]) ? INFINITY : std::fabs(out[i] - expected.out[i]));
    // Sums of at most a few hundred terms of size 1, through three stages.
    const bool rounds = rounds_operand(isa, layer.qkv.dtype) ||
                        rounds_operand(isa, layer.out.dtype) || rounds_operand(isa, c.cache_type);
    CHECK(worst < (rounds ? 2e-2 : 2e-5), "%s %s: off by %g", isa, c.text().c_str(), worst);
    for (i64 i = 0; i < new_size; ++i) {
        const double half_step = std::fabs(expected.k[i]) / (size_of(c.cache_type) == 1 ? 16 : 256);
        const double error = std::fabs(k_new.get(i) - expected.k[i]);
        CHECK(error <= half_step + (rounds_operand(isa, layer.qkv.dtype) ? 1e-2 : 1e-3),
              "%s k_new[%lld] off by %g", isa, (long long)i, error);
    }
    // Every slot holds what it held before, or the token that was to go there.
    for (i64 row = 0; row < m; ++row) {
        const i64 slot = p.slots[row];
        if (slot < 0) continue;
        const i64 o = c.block ? slot / c.block_len : row / c.tokens;
        const i64 inner = c.block ? slot % c.block_len : slot;
        for (i64 h = 0; h < c.kv_heads; ++h)
            for (i64 j = 0; j < c.d; ++j) {
                const i64 from = (row * c.kv_heads + h) * c.d + j;
                before_k.set(p.index(o, inner, h, j, c.transposed),
                             static_cast<float>(k_new.get(from)));
                before_v.set(p.index(o, inner, h, j, false), static_cast<float>(v_new.get(from)));
            }
    }
    CHECK(p.k.bytes == before_k.bytes, "%s %s: K cache", isa, c.text().c_str());
    CHECK(p.v.bytes == before_v.bytes, "%s %s: V cache", isa, c.text().c_str());
}

void check_projection(const char* isa) {
    const i64 rows = pick(0, 2) ? pick(1, 40) : pick(1, 2), in = pick(1, 1300);
    const i64 out = pick(1, 400);
    Tensor x(stored[pick(0, 2)], rows * in, 1);
    Tensor weight(stored[pick(0, 4)], in * out, 1 / std::sqrt(static_cast<float>(in)));
    std::vector<float> bias, scale, y(static_cast<std::size_t>(rows * out), NAN);
    for (i64 i = 0; i < out; ++i) {
        bias.push_back(normal());
        scale.push_back(normal());
    }
    Tensor result(x.dtype, rows * out, 0);
    Projection call;
    fill(call.linear, weight, in, out);
    call.linear.bias = address(bias);
    call.linear.column_scale = address(scale);
    call.attention = x.address();
    call.d_head = in;
    call.batch = rows;
    call.heads = call.tokens = 1;
    call.strides[0] = 1;
    call.strides[1] = in;
    call.x_dtype = x.dtype;
    call.out = result.address();
    Workspace workspace;
    Team team(static_cast<int>(pick(1, 3)));
    variant().output_projection(call, team, workspace);
    const std::vector<unsigned char> from_plain = result.bytes;
    std::vector<unsigned char> panels;
    call.linear = as_panels(call.linear, panels);
    variant().output_projection(call, team, workspace);
    CHECK(result.bytes == from_plain, "%s projection %lldx%lld: other bits from panels", isa,
          (long long)in, (long long)out);
    const double step = rounds_operand(isa, call.linear.dtype)
                            ? 1.5e-2  // 7e-3, and bfloat16 results
                        : x.dtype == DType::float32 ? 1e-5
                        : x.dtype == DType::float16 ? 1e-3
                                                    : 8e-3;
    for (i64 m = 0; m < rows; ++m)
        for (i64 n = 0; n < out; ++n) {
            double expected = 0;
            for (i64 k = 0; k < in; ++k) expected += x.get(m * in + k) * weight.get(k * out + n);
            expected = expected * scale[n] + bias[n];
            const double error = std::fabs(result.get(m * out + n) - expected);
            CHECK(error <= step * (1 + std::fabs(expected)), "%s projection %lldx%lld: off by %g",
                  isa, (long long)in, (long long)out, error);
        }
}

void check_special_weights() {
    const struct {
        DType dtype;
        unsigned char bits;
        bool usable;
    } cases[] = {{DType::float8_e4m3, 0x77, true},
                 {DType::float8_e4m3, 0xf8, false},
                 {DType::float8_e4m3fn, 0x7e, true},
                 {DType::float8_e4m3fn, 0xff, false},
                 {DType::bfloat16, 0xff, true}};
    for (const auto& c : cases) {
        Tensor weight(c.dtype, 3 * 70, 1);
        weight.bytes[2 * 70 + 65] = c.bits;
        Linear plain;
        fill(plain, weight, 3, 70);
        std::vector<unsigned char> panels(
            static_cast<std::size_t>(panel_bytes(plain.in, plain.out, plain.dtype)));
        CHECK(pack_panels(plain, address(panels)) == c.usable, "weight %#x", c.bits);
    }
}

}  // namespace

int main() {
    check_special_weights();
    std::istringstream names(runnable_isas());
    for (std::string isa; names >> isa;) {
        CHECK(set_isa(isa.c_str()), "%s", isa.c_str());
        for (int i = 0; i < 150; ++i) check_block(isa.c_str());
        for (int i = 0; i < 60; ++i) check_projection(isa.c_str());
    }
    CHECK(!set_isa("z80"), "an unknown instruction set");
    std::printf("%s: %d failures\n", runnable_isas(), failures);
    return failures != 0;
}
