// SPDX-License-Identifier: Apache-2.0
#include "deform_conv2d/cuda_backward.cuh"


namespace fastds {

using namespace FASTDS_ISA;

namespace {

template <class T, int V, class GradX>
void launch_samples(const DeformConv2dDims& d, const DeformConv2dBackward& t, const GradX& grad_x, bool needs_x, void* stream) {
    const PairTiles tiles(d);
    const int64_t blocks = ceil_div(d.B * d.Ho * d.Wo, sizeof(T) == 8 ? 32 : 64) * tiles.tiles;
    FASTDS_LAUNCH((deform_conv2d_backward_samples_kernel<T, V, GradX>), get_grid_size(blocks), kThreads, 0, stream, d, tiles,
                  make_inputs<T>(d, t), static_cast<const T*>(t.grad_y), static_cast<const T*>(t.weight), grad_x, needs_x,
                  t.grad_offset,
                  static_cast<T*>(t.grad_mask));
}

template <class T>
void launch_ordered(const DeformConv2dDims& d, const DeformConv2dBackward& t, void* stream) {
    using A = compute_t<T>;
    const OrderedLayout layout(d, Ordered<A>::kWords);
    char* memory = static_cast<char*>(t.workspace);
    auto* maxima = reinterpret_cast<unsigned long long*>(memory + layout.maxima_at());
    const Ordered<A> grad_x{reinterpret_cast<unsigned long long*>(memory),
                            reinterpret_cast<unsigned*>(memory + layout.flags_at()),
                            maxima, t.mask != nullptr ? 3 : 2, layout.n, d.O / d.groups, d.kh * d.kw * d.Ho * d.Wo, 0};
    const auto largest = [&](const void* values, int64_t n, int which) {
        FASTDS_LAUNCH((largest_kernel<T>), static_cast<unsigned>(n < 1 << 18 ? ceil_div(n, 256) : 1024), 256, 0, stream,
                      static_cast<const T*>(values), n, maxima + which);
    };
    largest(t.grad_y, d.B * d.Ho * d.Wo * d.O, 0);
    largest(t.weight, d.O * (d.C / d.groups) * d.kh * d.kw, 1);
    if (t.mask != nullptr) largest(t.mask, d.B * d.Ho * d.Wo * d.offset_groups * d.kh * d.kw, 2);
    launch_samples<T, 1>(d, t, grad_x, true, stream);
    FASTDS_LAUNCH((from_fixed_point_kernel<T>), get_grid_size(ceil_div(layout.n, 256)), 256, 0, stream, grad_x,
                  static_cast<T*>(t.grad_x));
}

template <class T>
void run_samples(const DeformConv2dDims& d, const DeformConv2dBackward& t, void* stream) {
    using A = compute_t<T>;
    if (t.grad_x != nullptr && t.workspace != nullptr) return launch_ordered<T>(d, t, stream);
    const Unordered<A> grad_x{static_cast<A*>(t.grad_x)};
    if (can_load_packs<T>(d, t.x)) {
        launch_samples<T, kVector<T>>(d, t, grad_x, t.grad_x != nullptr, stream);
    } else {
        launch_samples<T, 1>(d, t, grad_x, t.grad_x != nullptr, stream);
    }
}

template <class T, int V>
void launch_weight(const DeformConv2dDims& d, const DeformConv2dBackward& t, void* stream) {
    using A = compute_t<T>;
    const WeightPartition partition(d);
    A* partial = static_cast<A*>(t.workspace);
    const int64_t n = d.O * (d.C / d.groups) * d.kh * d.kw;
    FASTDS_LAUNCH((deform_conv2d_backward_weight_kernel<T, V>), get_grid_size(partition.parts * partition.tiles), kThreads, 0,
                  stream, d, partition,
                  make_inputs<T>(d, t), static_cast<const T*>(t.grad_y), partial);
    FASTDS_LAUNCH((deform_conv2d_sum_weight_kernel<T>), get_grid_size(ceil_div(n, 256)), 256, 0, stream, partial,
                  static_cast<T*>(t.grad_weight), partition.parts, d.O, d.C / d.groups, d.kh * d.kw);
}

template <class T>
void run_weight(const DeformConv2dDims& d, const DeformConv2dBackward& t, void* stream) {
    can_load_packs<T>(d, t.x) ? launch_weight<T, kVector<T>>(d, t, stream) : launch_weight<T, 1>(d, t, stream);
}

}  // namespace

void deform_conv2d_backward_samples_cuda(const DeformConv2dDims& dims, const DeformConv2dBackward& tensors, int device,
                                         void* stream) {
    check_sizes(dims);
    const DeviceGuard guard(device);
    FASTDS_DTYPE_SWITCH(dims.dtype, run_samples<scalar>(dims, tensors, stream))
}

void deform_conv2d_backward_weight_cuda(const DeformConv2dDims& dims, const DeformConv2dBackward& tensors, int device,
                                        void* stream) {
    check_sizes(dims);
    const DeviceGuard guard(device);
    FASTDS_DTYPE_SWITCH(dims.dtype, run_weight<scalar>(dims, tensors, stream))
}

int64_t deform_conv2d_ordered_workspace(const DeformConv2dDims& dims) {
    return OrderedLayout(dims, dims.dtype == f64 ? 2 : 1).bytes();
}

int64_t deform_conv2d_weight_workspace(const DeformConv2dDims& dims) {
    return WeightPartition(dims).parts * dims.O * (dims.C / dims.groups) * dims.kh * dims.kw * (dims.dtype == f64 ? 8 : 4);
}

}  // namespace fastds
