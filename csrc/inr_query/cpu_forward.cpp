// SPDX-License-Identifier: Apache-2.0
// Forward pass of inr_query on the CPU. A task locates a panel of queries, gathers their features into rows and passes the rows
// through the whole trunk while they stay in the L2 cache. Only y is written to memory. Panels are computed in parallel. Each
// value of y is summed in one order, independent of the panel and the number of threads.
#include "core/parallel.h"
#include "inr_query/cpu_common.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int64_t kPanelRows = 96;  // two buffers of this number of rows and the weights of one layer share the L2 cache

// Computes y = row + skip, where the row of the ensemble `late` is the sum of the four rows times the corner weights, and the
// skip map is interpolated bilinearly. y is NaN if no corner is valid.
template <class T, class A>
FASTDS_HD void finish(const Source<T>& source, const QueryCorners<A>& p, int64_t b, int64_t q, const A* row, int64_t stride, A* y) {
    const InrQueryDims& d = source.d;
    const bool late = d.ensemble == inr_late;
    // The skip field is interpolated from four corners. If the query has a single corner, they are located here.
    const QueryCorners<A> along = source.t.skip && d.ensemble == inr_none ? source.locate(b, q, 4) : p;
    const A* skip = static_cast<const A*>(source.t.skip);
    for (int64_t o = 0; o < d.O; o++) {
        A sum = row[o];
        if (late) {
            sum = 0;
            for (int j = 0; j < 4; j++) sum += p.weight[j] * row[j * stride + o];
        }
        for (int j = 0; skip && j < 4; j++)
            if (along.valid[j])
                sum += along.weight[j] * skip[((b * d.H + along.row[j]) * d.W + along.column[j]) * d.O + o];
        y[o] = p.any ? sum : static_cast<A>(__builtin_nan(""));
    }
}

template <class Step, class T>
void forward(const InrQueryDims& d, const InrQueryTensors& t, typename Step::A* y, int threads) {
    using A = typename Step::A;
    using Stored = typename Step::Stored;
    const Source<T> source(d, t);
    const Trunk<Step> trunk(d, t);
    const int64_t per_query = inr_rows_per_query(d), queries = kPanelRows / per_query, total = d.B * d.Q;
    const int corners = d.ensemble == inr_none ? 1 : 4;
    parallel_tasks((total + queries - 1) / queries, threads, [&](const auto& next) {
        const TileScope tiles(trunk.blocking.tiles);
        const int64_t elements = kPanelRows * trunk.stride;
        const ZeroedBuffer<Stored> rows(elements), other(elements);
        const ZeroedBuffer<A> last(elements);
        const Buffer<QueryCorners<A>> places(queries);
        Features<Stored, T, A> stored(source);
        Features<A, T, A> exact(source);
        for (int64_t task; (task = next()) >= 0;) {
            const int64_t first = task * queries, n = total - first < queries ? total - first : queries;
            for (int64_t i = 0; i < n; i++) {
                const int64_t b = (first + i) / d.Q, q = (first + i) % d.Q, at = i * per_query * trunk.stride;
                places[i] = source.locate(b, q, corners);
                if (d.layers) {
                    stored.write(places[i], b, q, rows + at, trunk.stride);
                } else {
                    exact.write(places[i], b, q, last + at, trunk.stride);
                }
            }
            if (d.layers) trunk.run(rows, other, last, n * per_query);
            for (int64_t i = 0; i < n; i++)
                finish(source, places[i], (first + i) / d.Q, (first + i) % d.Q, last + i * per_query * trunk.stride,
                       trunk.stride, y + (first + i) * d.O);
        }
    });
}

template <class T>
void compute_features(const InrQueryDims& d, const InrQueryTensors& t, compute_t<T>* rows, compute_t<T>* weights, int threads) {
    using A = compute_t<T>;
    const Source<T> source(d, t);
    const int64_t per_query = inr_rows_per_query(d), width = d.feature == inr_dot ? d.O : d.D;
    parallel_for(d.B * d.Q, threads, [&](int64_t begin, int64_t end) {
        Features<A, T, A> write(source);
        for (int64_t at = begin; at < end; at++) {
            const QueryCorners<A> place = source.locate(at / d.Q, at % d.Q, write.corners);
            write.write(place, at / d.Q, at % d.Q, rows + at * per_query * width, width);
            for (int j = 0; j < 4; j++) weights[4 * at + j] = place.weight[j];
        }
    });
}

}  // namespace

void inr_query_forward(const InrQueryDims& dims, const InrQueryTensors& tensors, void* y, int threads) {
#if defined(__AVX512BF16__)
    float* out = static_cast<float*>(y);
    if (dims.dtype == bf16) return forward<Bf16DotStep, BFloat16>(dims, tensors, out, threads);
    if (dims.dtype == f16) return forward<FmaStep<float>, Half>(dims, tensors, out, threads);
    forward<FmaStep<float>, float>(dims, tensors, out, threads);
#else
    FASTDS_KERNEL_DTYPE_SWITCH(dims.dtype, forward<FmaStep<compute_t<scalar>>, scalar>(
                                               dims, tensors, static_cast<compute_t<scalar>*>(y), threads))
#endif
}

void inr_query_features(const InrQueryDims& dims, const InrQueryTensors& tensors, void* rows, void* weights, int threads) {
    FASTDS_KERNEL_DTYPE_SWITCH(dims.dtype, compute_features<scalar>(dims, tensors, static_cast<compute_t<scalar>*>(rows),
                                                     static_cast<compute_t<scalar>*>(weights), threads))
}

}  // namespace FASTDS_ISA
}  // namespace fastds
