// SPDX-License-Identifier: Apache-2.0
// The two passes of the backward over the samples of a pixel: add their gradients to grad_x, and take the products that the
// gradients of offset and mask are made of.
#pragma once
#include "deform_conv2d/gather.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// The channels of one slice of grad_x, or a private copy of them. Rows are zeroed when first touched: [begin, end) are valid.
template <class A>
struct GradImage {
    A* data;
    Image strides;
    int64_t width, channels, begin, end;

    void zero(int64_t first, int64_t last) const {
        for (int64_t y = first; y < last; y++) {
            A* row = data + y * strides.row;
            if (strides.pixel == channels) {
                __builtin_memset(row, 0, width * channels * sizeof(A));
            } else {
                for (int64_t x = 0; x < width; x++) __builtin_memset(row + x * strides.pixel, 0, channels * sizeof(A));
            }
        }
    }
    void touch(RowRange rows) {
        if (rows.begin >= rows.end) return;
        if (begin == end) begin = end = rows.begin;
        if (rows.begin < begin) zero(rows.begin, begin), begin = rows.begin;
        if (rows.end > end) zero(end, rows.end), end = rows.end;
    }
};

template <class A>
__attribute__((noinline)) void scatter_border(const Plan<A>& plan, const Samples<A>& s, int64_t q, const A* grad,
                                              int64_t first_channel, GradImage<A>& image) {
    const BorderSample<A> border(plan, s, q);
    for (int n = 0; n < 4; n++) {
        if (!border.cell.corner[n]) continue;
        const int64_t row = border.cell.y0 + n / 2;
        image.touch({row, row + 1});
        A* corner = image.data + border.element(n, image.strides) + first_channel;
        for_channels<A>(plan.per_group, [&](auto lanes, int64_t c) {
            constexpr int N = decltype(lanes)::value;
            store_vec<N>(corner + c, Vec<A, N>(load_vec<N>(corner + c) + border.weight[n] * load_vec<N>(grad + c)));
        });
    }
}

// grad_x += weights * columns, the gradients of the masked samples.
template <int64_t kChannels, class A>
inline void scatter(const Plan<A>& plan, const Samples<A>& s, const A* columns, int64_t tap, GradImage<A>& image) {
    const int64_t channels = kChannels ? kChannels : plan.per_group, K = plan.K;
    const int64_t right = image.strides.pixel, below = image.strides.row;
    for (int64_t g = 0, q = 0; g < plan.groups; g++, columns += channels) {
        const A* grad = columns;
        A* x = image.data + g * channels;
        for (int64_t k = 0; k < K; k++, q++, grad += tap) {
            if (__builtin_expect(s.at[q] < 0, 0)) {
                scatter_border(plan, s, q, grad, g * channels, image);
                continue;
            }
            A *c0 = x + s.at_grad[q], *c1 = c0 + right, *c2 = c0 + below, *c3 = c2 + right;
            const A w0 = s.w0[q], w1 = s.w1[q], w2 = s.w2[q], w3 = s.w3[q];
            for_channels<A>(channels, [&](auto lanes, int64_t c) {
                constexpr int N = decltype(lanes)::value;
                const Vec<A, N> v = load_vec<N>(grad + c);
                store_vec<N>(c0 + c, Vec<A, N>(load_vec<N>(c0 + c) + w0 * v));
                store_vec<N>(c1 + c, Vec<A, N>(load_vec<N>(c1 + c) + w1 * v));
                store_vec<N>(c2 + c, Vec<A, N>(load_vec<N>(c2 + c) + w2 * v));
                store_vec<N>(c3 + c, Vec<A, N>(load_vec<N>(c3 + c) + w3 * v));
            });
        }
    }
}

template <class A>
inline void scatter_any(const Plan<A>& plan, const Samples<A>& s, const A* columns, int64_t tap, GradImage<A>& image) {
    switch (plan.per_group) {
        case 8: return scatter<8>(plan, s, columns, tap, image);
        case 16: return scatter<16>(plan, s, columns, tap, image);
        default: return scatter<0>(plan, s, columns, tap, image);
    }
}

// The corners of one sample and, in turn, the gradient of its channels (read) and its masked value (written over it).
template <class A, class T>
struct CornerProducts {
    const T *c0, *c1, *c2, *c3;
    A w0, w1, w2, w3;
    A* columns;
    int64_t channels;

    // Sums over channels c .. c+N-1, lane by lane, into p[corner].
    template <bool kValues, bool kAdd, int N>
    FASTDS_HD void step(int64_t c, Vec<A, N> (&p)[4]) const {
        const Vec<A, N> grad = load_vec<N>(columns + c), v0 = load_vec<N>(c0 + c), v1 = load_vec<N>(c1 + c),
                        v2 = load_vec<N>(c2 + c), v3 = load_vec<N>(c3 + c);
        if constexpr (kValues) store_vec<N>(columns + c, Vec<A, N>(w0 * v0 + w1 * v1 + w2 * v2 + w3 * v3));
        p[0] = kAdd ? p[0] + grad * v0 : grad * v0;
        p[1] = kAdd ? p[1] + grad * v1 : grad * v1;
        p[2] = kAdd ? p[2] + grad * v2 : grad * v2;
        p[3] = kAdd ? p[3] + grad * v3 : grad * v3;
    }

    // Folds the lanes of p in halves, taking up the remaining channels in vectors of each length on the way down.
    template <bool kValues, int N>
    FASTDS_HD Vec<A, 4> fold(int64_t c, Vec<A, N> (&p)[4]) const {
        if constexpr (N > 4) {
            Vec<A, N / 2> half[4];
            for (int n = 0; n < 4; n++) half[n] = half_of<0>(p[n]) + half_of<1>(p[n]);
            if (channels - c >= N / 2) step<kValues, true, N / 2>(c, half), c += N / 2;
            return fold<kValues, N / 2>(c, half);
        } else {
            Vec<A, 4> sum = sum_lanes<A>(p[0], p[1], p[2], p[3]);
            for (; c < channels; c++) sum += single<kValues>(c);
            return sum;
        }
    }
    template <bool kValues>
    FASTDS_HD Vec<A, 4> single(int64_t c) const {
        A p[4];
        step<kValues, false, 1>(c, p);
        return load_vec<4>(p);
    }

    // kStart: the longest vector that fits the channels, 1 below 4 of them.
    template <bool kValues, int kStart>
    FASTDS_HD Vec<A, 4> sums() const {
        if constexpr (kStart == 1) {
            Vec<A, 4> sum{};
            for (int64_t c = 0; c < channels; c++) sum += single<kValues>(c);
            return sum;
        } else {
            Vec<A, kStart> p[4];
            step<kValues, false, kStart>(0, p);
            int64_t c = kStart;
            for (; c + kStart <= channels; c += kStart) step<kValues, true, kStart>(c, p);
            return fold<kValues, kStart>(c, p);
        }
    }
};

template <bool kValues, class A, class T>
__attribute__((noinline)) void products_border(const Plan<A>& plan, const Samples<A>& s, int64_t q, const T* x, A* columns,
                                               A* products) {
    const BorderSample<A> border(plan, s, q);
    s.ly[q] = border.cell.ly;
    s.lx[q] = border.cell.lx;
    for (int n = 0; n < 4; n++) {
        products[n] = 0;
        if (!border.cell.corner[n]) continue;
        const T* corner = x + border.element(n, plan.image);
        for (int64_t c = 0; c < plan.per_group; c++) products[n] += columns[c] * static_cast<A>(load(corner[c]));
    }
    if (kValues) gather_border(plan, s, q, x, columns);
}

// products[4q + n] = <gradient of sample q, corner n>; with kValues the columns become the masked samples.
template <bool kValues, int kStart, int64_t kChannels, class A, class T>
inline void take_products(const Plan<A>& plan, const Samples<A>& s, const T* x, A* columns, int64_t tap, A* products) {
    const int64_t channels = kChannels ? kChannels : plan.per_group, K = plan.K;
    const int64_t right = plan.image.pixel, below = plan.image.row;
    for (int64_t g = 0, q = 0; g < plan.groups; g++, x += channels, columns += channels) {
        A* row = columns;
        for (int64_t k = 0; k < K; k++, q++, row += tap) {
            const int64_t at = s.at[q];
            if (__builtin_expect(at < 0, 0)) {
                products_border<kValues>(plan, s, q, x, row, products + 4 * q);
                continue;
            }
            const T *c0 = x + at, *c2 = c0 + below;
            const CornerProducts<A, T> sample{c0,      c0 + right, c2,      c2 + right, s.w0[q],
                                              s.w1[q], s.w2[q],    s.w3[q], row,        channels};
            store_vec<4>(products + 4 * q, sample.template sums<kValues, kStart>());
        }
    }
}

template <bool kValues, class A, class T>
inline void take_products_any(const Plan<A>& plan, const Samples<A>& s, const T* x, A* columns, int64_t tap, A* products) {
    constexpr int widest = kLanes<A> > 4 ? kLanes<A> : 4, eight = widest > 8 ? 8 : widest;
    const int64_t channels = plan.per_group;
    if (channels == 8) return take_products<kValues, eight, 8>(plan, s, x, columns, tap, products);
    if (channels == 16) return take_products<kValues, widest, 16>(plan, s, x, columns, tap, products);
    if (channels >= widest) return take_products<kValues, widest, 0>(plan, s, x, columns, tap, products);
    if (channels >= eight) return take_products<kValues, eight, 0>(plan, s, x, columns, tap, products);
    if (channels >= 4) return take_products<kValues, 4, 0>(plan, s, x, columns, tap, products);
    return take_products<kValues, 1, 0>(plan, s, x, columns, tap, products);
}

// Gradients of the offsets and the mask of a pixel from the products; offset points at the first pair of the plan's samples.
template <class A, class T, class S>
inline void write_sample_gradients(const Plan<A>& plan, const Samples<A>& s, const A* products, S* offset, T* mask) {
    for (int64_t q = 0; q < plan.samples; q++) {
        const A d0 = products[4 * q], d1 = products[4 * q + 1], d2 = products[4 * q + 2], d3 = products[4 * q + 3];
        const A ly = s.ly[q], lx = s.lx[q];
        if (mask != nullptr) mask[q] = store<T>(grad_of_mask(d0, d1, d2, d3, ly, lx));
        if (offset != nullptr) {
            offset[2 * q] = store<S>(static_cast<compute_t<S>>(s.mask[q] * grad_of_y(d0, d1, d2, d3, lx)));
            offset[2 * q + 1] = store<S>(static_cast<compute_t<S>>(s.mask[q] * grad_of_x(d0, d1, d2, d3, ly)));
        }
    }
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
