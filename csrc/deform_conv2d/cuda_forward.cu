// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <iterator>

#include "deform_conv2d/cuda_forward.cuh"

namespace fastds {

using namespace FASTDS_ISA;

namespace {

template <class T, int V, int kM, int kN, int kTM, int kTN>
void launch(const DeformConv2dDims& d, const DeformConv2dForward& t, void* stream) {
    const int64_t tiles = d.groups * ceil_div(d.O / d.groups, kN), blocks = ceil_div(d.B * d.Ho * d.Wo, kM) * tiles;
    FASTDS_LAUNCH((deform_conv2d_forward_kernel<T, V, kM, kN, kTM, kTN>), get_grid_size(blocks), kThreads, 0, stream, d,
                  make_inputs<T>(d, t), static_cast<const T*>(t.weight), static_cast<const T*>(t.bias), static_cast<T*>(t.y));
}

template <class T>
void launch_tensor_cores(const DeformConv2dDims& d, const DeformConv2dForward& t, int device, void* stream) {
    const int64_t tiles = d.groups * ceil_div(d.O / d.groups, kMmaOutputs);
    const int64_t places = ceil_div(2 * count_multiprocessors(device), tiles);
    const int64_t shares = std::min(places, ceil_div(d.B * d.Ho * d.Wo, kMmaWarps * kMmaPixels));
    constexpr int bytes = kMmaOutputs * kMmaPanel * sizeof(T);
    allow_shared_bytes(deform_conv2d_tensor_cores_kernel<T>, bytes);
    FASTDS_LAUNCH((deform_conv2d_tensor_cores_kernel<T>), get_grid_size(tiles * shares), kMmaWarps * 32, bytes, stream, d,
                  make_inputs<T>(d, t), static_cast<const T*>(t.weight), static_cast<const T*>(t.bias), static_cast<T*>(t.y),
                  static_cast<int>(shares));
}

// Returns whether the tensor-core kernels can run: at least 16 channels and outputs per group, aligned vector loads, element
// counts within 32 bits, and code compiled for sm_80 or newer.
template <class T>
bool can_use_tensor_cores(const DeformConv2dDims& d, const DeformConv2dForward& t) {
    const int64_t terms = d.kh * d.kw * (d.C / d.groups), samples = d.offset_groups * d.kh * d.kw;
    const int64_t extents[] = {terms + kMmaTerms, d.B * d.Ho * d.Wo + kMmaPixels,
                               (d.B - 1) * d.x_b + d.H * d.x_h + d.W * d.x_w + d.C,
                               (d.B - 1) * d.offset_b + d.Ho * d.offset_h + d.Wo * d.offset_w + 2 * samples,
                               (d.B - 1) * d.mask_b + d.Ho * d.mask_h + d.Wo * d.mask_w + samples};
    return d.C / d.groups >= 16 && d.O / d.groups >= 16 && can_load_packs<T>(d, t.x) &&
           reinterpret_cast<uintptr_t>(t.weight) % 16 == 0 &&
           std::all_of(std::begin(extents), std::end(extents), [](int64_t n) { return n <= INT32_MAX; }) &&
           get_compiled_capability(deform_conv2d_tensor_cores_kernel<T>) >= 80;
}

// Returns the window with the largest margin that fits into shared memory, or one with rows = 0 if none fits. All weights of 64
// outputs are in shared memory as well.
template <class T>
Window find_window(const DeformConv2dDims& d, const DeformConv2dForward& t, int device) {
    const int64_t channels = d.C / d.groups, terms = d.kh * d.kw * channels, least = 2;
    const int64_t odd = d.offset_b | d.offset_h | d.offset_w, offset_bytes = d.offset_dtype == f32 ? 4 : 2;
    Window window{};
    if (terms > kMmaPanel || channels > 64 || odd % 2 != 0 || reinterpret_cast<uintptr_t>(t.offset) % (2 * offset_bytes) != 0)
        return window;
    const int64_t limit = get_max_shared_bytes(device) - kPanelBytes - 2048;  // less the statically allocated shared memory
    const int64_t rows = (kWindowRows - 1) * d.stride_h + (d.kh - 1) * d.dil_h + 2;
    const int64_t columns = (kWindowColumns - 1) * d.stride_w + (d.kw - 1) * d.dil_w + 2;
    for (int64_t margin = kMaxMargin; margin >= least; margin--) {
        if (limit < kExchangeBytes || (rows + 2 * margin) * (columns + 2 * margin) * channels * 2 > limit) continue;
        window.rows = static_cast<int>(rows + 2 * margin), window.columns = static_cast<int>(columns + 2 * margin);
        window.margin = static_cast<int>(margin);
        window.tiles_down = static_cast<int>(ceil_div(d.Ho, kWindowRows));
        window.tiles_across = static_cast<int>(ceil_div(d.Wo, kWindowColumns));
        break;
    }
    return window;
}

template <class T>
void launch_window(const DeformConv2dDims& d, const DeformConv2dForward& t, const Window& window,
                   const DeformConv2dOffsetEpilogue& epilogue, int device, void* stream) {
    const int64_t parts = d.groups * ceil_div(d.O / d.groups, kMmaOutputs), tiles = d.B * window.tiles_down * window.tiles_across;
    const int64_t shares = std::min(ceil_div(count_multiprocessors(device), parts), tiles);
    const int64_t pixels = int64_t{window.rows} * window.columns * (d.C / d.groups) * 2;
    const int bytes = kPanelBytes + static_cast<int>(std::max<int64_t>(pixels, kExchangeBytes));
    allow_shared_bytes(deform_conv2d_window_kernel<T>, bytes);
    FASTDS_LAUNCH((deform_conv2d_window_kernel<T>), get_grid_size(parts * shares), kWindowWarps * 32, bytes, stream, d,
                  make_inputs<T>(d, t), epilogue, static_cast<const T*>(t.weight), static_cast<const T*>(t.bias),
                  static_cast<T*>(t.y),
                  window, static_cast<int>(shares));
}

template <class T>
Window select_window(const DeformConv2dDims& d, const DeformConv2dForward& t, int device) {
    if constexpr (sizeof(T) == 2) {
        if (can_use_tensor_cores<T>(d, t)) return find_window<T>(d, t, device);
    }
    return {};
}

template <class T>
void run(const DeformConv2dDims& d, const DeformConv2dForward& t, int device, void* stream) {
    if constexpr (sizeof(T) == 2) {
        if (can_use_tensor_cores<T>(d, t)) {
            const Window window = find_window<T>(d, t, device);
            if (window.rows > 0) return launch_window<T>(d, t, window, {nullptr, false, 1.f}, device, stream);
            return launch_tensor_cores<T>(d, t, device, stream);
        }
    }
    const bool packs = can_load_packs<T>(d, t.x);
    if (d.O / d.groups <= 16) {  // few outputs: a tile with more pixels instead of unused columns
        packs ? launch<T, kVector<T>, 128, 16, 4, 4>(d, t, stream) : launch<T, 1, 128, 16, 4, 4>(d, t, stream);
    } else {
        packs ? launch<T, kVector<T>, 64, 64, 8, 4>(d, t, stream) : launch<T, 1, 64, 64, 8, 4>(d, t, stream);
    }
}

}  // namespace

bool deform_conv2d_window_fits(const DeformConv2dDims& dims, const DeformConv2dForward& tensors, int device) {
    const DeviceGuard guard(device);
    FASTDS_DTYPE_SWITCH(dims.dtype, return select_window<scalar>(dims, tensors, device).rows > 0)
    return false;
}

void deform_conv2d_guided_cuda(const DeformConv2dDims& dims, const DeformConv2dForward& tensors,
                               const DeformConv2dOffsetEpilogue& epilogue,
                               int device, void* stream) {
    const DeviceGuard guard(device);
    FASTDS_DTYPE_SWITCH(dims.dtype, {
        if constexpr (sizeof(scalar) == 2) {
            const Window window = select_window<scalar>(dims, tensors, device);
            FASTDS_CHECK(window.rows > 0, "deform_conv2d: deform_conv2d_window_fits is false for this call");
            launch_window<scalar>(dims, tensors, window, epilogue, device, stream);
        }
    })
}

void deform_conv2d_forward_cuda(const DeformConv2dDims& dims, const DeformConv2dForward& tensors, int device, void* stream) {
    check_sizes(dims);
    const DeviceGuard guard(device);
    FASTDS_DTYPE_SWITCH(dims.dtype, run<scalar>(dims, tensors, device, stream))
}

}  // namespace fastds
