// SPDX-License-Identifier: Apache-2.0
#include "deform_conv2d/cuda_fused.cuh"

namespace fastds {

using namespace FASTDS_ISA;

namespace {

// Returns the division of a call of `terms` terms for `outputs` outputs of a group, without tiles.
FusedWork divide_outputs(int64_t terms, int64_t outputs) {
    FusedWork work{};
    work.parts = static_cast<int>(ceil_div(outputs, kMaxFusedOutputs));
    work.outputs = static_cast<int>(ceil_div(ceil_div(outputs, work.parts), kProductOutputs) * kProductOutputs);
    work.slabs = static_cast<int>(ceil_div(terms, kSlabGroups * kGroupTerms));
    return work;
}

int64_t count_shared_bytes(const FusedWork& work) {
    constexpr int64_t slab_bytes = kSlabGroups * sizeof(TermGroup);
    return static_cast<int64_t>(sizeof(FusedShared)) + kFusedStages * get_stage_bytes(work) + work.slabs * slab_bytes;
}

template <class T, class Offset>
void run_fused(const DeformConv2dDims& d, const DeformConv2dForward& t, const DeformConv2dOffsetEpilogue& epilogue, int device,
               void* stream) {
    check_samples<T, Offset>(d, t, 0, d.B * d.Ho);
    const auto kernel = deform_conv2d_fused_kernel<T, Offset>;
    const int64_t terms = d.kh * d.kw * (d.C / d.groups), outputs = d.O / d.groups;
    FASTDS_CHECK(deform_conv2d_fused_fits(terms, outputs, device), "deform_conv2d: deform_conv2d_fused_fits is false for this call");
    FASTDS_CHECK(reinterpret_cast<uintptr_t>(t.weight) % 16 == 0, "deform_conv2d: the fused kernel loads 16 bytes of the weight");
    FusedWork work = divide_outputs(terms, outputs);
    const int64_t across = ceil_div(d.Wo, kSampleTile), down = ceil_div(d.Ho, kSampleTile), parts = d.groups * work.parts;
    const int64_t tiles = d.B * across * down;
    const int64_t shares = std::min(std::max<int64_t>(count_multiprocessors(device) / parts, 1), tiles);
    const unsigned grid = get_grid_size(std::max(tiles, parts * shares));  // tiles and blocks are 32-bit integers
    work.across = static_cast<int>(across), work.down = static_cast<int>(down), work.tiles = static_cast<int>(tiles);
    work.shares = static_cast<int>(shares);
    work.packs = outputs % 8 == 0 && reinterpret_cast<uintptr_t>(t.y) % 16 == 0;
    const int bytes = static_cast<int>(count_shared_bytes(work));
    const int threads = kSamplingThreads + work.outputs / kProductOutputs * (kFusedPixels / kProductPixels) * 32;
    allow_shared_bytes(kernel, bytes);
    FASTDS_LAUNCH((deform_conv2d_fused_kernel<T, Offset>), static_cast<unsigned>(parts * shares), threads, bytes, stream, d,
                  make_inputs<T>(d, t), epilogue, work, static_cast<const T*>(t.weight), static_cast<const T*>(t.bias),
                  static_cast<T*>(t.y));
}

}  // namespace

bool deform_conv2d_fused_fits(int64_t terms, int64_t outputs, int device) {
    const DeviceGuard guard(device);
    return count_shared_bytes(divide_outputs(terms, outputs)) <= get_max_shared_bytes(device) &&
           get_compiled_capability(deform_conv2d_fused_kernel<Half, Half>) >= 80;
}

void deform_conv2d_fused_cuda(const DeformConv2dDims& dims, const DeformConv2dForward& tensors,
                              const DeformConv2dOffsetEpilogue& epilogue, int device, void* stream) {
    FASTDS_CHECK(dims.dtype == f16 || dims.dtype == bf16, "deform_conv2d: the fused kernel has only 16-bit types");
    const DeviceGuard guard(device);
    FASTDS_DTYPE_SWITCH(dims.dtype, {
        if constexpr (sizeof(scalar) == 2) {
            if (dims.offset_dtype == f32)
                run_fused<scalar, float>(dims, tensors, epilogue, device, stream);
            else
                run_fused<scalar, scalar>(dims, tensors, epilogue, device, stream);
        }
    })
}

}  // namespace fastds
