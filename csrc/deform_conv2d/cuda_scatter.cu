// SPDX-License-Identifier: Apache-2.0
#include "deform_conv2d/cuda_scatter.cuh"

namespace fastds {

using namespace FASTDS_ISA;

namespace {

template <class T, class Offset>
void run_scatter(const DeformConv2dDims& d, const DeformConv2dForward& t, const DeformConv2dOffsetEpilogue& epilogue,
                 const void* columns, const DeformConv2dMapGradients& grads, int64_t first_line, int64_t count, int device,
                 void* stream) {
    check_samples<T, Offset>(d, t, first_line, count);
    FASTDS_CHECK((d.H + 1) * (d.W + 1) * d.C <= INT32_MAX, "deform_conv2d: an image is larger than 32-bit positions reach");
    const int packs = static_cast<int>(d.C / d.offset_groups / kVector<T>);
    int lanes = 1;
    while (lanes < 8 && 2 * lanes <= packs) lanes *= 2;
    const SampleLines lines = make_lines(d, first_line, count, d.offset_groups * lanes);
    FASTDS_LAUNCH((deform_conv2d_scatter_kernel<T, Offset>), count_sample_blocks(d, lines, kScatterBlocks, device), kSampleThreads,
                  0, stream, d, make_inputs<T>(d, t), epilogue, lines, lanes, static_cast<const T*>(columns), grads);
}

}  // namespace

void deform_conv2d_scatter_cuda(const DeformConv2dDims& dims, const DeformConv2dForward& tensors,
                                const DeformConv2dOffsetEpilogue& epilogue, const void* columns,
                                const DeformConv2dMapGradients& grads, int64_t first_line, int64_t lines, int device,
                                void* stream) {
    FASTDS_CHECK(dims.dtype != f64, "deform_conv2d: the two passes have no float64");
    const DeviceGuard guard(device);
    FASTDS_DTYPE_SWITCH(dims.dtype, {
        if constexpr (sizeof(scalar) != 8) {
            if (dims.offset_dtype == f32)
                run_scatter<scalar, float>(dims, tensors, epilogue, columns, grads, first_line, lines, device, stream);
            else
                run_scatter<scalar, scalar>(dims, tensors, epilogue, columns, grads, first_line, lines, device, stream);
        }
    })
}

}  // namespace fastds
