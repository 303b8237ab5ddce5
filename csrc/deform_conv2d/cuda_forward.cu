// SPDX-License-Identifier: Apache-2.0
#include "deform_conv2d/cuda_forward.cuh"

namespace fastds {

using namespace FASTDS_ISA;

namespace {

template <class T, int V, int kM, int kN, int kTM, int kTN>
void launch(const DeformConv2dDims& d, const DeformConv2dForward& t, void* stream) {
    const int64_t tiles = d.groups * ceil_div(d.O / d.groups, kN), blocks = ceil_div(d.B * d.Ho * d.Wo, kM) * tiles;
    const Inputs<T> in{static_cast<const T*>(t.x), t.offset, static_cast<const T*>(t.mask)};
    FASTDS_LAUNCH((deform_conv2d_forward_kernel<T, V, kM, kN, kTM, kTN>), grid_size(blocks), kThreads, 0, stream, d, in,
                  static_cast<const T*>(t.weight), static_cast<const T*>(t.bias), static_cast<T*>(t.y));
}

template <class T>
void run(const DeformConv2dDims& d, const DeformConv2dForward& t, void* stream) {
    const bool packs = packs_fit<T>(d, t.x);
    if (d.O / d.groups <= 16) {  // few outputs: more pixels instead of empty columns
        packs ? launch<T, kVector<T>, 128, 16, 4, 4>(d, t, stream) : launch<T, 1, 128, 16, 4, 4>(d, t, stream);
    } else {
        packs ? launch<T, kVector<T>, 64, 64, 8, 4>(d, t, stream) : launch<T, 1, 64, 64, 8, 4>(d, t, stream);
    }
}

}  // namespace

void deform_conv2d_forward_cuda(const DeformConv2dDims& dims, const DeformConv2dForward& tensors, int device, void* stream) {
    check_sizes(dims);
    const DeviceGuard guard(device);
    FASTDS_DTYPE_SWITCH(dims.dtype, run<scalar>(dims, tensors, stream))
}

}  // namespace fastds
