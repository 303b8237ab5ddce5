// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <array>
#include <tuple>
#include <vector>

#include "core/arguments.h"
#include "inr_query/backward_partition.h"
#include "inr_query/params.h"

namespace fastds {

// Returns the size in bytes of InrQueryGradients::workspace. Like the partition of its sums, it depends only on the shape.
inline int64_t inr_query_workspace(const InrQueryDims& d) {
    const FASTDS_ISA::InrBackwardPartition partition(d);
    const int64_t copies = d.B * (partition.bands - 1) * d.H * d.W * inr_query_channels(d);
    return (partition.tasks() * partition.parameters + copies) * (d.dtype == f64 ? 8 : 4);
}

// Returns the size in bytes of the workspace of inr_query_trunk_backward.
inline int64_t inr_trunk_workspace(const InrQueryDims& d) {
    const FASTDS_ISA::InrTrunkPartition partition(d);
    return partition.tasks * partition.elements * (d.dtype == f64 ? 8 : 4);
}

namespace inr_query_bind {

inline void check(const InrQueryDims& d) {
    FASTDS_CHECK(d.feature >= inr_affine && d.feature <= inr_slope && d.ensemble >= inr_none && d.ensemble <= inr_early_attn,
                 "inr_query: unknown feature or ensemble");
    FASTDS_CHECK(d.ensemble != inr_early_attn || ((d.feature == inr_affine || d.feature == inr_slope) && d.heads > 0 && d.dk > 0 && d.D % d.heads == 0),
                 "inr_query: early_attn needs an affine feature and heads that divide D");
    FASTDS_CHECK(d.feature != inr_dot || (d.ensemble == inr_none && d.layers == 0), "inr_query: dot supports no ensemble or trunk");
    FASTDS_CHECK(d.feature != inr_fourier || d.D % 2 == 0, "inr_query: fourier needs an even D");
    FASTDS_CHECK(d.heads > 0 && d.heads <= kInrHeads, "inr_query: heads out of range");
    FASTDS_CHECK(d.B >= 0 && d.Q >= 0 && d.H > 0 && d.W > 0 && d.D > 0 && d.O > 0, "inr_query: sizes must be positive");
    FASTDS_CHECK(d.layers == 0 || d.width[d.layers - 1] == d.O, "inr_query: the trunk must end with O outputs");
}

inline InrQueryDims make_dims(const py::kwargs& given) {
    Keywords keywords(given);
    const auto axes = keywords.take<std::vector<int64_t>>("axes"), widths = keywords.take<std::vector<int64_t>>("widths");
    FASTDS_CHECK(widths.size() <= kInrLayers, "inr_query: the trunk may have up to " + std::to_string(kInrLayers) + " layers");
    FASTDS_CHECK(axes.empty() || axes.size() == 8, "inr_query: expected 8 numbers of axes, got " + std::to_string(axes.size()));
    InrQueryDims d{};
    d.dtype = to_dtype(keywords.take<int>("dtype"));
    d.tiles = has_amx();
    d.feature = keywords.take<int>("feature"), d.ensemble = keywords.take<int>("ensemble");
    d.relu = keywords.take<bool>("relu"), d.areas = keywords.take<bool>("areas");
    const auto wrap = keywords.take<std::array<bool, 2>>("wrap");
    d.wrap_y = wrap[0], d.wrap_x = wrap[1];
    const auto sizes = keywords.take<std::array<int64_t, 8>>("sizes");
    d.B = sizes[0], d.Q = sizes[1], d.H = sizes[2], d.W = sizes[3];
    d.D = sizes[4], d.O = sizes[5], d.heads = sizes[6], d.dk = sizes[7];
    const auto maps = keywords.take<std::array<int64_t, 3>>("maps_strides"), strides = keywords.take<std::array<int64_t, 3>>("strides");
    d.maps_b = maps[0], d.maps_h = maps[1], d.maps_w = maps[2];
    d.point_b = strides[0], d.cell_b = strides[1], d.cell_q = strides[2];
    keywords.check_unused();
    if (!axes.empty()) {
        d.rows = {axes[0], axes[1], axes[2], axes[3]};
        d.columns = {axes[4], axes[5], axes[6], axes[7]};
        FASTDS_CHECK(d.rows.den > 0 && d.columns.den > 0 && d.Q == d.rows.size * d.columns.size, "inr_query: axes do not fit Q");
    }
    d.layers = static_cast<int>(widths.size());
    std::copy(widths.begin(), widths.end(), d.width);
    check(d);
    return d;
}

// Addresses of a call: those of InrQueryTensors in their order up to mask, then of the weights, then of the biases of the trunk.
// They are arguments apart from the sizes, so that plans can repeat the call on other tensors (core/call_plans.h).
using Addresses = std::tuple<std::array<intptr_t, 11>, std::vector<intptr_t>, std::vector<intptr_t>>;

inline InrQueryTensors make_tensors(const InrQueryDims& d, const Addresses& addresses) {
    const auto& [tensors, weights, biases] = addresses;
    FASTDS_CHECK(static_cast<int>(weights.size()) == d.layers && static_cast<int>(biases.size()) == d.layers,
                 "inr_query: expected a weight and a bias for each layer");
    InrQueryTensors t{};
    t.maps = to_pointer(tensors[0]);
    t.base = static_cast<const int32_t*>(to_pointer(tensors[1]));
    t.frac = to_pointer(tensors[2]);
    t.rho_w = to_pointer(tensors[3]);
    t.cell_w = to_pointer(tensors[4]);
    t.bias = to_pointer(tensors[5]);
    t.rho_bias = to_pointer(tensors[6]);
    t.phase = to_pointer(tensors[7]);
    t.cell = to_pointer(tensors[8]);
    t.skip = to_pointer(tensors[9]);
    t.mask = static_cast<const uint8_t*>(to_pointer(tensors[10]));
    for (int l = 0; l < d.layers; l++) {
        t.weight[l] = to_pointer(weights[l]);
        t.layer_bias[l] = to_pointer(biases[l]);
    }
    FASTDS_CHECK(d.rows.den > 0 || (t.base && t.frac), "inr_query: without axes, base and frac are needed");
    FASTDS_CHECK((!t.cell_w && !t.phase) || t.cell, "inr_query: cell_w and phase need cell");
    return t;
}

}  // namespace inr_query_bind

inline void register_inr_query(py::module_& m) {
    using namespace inr_query_bind;
    py::class_<InrQueryDims>(m, "InrQueryDims", "Sizes and options of one inr_query call (csrc/inr_query/params.h).")
        .def(py::init(&make_dims))
        .def_property_readonly("workspace", &inr_query_workspace)
        .def_property_readonly("trunk_workspace", &inr_trunk_workspace);
    bind(m, "inr_query_forward", [](const InrQueryDims& dims, const Addresses& addresses, intptr_t y, int threads) {
        const InrQueryTensors tensors = make_tensors(dims, addresses);
        py::gil_scoped_release release;
        FASTDS_DISPATCH_TYPED(dims.dtype == f64, inr_query_forward, dims, tensors, to_pointer(y), threads);
    });
    bind(m, "inr_query_features", [](const InrQueryDims& dims, const Addresses& addresses, intptr_t rows, intptr_t weights,
                                     int threads) {
        const InrQueryTensors tensors = make_tensors(dims, addresses);
        py::gil_scoped_release release;
        FASTDS_DISPATCH_TYPED(dims.dtype == f64, inr_query_features, dims, tensors, to_pointer(rows),
                              to_pointer(weights), threads);
    });
    bind(m, "inr_query_features_backward", [](const InrQueryDims& dims, const Addresses& addresses, intptr_t grad_rows,
                                              intptr_t maps, intptr_t offsets, intptr_t rho_bias, intptr_t workspace,
                                              int threads) {
        const InrQueryTensors tensors = make_tensors(dims, addresses);
        py::gil_scoped_release release;
        const InrQueryGradients gradients{to_pointer(maps), to_pointer(offsets), to_pointer(rho_bias), to_pointer(workspace)};
        FASTDS_DISPATCH_TYPED(dims.dtype == f64, inr_query_features_backward, dims, tensors,
                              to_pointer(grad_rows), gradients, threads);
    });
    bind(m, "inr_query_trunk_backward", [](const InrQueryDims& dims, const Addresses& addresses, intptr_t grad_y,
                                           intptr_t grad_rows, intptr_t grad_layers, intptr_t workspace, int threads) {
        FASTDS_CHECK(dims.layers > 0, "inr_query: the call has no trunk");
        const InrQueryTensors tensors = make_tensors(dims, addresses);
        py::gil_scoped_release release;
        FASTDS_DISPATCH_TYPED(dims.dtype == f64, inr_query_trunk_backward, dims, tensors, to_pointer(grad_y),
                              to_pointer(grad_rows), to_pointer(grad_layers), to_pointer(workspace), threads);
    });
#if FASTDS_BUILD_CUDA
    bind(m, "inr_query_features_cuda", [](const InrQueryDims& dims, const Addresses& addresses, intptr_t rows,
                                          intptr_t weights, int device, intptr_t stream) {
        const InrQueryTensors tensors = make_tensors(dims, addresses);
        py::gil_scoped_release release;
        inr_query_features_cuda(dims, tensors, to_pointer(rows), to_pointer(weights), device, to_pointer(stream));
    });
    bind(m, "inr_query_features_backward_cuda", [](const InrQueryDims& dims, const Addresses& addresses, intptr_t grad_rows,
                                                   intptr_t grad_maps, intptr_t partials, int device, intptr_t stream) {
        const InrQueryTensors tensors = make_tensors(dims, addresses);
        py::gil_scoped_release release;
        inr_query_features_backward_cuda(dims, tensors, to_pointer(grad_rows), to_pointer(grad_maps),
                                         to_pointer(partials), device, to_pointer(stream));
    });
    bind(m, "inr_query_cuda_partials", [](const InrQueryDims& dims) { return inr_query_cuda_partials(dims); });
#endif
}

}  // namespace fastds
