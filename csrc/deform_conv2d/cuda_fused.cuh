// SPDX-License-Identifier: Apache-2.0
// Forward pass of deform_conv2d for 16-bit types in one kernel: some warps of a block sample, the others multiply on tensor cores.
//
// A block computes tiles of 8 x 8 output pixels for up to 128 outputs of a convolution group. The terms of the sum, in the order
// of the weight, are divided into slabs of 64, which are taps if a group has 64 channels. The sampling warps write the samples of
// a slab to a stage in shared memory and start the copy of its weights there; the multiplying warps add its products. Barriers in
// shared memory hand over a stage in each direction, so that sampling warps run ahead and do not wait for each other.
//
// A lane samples the same 8 terms of every slab, for the same pixel of every tile, without branches between its loads. The
// displacement and the mask of its next sample, also of that in the next tile, are loaded while the corners of this one arrive.
#pragma once
#include <algorithm>

#include "core/pipeline.h"
#include "deform_conv2d/cuda_sample.cuh"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int kFusedPixels = kSampleTile * kSampleTile;  // of a tile
constexpr int kSlabGroups = 8, kGroupTerms = 8;          // a slab has kSlabGroups TermGroups
constexpr int kSamplingThreads = kFusedPixels * kSlabGroups, kSamplingWarps = kSamplingThreads / 32;
constexpr int kProductPixels = 32, kProductOutputs = 32;  // of a multiplying warp
constexpr int kMaxFusedOutputs = 128;                     // of a block: more leave too few registers for a thread
constexpr int kMaxFusedThreads =
    kSamplingThreads + kFusedPixels / kProductPixels * (kMaxFusedOutputs / kProductOutputs) * 32;
constexpr int kFusedStages = 4;
constexpr int kStageRow = 16 * kSlabGroups;  // bytes of a pixel or an output in a stage
constexpr int kStageSamples = kFusedPixels * kStageRow;

// Division of the work: a block computes `outputs` outputs, one of `parts` parts of a group, for one of `shares` shares of the
// tiles of all images.
struct FusedWork {
    int across, down, tiles;
    int outputs, parts, shares;
    int slabs;
    bool packs;  // y is written in packs of 16 bytes
};

// Bytes of a stage: samples, then weights.
FASTDS_HD int get_stage_bytes(const FusedWork& work) { return kStageSamples + work.outputs * kStageRow; }

// Start of the dynamic shared memory, before the stages and the TermGroups.
struct FusedShared {
    PhaseBarrier filled[kFusedStages], emptied[kFusedStages];
    float bias[kMaxFusedOutputs];
};

// The 16 bytes of a TermGroup in a row of a stage. They are exchanged between rows, so that 8 rows of a load are in different
// banks.
__device__ __forceinline__ int find_in_row(int row, int term_group) { return row * kStageRow + (term_group ^ row % 8) * 16; }

// Output in a row of the weights of a stage: mma() gives a lane columns 2 t and 2 t + 1 of four products, which are made
// neighbouring outputs.
__device__ __forceinline__ int get_output_of_row(int row) {
    return row / kProductOutputs * kProductOutputs + row % 8 / 2 * 8 + row % kProductOutputs / 8 * 2 + row % 2;
}

struct FusedTile {
    int image, row, column;
};

__device__ __forceinline__ FusedTile find_fused_tile(const FusedWork& work, int tile) {
    const int line = tile / work.across, image = line / work.down;
    return {image, (line - image * work.down) * kSampleTile, (tile - line * work.across) * kSampleTile};
}

// The pixel of a lane in a tile: its image, and its displacements and masks. Lanes without a pixel have a position outside the
// image.
template <class T, class Offset>
struct FusedPixel {
    const T* image;
    const Offset* offset;
    const T* mask;  // null: all ones
    float row, column;

    __device__ __forceinline__ FusedPixel(const DeformConv2dDims& d, const Inputs<T>& in, const float* base,
                                          const FusedTile& tile, int place) {
        const int height = static_cast<int>(d.Ho), width = static_cast<int>(d.Wo);
        const int own_i = tile.row + place / kSampleTile, own_j = tile.column + place % kSampleTile;
        const int i = min(own_i, height - 1), j = min(own_j, width - 1);
        image = in.x + tile.image * d.x_b;
        offset = static_cast<const Offset*>(in.offset) + tile.image * d.offset_b + i * d.offset_h + j * d.offset_w;
        mask = in.mask == nullptr ? nullptr : in.mask + tile.image * d.mask_b + i * d.mask_h + j * d.mask_w;
        row = static_cast<float>(i * static_cast<int>(d.stride_h) - static_cast<int>(d.pad_h));
        column = static_cast<float>(j * static_cast<int>(d.stride_w) - static_cast<int>(d.pad_w));
        if (base != nullptr) {
            const float* of_pixel = base + (int64_t{2} * tile.image * height + i) * width + j;
            row += of_pixel[0], column += of_pixel[int64_t{height} * width];
        }
        if (own_i >= height || own_j >= width) row = NAN;
    }
    // Returns the displacement and the mask of offset group * K + tap.
    __device__ __forceinline__ Displacement load_sample(int q) const {
        const auto pair = reinterpret_cast<const Pack<Offset, 2>*>(offset)[q];
        return {load(pair.value[0]), load(pair.value[1]), mask != nullptr ? load(mask[q]) : 1.f};
    }
};

// Fills the stages for tiles [first, end). `weight` has the terms of the first output of the block, of which `outputs` exist.
template <class T, class Offset>
__device__ __forceinline__ void sample_tiles(const DeformConv2dDims& d, const Inputs<T>& in,
                                             const DeformConv2dOffsetEpilogue& epilogue, const FusedWork& work, int first, int end,
                                             const TermGroup* term_groups, const T* weight, int outputs, int terms, char* stages,
                                             FusedShared& shared) {
    const int place = threadIdx.x / kSlabGroups, own = threadIdx.x % kSlabGroups;
    const int x_h = static_cast<int>(d.x_h * sizeof(T)), x_w = static_cast<int>(d.x_w * sizeof(T));
    // Rows `place` and `place` + kFusedPixels of the weights. Sums of outputs that do not exist are not written.
    const int output = get_output_of_row(place), rows = (work.outputs - place + kFusedPixels - 1) / kFusedPixels;
    const T* const from[2] = {weight + int64_t{min(output, outputs - 1)} * terms + own * kGroupTerms,
                              weight + int64_t{min(output + kFusedPixels, outputs - 1)} * terms + own * kGroupTerms};
    term_groups += own, stages += find_in_row(place, own), terms -= own * kGroupTerms;
    int tile = first, slab = 0;
    FusedPixel<T, Offset> pixel(d, in, epilogue.base, find_fused_tile(work, tile), place);
    TermGroup term_group = *term_groups;
    Displacement next = pixel.load_sample(term_group.q);
    for (int step = 0; tile < end; step++) {
        const SampleCorners sample = find_corners(d, in, pixel.row + term_group.row + next.y,
                                                  pixel.column + term_group.column + next.x, next.mask, epilogue.sigmoid);
        SampleWords corner[1][4] = {};
        load_corners(sample, pixel.image + term_group.channel, x_h, x_w, corner);
        const int term = slab * (kSlabGroups * kGroupTerms);
        if (++slab == work.slabs) {
            slab = 0, tile++;
            if (tile < end) pixel = FusedPixel<T, Offset>(d, in, epilogue.base, find_fused_tile(work, tile), place);
        }
        term_group = term_groups[slab * kSlabGroups];
        next = pixel.load_sample(term_group.q);

        const int stage = step % kFusedStages;
        char* const at = stages + stage * get_stage_bytes(work);
        if (step >= kFusedStages) FASTDS_WAIT_FOR_PHASE(shared.emptied[stage], step / kFusedStages % 2 ^ 1);
        const bool exist = term < terms;  // a sum has no terms after its last one
        if (rows > 0) copy_async(at + kStageSamples, from[0] + (exist ? term : 0), exist);
        if (rows > 1) copy_async(at + kStageSamples + kFusedPixels * kStageRow, from[1] + (exist ? term : 0), exist);
        commit_copies();
        float factors[4];
        SampleWords words;
        sample.get_weights(factors);
        blend<T>(factors, corner[0], words.value);
        *reinterpret_cast<uint4*>(at) = make_uint4(words.value[0], words.value[1], words.value[2], words.value[3]);
        wait_for_copies<0>();
        __syncwarp();
        if (threadIdx.x % 32 == 0) arrive(shared.filled[stage]);
    }
}

// Sums of a multiplying warp as mma() returns them: two rows of 16 pixels, four products of 8 outputs.
struct FusedSums {
    float value[2][4][4];
};

// Adds the products of a stage for the pixels and outputs of a warp.
template <class T>
__device__ __forceinline__ void add_products(FusedSums& sums, const char* stage, int first_pixel, int first_output) {
    const int lane = threadIdx.x % 32, row = lane % 8;
    const char* const samples = stage + (first_pixel + lane % 16) * kStageRow;
    const char* const weights = stage + kStageSamples + (first_output + lane / 16 * 8 + row) * kStageRow;
#pragma unroll
    for (int k = 0; k < kSlabGroups; k += 2) {
        uint32_t a[2][4], b[2][4];
#pragma unroll
        for (int m = 0; m < 2; m++) {
            load_matrices(a[m], samples + m * 16 * kStageRow + ((k + lane / 16) ^ row) * 16);
            load_matrices(b[m], weights + m * 16 * kStageRow + ((k + lane / 8 % 2) ^ row) * 16);
        }
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int n = 0; n < 4; n++)
                mma<T>(sums.value[m][n],
                       {{a[m][0], a[m][1], a[m][2], a[m][3]}, {b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]}});
    }
}

// Writes y for the pixels of a warp and the 8 outputs of a lane, of which `outputs` exist. `to` is the first of these outputs in
// the first pixel of the image.
template <class T>
__device__ __forceinline__ void store_sums(const DeformConv2dDims& d, const FusedSums& sums, const FusedTile& tile,
                                           int first_pixel, const float* biases, int outputs, float slope, bool packs, T* to) {
    const int height = static_cast<int>(d.Ho), width = static_cast<int>(d.Wo), j = tile.column + threadIdx.x % 32 / 4;
    float bias[8];
    load_row(biases, bias);
#pragma unroll
    for (int r = 0; r < kProductPixels / kSampleTile; r++) {
        const int i = tile.row + first_pixel / kSampleTile + r;
        if (i >= height || j >= width) continue;
        Pack<T, 8> pack;
#pragma unroll
        for (int n = 0; n < 8; n++) {
            const float sum = sums.value[r / 2][n / 2][r % 2 * 2 + n % 2] + bias[n];
            pack.value[n] = store<T>(sum < 0 ? sum * slope : sum);
        }
        T* const at = to + (int64_t{i} * width + j) * d.O;
        if (packs && outputs > 0) *reinterpret_cast<Pack<T, 8>*>(at) = pack;
#pragma unroll
        for (int n = 0; n < 8; n++)
            if (!packs && n < outputs) at[n] = pack.value[n];
    }
}

// weight: (O, K, C/groups), contiguous; y: NHWC, contiguous. The block has kSamplingThreads threads and 64 for every 32 outputs.
// Dynamic shared memory: FusedShared, the stages, and the TermGroups.
template <class T, class Offset>
__global__ void __launch_bounds__(kMaxFusedThreads, 1)
deform_conv2d_fused_kernel(const DeformConv2dDims d, const Inputs<T> in, const DeformConv2dOffsetEpilogue epilogue,
                           const FusedWork work, const T* __restrict__ weight, const T* __restrict__ bias, T* __restrict__ y) {
    FASTDS_DYNAMIC_SHARED(FusedShared, shared);
    char* const stages = reinterpret_cast<char*>(shared + 1);
    const auto term_groups = reinterpret_cast<TermGroup*>(stages + kFusedStages * get_stage_bytes(work));
    const Groups size(d);
    const int part = static_cast<int>(blockIdx.x) / work.shares, group = part / work.parts, share = blockIdx.x % work.shares;
    const int skipped = part % work.parts * work.outputs, o0 = group * size.outputs + skipped, outputs = size.outputs - skipped;
    const int terms = size.K * size.channels, thread = threadIdx.x;
    for (int i = thread; i < work.slabs * kSlabGroups; i += blockDim.x)
        term_groups[i] = find_term_group(d, size, group, i * kGroupTerms);
    for (int n = thread; n < work.outputs; n += blockDim.x)
        shared->bias[n] = bias != nullptr && n < outputs ? load(bias[o0 + n]) : 0;
    if (thread == 0) {
#pragma unroll
        for (int stage = 0; stage < kFusedStages; stage++) {
            init_barrier(shared->filled[stage], kSamplingWarps);
            init_barrier(shared->emptied[stage], (blockDim.x - kSamplingThreads) / 32);
        }
    }
    __syncthreads();
    const int least = work.tiles / work.shares, more = work.tiles % work.shares;  // tiles of a share; shares with one more
    const int first = share * least + min(share, more), end = first + least + (share < more ? 1 : 0);
    if (thread < kSamplingThreads) {
        sample_tiles<T, Offset>(d, in, epilogue, work, first, end, term_groups, weight + int64_t{o0} * terms, outputs, terms, stages,
                                *shared);
        return;
    }
    constexpr int kPixelWarps = kFusedPixels / kProductPixels;
    const int warp = (thread - kSamplingThreads) / 32, first_pixel = warp % kPixelWarps * kProductPixels;
    const int first_output = warp / kPixelWarps * kProductOutputs, own_output = first_output + thread % 4 * 8;
    for (int tile = first, step = 0; tile < end; tile++) {
        FusedSums sums{};
        for (int slab = 0; slab < work.slabs; slab++, step++) {
            const int stage = step % kFusedStages;
            FASTDS_WAIT_FOR_PHASE(shared->filled[stage], step / kFusedStages % 2);
            add_products<T>(sums, stages + stage * get_stage_bytes(work), first_pixel, first_output);
            __syncwarp();
            if (thread % 32 == 0) arrive(shared->emptied[stage]);
        }
        const FusedTile at = find_fused_tile(work, tile);
        store_sums(d, sums, at, first_pixel, shared->bias + own_output, outputs - own_output, epilogue.slope, work.packs,
                   y + at.image * (d.Ho * d.Wo * d.O) + o0 + own_output);
    }
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
