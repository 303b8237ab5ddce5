// SPDX-License-Identifier: Apache-2.0
// Accumulation of grad_x when images are divided into bands (backward_partition.h). Each task accumulates its band in a
// thread-local window and adds it to the image, a few rows at a time, after all earlier bands have done so. The order of each
// sum therefore does not depend on the number of threads, and one window per thread is enough.
#pragma once
#include <sched.h>

#include "core/parallel.h"
#include "deform_conv2d/backward_partition.h"
#include "deform_conv2d/scatter.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

template <class T, class A>
struct OrderedAccumulator {
    OrderedAccumulator(const DeformConv2dDims& d, const BackwardPartition& partition, const BackwardWorkspace& layout,
                       void* grad_x, void* workspace)
        : d(d), partition(partition), grad_x(static_cast<T*>(grad_x)),
          sums(sizeof(T) == sizeof(A) ? static_cast<A*>(grad_x)
                                      : reinterpret_cast<A*>(static_cast<char*>(workspace) + layout.sums_at)),
          counters(reinterpret_cast<int32_t*>(static_cast<char*>(workspace) + layout.counters_at)) {}

    // Returns the elements of a thread's window. It has twice the size of the image, but a task touches only a few of its rows,
    // which are about the same for all tasks.
    int64_t count_window_elements() const { return 2 * d.H * d.W * partition.slice_channels; }
    // Returns the address of row 0 of the image in a window, for a task whose band starts at output row `row_begin`.
    A* get_image(A* window, int64_t row_begin, int64_t channels) const {
        const int64_t y = row_begin * d.stride_h;
        return window + (d.H - 1 - (y < d.H ? y : d.H - 1)) * d.W * channels;
    }

    void start() const { __builtin_memset(counters, 0, d.B * partition.slices * count_row_chunks(d) * sizeof(int32_t)); }

    // Adds a band to the image. It must be called once for each band of image b and the slice. Tasks start in order, so that
    // the bands that this call waits for are being computed.
    void add(int64_t b, int64_t slice, int64_t band, const GradImage<A>& band_image) const {
        const int64_t chunks = count_row_chunks(d);
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            // 2 * (number of bands that are done) + (1 if one of them has added to these rows)
            int32_t* counter = counters + (b * partition.slices + slice) * chunks + chunk;
            int32_t state;
            while ((state = __atomic_load_n(counter, __ATOMIC_ACQUIRE)) / 2 != band) sched_yield();
            const int64_t begin = chunk * kOrderedRows, end = begin + kOrderedRows < d.H ? begin + kOrderedRows : d.H;
            const bool last = band + 1 == partition.bands, adds = begin < band_image.end && end > band_image.begin;
            if (adds || (last && state % 2 == 0)) {
                for (int64_t y = begin; y < end; y++) add_row(b, slice, y, band_image, state % 2 == 0);
                state |= 1;
            }
            __atomic_store_n(counter, state + 2, __ATOMIC_RELEASE);
        }
    }

    // Converts the sums to the type of grad_x.
    void finish(int threads) const {
        if (sizeof(T) == sizeof(A)) return;
        parallel_for(d.B * d.H, threads, [&](int64_t first, int64_t last) {
            for (int64_t row = first; row < last; row++)
                for_channels<A>(d.W * d.C, [&](auto lanes, int64_t e) {
                    constexpr int N = decltype(lanes)::value;
                    store_vec<N>(grad_x + row * d.W * d.C + e, load_vec<N>(sums + row * d.W * d.C + e));
                });
        });
    }

  private:
    // `fresh`: the row is not initialized yet.
    void add_row(int64_t b, int64_t slice, int64_t y, const GradImage<A>& band_image, bool fresh) const {
        const bool adds = y >= band_image.begin && y < band_image.end;
        if (!adds && !fresh) return;
        const bool whole = band_image.channels == d.C;
        const int64_t n = whole ? d.W * d.C : band_image.channels, pixels = whole ? 1 : d.W;
        A* to = sums + (b * d.H + y) * d.W * d.C + slice * partition.slice_channels;
        const A* from = band_image.data + y * band_image.image.row;
        for (int64_t x = 0; x < pixels; x++, to += d.C, from += n)
            for_channels<A>(n, [&](auto lanes, int64_t e) {
                constexpr int N = decltype(lanes)::value;
                const Vec<A, N> before = fresh ? Vec<A, N>{} : load_vec<N>(to + e);
                store_vec<N>(to + e, adds ? Vec<A, N>(before + load_vec<N>(from + e)) : before);
            });
    }

    const DeformConv2dDims& d;
    const BackwardPartition& partition;
    T* const grad_x;
    A* const sums;  // grad_x itself if it has the type of the sums
    int32_t* const counters;
};

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
