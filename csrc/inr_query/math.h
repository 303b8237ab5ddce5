// SPDX-License-Identifier: Apache-2.0
// Position of a query and weights of its corners, and sine and cosine of the Fourier feature.
#pragma once
#include "core/dtype.h"
#include "core/vec_math.h"
#include "inr_query/params.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Returns the first channel after the affine features: the keys of the attention.
FASTDS_HD int64_t inr_first_key(const InrQueryDims& d) { return d.feature == inr_slope ? 3 * d.D : d.D; }

// Coordinate u = base + frac on one axis.
template <class A>
struct Coordinate {
    int64_t base;
    A frac;
};

template <class A>
FASTDS_HD Coordinate<A> get_grid_coordinate(const InrAxis& axis, int64_t k) {
    const int64_t numerator = axis.start + axis.step * k;
    int64_t base = numerator / axis.den;
    if (numerator < base * axis.den) base--;  // rounds down, where C++ truncates
    return {base, static_cast<A>(static_cast<double>(numerator - base * axis.den) / static_cast<double>(axis.den))};
}

// Pixel before (a = 0) or after (a = 1) the coordinate u on an axis of n pixels, the offset rho = 2 (u - pixel) from the pixel
// before wrapping, and the weight of the pixel in linear interpolation.
template <class A>
struct AxisCorner {
    int64_t pixel;
    A rho, weight;
};

template <class A>
FASTDS_HD AxisCorner<A> locate_axis_corner(const Coordinate<A>& u, int64_t n, bool wrap, int a) {
    const A weight = a ? u.frac : A(1) - u.frac;
    const int64_t at = u.base + a;
    if (wrap) {
        const int64_t pixel = at % n;
        return {pixel < 0 ? pixel + n : pixel, A(2) * (u.frac - A(a)), weight};
    }
    const int64_t pixel = at < 0 ? 0 : at >= n ? n - 1 : at;
    return {pixel, A(2) * (u.frac + static_cast<A>(u.base - pixel)), weight};
}

// The corners of a query in the order (0,0), (0,1), (1,0), (1,1). Absent or invalid corners have weight 0.
template <class A>
struct QueryCorners {
    int64_t row[4], column[4];
    A weight[4], rho_y[4], rho_x[4];
    bool valid[4];
    bool any;  // there is a valid corner with a positive weight
};

constexpr double kAreaEpsilon = 1e-9;

// Locates the corners of a query. `corners` is 4, or 1 for only the upper left corner. `mask` is (H, W) of the sample, or null.
template <class A>
FASTDS_HD QueryCorners<A> locate_corners(const InrQueryDims& d, const Coordinate<A>& u, const Coordinate<A>& v, int corners,
                            const uint8_t* mask) {
    QueryCorners<A> place;
    A total = 0;
    for (int j = 0; j < 4; j++) {
        const auto y = locate_axis_corner(u, d.H, d.wrap_y, j / 2), x = locate_axis_corner(v, d.W, d.wrap_x, j % 2);
        place.row[j] = y.pixel;
        place.column[j] = x.pixel;
        place.rho_y[j] = y.rho;
        place.rho_x[j] = x.rho;
        place.weight[j] = j < corners ? (corners == 1 ? A(1) : y.weight * x.weight) : A(0);
    }
    if (d.areas && corners == 4) {
        A area[4], sum = 0;
        for (int j = 0; j < 4; j++) {
            const A product = place.rho_y[3 - j] * place.rho_x[3 - j];
            area[j] = (product < 0 ? -product : product) + A(kAreaEpsilon);
            sum += area[j];
        }
        for (int j = 0; j < 4; j++) place.weight[j] = area[j] / sum;
    }
    place.any = true;
    for (int j = 0; j < 4; j++) {
        place.valid[j] = mask == nullptr || mask[place.row[j] * d.W + place.column[j]];
        if (!place.valid[j]) place.weight[j] = 0;
        total += place.weight[j];
    }
    if (mask != nullptr) {
        place.any = total > 0;
        for (int j = 0; j < 4 && place.any; j++) place.weight[j] /= total;
    }
    return place;
}

// sin(pi x) and cos(pi x) by Taylor series on [-1/2, 1/2], for |x| < 2^22. V is A or a vector of A.
template <class V>
struct SinCos {
    V sine, cosine;
};
template <class A, class V>
FASTDS_HD SinCos<V> sincos_pi(V x) {
    constexpr int terms = sizeof(A) == 8 ? 12 : 7;
    constexpr A magic = sizeof(A) == 8 ? A(6755399441055744.0) : A(12582912.0);  // 1.5 * 2^52, 1.5 * 2^23
    constexpr A pi = A(3.14159265358979323846);
    const V shifted = x + magic;
    const V r = (x - (shifted - magic)) * pi, square = r * r;
    V sine = V{} + A(1), cosine = V{} + A(1);
    for (int k = terms - 1; k >= 1; k--) {
        sine = A(1) - sine * square * A(1.0 / ((2 * k) * (2 * k + 1)));
        cosine = A(1) - cosine * square * A(1.0 / ((2 * k - 1) * (2 * k)));
    }
    const auto odd = -(to_bits(shifted) & 1) & kSignBit<A>;  // sign bit where the nearest integer is odd
    return {from_bits<V>(to_bits(sine * r) ^ odd), from_bits<V>(to_bits(cosine) ^ odd)};
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
