// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <tuple>
#include <vector>

#include "conv1x1/params.h"
#include "core/arguments.h"

namespace fastds {

namespace conv1x1_bind {

// A feature map: (address, channels, image stride, pixel stride, channel stride). Strides are in elements.
using MapArgs = std::tuple<intptr_t, int64_t, int64_t, int64_t, int64_t>;
// A weight: (address, dtype, outputs, distance between outputs in elements).
using WeightArgs = std::tuple<intptr_t, int, int64_t, int64_t>;

inline Conv1x1Map to_map(const MapArgs& t) {
    const auto [address, channels, b, p, c] = t;
    FASTDS_CHECK(channels > 0 && (p == 1 || c == 1), "conv1x1: pixels or channels must be contiguous");
    return {to_pointer(address), channels, b, p, c};
}

inline DType to_map_dtype(int code) {
    FASTDS_CHECK(code != f64, "conv1x1: no kernel for float64");
    return to_dtype(code);
}

inline DType to_weight_dtype(int code, DType maps) {
    FASTDS_CHECK(code == f32 || code == maps, "conv1x1: weight must be float32 or have the dtype of the inputs");
    return to_dtype(code);
}

}  // namespace conv1x1_bind

inline void register_conv1x1(py::module_& m) {
    using namespace conv1x1_bind;
    bind(
        m, "conv1x1",
        [](int dtype, int64_t batch, int64_t pixels, const std::vector<MapArgs>& sources, const WeightArgs& weight, intptr_t bias,
           intptr_t residual, intptr_t y, int act, float negative_slope, int threads, intptr_t workspace, int64_t bytes) {
            FASTDS_CHECK(sources.size() == 1 || sources.size() == 2, "conv1x1: expected one or two sources");
            FASTDS_CHECK(batch > 0 && pixels > 0 && threads > 0, "conv1x1: sizes must be positive");
            Conv1x1 call{};
            call.dtype = to_map_dtype(dtype);
            call.batch = batch;
            call.pixels = pixels;
            for (const MapArgs& source : sources) call.source[call.sources++] = to_map(source);
            const auto [address, kind, outputs, stride_o] = weight;
            FASTDS_CHECK(outputs > 0, "conv1x1: no outputs");
            call.outputs = outputs;
            call.weight = to_pointer(address);
            call.weight_dtype = to_weight_dtype(kind, call.dtype);
            call.stride_o = stride_o;
            call.bias = to_pointer(bias);
            call.residual = to_pointer(residual);
            call.y = to_pointer(y);
            call.act = act;
            call.negative_slope = negative_slope;
            call.threads = threads;
            call.tiles = has_amx();
            py::gil_scoped_release release;
            const int64_t needed = FASTDS_DISPATCH_VECTOR(conv1x1_bytes, call);
            if (needed <= bytes) FASTDS_DISPATCH_VECTOR(conv1x1, call, static_cast<char*>(to_pointer(workspace)));
            return needed;
        },
        "Compute the product with bias, residual and activation. Return the required workspace in bytes; if `bytes` is smaller, do nothing else.");
    bind(
        m, "conv1x1_grad_weight",
        [](int dtype, int64_t batch, int64_t pixels, const MapArgs& gradient, const MapArgs& source, intptr_t grad_weight,
           int weight_dtype, int64_t stride_o, int threads, intptr_t workspace, int64_t bytes) {
            FASTDS_CHECK(batch > 0 && pixels > 0 && threads > 0, "conv1x1: sizes must be positive");
            const DType maps = to_map_dtype(dtype);
            const Conv1x1GradWeight call{maps, batch, pixels, to_map(gradient), to_map(source), to_pointer(grad_weight),
                                         to_weight_dtype(weight_dtype, maps), stride_o, threads, has_amx()};
            py::gil_scoped_release release;
            const int64_t needed = FASTDS_DISPATCH_VECTOR(conv1x1_grad_weight_bytes, call);
            if (needed <= bytes) FASTDS_DISPATCH_VECTOR(conv1x1_grad_weight, call, static_cast<char*>(to_pointer(workspace)));
            return needed;
        },
        "Compute the weight gradient of one source. Workspace as for conv1x1.");
}

}  // namespace fastds
