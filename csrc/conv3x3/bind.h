// SPDX-License-Identifier: Apache-2.0
// Python bindings of conv3x3, and the conversion of arguments that the bindings of the recurrent cells share.
#pragma once
#include <cstring>
#include <string>
#include <tuple>
#include <vector>

#include "conv3x3/params.h"
#include "conv3x3/window_params.h"
#include "core/arguments.h"

namespace fastds {

// A tensor: (address, dtype, channels, batch stride, row stride, pixel stride, channel stride). Strides are in elements.
using TensorArgs = std::tuple<intptr_t, int, int64_t, int64_t, int64_t, int64_t, int64_t>;
// The members of Conv3x3Geometry in their order: B, H, W, Ho, Wo, pad_h, pad_w, mode_h, mode_w.
using GeometryArgs = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int, int, int, int>;

inline int64_t get_item_size(int dtype) { return dtype == f64 ? 8 : dtype == f32 ? 4 : 2; }

// Converts a tensor to a view. If the tensor has several channels, its channel stride must be 1, or, if `planar` is true, its
// pixel stride may be 1 instead.
inline Conv3x3View to_view(const TensorArgs& t, bool planar = false) {
    const auto [address, dtype, channels, b, h, w, c] = t;
    FASTDS_CHECK(channels == 1 || c == 1 || (planar && w == 1), "conv3x3: channels must be contiguous");
    return {to_pointer(address), nullptr, channels, b, h, w, channels == 1 ? 1 : c};
}

// Converts tensors that are concatenated along the channels to views. A pixel-shuffled tensor gives one view per sub-pixel.
// `sign` is the address of Conv3x3View::sign, or 0 for none. `planar` permits a pixel stride of 1; it has no effect together
// with `sign` or a shuffle.
inline Conv3x3Views to_views(const std::vector<TensorArgs>& tensors, int64_t shuffle, intptr_t sign, bool planar = false) {
    FASTDS_CHECK(!tensors.empty() && shuffle >= 1 && shuffle * shuffle * static_cast<int64_t>(tensors.size()) <= kConv3x3Views,
                 "conv3x3: expected 1 to " + std::to_string(kConv3x3Views) + " views");
    Conv3x3Views views{};
    views.dtype = to_dtype(std::get<1>(tensors[0]));
    FASTDS_CHECK(views.dtype != f64, "conv3x3: no kernel for float64");
    for (const TensorArgs& tensor : tensors) {
        FASTDS_CHECK(std::get<1>(tensor) == views.dtype && std::get<2>(tensor) > 0,
                     "conv3x3: tensors differ in dtype or are empty");
        const Conv3x3View whole = to_view(tensor, planar && shuffle == 1 && sign == 0);
        for (int64_t part = 0; part < shuffle * shuffle; part++) {
            const int64_t shift = (part / shuffle * whole.h + part % shuffle * whole.w) * get_item_size(views.dtype);
            views.view[views.count++] = {static_cast<char*>(whole.data) + shift,
                                         sign ? static_cast<char*>(to_pointer(sign)) + shift : nullptr,
                                         whole.channels, whole.b, whole.h * shuffle, whole.w * shuffle, whole.c};
        }
    }
    return views;
}

// Sets the residual of a call whose sinks are already set. An empty list means no residual.
inline void set_residual(Conv3x3Call& call, const std::vector<TensorArgs>& residual) {
    call.residual.count = 0;
    if (residual.empty()) return;
    call.residual = to_views(residual, 1, 0);
    FASTDS_CHECK(call.residual.dtype == call.sinks.dtype && call.residual.channels() == call.sinks.channels(),
                 "conv3x3: residual and output differ in channels or dtype");
}

// Checks that AMX is usable for these views (bfloat16 on a processor with AMX) if `amx` is true, and returns `amx`.
inline bool check_amx(bool amx, const Conv3x3Views& maps) {
    FASTDS_CHECK(!amx || (has_amx() && maps.dtype == bf16), "conv3x3: AMX needs bfloat16 and a processor with AMX");
    return amx;
}

inline Conv3x3Geometry to_geometry(const GeometryArgs& g) {
    const auto [B, H, W, Ho, Wo, pad_h, pad_w, mode_h, mode_w] = g;
    FASTDS_CHECK(B >= 0 && H > 0 && W > 0 && Ho >= 0 && Wo >= 0, "conv3x3: sizes must be positive");
    return {B, H, W, Ho, Wo, pad_h, pad_w, mode_h, mode_w};
}

namespace conv3x3_bind {

// A weight: (address, dtype, O, C, size, output stride, input stride, row stride, column stride, adjoint, shuffle). Strides are
// in elements.
using FilterArgs =
    std::tuple<intptr_t, int, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, bool, int64_t>;

inline Conv3x3Filters to_filters(const FilterArgs& t) {
    const auto [address, dtype, O, C, size, o, c, h, w, adjoint, shuffle] = t;
    FASTDS_CHECK(dtype != f64 && size >= 3 && shuffle >= 1 && O % (shuffle * shuffle) == 0,
                 "conv3x3: no kernel for these filters");
    return {{to_pointer(address), to_dtype(dtype), O, C, o, c, h, w, size}, adjoint, shuffle};
}

inline Conv3x3Call make_call(const GeometryArgs& geometry, const std::vector<TensorArgs>& sources, int64_t source_shuffle,
                             intptr_t sign,
                      const std::vector<TensorArgs>& sinks, int64_t sink_shuffle, intptr_t packed,
                      const std::vector<FilterArgs>& filters, intptr_t bias, int bias_dtype,
                      const std::vector<TensorArgs>& residual, int act, float negative_slope, bool amx) {
    Conv3x3Call call{};
    call.geometry = to_geometry(geometry);
    call.sources = to_views(sources, source_shuffle, sign, amx);
    call.sinks = to_views(sinks, sink_shuffle, 0);
    call.packed = static_cast<const float*>(to_pointer(packed));
    FASTDS_CHECK((packed == 0) == (filters.size() == 1) && !(amx && packed == 0),
                 "conv3x3: expected either packed filters or one weight");
    if (packed == 0) {
        call.filters = to_filters(filters[0]);
        const Conv3x3Weight& w = call.filters.weight;
        const auto [inputs, outputs] = call.filters.adjoint ? std::pair(w.O, w.C) : std::pair(w.C, w.O);
        FASTDS_CHECK(call.sources.channels() == inputs * w.blocks() && call.sinks.channels() == outputs,
                     "conv3x3: filters and tensors differ in channels");
    }
    call.bias = to_pointer(bias);
    call.bias_dtype = to_dtype(bias_dtype);
    set_residual(call, residual);
    FASTDS_CHECK(sink_shuffle == 1 || residual.size() <= 1, "conv3x3: a shuffled output supports one residual");
    call.shuffle = sink_shuffle;
    call.act = act;
    call.negative_slope = negative_slope;
    call.amx = check_amx(amx, call.sources);
    return call;
}

inline Conv3x3GradWeight make_grad_weight(const GeometryArgs& geometry, const std::vector<TensorArgs>& sources,
                                   const TensorArgs& gradient, int64_t shuffle, intptr_t sign, float negative_slope, int dtype,
                                   intptr_t grad_weight, intptr_t grad_bias, bool amx, int threads) {
    Conv3x3GradWeight call{};
    call.geometry = to_geometry(geometry);
    call.sources = to_views(sources, 1, 0, amx);
    call.gradients = to_views({gradient}, shuffle, sign);
    call.dtype = to_dtype(dtype);
    FASTDS_CHECK(call.dtype != f64, "conv3x3: no kernel for float64");
    call.grad_weight = to_pointer(grad_weight);
    call.grad_bias = to_pointer(grad_bias);
    call.shuffle = shuffle;
    call.negative_slope = negative_slope;
    call.threads = threads;
    return call;
}

// A feature map: (address, dtype, channels, batch stride, channel stride, row stride, pixel stride). Strides are in elements.
using MapArgs = std::tuple<intptr_t, int, int64_t, int64_t, int64_t, int64_t, int64_t>;

inline Conv3x3Map to_map(const MapArgs& t) {
    const auto [address, dtype, channels, b, c, h, w] = t;
    FASTDS_CHECK(channels > 0 && (c == 1 || w == 1), "conv3x3: pixels or channels must be contiguous");
    FASTDS_CHECK(dtype != f64, "conv3x3: no kernel for float64");
    return {to_pointer(address), to_dtype(dtype), channels, b, c, h, w};
}

#if FASTDS_BUILD_CUDA

inline WindowMap to_window_map(const TensorArgs& t) {
    const Conv3x3View view = to_view(t);
    return {view.data, view.channels, view.b, view.h, view.w};
}

// A weight of cuda_window.cuh: (address, dtype, O, C, output stride, tap stride), with contiguous channels.
using TapWeightArgs = std::tuple<intptr_t, int, int64_t, int64_t, int64_t, int64_t>;

// Sets the convolution of a kernel with a window. `residual` is empty for none.
inline void set_window_convolution(WindowCall& call, const GeometryArgs& geometry, const std::vector<TensorArgs>& sources,
                                   const TapWeightArgs& weight, intptr_t bias, int bias_dtype,
                                   const std::vector<TensorArgs>& residual) {
    FASTDS_CHECK(sources.size() == 1 || sources.size() == 2, "conv3x3: expected one or two sources");
    const auto [address, dtype, O, C, weight_o, weight_tap] = weight;
    const Conv3x3Geometry g = to_geometry(geometry);
    FASTDS_CHECK(g.B > 0 && g.Ho == g.H && g.Wo == g.W && O > 0, "conv3x3: wrong sizes for the kernel with a window");
    call.dtype = to_dtype(dtype);
    FASTDS_CHECK(call.dtype == f16 || call.dtype == bf16, "conv3x3: the kernel with a window has no other dtype than 16 bits");
    call.B = g.B, call.H = g.H, call.W = g.W, call.O = O;
    int64_t channels = 0;
    for (size_t i = 0; i < sources.size(); i++) {
        FASTDS_CHECK(std::get<1>(sources[i]) == dtype && std::get<2>(sources[i]) > 0, "conv3x3: tensors differ in dtype or are empty");
        call.source[i] = to_window_map(sources[i]);
        channels += call.source[i].channels;
    }
    FASTDS_CHECK(channels == C, "conv3x3: filters and tensors differ in channels");
    call.weight = to_pointer(address), call.weight_o = weight_o, call.weight_tap = weight_tap;
    call.bias = to_pointer(bias), call.bias_dtype = to_dtype(bias_dtype);
    if (residual.empty()) return;
    FASTDS_CHECK(std::get<1>(residual[0]) == dtype && std::get<2>(residual[0]) == O, "conv3x3: residual and output differ");
    call.residual = to_window_map(residual[0]);
}

#endif

}  // namespace conv3x3_bind

inline void register_conv3x3(py::module_& m) {
    using namespace conv3x3_bind;
    bind(
        m, "conv3x3_available", [] { return isa() != Isa::baseline || !FASTDS_BUILD_AVX2; },
        "Return whether this build has the engine for the selected instruction set.");
    m.def("conv3x3_amx_available", &has_amx, "Return whether the engine multiplies bfloat16 with AMX tiles.");
    // One function with positional arguments performs the whole convolution, because the overhead of Python limits the speed on
    // small fields.
    bind(
        m, "conv3x3_run",
        [](const GeometryArgs& geometry, const std::vector<TensorArgs>& sources, int64_t source_shuffle, intptr_t sign,
           const std::vector<TensorArgs>& sinks, int64_t sink_shuffle, intptr_t packed,
           const std::vector<FilterArgs>& filters, intptr_t bias, int bias_dtype,
           const std::vector<TensorArgs>& residual, int act, float negative_slope, bool amx, int threads, intptr_t workspace,
           int64_t bytes) {
            const Conv3x3Call call = make_call(geometry, sources, source_shuffle, sign, sinks, sink_shuffle, packed, filters,
                                               bias, bias_dtype, residual, act, negative_slope, amx);
            py::gil_scoped_release release;
            const Conv3x3Plan plan = FASTDS_DISPATCH_VECTOR(conv3x3_plan, call, false, threads);
            if (plan.bytes <= bytes) FASTDS_DISPATCH_VECTOR(conv3x3_run, call, plan, static_cast<float*>(to_pointer(workspace)));
            return plan.bytes;
        },
        "Run the engine, forward or grad_x. Return the required workspace in bytes (64-byte aligned); if `bytes` is smaller, "
        "do nothing else.");
    bind(
        m, "conv3x3_grad_weight",
        [](const GeometryArgs& geometry, const std::vector<TensorArgs>& sources, const TensorArgs& gradient, int64_t shuffle,
           intptr_t sign, float negative_slope, int dtype, intptr_t grad_weight, intptr_t grad_bias, bool amx, int threads,
           intptr_t workspace, int64_t bytes) {
            const Conv3x3GradWeight call =
                make_grad_weight(geometry, sources, gradient, shuffle, sign, negative_slope, dtype, grad_weight, grad_bias, amx,
                                 threads);
            float* work = static_cast<float*>(to_pointer(workspace));
            check_amx(amx, call.sources);
            check_amx(amx, call.gradients);
            FASTDS_CHECK(!amx || call.dtype != f16, "conv3x3: AMX gives no gradient in float16");
            py::gil_scoped_release release;
            const int64_t needed = amx ? FASTDS_DISPATCH_VECTOR(conv3x3_amx_grad_weight_bytes, call)
                                       : FASTDS_DISPATCH_VECTOR(conv3x3_grad_weight_bytes, call);
            if (needed > bytes) return needed;
            if (amx)
                FASTDS_DISPATCH_VECTOR(conv3x3_amx_grad_weight, call, work);
            else
                FASTDS_DISPATCH_VECTOR(conv3x3_grad_weight, call, work);
            return needed;
        },
        "Compute the weight gradient and the bias gradient. The results do not depend on threads. Workspace as for conv3x3_run.");
    bind(
        m, "conv3x3_planes",
        [](const GeometryArgs& geometry, const std::vector<MapArgs>& sources, intptr_t filters, int64_t outputs, int64_t stride_o,
           int64_t stride_i, bool adjoint, intptr_t bias, intptr_t residual, intptr_t y, int y_dtype, int act, float negative_slope,
           int threads, intptr_t workspace, int64_t bytes) {
            FASTDS_CHECK(sources.size() == 1 || sources.size() == 2, "conv3x3: expected one or two sources");
            Conv3x3Planes call{};
            call.geometry = to_geometry(geometry);
            for (const MapArgs& source : sources) call.source[call.sources++] = to_map(source);
            call.filters = static_cast<const float*>(to_pointer(filters));
            call.outputs = outputs;
            call.stride_o = stride_o;
            call.stride_i = stride_i;
            call.adjoint = adjoint;
            call.bias = static_cast<const float*>(to_pointer(bias));
            call.residual = to_pointer(residual);
            call.y = to_pointer(y);
            call.y_dtype = to_dtype(y_dtype);
            FASTDS_CHECK(call.y_dtype != f64 && outputs > 0, "conv3x3: there are no outputs or y is float64");
            call.act = act;
            call.negative_slope = negative_slope;
            call.threads = threads;
            py::gil_scoped_release release;
            const int64_t needed = FASTDS_DISPATCH_VECTOR(conv3x3_planes_bytes, call);
            if (needed <= bytes) FASTDS_DISPATCH_VECTOR(conv3x3_planes, call, static_cast<float*>(to_pointer(workspace)));
            return needed;
        },
        "Compute a convolution with few outputs, forward or (adjoint) grad_x. Workspace as for conv3x3_run.");
    bind(
        m, "conv3x3_few_grad_weight",
        [](const GeometryArgs& geometry, const MapArgs& few, const MapArgs& many, bool gradients, int dtype, intptr_t grad_weight,
           int threads, intptr_t workspace, int64_t bytes) {
            const Conv3x3FewGradWeight call{to_geometry(geometry), to_map(few), to_map(many), gradients, to_dtype(dtype),
                                            to_pointer(grad_weight), threads};
            FASTDS_CHECK(call.many.c == 1 && call.dtype != f64,
                         "conv3x3: channels of `many` must be contiguous and the gradient must not be float64");
            py::gil_scoped_release release;
            const int64_t needed = FASTDS_DISPATCH_VECTOR(conv3x3_few_grad_weight_bytes, call);
            if (needed <= bytes) FASTDS_DISPATCH_VECTOR(conv3x3_few_grad_weight, call, static_cast<float*>(to_pointer(workspace)));
            return needed;
        },
        "Compute the weight gradient of a convolution with few channels on one side. Workspace as for conv3x3_run.");
    bind(
        m, "conv3x3_packed_size",
        [](const FilterArgs& filters, bool amx) {
            const Conv3x3Filters f = to_filters(filters);
            return FASTDS_DISPATCH_VECTOR(conv3x3_packed_size, f.weight, f.adjoint, amx);
        },
        "Return the number of floats of a packed weight.");
    bind(
        m, "conv3x3_pack_weight",
        [](const FilterArgs& filters, bool amx, intptr_t packed, intptr_t copy, int threads) {
            Conv3x3Filters f = to_filters(filters);
            Conv3x3Weight& w = f.weight;
            FASTDS_CHECK(!amx || w.size == 3, "conv3x3: AMX supports only 3x3 filters");
            py::gil_scoped_release release;
            std::memcpy(to_pointer(copy), w.data, w.O * w.C * w.size * w.size * get_item_size(w.dtype));
            w.data = to_pointer(copy);
            FASTDS_DISPATCH_VECTOR(conv3x3_pack_weight, f, amx, static_cast<float*>(to_pointer(packed)), threads);
        },
        "Pack the filters of a contiguous weight for forward or (adjoint) grad_x, after copying it to `copy`. packed has "
        "conv3x3_packed_size floats, copy the bytes of the weight.");
#if FASTDS_BUILD_CUDA
    bind(
        m, "conv3x3_window_cuda",
        [](const GeometryArgs& geometry, const std::vector<TensorArgs>& sources, const TapWeightArgs& weight, intptr_t bias,
           int bias_dtype, const std::vector<TensorArgs>& residual, intptr_t y, float slope, int64_t shuffle, int device, intptr_t stream) {
            Conv3x3Window call{};
            set_window_convolution(call, geometry, sources, weight, bias, bias_dtype, residual);
            call.y = to_pointer(y), call.shuffle = shuffle, call.slope = slope;
            call.mode_h = std::get<7>(geometry), call.mode_w = std::get<8>(geometry);
            FASTDS_CHECK(shuffle >= 1, "conv3x3: wrong factor of the pixel shuffle");
            py::gil_scoped_release release;
            conv3x3_window_cuda(call, device, to_pointer(stream));
        },
        "Compute a convolution in 16 bits on tensor cores. Channels are contiguous and multiples of 8; y is dense, channels_last.");
    bind(m, "conv3x3_window_fits", &conv3x3_window_fits,
         "Return whether conv3x3_window_cuda has enough shared memory for these numbers of channels and outputs.");
#endif
}

}  // namespace fastds
