// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <array>

#include "core/arguments.h"
#include "window_attention2d/params.h"

namespace fastds {

// Returns the size in bytes of the workspace, which holds the planar copies. It is the same for all instruction sets.
inline int64_t window_attention2d_workspace(const AttentionDims& dims, bool backward) {
    const AttentionPlanes planes(dims);
    const int64_t maps = backward ? 4 : 3, extra = backward ? 2 : 0;
    // The workspace has 64 more elements than the planes, because the last vectors may extend beyond the last plane.
    return (dims.B * (maps * planes.image() + extra * planes.plane()) + 64) * (dims.dtype == f64 ? 8 : 4);
}

namespace window_attention2d_bind {

using Map = std::array<int64_t, 5>;  // address, strides of b, c, h, w
using Dims = std::array<int64_t, 6>;  // dtype, B, C, H, W, window

inline AttentionMap map_of(const Map& m) { return {to_pointer(m[0]), m[1], m[2], m[3], m[4]}; }

inline AttentionDims dims_of(const Dims& d) {
    const AttentionDims dims{to_dtype(static_cast<int>(d[0])), d[1], d[2], d[3], d[4], d[5]};
    FASTDS_CHECK(dims.B >= 0 && dims.C > 0 && dims.H > 0 && dims.W > 0, "window_attention2d: sizes must be positive");
    FASTDS_CHECK(dims.C <= 64, "window_attention2d: more than 64 channels");
    FASTDS_CHECK(dims.window > 0 && dims.window <= 64, "window_attention2d: the window must be 1 to 64");
    return dims;
}

}  // namespace window_attention2d_bind

inline void register_window_attention2d(py::module_& m) {
    using namespace window_attention2d_bind;
    bind(
        m, "window_attention2d_forward",
        [](const Dims& d, const Map& q, const Map& k, const Map& v, const Map& y, intptr_t lse, intptr_t workspace,
           int threads) {
            const AttentionDims dims = dims_of(d);
            const AttentionForward tensors{map_of(q), map_of(k), map_of(v), map_of(y), to_pointer(lse), to_pointer(workspace)};
            py::gil_scoped_release release;
            FASTDS_DISPATCH_TYPED(dims.dtype == f64, window_attention2d_forward, dims, tensors, threads);
        },
        "Compute y and lse. A tensor is (address, strides); dims is (dtype, B, C, H, W, window).");
    bind(
        m, "window_attention2d_backward",
        [](const Dims& d, const Map& grad_y, const Map& q, const Map& k, const Map& v, const Map& y, intptr_t lse,
           const Map& grad_q, const Map& grad_k, const Map& grad_v, intptr_t workspace, int threads) {
            const AttentionDims dims = dims_of(d);
            const AttentionBackward tensors{map_of(grad_y), map_of(q),      map_of(k),      map_of(v),
                                            map_of(y),      to_pointer(lse),   map_of(grad_q), map_of(grad_k),
                                            map_of(grad_v), to_pointer(workspace)};
            py::gil_scoped_release release;
            FASTDS_DISPATCH_TYPED(dims.dtype == f64, window_attention2d_backward, dims, tensors, threads);
        },
        "Compute the gradients whose address is not 0.");
    bind(
        m, "window_attention2d_workspace",
        [](const Dims& d, bool backward) { return window_attention2d_workspace(dims_of(d), backward); },
        "Return the size in bytes of the workspace.");
}

}  // namespace fastds
