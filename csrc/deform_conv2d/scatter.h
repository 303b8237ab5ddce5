// SPDX-License-Identifier: Apache-2.0
// The two loops of the backward pass over the samples of a pixel: adding their gradients to grad_x, and the products from which
// the gradients of offset and mask are computed.
#pragma once
#include "deform_conv2d/gather.h"
#include "deform_conv2d/math.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// The channels of one slice of grad_x, or a private accumulator for them. Rows are zeroed when they are first touched; the rows
// [begin, end) are valid.
template <class A>
struct GradImage {
    A* data;
    Image image;
    int64_t width, channels, begin, end;

    void zero(int64_t first, int64_t last) const {
        for (int64_t y = first; y < last; y++) {
            A* row = data + y * image.row;
            if (image.pixel == channels) {
                __builtin_memset(row, 0, width * channels * sizeof(A));
            } else {
                for (int64_t x = 0; x < width; x++) __builtin_memset(row + x * image.pixel, 0, channels * sizeof(A));
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

template <int N, class A>
FASTDS_HD void add(A* p, Vec<A, N> w, Vec<A, N> v) {
    store_vec<N>(p, Vec<A, N>(load_vec<N>(p) + w * v));
}

// grad_x += weights * columns, which are the gradients of the masked samples. Not inlined, because the code is the same for all
// storage types.
template <class A>
__attribute__((noinline)) void scatter(const Plan<A>& plan, const Samples<A>& s, int64_t run, const A* columns,
                                       const GradImage<A>& grad_x) {
    const int64_t *at = s.at_grad, *column = plan.column;
    const A* weights = s.weights;
    A* data = grad_x.data;
    const int64_t below = grad_x.image.below, right = grad_x.image.right;
    dispatch_channels(plan.per_group, [&](auto known) FASTDS_INLINE {
        const int64_t channels = decltype(known)::value ? decltype(known)::value : plan.per_group;
        for_samples(run * plan.samples, s, [&](auto border, int64_t q) FASTDS_INLINE {
            A *corner = data + at[q], *lower = corner + below;
            const A* grad = columns + column[q];
            for_channels<A>(channels, [&](auto lanes, int64_t c) FASTDS_INLINE {
                constexpr int N = decltype(lanes)::value;
                const Vec<A, N> g = load_vec<N>(grad + c);
                Vec<A, N> w[4], v[4];
                broadcast4<N>(weights + 4 * q, w);
                for (int n = 0; n < 4; n++) v[n] = g;
                if constexpr (decltype(border)::value) zero_outside<N, A>(s.inside + 4 * q, v);
                // Samples at the edge use the same arithmetic as others, because a result must not depend on which other
                // samples share the vector.
                add<N>(corner + c, w[0], v[0]);
                add<N>(corner + right + c, w[1], v[1]);
                add<N>(lower + c, w[2], v[2]);
                add<N>(lower + right + c, w[3], v[3]);
            });
        });
    });
}

// Products of one sample. For each channel, the gradient is read from `columns` and the masked sampled value is written in its
// place.
template <bool kBorder, class A, class T>
struct CornerProducts {
    const T* corner;
    const Image& image;
    const Bits<A>* inside;
    const A* weights;
    A* columns;
    const int64_t channels;

    // Adds the products of the channels c .. c+N-1, lane by lane, to p[corner].
    template <bool kAdd, int N>
    FASTDS_HD void step(int64_t c, Vec<A, N> (&p)[4]) const {
        const Vec<A, N> grad = load_vec<N>(columns + c);
        Vec<A, N> v[4];
        load_corners<kBorder, N, A>(corner + c, image, inside, v);
        store_vec<N>(columns + c, blend<N, A>(weights, v));
        for (int n = 0; n < 4; n++) p[n] = kAdd ? p[n] + grad * v[n] : grad * v[n];
    }

    // Folds the lanes of p in halves. On the way, vectors of each shorter length process the remaining channels.
    template <int N>
    FASTDS_HD Vec<A, 4> fold(int64_t c, Vec<A, N> (&p)[4]) const {
        if constexpr (N > 4) {
            Vec<A, N / 2> half[4];
            for (int n = 0; n < 4; n++) half[n] = get_half<0>(p[n]) + get_half<1>(p[n]);
            if (channels - c >= N / 2) step<true, N / 2>(c, half), c += N / 2;
            return fold<N / 2>(c, half);
        } else {
            Vec<A, 4> sum = sum_lanes<A>(p[0], p[1], p[2], p[3]);
            for (; c < channels; c++) sum += single(c);
            return sum;
        }
    }
    FASTDS_HD Vec<A, 4> single(int64_t c) const {
        A p[4];
        step<false, 1>(c, p);
        return load_vec<4>(p);
    }

    // kStart is the longest vector that fits the channels; 1 for fewer than 4 channels.
    template <int kStart>
    FASTDS_HD Vec<A, 4> sums() const {
        if constexpr (kStart == 1) {
            Vec<A, 4> sum{};
            for (int64_t c = 0; c < channels; c++) sum += single(c);
            return sum;
        } else {
            Vec<A, kStart> p[4];
            step<false, kStart>(0, p);
            int64_t c = kStart;
            for (; c + kStart <= channels; c += kStart) step<true, kStart>(c, p);
            return fold<kStart>(c, p);
        }
    }
};

// products[4q + n] = sum over channels of (gradient of sample q) * (corner n). The masked samples replace the columns.
template <class A, class T>
FASTDS_HD void compute_products(const Plan<A>& plan, const Samples<A>& s, int64_t run, const Image image, const T* x, A* columns,
                             A* products) {
    constexpr int widest = kLanes<A> > 4 ? kLanes<A> : 4, eight = widest > 8 ? 8 : widest;
    const int64_t *at = s.at, *column = plan.column;
    const A* weights = s.weights;
    const auto loop = [&](auto start, int64_t channels) FASTDS_INLINE {
        for_samples(run * plan.samples, s, [&](auto border, int64_t q) FASTDS_INLINE {
            const CornerProducts<decltype(border)::value, A, T> sample{x + at[q],       image, s.inside + 4 * q, weights + 4 * q,
                                                                       columns + column[q], channels};
            store_vec<4>(products + 4 * q, sample.template sums<decltype(start)::value>());
        });
    };
    const int64_t channels = plan.per_group;
    if (channels == 8) return loop(Lanes<eight>{}, 8);
    if (channels == 16) return loop(Lanes<widest>{}, 16);
    if (channels >= widest) return loop(Lanes<widest>{}, channels);
    if (channels >= eight) return loop(Lanes<eight>{}, channels);
    if (channels >= 4) return loop(Lanes<4>{}, channels);
    return loop(Lanes<1>{}, channels);
}

// Computes the gradients of the offsets and the mask of all samples from the products. `offset` points to the pair of the first
// sample.
template <class A, class T, class S>
__attribute__((noinline)) void write_sample_gradients(const Samples<A>& s, int64_t samples, const A* products, S* offset, T* mask) {
    constexpr int N = kLanes<A>;
    using V = Vec<A>;
    using C = compute_t<S>;
    using L = lanes_of<N>;
    for (int64_t q = 0; q < samples; q += N) {
        const A* p = products + 4 * q;
        V d02[2], d13[2];
        for (int n = 0; n < 2; n++) {
            const V first = load_vec<N>(p + 2 * n * N), second = load_vec<N>(p + (2 * n + 1) * N);
            d02[n] = every_second<0>(first, second, L{});
            d13[n] = every_second<1>(first, second, L{});
        }
        V d0 = every_second<0>(d02[0], d02[1], L{}), d2 = every_second<1>(d02[0], d02[1], L{});
        V d1 = every_second<0>(d13[0], d13[1], L{}), d3 = every_second<1>(d13[0], d13[1], L{});
        if (s.border[q / N]) {
            const auto moved_y = load_vec<N>(s.moved_y + q), moved_x = load_vec<N>(s.moved_x + q);
            swap_where(moved_y, d0, d2);
            swap_where(moved_y, d1, d3);
            swap_where(moved_x, d0, d1);
            swap_where(moved_x, d2, d3);
        }
        const V ly = load_vec<N>(s.ly + q), lx = load_vec<N>(s.lx + q), m = load_vec<N>(s.mask + q);
        const int64_t count = samples - q;
        if (mask != nullptr) {
            store_first<N>(mask + q, V(grad_of_mask(d0, d1, d2, d3, ly, lx)), count);
        }
        if (offset == nullptr) continue;
        const V grad_y = m * grad_of_y(d0, d1, d2, d3, lx), grad_x = m * grad_of_x(d0, d1, d2, d3, ly);
        const V first = alternate<0>(grad_y, grad_x, L{}), second = alternate<1>(grad_y, grad_x, L{});
        store_first<N>(offset + 2 * q, Vec<C, N>(__builtin_convertvector(first, Vec<C, N>)), 2 * count);
        store_first<N>(offset + 2 * q + N, Vec<C, N>(__builtin_convertvector(second, Vec<C, N>)), 2 * count - N);
    }
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
