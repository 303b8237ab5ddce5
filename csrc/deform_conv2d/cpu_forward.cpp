// SPDX-License-Identifier: Apache-2.0
// deform_conv2d forward: panels of output pixels are gathered into columns that stay in L2, and multiplied with the packed
// weights there. Parallel over panels; every output element is one sum in one order, whatever the thread count.
#include "core/parallel.h"
#include "deform_conv2d/gather.h"
#include "core/gemm.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int64_t kPanelBytes = 128 << 10;  // of the columns; weights and the rows of x in play share L2 with them

inline int64_t panel_pixels(int64_t column_bytes) {
    const int64_t fits = kPanelBytes / column_bytes / kTileRowsMultiple * kTileRowsMultiple;
    return fits < kTileRowsMultiple ? kTileRowsMultiple : fits > 96 ? 96 : fits;
}

// y = columns * packed weights + bias for the `n` pixels of a panel and one group of convolution channels.
template <class Step, class T>
inline void multiply_panel(const DeformConv2dDims& d, const typename Step::Stored* columns, int64_t column_row, int64_t n,
                           const typename Step::Stored* packed, const typename Step::A* bias, T* y) {
    using A = typename Step::A;
    const int64_t K = d.kh * d.kw, in = d.C / d.groups, out = d.O / d.groups;
    // With one group the taps of a pixel follow each other without a gap: one sum instead of K.
    const int64_t runs = d.groups == 1 ? 1 : K, steps = (K * in / runs + Step::terms - 1) / Step::terms;
    for_column_blocks<A>(out, [&](auto width, int64_t column) {
        constexpr int NV = decltype(width)::value, MR = tile_rows(NV), lanes = kLanes<A>;
        constexpr int64_t b_step = NV * lanes * Step::terms;
        for (int64_t r = 0; r < n; r += MR) {
            Vec<A> acc[MR][NV];
            clear<A>(acc);
            for (int64_t run = 0; run < runs; run++)
                multiply<Step>(acc, columns + r * column_row + run * d.C, column_row, Step::terms, packed + run * steps * b_step,
                               b_step, steps);
            const int64_t rows = n - r < MR ? n - r : MR;
#pragma GCC unroll 12
            for (int i = 0; i < MR; i++) {
                if (i >= rows) break;
#pragma GCC unroll 4
                for (int j = 0; j < NV; j++)
                    store_first<lanes>(y + (r + i) * d.O + column + j * lanes,
                                       acc[i][j] + load_vec<lanes>(bias + column + j * lanes), out - column - j * lanes);
            }
        }
        packed += runs * steps * b_step;
    });
}

template <class Step, class T>
void forward(const DeformConv2dDims& d, const DeformConv2dForward& tensors, int threads) {
    using A = typename Step::A;
    using Column = typename Step::Stored;
    const int64_t K = d.kh * d.kw, in = d.C / d.groups, out = d.O / d.groups, pixels = d.Ho * d.Wo, total = d.B * pixels;
    const T *x = static_cast<const T*>(tensors.x), *weight = static_cast<const T*>(tensors.weight);
    T* y = static_cast<T*>(tensors.y);

    const int64_t group_size = packed_size<Step>(out, K * in);
    const Buffer<Column> packed(d.groups * group_size);
    const Buffer<A> bias(d.O);
    for (int64_t o = 0; o < d.O; o++) bias[o] = tensors.bias ? load(static_cast<const T*>(tensors.bias)[o]) : A(0);
    for (int64_t g = 0; g < d.groups; g++)
        pack<Step>(packed + g * group_size, out, K * in, [&](int64_t term, int64_t o) {
            return store<Column>(load(weight[((g * out + o) * in + term % in) * K + term / in]));
        });

    const Plan<A> plan(d, 0, d.offset_groups, {d.x_h, d.x_w});
    const int64_t column_row = round_up(K * d.C, 16);
    const int64_t panel = panel_pixels(column_row * sizeof(Column));
    parallel_tasks((total + panel - 1) / panel, threads, [&](const auto& next) {
        const Samples<A> samples(plan.padded);
        const Buffer<Column> columns(panel * column_row);
        // Rows past the last pixel and the padding of each row are multiplied too: they have to be finite.
        __builtin_memset(columns, 0, panel * column_row * sizeof(Column));
        for (int64_t task; (task = next()) >= 0;) {
            const int64_t p0 = task * panel, n = total - p0 < panel ? total - p0 : panel;
            for (int64_t p = 0; p < n; p++) {
                const int64_t b = (p0 + p) / pixels, i = (p0 + p) % pixels / d.Wo, j = (p0 + p) % d.Wo;
                read_samples<T>(plan, tensors.offset, tensors.mask, b, i, j, samples);
                locate<false>(plan, i, j, {}, samples);
                gather_any(plan, samples, x + b * d.x_b, columns + p * column_row, d.C);
            }
            for (int64_t g = 0; g < d.groups; g++)
                multiply_panel<Step>(d, columns + g * in, column_row, n, packed + g * group_size, bias + g * out,
                                     y + p0 * d.O + g * out);
        }
    });
}

}  // namespace

void deform_conv2d_forward(const DeformConv2dDims& dims, const DeformConv2dForward& tensors, int threads) {
#if defined(__AVX512BF16__)
    // A pair of channels must not straddle two convolution groups.
    if (dims.dtype == bf16 && (dims.groups == 1 || dims.C / dims.groups % 2 == 0))
        return forward<Bf16DotStep, BFloat16>(dims, tensors, threads);
#endif
    FASTDS_DTYPE_SWITCH(dims.dtype, forward<FmaStep<compute_t<scalar>>, scalar>(dims, tensors, threads))
}

}  // namespace FASTDS_ISA
}  // namespace fastds
