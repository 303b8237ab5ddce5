// SPDX-License-Identifier: Apache-2.0
#include "core/launch.h"
#include "inr_query/cuda.cuh"
#include "inr_query/params.h"

namespace fastds {

using namespace FASTDS_ISA;

namespace {

// Returns the number of blocks of a launch. It depends only on the shape, so that the partial sums do not depend on the device.
unsigned count_blocks(const InrQueryDims& d) {
    constexpr int64_t kQueriesPerWarp = 8, kMaxBlocks = 2048;
    const int64_t required = (d.B * d.Q + kInrWarps * kQueriesPerWarp - 1) / (kInrWarps * kQueriesPerWarp);
    return static_cast<unsigned>(required < 1 ? 1 : required > kMaxBlocks ? kMaxBlocks : required);
}

template <class T, class Kernel>
int get_shared_bytes(const InrQueryDims& d, bool backward, Kernel kernel) {
    const int64_t bytes = kInrWarps * inr_shared(d, backward) * static_cast<int64_t>(sizeof(compute_t<T>));
    FASTDS_CHECK(bytes <= (96 << 10), "inr_query: D, heads and dk need more shared memory than a block has");
    if (bytes > (48 << 10)) allow_shared_bytes(kernel, static_cast<int>(bytes));
    return static_cast<int>(bytes);
}

template <class T>
void compute_features(const InrQueryDims& d, const InrQueryTensors& t, void* rows, void* weights, void* stream) {
    const int bytes = get_shared_bytes<T>(d, false, inr_features_kernel<T>);
    FASTDS_LAUNCH((inr_features_kernel<T>), count_blocks(d), kInrWarps * 32, bytes, stream, d, t, static_cast<T*>(rows),
                  static_cast<compute_t<T>*>(weights));
}

template <class T>
void backward(const InrQueryDims& d, const InrQueryTensors& t, const void* grad_rows, void* grad_maps, void* partials,
              void* stream) {
    using A = compute_t<T>;
    const int bytes = get_shared_bytes<T>(d, true, inr_features_backward_kernel<T>);
    FASTDS_LAUNCH((inr_features_backward_kernel<T>), count_blocks(d), kInrWarps * 32, bytes, stream, d, t,
                  static_cast<const A*>(grad_rows), static_cast<A*>(grad_maps), inr_query_channels(d),
                  static_cast<A*>(partials), kInrOffsetRows * d.D + 2 * d.heads);
}

}  // namespace

int64_t inr_query_cuda_partials(const InrQueryDims& dims) { return static_cast<int64_t>(count_blocks(dims)) * kInrWarps; }

void inr_query_features_cuda(const InrQueryDims& dims, const InrQueryTensors& tensors, void* rows, void* weights, int device,
                             void* stream) {
    if (dims.B * dims.Q == 0) return;
    const DeviceGuard guard(device);
    FASTDS_DTYPE_SWITCH(dims.dtype, compute_features<scalar>(dims, tensors, rows, weights, stream))
}

void inr_query_features_backward_cuda(const InrQueryDims& dims, const InrQueryTensors& tensors, const void* grad_rows,
                                      void* grad_maps, void* partials, int device, void* stream) {
    if (dims.B * dims.Q == 0) return;
    const DeviceGuard guard(device);
    FASTDS_DTYPE_SWITCH(dims.dtype, backward<scalar>(dims, tensors, grad_rows, grad_maps, partials, stream))
}

}  // namespace fastds
