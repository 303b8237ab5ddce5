// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "deform_conv2d/cuda_sample.cuh"

namespace fastds {

using namespace FASTDS_ISA;

namespace {

template <class T, class Offset, int kPacks>
void launch_sample(const DeformConv2dDims& d, const DeformConv2dForward& t, const DeformConv2dOffsetEpilogue& epilogue,
                   int64_t first_line, int64_t count, int device, void* stream) {
    const int64_t across = ceil_div(d.Wo, kSampleTile), packs = d.C / (kPacks * kVector<T>);
    const int64_t items = across * ceil_div(count, kSampleTile) * kSampleTile * kSampleTile * packs;
    FASTDS_CHECK(items <= INT32_MAX - kSampleThreads, "deform_conv2d: too many lines for one launch");
    const SampleLines lines{static_cast<int>(first_line), static_cast<int>(count), static_cast<int>(across),
                            static_cast<int>(packs), static_cast<int>(items)};
    const int64_t units = ceil_div(items, kSampleThreads) * d.kh * d.kw;
    const int64_t resident = int64_t{kPacks == 1 ? 4 : 3} * count_multiprocessors(device);
    FASTDS_LAUNCH((deform_conv2d_sample_kernel<T, Offset, kPacks>), get_grid_size(std::min(units, resident)), kSampleThreads, 0,
                  stream, d, make_inputs<T>(d, t), epilogue, lines, static_cast<T*>(t.y));
}

template <class T, class Offset>
void run_sample(const DeformConv2dDims& d, const DeformConv2dForward& t, const DeformConv2dOffsetEpilogue& epilogue,
                int64_t first_line, int64_t count, int device, void* stream) {
    const int64_t odd = d.offset_b | d.offset_h | d.offset_w;
    FASTDS_CHECK(can_load_packs<T>(d, t.x) && odd % 2 == 0 && reinterpret_cast<uintptr_t>(t.offset) % (2 * sizeof(Offset)) == 0,
                 "deform_conv2d: channels, strides and addresses must permit loads of 16 bytes and of pairs of offsets");
    FASTDS_CHECK(((d.H + 1) * d.x_h + (d.W + 1) * d.x_w) * static_cast<int64_t>(sizeof(T)) <= INT32_MAX && d.B * d.Ho + kSampleTile <= INT32_MAX &&
                     d.Ho * d.stride_h + d.pad_h <= INT32_MAX && d.Wo * d.stride_w + d.pad_w <= INT32_MAX,
                 "deform_conv2d: an image is larger than 32-bit positions reach");
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
    check_sizes(dims);
    FASTDS_CHECK(dims.dtype != f64, "deform_conv2d: the two passes have no float64");
    FASTDS_CHECK(first_line >= 0 && lines > 0 && first_line + lines <= dims.B * dims.Ho, "deform_conv2d: lines outside the output");
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
