// SPDX-License-Identifier: Apache-2.0
// Conversion of Python arguments to the structs of params.h, for the bindings of conv3x3 and of the recurrent cells that use
// its engine.
#pragma once
#include <string>
#include <tuple>
#include <vector>

#include "conv3x3/params.h"
#include "core/arguments.h"

namespace fastds {

// address, dtype, channels, strides of batch, row, pixel and channel in elements
using TensorArgs = std::tuple<intptr_t, int, int64_t, int64_t, int64_t, int64_t, int64_t>;
// B, H, W, Ho, Wo, pad_h, pad_w, mode_h, mode_w
using GeometryArgs = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int, int, int, int>;

inline int64_t get_item_size(int dtype) { return dtype == f64 ? 8 : dtype == f32 ? 4 : 2; }

// Converts a tensor to a view. Its channel stride must be 1 or, if `planar` is true, its pixel stride may be 1 instead.
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

}  // namespace fastds
