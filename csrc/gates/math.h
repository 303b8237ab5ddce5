// SPDX-License-Identifier: Apache-2.0
// The pointwise formulas of recurrent cells, for scalars (host and device) and vectors; s is sigmoid and t is tanh. The comment
// (a, b) -> (y) lists the inputs and outputs of a formula. A formula named Backward takes the gradients of the outputs, then
// the inputs, and returns the gradients of the inputs. A formula named Double differentiates the Backward formula: it takes the
// cotangents u_x of the gradients grad_x, then all inputs of the Backward formula, and returns the gradients of these inputs.
#pragma once
#include "core/vec_math.h"
#include "gates/params.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

template <class A>
struct GateOptions {
    A keep, slope;  // GatesParams::option and GatesParams::slope
};

#define FASTDS_GATE_FORMULA(in_count, out_count) \
    static constexpr int inputs = in_count, outputs = out_count;                        \
    template <class A, class V>                                                         \
    static FASTDS_HD void apply(const V (&in)[in_count], V (&out)[out_count], const GateOptions<A>& options)

// LSTM with s = sigmoid and t = tanh: c' = s(f) c + s(i) t(g), h' = s(o) t(c');  (i, f, g, o, c) -> (h', c')
struct LstmGates {
    FASTDS_GATE_FORMULA(5, 2) {
        const V i = gate_parts<A>(in[0]).bottom, f = gate_parts<A>(in[1]).bottom, o = gate_parts<A>(in[3]).bottom;
        const auto g = tanh_parts<A>(in[2]);
        const V ig = i * g.bottom, c = (in[4] * ig + g.top * f) / (f * ig);
        const auto tc = tanh_parts<A>(c);
        out[0] = tc.top / (o * tc.bottom);
        out[1] = c;
    }
};

// Gradients of LstmGates: (grad_h', grad_c', i, f, g, o, c) -> (grad_i, grad_f, grad_g, grad_o, grad_c)
struct LstmGatesBackward {
    FASTDS_GATE_FORMULA(7, 5) {
        const auto ip = gate_parts<A>(in[2]), fp = gate_parts<A>(in[3]);
        const auto gp = tanh_parts<A>(in[4]);
        // One division for three reciprocals.
        const V ig = ip.bottom * gp.bottom, inverse = A(1) / (fp.bottom * ig), f_inverse = fp.bottom * inverse;
        const auto i = get_slope<A>(ip, V(gp.bottom * f_inverse)), f = get_slope<A>(fp, V(ig * inverse));
        const auto g = get_slope<A>(gp, V(ip.bottom * f_inverse));
        const V c = in[6] * f.value + i.value * g.value;
        const auto op = gate_parts<A>(in[5]);
        const auto tp = tanh_parts<A>(c);
        const V both = A(1) / (op.bottom * tp.bottom);
        const auto o = get_slope<A>(op, V(tp.bottom * both));
        const auto tc = get_slope<A>(tp, V(op.bottom * both));
        const V grad_c = in[1] + in[0] * (o.value * tc.derivative);
        out[0] = grad_c * (g.value * i.derivative);
        out[1] = grad_c * (in[6] * f.derivative);
        out[2] = grad_c * (i.value * g.derivative);
        out[3] = in[0] * (tc.value * o.derivative);
        out[4] = grad_c * f.value;
    }
};

// Memory with s = sigmoid and t = tanh: c' = s(f) k(c) + s(i) t(g), where k is the identity or tanh;  (i, f, g, c) -> c'
template <bool tanh_state>
struct MemoryGates {
    FASTDS_GATE_FORMULA(4, 1) {
        const V i = gate_parts<A>(in[0]).bottom, f = gate_parts<A>(in[1]).bottom;
        const auto g = tanh_parts<A>(in[2]);
        const V ig = i * g.bottom;
        if constexpr (tanh_state) {
            const auto c = tanh_parts<A>(in[3]);
            const V fc = f * c.bottom;
            out[0] = (c.top * ig + g.top * fc) / (fc * ig);
        } else {
            out[0] = (in[3] * ig + g.top * f) / (f * ig);
        }
    }
};

// (grad_c', i, f, g, c) -> (grad_i, grad_f, grad_g, grad_c)
template <bool tanh_state>
struct MemoryGatesBackward {
    FASTDS_GATE_FORMULA(5, 4) {
        const auto ip = gate_parts<A>(in[1]), fp = gate_parts<A>(in[2]);
        const auto gp = tanh_parts<A>(in[3]);
        const V ig = ip.bottom * gp.bottom, inverse = A(1) / (fp.bottom * ig), f_inverse = fp.bottom * inverse;
        const auto i = get_slope<A>(ip, V(gp.bottom * f_inverse)), f = get_slope<A>(fp, V(ig * inverse));
        const auto g = get_slope<A>(gp, V(ip.bottom * f_inverse));
        Slope<V> c{in[4], V{} + A(1)};
        if constexpr (tanh_state) c = tanh_slope<A>(in[4]);
        out[0] = in[0] * (g.value * i.derivative);
        out[1] = in[0] * (c.value * f.derivative);
        out[2] = in[0] * (i.value * g.derivative);
        out[3] = in[0] * (f.value * c.derivative);
    }
};

// MemoryGates, with a fifth input q, the pre-activation of the output gate, which is an output, too;  (i, f, g, q, c) -> (c',
// q)
struct StLstmGates {
    FASTDS_GATE_FORMULA(5, 2) {
        const V memory[4] = {in[0], in[1], in[2], in[4]};
        V c[1];
        MemoryGates<false>::apply<A>(memory, c, options);
        out[0] = c[0];
        out[1] = in[3];
    }
};

// Gradients of StLstmGates: (grad_c', grad_q, i, f, g, q, c) -> (grad_i, grad_f, grad_g, grad_q, grad_c)
struct StLstmGatesBackward {
    FASTDS_GATE_FORMULA(7, 5) {
        const V memory[5] = {in[0], in[2], in[3], in[4], in[6]};
        V grads[4];
        MemoryGatesBackward<false>::apply<A>(memory, grads, options);
        out[0] = grads[0];
        out[1] = grads[1];
        out[2] = grads[2];
        out[3] = in[1];
        out[4] = grads[3];
    }
};

// y = s(a) t(b), or t(a) t(b);  (a, b) -> y
template <bool tanh_gate>
struct OutputGate {
    FASTDS_GATE_FORMULA(2, 1) {
        const auto t = tanh_parts<A>(in[1]);
        if constexpr (tanh_gate) {
            const auto gate = tanh_parts<A>(in[0]);
            out[0] = (gate.top * t.top) / (gate.bottom * t.bottom);
        } else {
            out[0] = sigmoid_times_tanh<A>(in[0], in[1]);
        }
    }
};

// (grad_y, a, b) -> (grad_a, grad_b)
template <bool tanh_gate>
struct OutputGateBackward {
    FASTDS_GATE_FORMULA(3, 2) {
        Slope<V> gate;
        if constexpr (tanh_gate)
            gate = tanh_slope<A>(in[1]);
        else
            gate = sigmoid_slope<A>(in[1]);
        const auto t = tanh_slope<A>(in[2]);
        out[0] = in[0] * (gate.derivative * t.value);
        out[1] = in[0] * (gate.value * t.derivative);
    }
};

// z = s(a), q = s(b) h;  (a, b, h) -> (z, q)
struct GruReset {
    FASTDS_GATE_FORMULA(3, 2) {
        out[0] = sigmoid<A>(in[0]);
        out[1] = sigmoid<A>(in[1]) * in[2];
    }
};

// (grad_z, grad_q, a, b, h) -> (grad_a, grad_b, grad_h)
struct GruResetBackward {
    FASTDS_GATE_FORMULA(5, 3) {
        const auto z = sigmoid_slope<A>(in[2]), r = sigmoid_slope<A>(in[3]);
        out[0] = in[0] * z.derivative;
        out[1] = in[1] * (in[4] * r.derivative);
        out[2] = in[1] * r.value;
    }
};

// Derivative of GruResetBackward, with cotangents u_x of its outputs grad_x: (u_a, u_b, u_h, grad_z, grad_q, a, b, h) ->
// gradients of (grad_z, grad_q, a, b, h)
struct GruResetDouble {
    FASTDS_GATE_FORMULA(8, 5) {
        const auto z = sigmoid_slope<A>(in[5]), r = sigmoid_slope<A>(in[6]);
        const V z_bend = z.derivative * (A(1) - A(2) * z.value), r_bend = r.derivative * (A(1) - A(2) * r.value);
        out[0] = in[0] * z.derivative;
        out[1] = in[1] * (in[7] * r.derivative) + in[2] * r.value;
        out[2] = in[3] * (in[0] * z_bend);
        out[3] = in[4] * (in[1] * (in[7] * r_bend) + in[2] * r.derivative);
        out[4] = in[4] * (in[1] * r.derivative);
    }
};

// The candidate n = act(a) with its first and second derivative.
template <class V>
struct Candidate {
    V value, derivative, bend;
};
template <bool leaky, class A, class V>
FASTDS_HD Candidate<V> compute_candidate(V a, A slope) {
    if constexpr (leaky) {
        const V derivative = a > A(0) ? V{} + A(1) : V{} + slope;
        return {a * derivative, derivative, V{}};
    } else {
        const auto n = tanh_slope<A>(a);
        return {n.value, n.derivative, A(-2) * n.value * n.derivative};
    }
}

// GRU update: h' = w h + (1-w) n, where n is tanh(a) or the leaky ReLU of a;  (z, a, h) -> h'. The weight w of h is z if
// options.keep is 1, and 1-z if options.keep is 0.
template <class A, class V>
FASTDS_HD V hidden_weight(V z, const GateOptions<A>& options) {
    return (A(1) - options.keep) + (A(2) * options.keep - A(1)) * z;
}

template <bool leaky>
struct GruUpdate {
    FASTDS_GATE_FORMULA(3, 1) {
        const V w = hidden_weight<A>(in[0], options), n = compute_candidate<leaky, A>(in[1], options.slope).value;
        out[0] = w * in[2] + (A(1) - w) * n;
    }
};

// (grad_h', z, a, h) -> (grad_z, grad_a, grad_h)
template <bool leaky>
struct GruUpdateBackward {
    FASTDS_GATE_FORMULA(4, 3) {
        const V w = hidden_weight<A>(in[1], options);
        const A sign = A(2) * options.keep - A(1);
        const auto n = compute_candidate<leaky, A>(in[2], options.slope);
        out[0] = in[0] * (sign * (in[3] - n.value));
        out[1] = in[0] * ((A(1) - w) * n.derivative);
        out[2] = in[0] * w;
    }
};

// Derivative of GruUpdateBackward, with cotangents u_x of its outputs grad_x: (u_z, u_a, u_h, grad_h', z, a, h) -> gradients of
// (grad_h', z, a, h)
template <bool leaky>
struct GruUpdateDouble {
    FASTDS_GATE_FORMULA(7, 4) {
        const V w = hidden_weight<A>(in[4], options);
        const A sign = A(2) * options.keep - A(1);
        const auto n = compute_candidate<leaky, A>(in[5], options.slope);
        out[0] = in[0] * (sign * (in[6] - n.value)) + in[1] * ((A(1) - w) * n.derivative) + in[2] * w;
        out[1] = in[3] * (sign * (in[2] - in[1] * n.derivative));
        out[2] = in[3] * (in[1] * (A(1) - w) * n.bend - in[0] * (sign * n.derivative));
        out[3] = in[3] * (sign * in[0]);
    }
};

// The following formulas belong to a GRU step whose backward pass uses saved results of the forward pass, so that the backward
// pass computes no exponential.

// Gates of the GRU with s = sigmoid: z = s(a), r = s(b), q = r h;  (a, b, h) -> (z, r, q)
struct GruResetKept {
    FASTDS_GATE_FORMULA(3, 3) {
        out[0] = sigmoid<A>(in[0]);
        out[1] = sigmoid<A>(in[1]);
        out[2] = out[1] * in[2];
    }
};

// (z, a, h) -> (h', n)
template <bool leaky>
struct GruUpdateKept {
    FASTDS_GATE_FORMULA(3, 2) {
        const V w = hidden_weight<A>(in[0], options), n = compute_candidate<leaky, A>(in[1], options.slope).value;
        out[0] = w * in[2] + (A(1) - w) * n;
        out[1] = n;
    }
};

// Gradient of the GRU candidate n = act(a): (grad_h', grad_n, z, n) -> grad_a. For the leaky ReLU, n and a have the same sign.
template <bool leaky>
struct GruCandidateGradient {
    FASTDS_GATE_FORMULA(4, 1) {
        const V z = in[2], n = in[3], grad_n = in[1] + in[0] * (A(1) - hidden_weight<A>(z, options));
        if constexpr (leaky)
            out[0] = grad_n * (n > A(0) ? V{} + A(1) : V{} + options.slope);
        else
            out[0] = grad_n * (A(1) - n * n);
    }
};

// Gradients of the GRU gates: (grad_q, grad_h', grad_z, grad_r, z, r, n, h) -> (grad_a, grad_b, grad_h). The contribution of
// the convolutions to grad_h is not included.
struct GruGatesGradient {
    FASTDS_GATE_FORMULA(8, 3) {
        const V z = in[4], r = in[5], n = in[6], h = in[7];
        const V grad_z = in[2] + in[1] * ((A(2) * options.keep - A(1)) * (h - n)), grad_r = in[3] + in[0] * h;
        out[0] = grad_z * (z * (A(1) - z));
        out[1] = grad_r * (r * (A(1) - r));
        out[2] = in[0] * r + in[1] * hidden_weight<A>(z, options);
    }
};

// TrajGRU with s = sigmoid and the leaky ReLU: z = s(zx+zh), r = s(rx+rh), n = leaky(nx + r nh), h' = (1-z) n + z h;
// (zx, rx, nx, zh, rh, nh, h) -> h'
struct TrajGruGates {
    FASTDS_GATE_FORMULA(7, 1) {
        const V z = sigmoid<A>(V(in[0] + in[3])), r = sigmoid<A>(V(in[1] + in[4]));
        const V n = compute_candidate<true, A>(V(in[2] + r * in[5]), options.slope).value;
        out[0] = (A(1) - z) * n + z * in[6];
    }
};

// Gradients of TrajGruGates: (grad_h', zx, rx, nx, zh, rh, nh, h) -> (grad_zx, grad_rx, grad_nx, grad_zh, grad_rh, grad_nh,
// grad_h)
struct TrajGruGatesBackward {
    FASTDS_GATE_FORMULA(8, 7) {
        const auto z = sigmoid_slope<A>(V(in[1] + in[4])), r = sigmoid_slope<A>(V(in[2] + in[5]));
        const auto n = compute_candidate<true, A>(V(in[3] + r.value * in[6]), options.slope);
        const V grad_n = in[0] * ((A(1) - z.value) * n.derivative);
        out[0] = out[3] = in[0] * ((in[7] - n.value) * z.derivative);
        out[1] = out[4] = grad_n * (in[6] * r.derivative);
        out[2] = grad_n;
        out[5] = grad_n * r.value;
        out[6] = in[0] * z.value;
    }
};

#undef FASTDS_GATE_FORMULA

// Calls f with an object of the formula's struct. Host only.
template <class F>
inline void dispatch_gate_formula(GateFormula formula, const F& f) {
#define FASTDS_GATE_CASE(name, ...) \
    case GateFormula::name: return f(__VA_ARGS__{});
    switch (formula) {
        FASTDS_GATE_FORMULAS(FASTDS_GATE_CASE)
        case GateFormula::count: return;
    }
#undef FASTDS_GATE_CASE
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
