// SPDX-License-Identifier: Apache-2.0
// Backward pass of inr_query through the trunk. A panel of rows is propagated forward through all layers, as in the forward
// pass, and then backward while its values stay in the L2 cache. Only the gradient of the rows is written to memory.
//
// A task is a sequence of panels with its own sums of the gradients of weights and biases. The sums of the tasks are added in
// order.
#include "core/parallel.h"
#include "inr_query/backward_partition.h"
#include "inr_query/cpu_common.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Computes sums[o, c] += sum over i < n of grad[i, o] * x[i, c]. The rows of grad and x have a stride of `stride` elements,
// and the rows of the sums a stride of `row` elements.
template <class A>
void add_weight_gradient(const A* grad, const A* x, int64_t stride, int64_t n, int64_t outputs, int64_t inputs, A* sums,
                         int64_t row) {
    constexpr int lanes = kLanes<A>;
    for_column_blocks<A>(inputs, [&](auto width, int64_t column) __attribute__((noinline)) {
        constexpr int NV = decltype(width)::value, MR = tile_rows(NV);
        for (int64_t o = 0; o < outputs; o += MR) {
            Vec<A> acc[MR][NV];
            clear<A>(acc);
            multiply<FmaStep<A>>(acc, grad + o, 1, stride, x + column, stride, n);
            A tile[MR * NV * lanes];
            store_tile(tile, acc);
            for (int64_t i = 0; i < min_of(MR, outputs - o); i++) {
                A* to = sums + (o + i) * row + column;
                for (int64_t c = 0; c < NV * lanes; c += lanes)
                    store_vec<lanes>(to + c, Vec<A>(load_vec<lanes>(to + c) + load_vec<lanes>(tile + i * NV * lanes + c)));
            }
        }
    });
}

// Buffers of a thread, and data that its panels share.
template <class T>
struct Panel {
    using A = compute_t<T>;
    const Source<T>& source;
    const InrQueryDims& d;
    const InrTrunkPartition& partition;
    const Trunk<FmaStep<A>>& trunk;
    const A* const* transposed;  // packed transposed weights of each layer: the terms are the outputs
    Features<A, T, A> features;
    const int64_t per_query, elements;    // elements of a buffer of rows
    const ZeroedBuffer<A> inputs;         // inputs of each layer
    const ZeroedBuffer<A> first, second;  // gradients
    const Buffer<QueryCorners<A>> places;

    Panel(const Source<T>& s, const InrTrunkPartition& partition, const Trunk<FmaStep<A>>& trunk, const A* const* transposed)
        : source(s), d(s.d), partition(partition), trunk(trunk), transposed(transposed), features(s), per_query(inr_rows_per_query(d)),
          elements(partition.panel_queries * per_query * trunk.stride), inputs(d.layers * elements), first(elements),
          second(elements), places(partition.panel_queries) {}

    void add(int64_t index, const A* grad_y, A* grad_rows, A* sums) {
        const int64_t begin = index * partition.panel_queries, queries = min_of(partition.panel_queries, d.B * d.Q - begin);
        forward(begin, queries);
        A *grad = first, *next = second;
        for (int64_t i = 0; i < queries; i++)
            for (int64_t j = 0; j < per_query; j++)
                for (int64_t o = 0; o < d.O; o++)
                    grad[(i * per_query + j) * trunk.stride + o] =
                        grad_y[(begin + i) * d.O + o] * (per_query > 1 ? places[i].weight[j] : A(1));
        const int64_t n = queries * per_query;
        for (int l = d.layers - 1; l > 0; l--) {
            add_layer(l, grad, n, sums);
            const A* x = inputs + l * elements;
            back(l, grad, n, [&](int64_t row, int64_t c, Vec<A> sum) {
                const Vec<A> value = load_vec<kLanes<A>>(x + row * trunk.stride + c);
                store_vec<kLanes<A>>(next + row * trunk.stride + c, Vec<A>(value <= A(0) ? Vec<A>{} : sum));
            });
            A* swapped = grad;
            grad = next;
            next = swapped;
        }
        add_layer(0, grad, n, sums);
        A* rows = grad_rows + begin * per_query * d.D;
        back(0, grad, n, [&](int64_t row, int64_t c, Vec<A> sum) {
            store_first<kLanes<A>>(rows + row * d.D + c, sum, min_of(kLanes<A>, d.D - c));
        });
    }

  private:
    void forward(int64_t begin, int64_t queries) {
        for (int64_t i = 0; i < queries; i++) {
            const int64_t b = (begin + i) / d.Q, q = (begin + i) % d.Q;
            places[i] = source.locate(b, q, features.corners);
            features.write(places[i], b, q, inputs + i * per_query * trunk.stride, trunk.stride);
        }
        for (int l = 0; l + 1 < d.layers; l++)
            trunk.layer(l, inputs + l * elements, inputs + (l + 1) * elements, queries * per_query, true);
    }

    void add_layer(int l, const A* grad, int64_t n, A* sums) {
        const int64_t outputs = d.width[l], row = partition.row(d, l);
        A *weight = sums + partition.first[l], *bias = weight + outputs * row;
        add_weight_gradient(grad, inputs + l * elements, trunk.stride, n, outputs, inr_layer_inputs(d, l), weight, row);
        for (int64_t i = 0; i < n; i++)
            for (int64_t o = 0; o < outputs; o++) bias[o] += grad[i * trunk.stride + o];
    }

    // Computes the gradients of the inputs of a layer and passes them to write(row, channel, vector).
    template <class Write>
    void back(int l, A* grad, int64_t n, const Write& write) {
        multiply_rows<FmaStep<A>>(grad, trunk.stride, d.width[l], transposed[l], inr_layer_inputs(d, l), n, trunk.blocking,
                                  [&](int64_t row, int64_t column, const A* sum, int64_t vectors) {
                                      for (int64_t c = 0; c < vectors * kLanes<A>; c += kLanes<A>)
                                          if (column + c < inr_layer_inputs(d, l)) write(row, column + c,
                                                                                         load_vec<kLanes<A>>(sum + c));
                                  });
    }
};

template <class T>
void trunk_backward(const InrQueryDims& d, const InrQueryTensors& t, const compute_t<T>* grad_y, compute_t<T>* grad_rows,
                    compute_t<T>* grad_layers, compute_t<T>* partials, int threads) {
    using A = compute_t<T>;
    const Source<T> source(d, t);
    const InrTrunkPartition partition(d);
    const Trunk<FmaStep<A>> trunk(d, t);
    int64_t size = 0;
    for (int l = 0; l < d.layers; l++) size += packed_size<FmaStep<A>>(inr_layer_inputs(d, l), d.width[l]);
    const Buffer<A> all(size);
    const A* transposed[kInrLayers];
    for (int64_t l = 0, at = 0; l < d.layers; l++) {
        const int64_t in = inr_layer_inputs(d, l);
        const A* w = static_cast<const A*>(t.weight[l]);
        pack<FmaStep<A>>(all + at, in, d.width[l], [&](int64_t o, int64_t c) { return w[o * in + c]; });
        transposed[l] = all + at;
        at += packed_size<FmaStep<A>>(in, d.width[l]);
    }
    parallel_tasks(partition.tasks, threads, [&](const auto& next) {
        Panel<T> panel(source, partition, trunk, transposed);
        for (int64_t task; (task = next()) >= 0;) {
            A* sums = partials + task * partition.elements;
            __builtin_memset(sums, 0, partition.elements * sizeof(A));
            const Range panels = get_part(partition.panels, partition.tasks, task);
            for (int64_t i = panels.begin; i < panels.end; i++) panel.add(i, grad_y, grad_rows, sums);
        }
    });
    for (int l = 0; l < d.layers; l++) {
        const int64_t in = inr_layer_inputs(d, l), row = partition.row(d, l);
        const A* sums = partials + partition.first[l];
        parallel_for(d.width[l], threads, [&](int64_t begin, int64_t end) {
            for (int64_t o = begin; o < end; o++)
                sum_in_order(grad_layers + o * in, sums + o * row, partition.tasks, partition.elements, in, 1);
        });
        grad_layers += d.width[l] * in;
        sum_in_order(grad_layers, sums + d.width[l] * row, partition.tasks, partition.elements, d.width[l], 1);
        grad_layers += d.width[l];
    }
}

}  // namespace

void inr_query_trunk_backward(const InrQueryDims& dims, const InrQueryTensors& tensors, const void* grad_y, void* grad_rows,
                              void* grad_layers, void* workspace, int threads) {
    FASTDS_KERNEL_DTYPE_SWITCH(
        dims.dtype, trunk_backward<scalar>(dims, tensors, static_cast<const compute_t<scalar>*>(grad_y),
                                           static_cast<compute_t<scalar>*>(grad_rows), static_cast<compute_t<scalar>*>(grad_layers),
                                           static_cast<compute_t<scalar>*>(workspace), threads))
}

}  // namespace FASTDS_ISA
}  // namespace fastds
