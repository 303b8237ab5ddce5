// SPDX-License-Identifier: Apache-2.0
// Forward pass of deform_conv2d on the CPU. The samples of a panel of output pixels are gathered into columns that stay in the
// L2 cache and are multiplied there by the packed weights. Panels are computed in parallel. Each output is summed in one order,
// independent of the number of threads.
#include "core/amx.h"
#include "core/parallel.h"
#include "core/transpose_simd.h"
#include "deform_conv2d/cpu_common.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Bytes of the columns of a panel, which share the L2 cache with the weights and rows of x. A panel of the smallest number of
// pixels may have more. kPlanarPanelBytes, for NCHW tensors, is larger, because longer panels read and write longer contiguous
// parts of planes.
constexpr int64_t kPanelBytes = 64 << 10, kPlanarPanelBytes = 192 << 10;

// Number of steps from which on a partial sum is added to the total and a new partial sum starts, because long sums lose
// precision.
constexpr int64_t kSumSteps = 128;

// Returns the number of pixels of a panel. `total` is the number of pixels of the call. Panels are shortened if a thread would
// otherwise have no panel.
inline int64_t choose_panel_pixels(int64_t column_bytes, bool planar, bool tiles, int64_t total, int threads) {
    const int64_t rows = tiles ? 2 * kTileRows : kTileRowsMultiple;
    const int64_t fits = (planar ? kPlanarPanelBytes : kPanelBytes) / column_bytes / rows * rows;
    const int64_t most = fits < rows ? rows : fits > 96 ? 96 : fits;
    const int64_t share = round_up((total + threads - 1) / threads, rows);
    return share < most ? share : most;
}

// Returns an estimate of the time on one thread, from the numbers of pixels, samples and multiplications.
inline int64_t estimate_nanoseconds(const DeformConv2dDims& d) {
    const int64_t K = d.kh * d.kw;
    return d.B * d.Ho * d.Wo * (10 + 3 * K * d.offset_groups + K * d.C * (d.O / d.groups) / 60);
}

template <class A, int MR, int NV>
FASTDS_HD void add_tile(Vec<A> (&to)[MR][NV], const Vec<A> (&from)[MR][NV]) {
#pragma GCC unroll 12
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) to[i][j] += from[i][j];
}

// Adds the bias to a tile of sums, in rows of row_length, and writes it to y from channel `first` of each pixel on.
template <class T, class A>
void write_tile(const A* sums, int64_t row_length, int64_t rows, const A* bias, int64_t channels, const int64_t* pixel, int64_t O,
                void* y, int64_t first) {
    constexpr int L = kLanes<A>;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t c = 0; c < row_length; c += L) {
            const Vec<A> sum = load_vec<L>(sums + i * row_length + c) + load_vec<L>(bias + c);
            store_first<L>(static_cast<T*>(y) + pixel[i] * O + first + c, sum, channels - c);
        }
}

template <class A>
using WriteTile = void (*)(const A*, int64_t, int64_t, const A*, int64_t, const int64_t*, int64_t, void*, int64_t);

// Computes y = columns * packed weights + bias for the `n` pixels of a panel and one convolution group. The output of pixel p
// starts at y + pixel[p] * O + first.
template <class Step>
inline void multiply_panel(const DeformConv2dDims& d, Blocking blocking, const typename Step::Stored* columns, int64_t column_row,
                           int64_t n, const typename Step::Stored* packed, const typename Step::A* bias, const int64_t* pixel,
                           WriteTile<typename Step::A> write, void* y, int64_t first, Prefetch<typename Step::A>& prefetch) {
    using A = typename Step::A;
    const int64_t K = d.kh * d.kw, in = d.C / d.groups, out = d.O / d.groups;
    // With one group, the taps of a pixel are contiguous, so that one step may contain channels of two taps.
    const int64_t whole = blocking.term_multiple<Step>(), runs = d.groups == 1 && in % whole ? 1 : K;
    const int64_t steps = round_up(K * in / runs, whole) / Step::terms;
    const auto multiply_block = [&](auto width, int64_t column) __attribute__((noinline)) {
        constexpr int NV = decltype(width)::value, MR = tile_rows(NV), lanes = kLanes<A>;
        constexpr int64_t b_step = NV * lanes * Step::terms;
        if constexpr (Step::terms > 1 && NV <= 2)
            if (blocking.tiles) {
                const TileRows lines{columns, column_row, steps * Step::terms / kTileDepth, runs, d.C};
                for_tile_sums<NV>(lines, n, packed, [&](int64_t r, const float* sums) {
                    prefetch.fetch(2 * kTileRows);
                    const int64_t rows = min_of(2 * kTileRows, n - r);
                    write(sums, NV * lanes, rows, bias + column, out - column, pixel + r, d.O, y, first + column);
                });
                packed += runs * steps * b_step;
                return;
            }
        for (int64_t r = 0; r < n; r += MR) {
            Vec<A> acc[MR][NV], total[MR][NV];
            clear<A>(acc);
            clear<A>(total);
            for (int64_t run = 0, summed = 0; run < runs; run++) {
                prefetch.fetch((MR + runs - 1) / runs);
                multiply<Step>(acc, columns + r * column_row + run * d.C, column_row, Step::terms, packed + run * steps * b_step,
                               b_step, steps);
                summed += steps;
                if (summed < kSumSteps && run + 1 < runs) continue;
                add_tile<A>(total, acc);
                clear<A>(acc);
                summed = 0;
            }
            A sums[MR * NV * lanes];
            store_tile(sums, total);
            write(sums, NV * lanes, n - r < MR ? n - r : MR, bias + column, out - column, pixel + r, d.O, y, first + column);
        }
        packed += runs * steps * b_step;
    };
    for_column_blocks<A>(out, multiply_block, blocking.vectors());
}

// Packs the weights of the output channels of one group for `multiply`. Weight k of each output channel becomes the
// factor of term place[k] of its sum.
template <class Step, class T>
void pack_weights(typename Step::Stored* packed, const T* weight, int64_t out, int64_t terms, const int64_t* place,
                  Blocking blocking, int threads) {
    constexpr int64_t kMinThreadedWork = 1 << 14;
    using A = typename Step::A;
    const int64_t padded = round_up(terms, blocking.term_multiple<Step>()), written = terms / Step::terms * Step::terms;
    threads = out * terms < kMinThreadedWork ? 1 : threads;
    const auto pack_block = [=](int64_t column, int64_t lanes) __attribute__((noinline)) {
        constexpr int L = kLanes<A>;
        typename Step::Stored* to = packed + column * padded;
        __builtin_memset(to + written * lanes, 0, (padded - written) * lanes * sizeof(*to));
        for (int64_t j = 0; j < lanes; j += L)
            for (int64_t k = 0; k < terms; k += L) {
                Vec<A> rows[L];
                const int64_t count = terms - k < L ? terms - k : L;
                for (int i = 0; i < L; i++)
                    rows[i] = load_first<L>(weight + (column + j + i) * terms + k, column + j + i < out ? count : 0);
                transpose_registers<L>(rows);
                for (int64_t i = 0; i < count; i++) {
                    const int64_t t = place[k + i];
                    typename Step::Stored* at = to + (t / Step::terms * lanes + j) * Step::terms + t % Step::terms;
                    if constexpr (Step::terms == 1)
                        store_vec<L>(at, rows[i]);
                    else
                        for (int n = 0; n < L; n++) at[n * Step::terms] = store<typename Step::Stored>(rows[i][n]);
                }
            }
    };
    parallel_for(column_blocks<A>(out, blocking.vectors()).blocks, threads, [=](int64_t begin, int64_t end) {
        const auto pack_one = [&](auto width, int64_t column) { pack_block(column, decltype(width)::value * kLanes<A>); };
        for_column_blocks<A>(out, {begin, end}, pack_one, blocking.vectors());
    });
}

template <class Step, class T>
void forward(const DeformConv2dDims& d, const DeformConv2dForward& tensors, int threads) {
    using A = typename Step::A;
    using Column = typename Step::Stored;
    const int64_t K = d.kh * d.kw, in = d.C / d.groups, out = d.O / d.groups, pixels = d.Ho * d.Wo, total = d.B * pixels;
    const T *x = static_cast<const T*>(tensors.x), *weight = static_cast<const T*>(tensors.weight);
    T* y = static_cast<T*>(tensors.y);
    constexpr int64_t kMinThreadedWork = 5000;
    if (estimate_nanoseconds(d) < kMinThreadedWork) threads = 1;

    const int64_t per_group = d.C / d.offset_groups;
    const bool by_group = d.groups == 1;  // otherwise the channels of a convolution group must be contiguous
    const Blocking blocking{Step::terms > 1 && d.tiles && (by_group || in % kTileDepth == 0)};
    const int64_t group_size = packed_size<Step>(out, K * in, blocking);
    const Buffer<Column> packed(d.groups * group_size);
    const ZeroedBuffer<A> bias(d.O);
    for (int64_t o = 0; o < d.O; o++) bias[o] = tensors.bias ? load(static_cast<const T*>(tensors.bias)[o]) : A(0);
    const Buffer<int64_t> place(K * in);  // position in the sum of each weight of an output channel
    for (int64_t term = 0; term < K * in; term++) {
        const int64_t c = by_group ? term / (K * per_group) * per_group + term % per_group : term % in;
        const int64_t k = by_group ? term / per_group % K : term / in;
        place[c * K + k] = term;
    }
    for (int64_t g = 0; g < d.groups; g++)
        pack_weights<Step>(packed + g * group_size, weight + g * out * K * in, out, K * in, place, blocking, threads);

    const int64_t column_row = round_up(K * d.C, blocking.term_multiple<Step>());
    const Plan<A> plan(d, 0, d.offset_groups, by_group, column_row, longest_run(d, d.offset_groups, tensors.mask));
    const Image image(d, d.x_h, d.x_w);
    const int64_t panel = choose_panel_pixels(column_row * sizeof(Column), d.planar, blocking.tiles, total, threads);
    // A task has several neighbouring panels, because they read the same part of x.
    const int64_t panels = (total + panel - 1) / panel, run = panels / (8 * threads) + 1;
    parallel_tasks((panels + run - 1) / run, threads, [&](const auto& next) {
        const TileScope tiles(blocking.tiles);
        const Samples<A> samples(plan.padded);
        const ZeroedBuffer<Column> columns(panel * column_row + 16);  // includes rows after the last pixel and the padding of each pixel
        const Buffer<int64_t> pixel(panel), target(panel);  // target: pixel index in y
        const Planes<T> planes(d, tensors, panel);
        PixelWalk walk(d, 0, d.Ho, d.W * d.C * sizeof(T));
        Prefetch<A> prefetch(plan, image, sizeof(T), x, tensors.offset, tensors.mask, walk);
        for (int64_t task; (task = next()) >= 0;) {
            const int64_t end = (task + 1) * run * panel < total ? (task + 1) * run * panel : total;
            walk.start(task * run * panel);
            for (int64_t p0 = task * run * panel; p0 < end; p0 += panel) {
                const int64_t n = end - p0 < panel ? end - p0 : panel;
                const PixelWalk begin = walk;
                for (int64_t p = 0; p < n; p++, walk.next()) {
                    pixel[p] = (walk.b * d.Ho + walk.i) * d.Wo + walk.j;
                    target[p] = d.planar ? p : pixel[p];
                }
                if (d.planar) planes.read(pixel, n);
                walk = begin;
                for (int64_t p = 0, run; p < n; p += run, walk.advance(run)) {
                    run = walk.run(plan.longest_run < n - p ? plan.longest_run : n - p);
                    if (d.planar) planes.fetch(pixel, n, p, p + run);
                    const SampleRow row = d.planar ? planes.row(p) : get_sample_row<T>(plan, tensors.offset, tensors.mask, walk);
                    locate<false, T>(plan, row, walk, run, image, image, samples);
                    gather<A>(plan, samples, run, image, x + walk.b * d.x_b, columns + p * column_row);
                    for (int64_t i = p; i < p + run; i++)  // the last step reads beyond the channels
                        for (int64_t c = K * d.C; c < column_row; c++) columns[i * column_row + c] = Column{};
                }
                prefetch.start(walk, end - p0 - n < panel ? end - p0 - n : panel);
                for (int64_t g = 0; g < d.groups; g++)
                    multiply_panel<Step>(d, blocking, columns + g * in, column_row, n, packed + g * group_size,
                                         bias + g * out, target,
                                         write_tile<T, A>, d.planar ? planes.y : y, g * out, prefetch);
                if (d.planar) planes.write(pixel, n);
            }
        }
    });
}

}  // namespace

void deform_conv2d_forward(const DeformConv2dDims& dims, const DeformConv2dForward& tensors, int threads) {
#if defined(__AVX512BF16__)
    if (dims.dtype == bf16) {
        // A pair of channels must not belong to two convolution groups. The AVX2 version, which uses no pairs, handles that
        // case.
        if (dims.groups != 1 && dims.C / dims.groups % 2 != 0) return avx2::deform_conv2d_forward(dims, tensors, threads);
        return forward<Bf16DotStep, BFloat16>(dims, tensors, threads);
    }
    if (dims.dtype == f16) return forward<FmaStep<float>, Half>(dims, tensors, threads);
    forward<FmaStep<float>, float>(dims, tensors, threads);
#else
    FASTDS_KERNEL_DTYPE_SWITCH(dims.dtype, forward<FmaStep<compute_t<scalar>>, scalar>(dims, tensors, threads))
#endif
}

}  // namespace FASTDS_ISA
}  // namespace fastds
