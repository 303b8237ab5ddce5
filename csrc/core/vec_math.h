// SPDX-License-Identifier: Apache-2.0
// exp, sigmoid and tanh without function calls and branches, for scalars (host and device) and for the vectors of core/simd.h.
//
// Sigmoid and tanh are quotients: sigmoid(x) = 1 / (1 + E) with E = exp(-x), and tanh(x) = +-(1 - E) / (1 + E) with E =
// exp(-2|x|). 1 - E is computed as by expm1, so that tanh is accurate to a few units in the last place near 0. Callers may
// multiply several denominators and divide once: denominators of tanh lie in [1, 2], and those of gate_parts are small enough
// that a product of two of them and two of tanh does not overflow.
// The tests check the errors: 2.5 units in the last place for sigmoid and 3 for tanh. Sigmoid is 0 where its value would be
// below the smallest normal number. NaN stays NaN.
#pragma once
#include <stdint.h>

#include "core/isa.h"
#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace fastds {
namespace FASTDS_ISA {
namespace {

template <class A>
struct ExpTable;
template <>
struct ExpTable<float> {
    using Bits = uint32_t;
    static constexpr float log2e = 1.44269504f, ln2 = 0.693147182f, ln2_high = 0.693145752f, ln2_low = 1.42860677e-6f;
    static constexpr float magic = 12583039.f;  // 1.5 * 2^23 + 127: adding k puts the biased exponent of 2^k into the low bits
    static constexpr float lowest = -88.0296919f;  // -127 ln(2): the scale 2^-127 has the bits of 0
    static constexpr float deepest_gate = -43.f;  // exp(43)^2 * 4 and its inverse are normal numbers
    static constexpr int shift = 23;
    // Coefficients of (exp(r) - 1 - r) / r^2 on |r| <= ln(2)/2, minimax for the error relative to exp(r) - 1.
    static constexpr int terms = 5;
    static FASTDS_HD constexpr float series(int i) {
        constexpr float values[terms] = {0.5f, 0.1666654348373413f, 0.04166628047823906f, 0.008366581983864307f,
                                         0.001394644845277071f};
        return values[i];
    }
};
template <>
struct ExpTable<double> {
    using Bits = uint64_t;
    static constexpr double log2e = 1.4426950408889634, ln2 = 0.6931471805599453, ln2_high = 0.693147180369123816490, ln2_low = 1.90821492927058770002e-10;
    static constexpr double magic = 6755399441056767.0;  // 1.5 * 2^52 + 1023
    static constexpr double lowest = -709.0895657128241;
    static constexpr double deepest_gate = -353.0;
    static constexpr int shift = 52;
    static constexpr int terms = 12;
    static FASTDS_HD constexpr double series(int i) {
        constexpr double values[terms] = {1 / 2.,       1 / 6.,        1 / 24.,        1 / 120.,
                                          1 / 720.,     1 / 5040.,     1 / 40320.,     1 / 362880.,
                                          1 / 3628800., 1 / 39916800., 1 / 479001600., 1 / 6227020800.};
        return values[i];
    }
};

// Unsigned integers of the size of V's elements. For signed integers, a shift that drops bits would be an overflow.
template <class V>
struct BitsOf {
    typedef typename ExpTable<__typeof__(+V{}[0])>::Bits type __attribute__((vector_size(sizeof(V))));
};
template <>
struct BitsOf<float> {
    using type = uint32_t;
};
template <>
struct BitsOf<double> {
    using type = uint64_t;
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

// Clamps x to a lower or an upper bound; NaN stays NaN. The overloads below use the min and max instructions, because GCC needs
// three instructions for a comparison and selection of vectors.
template <class V>
FASTDS_HD V at_least(V least, V x) {
    return x < least ? least : x;
}
template <class V>
FASTDS_HD V at_most(V most, V x) {
    return x > most ? most : x;
}
#define FASTDS_BOUNDS(Scalar, bytes, max, min)                                               \
    typedef Scalar Scalar##_##bytes __attribute__((vector_size(bytes)));                     \
    FASTDS_HD Scalar##_##bytes at_least(Scalar##_##bytes least, Scalar##_##bytes x) {        \
        return (Scalar##_##bytes)max(least, x);                                              \
    }                                                                                        \
    FASTDS_HD Scalar##_##bytes at_most(Scalar##_##bytes most, Scalar##_##bytes x) {          \
        return (Scalar##_##bytes)min(most, x);                                               \
    }
#if defined(__AVX__)
FASTDS_BOUNDS(float, 32, _mm256_max_ps, _mm256_min_ps)
FASTDS_BOUNDS(double, 32, _mm256_max_pd, _mm256_min_pd)
#endif
#if defined(__AVX512F__)
FASTDS_BOUNDS(float, 64, _mm512_max_ps, _mm512_min_ps)
FASTDS_BOUNDS(double, 64, _mm512_max_pd, _mm512_min_pd)
#endif
#undef FASTDS_BOUNDS

// exp(x) = scale * (1 + rest), |rest| < 0.42.
template <class V>
struct ExpParts {
    V scale, rest;
};
// Computes the parts from shifted = k + magic, where k is x / ln(2) rounded to an integer, and r = x - k ln(2).
template <class A, class V>
FASTDS_HD ExpParts<V> exp_parts_of(V shifted, V r) {
    using Table = ExpTable<A>;
    V sum = V{} + Table::series(Table::terms - 1);
    for (int i = Table::terms - 2; i >= 0; i--) sum = sum * r + Table::series(i);
    return {from_bits<V>(to_bits(shifted) << Table::shift), r + sum * (r * r)};
}
// Computes the parts for lowest <= x <= -lowest.
template <class A, class V>
FASTDS_HD ExpParts<V> exp_parts_between(V x) {
    using Table = ExpTable<A>;
    const V shifted = x * Table::log2e + Table::magic;
    const V k = shifted - Table::magic;
    return exp_parts_of<A>(shifted, V((x - k * Table::ln2_high) - k * Table::ln2_low));
}
// Like exp_parts_between with one instruction less. The additional error is about 2e-9 x.
template <class A, class V>
FASTDS_HD ExpParts<V> fast_exp_parts(V x) {
    using Table = ExpTable<A>;
    const V shifted = x * Table::log2e + Table::magic;
    const V k = shifted - Table::magic;
    return exp_parts_of<A>(shifted, V(x - k * Table::ln2));
}
// Computes the parts for x <= 0.
template <class A, class V>
FASTDS_HD ExpParts<V> exp_parts(V x) {
    return exp_parts_between<A>(at_least(V{} + ExpTable<A>::lowest, x));
}

// sigmoid(x) = 1 / bottom, with derivative e / bottom^2.
template <class V>
struct Sigmoid {
    V bottom, e;
};
template <class A, class V>
FASTDS_HD Sigmoid<V> sigmoid_of_exp(const ExpParts<V>& parts) {
    const V product = parts.scale * parts.rest;
    return {product + (parts.scale + A(1)), product + parts.scale};
}
template <class A, class V>
FASTDS_HD Sigmoid<V> sigmoid_parts(V x) {
    const A most = -ExpTable<A>::lowest;
    return sigmoid_of_exp<A>(exp_parts_between<A>(at_most(V{} + most, at_least(V{} - most, V(-x)))));
}
// A sigmoid whose `bottom` may be multiplied by other denominators. The argument is clamped, so that the sigmoid is at least
// 2e-19 (5e-154 in float64).
template <class A, class V>
FASTDS_HD Sigmoid<V> gate_parts(V x) {
    using Table = ExpTable<A>;
    x = at_most(V{} - Table::deepest_gate, at_least(V{} + Table::lowest, V(-x)));
    return sigmoid_of_exp<A>(fast_exp_parts<A>(x));
}

// tanh(x) = top / bottom, with derivative 4 e / bottom^2.
template <class V>
struct Tanh {
    V top, bottom, e;
};
template <class A, class V>
FASTDS_HD Tanh<V> tanh_parts(V x) {
    const auto parts = fast_exp_parts<A>(at_least(V{} + ExpTable<A>::lowest, V(negative_abs<A>(x) * A(2))));
    const V product = parts.scale * parts.rest, rise = (A(1) - parts.scale) - product;
    return {with_sign_of<A>(rise, x), A(2) - rise, parts.scale + product};
}

template <class A, class V>
FASTDS_HD V sigmoid(V x) {
    return A(1) / sigmoid_parts<A>(x).bottom;
}
template <class A, class V>
FASTDS_HD V tanh(V x) {
    const auto t = tanh_parts<A>(x);
    return t.top / t.bottom;
}

// A value and its derivative with respect to the argument. get_slope() computes them from inverse = 1 / bottom.
template <class V>
struct Slope {
    V value, derivative;
};
template <class A, class V>
FASTDS_HD Slope<V> get_slope(const Sigmoid<V>& s, V inverse) {
    return {inverse, s.e * inverse * inverse};
}
template <class A, class V>
FASTDS_HD Slope<V> get_slope(const Tanh<V>& t, V inverse) {
    return {t.top * inverse, A(4) * t.e * inverse * inverse};
}
template <class A, class V>
FASTDS_HD Slope<V> sigmoid_slope(V x) {
    const auto s = sigmoid_parts<A>(x);
    return get_slope<A>(s, A(1) / s.bottom);
}
template <class A, class V>
FASTDS_HD Slope<V> tanh_slope(V x) {
    const auto t = tanh_parts<A>(x);
    return get_slope<A>(t, A(1) / t.bottom);
}

// Returns sigmoid(gate) * tanh(value) with one division.
template <class A, class V>
FASTDS_HD V sigmoid_times_tanh(V gate, V value) {
    const auto t = tanh_parts<A>(value);
    return t.top / (gate_parts<A>(gate).bottom * t.bottom);
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
