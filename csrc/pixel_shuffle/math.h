// SPDX-License-Identifier: Apache-2.0
// Activation of pixel_shuffle and its derivative, for host and device, scalars and vectors.
#pragma once
#include "core/dtype.h"
#include "pixel_shuffle/params.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// y = c > 0 ? c : slope * c with c = max(value, floor). For relu the floor is 0; the other activations have no floor. Without
// an activation the slope is 1.
template <class A>
struct Activation {
    A floor, slope;
};

template <class A>
FASTDS_HD Activation<A> make_activation(const PixelShuffleParams& params) {
    const A lowest = bits_to_float(0xff800000u);  // -infinity
    if (params.act == ShuffleAct::relu) return {A(0), A(0)};
    return {lowest, params.act == ShuffleAct::leaky_relu ? static_cast<A>(params.negative_slope) : A(1)};
}

// V is A or a vector of A. NaN stays NaN; relu of -infinity is 0.
template <class V, class A>
FASTDS_HD V activate(V value, const Activation<A>& act) {
    const V clamped = value < act.floor ? V{} + act.floor : value;
    return clamped > A(0) ? clamped : clamped * act.slope;
}

// The result has the same sign as the argument, so that it determines the derivative.
template <class V, class A>
FASTDS_HD V activation_gradient(V grad, V result, const Activation<A>& act) {
    return result > A(0) ? grad : grad * act.slope;
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
