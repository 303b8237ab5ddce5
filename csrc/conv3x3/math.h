// SPDX-License-Identifier: Apache-2.0
// One-dimensional transforms of Winograd's F(4, 3) with the points 0, +-sqrt(1/2), +-sqrt(2) and infinity. A two-dimensional
// transform applies them first to columns, then to rows. V is float or a vector of floats.
//
// y = A^T ((G g) * (B^T d)) gives four outputs y from six inputs d and three taps g. With these points the error is smaller by
// half a decimal digit than with 0, +-1, +-2.
#pragma once
#include "core/isa.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr float kRootHalf = 0.70710678118654752f, kRootTwo = 1.41421356237309505f;

// v = B^T d
template <class V>
FASTDS_HD void transform_input(const V (&d)[6], V (&v)[6]) {
    v[0] = d[0] - 2.5f * d[2] + d[4];
    const V even_half = d[4] - 2.f * d[2], odd_half = kRootHalf * (d[3] - 2.f * d[1]);
    v[1] = even_half + odd_half;
    v[2] = even_half - odd_half;
    const V even_two = d[4] - 0.5f * d[2], odd_two = kRootTwo * (d[3] - 0.5f * d[1]);
    v[3] = even_two + odd_two;
    v[4] = even_two - odd_two;
    v[5] = d[1] - 2.5f * d[3] + d[5];
}

// y = A^T m
template <class V>
FASTDS_HD void transform_output(const V (&m)[6], V (&y)[4]) {
    const V sum_half = m[1] + m[2], difference_half = m[1] - m[2], sum_two = m[3] + m[4], difference_two = m[3] - m[4];
    y[0] = m[0] + sum_half + sum_two;
    y[1] = kRootHalf * difference_half + kRootTwo * difference_two;
    y[2] = 0.5f * sum_half + 2.f * sum_two;
    y[3] = (0.5f * kRootHalf) * difference_half + (2.f * kRootTwo) * difference_two + m[5];
}

// m = A y, the adjoint of transform_output
template <class V>
FASTDS_HD void transform_output_adjoint(const V (&y)[4], V (&m)[6]) {
    m[0] = y[0];
    const V even_half = y[0] + 0.5f * y[2], odd_half = kRootHalf * y[1] + (0.5f * kRootHalf) * y[3];
    m[1] = even_half + odd_half;
    m[2] = even_half - odd_half;
    const V even_two = y[0] + 2.f * y[2], odd_two = kRootTwo * y[1] + (2.f * kRootTwo) * y[3];
    m[3] = even_two + odd_two;
    m[4] = even_two - odd_two;
    m[5] = y[3];
}

// u = G g
template <class V>
FASTDS_HD void transform_weight(const V (&g)[3], V (&u)[6]) {
    u[0] = g[0];
    const V even_half = (-2.f / 3.f) * g[0] - (1.f / 3.f) * g[2], odd_half = (-2.f / 3.f * kRootHalf) * g[1];
    u[1] = even_half + odd_half;
    u[2] = even_half - odd_half;
    const V even_two = (1.f / 6.f) * g[0] + (1.f / 3.f) * g[2], odd_two = (kRootTwo / 6.f) * g[1];
    u[3] = even_two + odd_two;
    u[4] = even_two - odd_two;
    u[5] = g[2];
}

// g = G^T u, the adjoint of transform_weight
template <class V>
FASTDS_HD void transform_weight_adjoint(const V (&u)[6], V (&g)[3]) {
    const V sum_half = u[1] + u[2], sum_two = u[3] + u[4];
    g[0] = u[0] - (2.f / 3.f) * sum_half + (1.f / 6.f) * sum_two;
    g[1] = (-2.f / 3.f * kRootHalf) * (u[1] - u[2]) + (kRootTwo / 6.f) * (u[3] - u[4]);
    g[2] = u[5] - (1.f / 3.f) * sum_half + (1.f / 3.f) * sum_two;
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
