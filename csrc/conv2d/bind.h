// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "conv2d/params.h"
#include "core/arguments.h"

namespace fastds {

inline void register_conv2d(py::module_& m) {
    bind(
        m, "conv2d_border",
        [](intptr_t from, intptr_t to, int64_t B, int64_t H, int64_t W, int64_t C, int64_t stride_b, int64_t stride_h,
           int64_t stride_w, int64_t before, int64_t after, int64_t item, int threads) {
            const Conv2dBorder call{to_pointer(from), to_pointer(to), B,      H,     W,    C,      stride_b,
                                    stride_h,      stride_w,    before, after, item, threads};
            py::gil_scoped_release release;
            FASTDS_DISPATCH(conv2d_border, call);
        },
        "Copy channels_last tensors and add a border of zeros.");
    bind(
        m, "conv2d_taps",
        [](intptr_t from, intptr_t to, int64_t O, int64_t C, int64_t size, int64_t item, int threads) {
            FASTDS_CHECK(item == 2 || item == 4, "conv2d: expected elements of 2 or 4 bytes");
            const Conv2dTaps call{to_pointer(from), to_pointer(to), O, C, size, item, threads};
            py::gil_scoped_release release;
            FASTDS_DISPATCH(conv2d_taps, call);
        },
        "Copy blocks (O, side, side, C, 3, 3) to a filter (O, C, size, size).");
}

}  // namespace fastds
