// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "core/arguments.h"
#include "pixel_shuffle/params.h"

namespace fastds {

namespace pixel_shuffle_bind {

inline PixelShuffleParams make_params(int dtype, int64_t B, int64_t C, int64_t H, int64_t W, int r, int act,
                                      double negative_slope) {
    to_dtype(dtype);
    FASTDS_CHECK(B >= 0 && C > 0 && H >= 0 && W >= 0, "pixel_shuffle: sizes must be positive");
    FASTDS_CHECK(r >= 1 && r <= 8, "pixel_shuffle: r must be from 1 to 8");
    FASTDS_CHECK(act >= 0 && act <= 2, "pixel_shuffle: act must be 0, 1 or 2");
    return {dtype, B, C, H, W, r, static_cast<ShuffleAct>(act), negative_slope};
}

}  // namespace pixel_shuffle_bind

inline void register_pixel_shuffle(py::module_& m) {
    using namespace pixel_shuffle_bind;
    py::class_<PixelShuffleParams>(m, "PixelShuffleParams", "Sizes and activation of one pixel_shuffle call")
        .def(py::init([](const py::args& given) { return unpack(&make_params, given); }))
        .def_property_readonly("partials", &pixel_shuffle_partials, "Number of partial sums of the bias gradient on CUDA.")
        .def_property_readonly("cpu_partials", &pixel_shuffle_cpu_partials,
                               "Number of partial sums of the bias gradient on a CPU.");
    bind(
        m, "pixel_shuffle_forward",
        [](intptr_t x, intptr_t bias, intptr_t y, bool planes, const PixelShuffleParams& params, int threads) {
            py::gil_scoped_release release;
            const PixelShuffleForward tensors{to_pointer(x), to_pointer(bias), to_pointer(y), planes};
            FASTDS_DISPATCH_TYPED(params.dtype == f64, pixel_shuffle_forward, params, tensors, threads);
        },
        "Compute y. If the address bias is 0, only permute. planes: x and y are NCHW.");
    bind(
        m, "pixel_shuffle_backward",
        [](intptr_t grad_y, intptr_t y, intptr_t grad_x, intptr_t grad_bias, intptr_t partials, bool planes,
           const PixelShuffleParams& params, int threads) {
            py::gil_scoped_release release;
            const PixelShuffleBackward tensors{to_pointer(grad_y), to_pointer(y), to_pointer(grad_x), to_pointer(grad_bias),
                                               to_pointer(partials), planes};
            FASTDS_DISPATCH_TYPED(params.dtype == f64, pixel_shuffle_backward, params, tensors, threads);
        },
        "Compute the gradients whose address is not 0. y is 0 without activation. planes: all tensors are NCHW.");
#if FASTDS_BUILD_CUDA
    bind(m, "pixel_shuffle_forward_cuda", [](intptr_t x, intptr_t bias, intptr_t y, const PixelShuffleParams& params,
                                           int device, intptr_t stream) {
        py::gil_scoped_release release;
        const PixelShuffleForward tensors{to_pointer(x), to_pointer(bias), to_pointer(y), false};
        pixel_shuffle_forward_cuda(params, tensors, device, to_pointer(stream));
    });
    bind(m, "pixel_shuffle_backward_cuda",
          [](intptr_t grad_y, intptr_t y, intptr_t grad_x, intptr_t grad_bias, intptr_t partials,
             const PixelShuffleParams& params, int device, intptr_t stream) {
              py::gil_scoped_release release;
              const PixelShuffleBackward tensors{to_pointer(grad_y), to_pointer(y), to_pointer(grad_x), to_pointer(grad_bias),
                                                 to_pointer(partials), false};
              pixel_shuffle_backward_cuda(params, tensors, device, to_pointer(stream));
          });
#endif
}

}  // namespace fastds
