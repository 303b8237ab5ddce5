// SPDX-License-Identifier: Apache-2.0
#include "deform_conv2d/cuda_sample.cuh"

namespace fastds {

using namespace FASTDS_ISA;

namespace {

template <class T, class Offset, int kPacks>
void launch_sample(const DeformConv2dDims& d, const DeformConv2dForward& t, const DeformConv2dOffsetEpilogue& epilogue,
                   int64_t first_line, int64_t count, int device, void* stream) {
    const SampleLines lines = make_lines(d, first_line, count, d.C / (kPacks * kVector<T>));
    FASTDS_LAUNCH((deform_conv2d_sample_kernel<T, Offset, kPacks>), count_sample_blocks(d, lines, kPacks == 1 ? 4 : 3, device),
                  kSampleThreads, 0, stream, d, make_inputs<T>(d, t), epilogue, lines, static_cast<T*>(t.y));
}

template <class T, class Offset>
void run_sample(const DeformConv2dDims& d, const DeformConv2dForward& t, const DeformConv2dOffsetEpilogue& epilogue,
                int64_t first_line, int64_t count, int device, void* stream) {
    check_samples<T, Offset>(d, t, first_line, count);
    const int64_t both = (d.C / d.groups) | (d.C / d.offset_groups);
    if (both % (2 * kVector<T>) == 0)
        launch_sample<T, Offset, 2>(d, t, epilogue, first_line, count, device, stream);
    else
        launch_sample<T, Offset, 1>(d, t, epilogue, first_line, count, device, stream);
}

}  // namespace

void deform_conv2d_sample_cuda(const DeformConv2dDims& dims, const DeformConv2dForward& tensors,
                               const DeformConv2dOffsetEpilogue& epilogue, int64_t first_line, int64_t lines, int device,
                               void* stream) {
    FASTDS_CHECK(dims.dtype != f64, "deform_conv2d: the two passes have no float64");
    const DeviceGuard guard(device);
    FASTDS_DTYPE_SWITCH(dims.dtype, {
        if constexpr (sizeof(scalar) != 8) {
            if (dims.offset_dtype == f32)
                run_sample<scalar, float>(dims, tensors, epilogue, first_line, lines, device, stream);
            else
                run_sample<scalar, scalar>(dims, tensors, epilogue, first_line, lines, device, stream);
        }
    })
}

}  // namespace fastds
