// SPDX-License-Identifier: Apache-2.0
// From the offsets of one output pixel to its samples, and the three passes over them: gather the sampled values, scatter
// their gradients, and take the products that the gradients of offset and mask are made of.
//
// Coordinates of all groups and taps of a pixel are computed as vectors; then each sample reads its position and weights once
// and handles all channels of its offset group as vectors. Samples whose four corners all lie in the grid, nearly all of them,
// take this way; the others (position -1) are computed one at a time by the rules of math.h.
#pragma once
#include "core/buffer.h"
#include "deform_conv2d/math.h"
#include "deform_conv2d/params.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

template <int N>
struct Lanes {
    static constexpr int value = N;
};

// Calls f(Lanes<N>, first channel) over n channels in the longest vectors that fit; a constant n leaves no branch.
template <class A, class F>
FASTDS_HD void for_channels(int64_t n, const F& f) {
    int64_t c = 0;
    for (; c + kLanes<A> <= n; c += kLanes<A>) f(Lanes<kLanes<A>>{}, c);
    if constexpr (kLanes<A> > 8)
        if (n - c >= 8) f(Lanes<8>{}, c), c += 8;
    if constexpr (kLanes<A> > 4)
        if (n - c >= 4) f(Lanes<4>{}, c), c += 4;
    for (; c < n; c++) f(Lanes<1>{}, c);
}

// Strides of an image whose channels are contiguous, in elements.
struct Image {
    int64_t row, pixel;
};

// What is the same for all pixels of a call, for the offset groups [first, first + groups) and their channels.
template <class A>
struct Plan {
    Plan(const DeformConv2dDims& d, int64_t first, int64_t groups, Image image)
        : dims(d), image(image), K(d.kh * d.kw), first(first), groups(groups), per_group(d.C / d.offset_groups),
          samples(groups * K), padded((samples + kLanes<A> - 1) / kLanes<A> * kLanes<A>), tap_y(padded), tap_x(padded) {
        for (int64_t q = 0; q < padded; q++) {
            const int64_t k = q % K;
            tap_y[q] = static_cast<A>(k / d.kw * d.dil_h - d.pad_h);
            tap_x[q] = static_cast<A>(k % d.kw * d.dil_w - d.pad_w);
        }
    }
    const DeformConv2dDims& dims;
    const Image image;
    const int64_t K, first, groups, per_group;  // per_group: channels of one offset group
    const int64_t samples, padded;              // of one pixel; sample q = (g - first) * K + k
    const Buffer<A> tap_y, tap_x;               // the undeformed tap, relative to the pixel's stride times its index
};

// The samples of one pixel, structure of arrays over q.
template <class A>
struct Samples {
    explicit Samples(int64_t n)
        : y(n), x(n), mask(n), ly(n), lx(n), w0(n), w1(n), w2(n), w3(n), at(n), at_grad(n) {
        for (int64_t q = 0; q < n; q++) {
            y[q] = x[q] = static_cast<A>(__builtin_nan(""));  // what pads the last vector stays outside the grid
            mask[q] = 1;                                      // and stays so where there is no mask
        }
    }
    const Buffer<A> y, x, mask;      // coordinates in the grid
    const Buffer<A> ly, lx;          // fractions in the cell
    const Buffer<A> w0, w1, w2, w3;  // mask times the weight of each corner
    const Buffer<int32_t> at;        // element of corner 0 in x, -1 for samples that are not surrounded by grid points
    const Buffer<int32_t> at_grad;   // the same in the gradient of x
};

template <class A, int N>
FASTDS_HD void split_pairs(Vec<A, N> a, Vec<A, N> b, Vec<A, N>& even, Vec<A, N>& odd) {
    if constexpr (N == 16) {
        even = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        odd = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    } else if constexpr (N == 8) {
        even = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
        odd = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
    } else if constexpr (N == 4) {
        even = __builtin_shufflevector(a, b, 0, 2, 4, 6);
        odd = __builtin_shufflevector(a, b, 1, 3, 5, 7);
    } else {
        even = __builtin_shufflevector(a, b, 0, 2);
        odd = __builtin_shufflevector(a, b, 1, 3);
    }
}

template <class A, class T>
FASTDS_HD void read_offsets(const T* offset, int64_t n, A* y, A* x) {
    constexpr int N = kLanes<A>;
    int64_t q = 0;
    for (; q + N <= n; q += N) {
        Vec<A> even, odd;
        split_pairs<A, N>(__builtin_convertvector(load_vec<N>(offset + 2 * q), Vec<A>),
                          __builtin_convertvector(load_vec<N>(offset + 2 * q + N), Vec<A>), even, odd);
        store_vec<N>(y + q, even);
        store_vec<N>(x + q, odd);
    }
    for (; q < n; q++) {
        y[q] = static_cast<A>(load(offset[2 * q]));
        x[q] = static_cast<A>(load(offset[2 * q + 1]));
    }
}

// Displacements into s.y and s.x, mask into s.mask; pixel (b, i, j).
template <class T, class A>
inline void read_samples(const Plan<A>& plan, const void* offset, const void* mask, int64_t b, int64_t i, int64_t j,
                         const Samples<A>& s) {
    const DeformConv2dDims& d = plan.dims;
    const int64_t n = plan.samples, q0 = plan.first * plan.K;
    const int64_t at = b * d.offset_b + i * d.offset_h + j * d.offset_w + 2 * q0;
    if (d.offset_dtype == d.dtype) {
        read_offsets<A>(static_cast<const T*>(offset) + at, n, s.y, s.x);
    } else {
        read_offsets<A>(static_cast<const float*>(offset) + at, n, s.y, s.x);
    }
    if (mask == nullptr) return;
    const T* m = static_cast<const T*>(mask) + b * d.mask_b + i * d.mask_h + j * d.mask_w + q0;
    for_channels<A>(n, [&](auto lanes, int64_t q) {
        constexpr int N = decltype(lanes)::value;
        store_vec<N>(s.mask + q, load_vec<N>(m + q));
    });
}

struct RowRange {
    int64_t begin, end;
};

// From displacements to positions and weights. grad: strides of the gradient of x where it is wanted. Returns the rows that
// the samples with a position touch.
template <bool kBackward, class A>
inline RowRange locate(const Plan<A>& plan, int64_t i, int64_t j, Image grad, const Samples<A>& s) {
    constexpr int N = kLanes<A>;
    const DeformConv2dDims& d = plan.dims;
    // Positions are 32-bit; an image they cannot address goes the 64-bit way of the border samples altogether.
    const int64_t rows = d.H - 1, columns = d.W - 1;
    const bool narrow = rows * plan.image.row + columns * plan.image.pixel <= INT32_MAX &&
                        (!kBackward || rows * grad.row + columns * grad.pixel <= INT32_MAX);
    const A limit_y = narrow ? static_cast<A>(rows) : 0, limit_x = static_cast<A>(columns);
    const A pixel_y = static_cast<A>(i * d.stride_h), pixel_x = static_cast<A>(j * d.stride_w);
    const int32_t row = static_cast<int32_t>(plan.image.row), pixel = static_cast<int32_t>(plan.image.pixel);
    Vec<int32_t, N> first = Vec<int32_t, N>{} + INT32_MAX, last = Vec<int32_t, N>{} - 1;
    for (int64_t q = 0; q < plan.padded; q += N) {
        const Vec<A> y = (pixel_y + load_vec<N>(plan.tap_y + q)) + load_vec<N>(s.y + q);
        const Vec<A> x = (pixel_x + load_vec<N>(plan.tap_x + q)) + load_vec<N>(s.x + q);
        const auto inside = (y >= 0) & (y < limit_y) & (x >= 0) & (x < limit_x);
        const Vec<A> safe_y = inside ? y : 0, safe_x = inside ? x : 0;
        const auto y0 = __builtin_convertvector(safe_y, Vec<int32_t, N>), x0 = __builtin_convertvector(safe_x, Vec<int32_t, N>);
        const auto outside = ~__builtin_convertvector(inside, Vec<int32_t, N>);
        const Vec<A> ly = safe_y - __builtin_convertvector(y0, Vec<A>), lx = safe_x - __builtin_convertvector(x0, Vec<A>);
        const Vec<A> mask = load_vec<N>(s.mask + q);
        const Vec<A> low = (1 - ly) * mask, high = ly * mask;
        store_vec<N>(s.y + q, y);
        store_vec<N>(s.x + q, x);
        store_vec<N>(s.w0 + q, low * (1 - lx));
        store_vec<N>(s.w1 + q, low * lx);
        store_vec<N>(s.w2 + q, high * (1 - lx));
        store_vec<N>(s.w3 + q, high * lx);
        store_vec<N>(s.at + q, (y0 * row + x0 * pixel) | outside);
        if constexpr (kBackward) {
            store_vec<N>(s.ly + q, ly);
            store_vec<N>(s.lx + q, lx);
            store_vec<N>(s.at_grad + q, y0 * static_cast<int32_t>(grad.row) + x0 * static_cast<int32_t>(grad.pixel));
            const auto top = y0 | (outside & INT32_MAX), bottom = y0 | outside;
            first = top < first ? top : first;
            last = bottom > last ? bottom : last;
        }
    }
    RowRange touched{INT32_MAX, 0};
    if constexpr (kBackward) {
        for (int lane = 0; lane < N; lane++) {
            if (first[lane] < touched.begin) touched.begin = first[lane];
            if (last[lane] + 2 > touched.end) touched.end = last[lane] + 2;
        }
        if (touched.begin == INT32_MAX) touched = {0, 0};
    }
    return touched;
}

// A sample at the border or outside, by math.h.
template <class A>
struct BorderSample {
    BorderSample(const Plan<A>& plan, const Samples<A>& s, int64_t q) {
        const DeformConv2dDims& d = plan.dims;
        if (!sample_inside<A>(s.y[q], s.x[q], d.H, d.W)) return;
        cell = bilinear_cell<A>(s.y[q], s.x[q], d.H, d.W);
        bilinear_weights(cell.ly, cell.lx, weight[0], weight[1], weight[2], weight[3]);
        for (A& w : weight) w *= s.mask[q];
    }
    int64_t element(int n, Image image) const { return (cell.y0 + n / 2) * image.row + (cell.x0 + n % 2) * image.pixel; }

    BilinearCell<A> cell{};  // no corner inside
    A weight[4]{};           // mask times the weight of each corner
};

template <class A, class T, class Out>
__attribute__((noinline)) void gather_border(const Plan<A>& plan, const Samples<A>& s, int64_t q, const T* x, Out* out) {
    const BorderSample<A> border(plan, s, q);
    for_channels<A>(plan.per_group, [&](auto lanes, int64_t c) {
        constexpr int N = decltype(lanes)::value;
        Vec<A, N> value{};
        for (int n = 0; n < 4; n++)
            if (border.cell.corner[n]) value += border.weight[n] * load_vec<N>(x + border.element(n, plan.image) + c);
        store_vec<N>(out + c, value);
    });
}

// One row of columns: out[k * tap + channel] = mask * sampled value. x points at the image's first channel of the plan.
// kChannels: channels of an offset group where known at compile time, else 0.
template <int64_t kChannels, class A, class T, class Out>
inline void gather(const Plan<A>& plan, const Samples<A>& s, const T* x, Out* columns, int64_t tap) {
    const int64_t channels = kChannels ? kChannels : plan.per_group, K = plan.K;
    const int64_t right = plan.image.pixel, below = plan.image.row;
    for (int64_t g = 0, q = 0; g < plan.groups; g++, x += channels, columns += channels) {
        Out* out = columns;
        for (int64_t k = 0; k < K; k++, q++, out += tap) {
            const int64_t at = s.at[q];
            if (__builtin_expect(at < 0, 0)) {
                gather_border(plan, s, q, x, out);
                continue;
            }
            const T *c0 = x + at, *c1 = c0 + right, *c2 = c0 + below, *c3 = c2 + right;
            const A w0 = s.w0[q], w1 = s.w1[q], w2 = s.w2[q], w3 = s.w3[q];
            for_channels<A>(channels, [&](auto lanes, int64_t c) {
                constexpr int N = decltype(lanes)::value;
                store_vec<N>(out + c, Vec<A, N>(w0 * load_vec<N>(c0 + c) + w1 * load_vec<N>(c1 + c) + w2 * load_vec<N>(c2 + c) +
                                                w3 * load_vec<N>(c3 + c)));
            });
        }
    }
}

template <class A, class T, class Out>
inline void gather_any(const Plan<A>& plan, const Samples<A>& s, const T* x, Out* columns, int64_t tap) {
    switch (plan.per_group) {
        case 8: return gather<8>(plan, s, x, columns, tap);
        case 16: return gather<16>(plan, s, x, columns, tap);
        default: return gather<0>(plan, s, x, columns, tap);
    }
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
