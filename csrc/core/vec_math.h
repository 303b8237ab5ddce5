// SPDX-License-Identifier: Apache-2.0
// exp, sigmoid and tanh for scalars (host and device) and for the vectors of core/simd.h, without calls and branches.
//
// Both functions are quotients of E = exp(-|x|) or exp(-2|x|): sigmoid = (x < 0 ? E : 1) / (1 + E), tanh = +-(1 - E) / (1 + E).
// E lies in [0, 1], so nothing overflows and a denominator lies in [1, 2]: several of them may be multiplied and divided
// through once. 1 - E comes from expm1, which keeps tanh exact to a few units in the last place near 0.
// Errors, tested: sigmoid 2.5 units in the last place, tanh 3; below the range of normal numbers sigmoid is 0; NaN stays.
#pragma once
#include <stdint.h>

#include "core/isa.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

template <class A>
struct ExpTable;
template <>
struct ExpTable<float> {
    using Bits = int32_t;
    static constexpr float log2e = 1.44269504f, ln2_high = 0.693145752f, ln2_low = 1.42860677e-6f;
    static constexpr float magic = 12582912.f;  // 1.5 * 2^23: its sum with k keeps k in the low bits
    static constexpr float lowest = -88.0296919f;  // -127 ln(2): the scale 2^-127 is written as 0
    static constexpr int shift = 23, bias = 127;
    // Of (exp(r) - 1 - r) / r^2 on |r| <= ln(2)/2: minimax of the error relative to exp(r) - 1.
    static constexpr int terms = 5;
    static FASTDS_HD constexpr float series(int i) {
        constexpr float values[terms] = {0.5f, 0.1666654348373413f, 0.04166628047823906f, 0.008366581983864307f,
                                         0.001394644845277071f};
        return values[i];
    }
};
template <>
struct ExpTable<double> {
    using Bits = int64_t;
    static constexpr double log2e = 1.4426950408889634, ln2_high = 0.693147180369123816490, ln2_low = 1.90821492927058770002e-10;
    static constexpr double magic = 6755399441055744.0;
    static constexpr double lowest = -709.0895657128241;
    static constexpr int shift = 52, bias = 1023;
    static constexpr int terms = 12;
    static FASTDS_HD constexpr double series(int i) {
        constexpr double values[terms] = {1 / 2.,       1 / 6.,        1 / 24.,        1 / 120.,
                                          1 / 720.,     1 / 5040.,     1 / 40320.,     1 / 362880.,
                                          1 / 3628800., 1 / 39916800., 1 / 479001600., 1 / 6227020800.};
        return values[i];
    }
};

// The integers as wide as V: of a vector, what its comparisons give.
template <class V>
struct BitsOf {
    using type = decltype(V{} < V{});
};
template <>
struct BitsOf<float> {
    using type = int32_t;
};
template <>
struct BitsOf<double> {
    using type = int64_t;
};

template <class V>
FASTDS_HD typename BitsOf<V>::type to_bits(V value) {
    typename BitsOf<V>::type bits;
    __builtin_memcpy(&bits, &value, sizeof(bits));
    return bits;
}
template <class V>
FASTDS_HD V from_bits(typename BitsOf<V>::type bits) {
    V value;
    __builtin_memcpy(&value, &bits, sizeof(value));
    return value;
}

template <class A>
constexpr typename ExpTable<A>::Bits kSignBit = static_cast<typename ExpTable<A>::Bits>(uint64_t{1} << (8 * sizeof(A) - 1));

template <class A, class V>
FASTDS_HD V negative_abs(V x) {
    return from_bits<V>(to_bits(x) | kSignBit<A>);
}
template <class A, class V>
FASTDS_HD V with_sign_of(V magnitude, V x) {
    return from_bits<V>(to_bits(magnitude) | (to_bits(x) & kSignBit<A>));
}

// exp(x) = scale * (1 + rest), |rest| < 0.42; x <= 0.
template <class V>
struct ExpParts {
    V scale, rest;
};
template <class A, class V>
FASTDS_HD ExpParts<V> exp_parts(V x) {
    using Table = ExpTable<A>;
    x = x < Table::lowest ? V{} + Table::lowest : x;  // NaN passes
    const V shifted = x * Table::log2e + Table::magic;
    const V k = shifted - Table::magic;
    const V r = (x - k * Table::ln2_high) - k * Table::ln2_low;
    V sum = V{} + Table::series(Table::terms - 1);
    for (int i = Table::terms - 2; i >= 0; i--) sum = sum * r + Table::series(i);
    const V scale = from_bits<V>((to_bits(shifted) + Table::bias) << Table::shift);
    return {scale, r + sum * (r * r)};
}

// sigmoid(x) = top / bottom and its derivative E / bottom^2.
template <class V>
struct Sigmoid {
    V top, bottom, e;
};
template <class A, class V>
FASTDS_HD Sigmoid<V> sigmoid_parts(V x) {
    const auto parts = exp_parts<A>(negative_abs<A>(x));
    const V e = parts.scale + parts.scale * parts.rest;
    return {x < A(0) ? e : V{} + A(1), e + A(1), e};
}

// tanh(x) = top / bottom and its derivative 4 E / bottom^2.
template <class V>
struct Tanh {
    V top, bottom, e;
};
template <class A, class V>
FASTDS_HD Tanh<V> tanh_parts(V x) {
    const auto parts = exp_parts<A>(negative_abs<A>(x) * A(2));
    const V product = parts.scale * parts.rest;
    const V e = parts.scale + product, rise = (A(1) - parts.scale) - product;
    return {with_sign_of<A>(rise, x), e + A(1), e};
}

template <class A, class V>
FASTDS_HD V sigmoid(V x) {
    const auto s = sigmoid_parts<A>(x);
    return s.top / s.bottom;
}
template <class A, class V>
FASTDS_HD V tanh(V x) {
    const auto t = tanh_parts<A>(x);
    return t.top / t.bottom;
}

// A value and its derivative with respect to the argument, given 1 / bottom.
template <class V>
struct Slope {
    V value, derivative;
};
template <class A, class V>
FASTDS_HD Slope<V> slope_of(const Sigmoid<V>& s, V inverse) {
    return {s.top * inverse, s.e * inverse * inverse};
}
template <class A, class V>
FASTDS_HD Slope<V> slope_of(const Tanh<V>& t, V inverse) {
    return {t.top * inverse, A(4) * t.e * inverse * inverse};
}
template <class A, class V>
FASTDS_HD Slope<V> sigmoid_slope(V x) {
    const auto s = sigmoid_parts<A>(x);
    return slope_of<A>(s, A(1) / s.bottom);
}
template <class A, class V>
FASTDS_HD Slope<V> tanh_slope(V x) {
    const auto t = tanh_parts<A>(x);
    return slope_of<A>(t, A(1) / t.bottom);
}

// sigmoid(gate) * tanh(value), one division.
template <class A, class V>
FASTDS_HD V sigmoid_times_tanh(V gate, V value) {
    const auto s = sigmoid_parts<A>(gate);
    const auto t = tanh_parts<A>(value);
    return (s.top * t.top) / (s.bottom * t.bottom);
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
