// SPDX-License-Identifier: Apache-2.0
// The trunk of inr_query, linear layers with ReLU between them, applied to a panel of rows.
#pragma once
#include "core/amx.h"
#include "core/gemm.h"
#include "inr_query/features.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Computes the sums over the terms of x(row, term) * B(term, column) for n rows of x, which are `stride` apart. B is packed by
// pack(). Each result is passed to write(row, first column, sums, number of vectors).
template <class Step, class Write>
FASTDS_HD void multiply_rows(typename Step::Stored* x, int64_t stride, int64_t terms, const typename Step::Stored* packed,
                             int64_t columns, int64_t n, const Blocking& blocking, const Write& write) {
    using A = typename Step::A;
    constexpr int lanes = kLanes<A>;
    const int64_t padded = round_up(terms, blocking.term_multiple<Step>()), steps = padded / Step::terms;
    for (int64_t i = 0; i < n; i++)  // zeros what the last step reads beyond the terms, which may be NaN left by another layer
        for (int64_t c = terms; c < padded; c++) x[i * stride + c] = {};
    const auto multiply_block = [&](auto width, int64_t column) __attribute__((noinline)) {
        constexpr int NV = decltype(width)::value, MR = tile_rows(NV);
        constexpr int64_t b_step = NV * lanes * Step::terms;
        if constexpr (Step::terms > 1 && NV <= 2)
            if (blocking.tiles) {
                for_tile_sums<NV>({x, stride, padded / kTileDepth}, n, packed, [&](int64_t first, const float* sums) {
                    for (int64_t r = first; r < min_of(first + 2 * kTileRows, n); r++, sums += NV * lanes)
                        write(r, column, sums, NV);
                });
                packed += steps * b_step;
                return;
            }
        for (int64_t r = 0; r < n; r += MR) {
            Vec<A> acc[MR][NV];
            clear<A>(acc);
            multiply<Step>(acc, x + r * stride, stride, Step::terms, packed, b_step, steps);
            A sums[MR * NV * lanes];
            store_tile(sums, acc);
            for (int64_t i = 0; i < MR && r + i < n; i++) write(r + i, column, sums + i * NV * lanes, NV);
        }
        packed += steps * b_step;
    };
    for_column_blocks<A>(columns, multiply_block, blocking.vectors());
}

// The trunk with packed weights and the stride of its rows.
template <class Step>
struct Trunk {
    using A = typename Step::A;
    using Stored = typename Step::Stored;

    Trunk(const InrQueryDims& dims, const InrQueryTensors& t)
        : d(dims), blocking{Step::terms > 1 && dims.tiles}, weights(total(dims)), bias(dims.layers * get_max_width(dims)),
          stride(round_up(get_max_width(dims), blocking.tiles ? 32 : 16)) {
        Stored* at = weights;
        for (int l = 0; l < d.layers; l++) {
            const int64_t in = inr_layer_inputs(d, l), out = d.width[l];
            const A* w = static_cast<const A*>(t.weight[l]);
            pack<Step>(at, out, in, [&](int64_t term, int64_t o) { return store<Stored>(w[o * in + term]); }, blocking);
            __builtin_memcpy(bias + l * get_max_width(d), t.layer_bias[l], out * sizeof(A));
            packed[l] = at;
            at += packed_size<Step>(out, in, blocking);
        }
    }

    static int64_t get_max_width(const InrQueryDims& d) {
        int64_t most = d.D > d.O ? d.D : d.O;
        for (int l = 0; l < d.layers; l++) most = d.width[l] > most ? d.width[l] : most;
        return most;
    }
    int64_t total(const InrQueryDims& d) const {
        int64_t sum = 0;
        for (int l = 0; l < d.layers; l++) sum += packed_size<Step>(d.width[l], inr_layer_inputs(d, l), blocking);
        return sum;
    }

    // Propagates n rows through all layers. `rows` holds the input; `rows` and `other` alternate as scratch. y receives the
    // values of the last layer in the compute type. Not inlined, because the code is the same for all storage types with this
    // step.
    __attribute__((noinline)) void run(Stored* rows, Stored* other, A* y, int64_t n) const {
        for (int l = 0; l + 1 < d.layers; l++) {
            layer(l, rows, other, n, true);
            Stored* next = other;
            other = rows;
            rows = next;
        }
        layer(d.layers - 1, rows, y, n, false);
    }

    // Computes the outputs y of one layer for n rows x.
    template <class Out>
    void layer(int l, Stored* x, Out* y, int64_t n, bool relu) const {
        constexpr int lanes = kLanes<A>;
        const int64_t out = d.width[l];
        const A* b = bias + l * get_max_width(d);
        const auto write = [&](int64_t row, int64_t column, const A* sum, int64_t vectors) {
            Out* to = y + row * stride + column;
            const auto value = [&](int64_t c) __attribute__((always_inline)) {
                return apply_relu<A, lanes>(relu, Vec<A>(load_vec<lanes>(sum + c) + load_vec<lanes>(b + column + c)));
            };
            if (column + vectors * lanes <= out)
                for (int64_t c = 0; c < vectors * lanes; c += lanes) store_vec<lanes>(to + c, value(c));
            else
                for (int64_t c = 0; c < vectors * lanes; c += lanes) store_first<lanes>(to + c, value(c), out - column - c);
        };
        multiply_rows<Step>(x, stride, inr_layer_inputs(d, l), packed[l], out, n, blocking, write);
    }

    const InrQueryDims& d;
    const Blocking blocking;
    const Buffer<Stored> weights;
    const Stored* packed[kInrLayers];  // packed weights of each layer, in `weights`
    const ZeroedBuffer<A> bias;
    const int64_t stride;  // distance between rows
};

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
