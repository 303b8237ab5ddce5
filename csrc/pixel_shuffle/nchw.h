// SPDX-License-Identifier: Apache-2.0
// pixel_shuffle for contiguous (NCHW) tensors. A row of sub-pixels interleaves the elements of r coarse rows, which come from r
// planes.
#pragma once
#include "core/buffer.h"
#include "pixel_shuffle/elementwise.h"
#include "pixel_shuffle/permute.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Loads or stores the first `count` elements of a vector. `count` may be negative or exceed N.
template <int N, class U>
FASTDS_HD Vec<U, N> load_partial(const U* from, int64_t count) {
    Vec<U, N> v{};
    if (count >= N) {
        __builtin_memcpy(&v, from, sizeof(v));
        return v;
    }
#if defined(__AVX512BW__)
    if constexpr (sizeof(U) == 4) return (Vec<U, N>)_mm512_maskz_loadu_epi32(count > 0 ? (1u << count) - 1 : 0, from);
    if constexpr (sizeof(U) == 2) return (Vec<U, N>)_mm512_maskz_loadu_epi16(count > 0 ? (1u << count) - 1 : 0, from);
#elif defined(__AVX2__)
    if constexpr (sizeof(U) == 4) return (Vec<U, N>)_mm256_maskload_epi32((const int*)from, lane_mask(0, static_cast<int>(count)));
#endif
    for (int64_t k = 0; k < count; k++) v[k] = from[k];
    return v;
}
template <int N, class U>
FASTDS_HD void store_partial(U* to, const Vec<U, N>& v, int64_t count) {
    if (count >= N) {
        __builtin_memcpy(to, &v, sizeof(v));
        return;
    }
#if defined(__AVX512BW__)
    if constexpr (sizeof(U) == 4) return _mm512_mask_storeu_epi32(to, count > 0 ? (1u << count) - 1 : 0, (__m512i)v);
    if constexpr (sizeof(U) == 2) return _mm512_mask_storeu_epi16(to, count > 0 ? (1u << count) - 1 : 0, (__m512i)v);
#elif defined(__AVX2__)
    if constexpr (sizeof(U) == 4) return _mm256_maskstore_epi32((int*)to, lane_mask(0, static_cast<int>(count)), (__m256i)v);
#endif
    for (int64_t k = 0; k < count; k++) to[k] = v[k];
}

// Interleaves R rows of W elements, which are `pitch` apart, into one row. each(v, j) is applied to each vector v of row j.
template <int R, class U, class Each>
void interleave_rows(const U* rows, int64_t pitch, int64_t W, U* to, const Each& each) {
    constexpr int N = kVectorBytes / static_cast<int>(sizeof(U));
    for (int64_t w = 0; w < W; w += N) {
        Vec<U, N> v[R];
#pragma GCC unroll 8
        for (int j = 0; j < R; j++) v[j] = each(load_partial<N>(rows + j * pitch + w, W - w), j);
        interleave<R, N>(v);
#pragma GCC unroll 8
        for (int k = 0; k < R; k++) store_partial<N>(to + w * R + k * N, v[k], (W - w) * R - k * N);
    }
}
template <int R, class U>
void deinterleave_rows(const U* from, int64_t pitch, int64_t W, U* rows) {
    constexpr int N = kVectorBytes / static_cast<int>(sizeof(U));
    for (int64_t w = 0; w < W; w += N) {
        Vec<U, N> v[R];
#pragma GCC unroll 8
        for (int k = 0; k < R; k++) v[k] = load_partial<N>(from + w * R + k * N, (W - w) * R - k * N);
        deinterleave<R, N>(v);
#pragma GCC unroll 8
        for (int j = 0; j < R; j++) store_partial<N>(rows + j * pitch + w, v[j], W - w);
    }
}

// Versions for any factor.
template <class U, class Each>
__attribute__((noinline)) void interleave_any_rows(int r, const U* rows, int64_t pitch, int64_t W, U* to, const Each& each) {
    if constexpr (kHasLanes<U>)
        dispatch_factor(r, [=](auto factor) { interleave_rows<decltype(factor)::value>(rows, pitch, W, to, each); });
    else
        for (int64_t k = 0; k < W * r; k++) to[k] = rows[k % r * pitch + k / r];
}
template <class U>
__attribute__((noinline)) void deinterleave_any_rows(int r, const U* from, int64_t pitch, int64_t W, U* rows) {
    if constexpr (kHasLanes<U>)
        dispatch_factor(r, [=](auto factor) { deinterleave_rows<decltype(factor)::value>(from, pitch, W, rows); });
    else
        for (int64_t k = 0; k < W * r; k++) rows[k % r * pitch + k / r] = from[k];
}

// Returns the number of short rows of a plane that are interleaved together; the result is then copied row by row to its place.
FASTDS_HD int64_t count_rows_together(const PixelShuffleParams& p) {
    const int64_t fitting = p.W >= 32 ? 1 : 64 / p.W;
    return fitting < p.H ? fitting : p.H;
}

template <class T>
class ForwardPlanes {
    using A = compute_t<T>;
    using U = bits_t<T>;
    // Values are computed into a buffer first, then interleaved.
    static constexpr bool kStaged = sizeof(A) != sizeof(T) || !kHasLanes<T>;

  public:
    ForwardPlanes(const ShuffleLayout<T>& layout, const PixelShuffleForward& tensors)
        : layout_(layout),
          t_(tensors),
          together_(count_rows_together(layout.p)),
          pitch_(together_ * layout.p.W + kLanes<A>),
          computed_(kStaged && tensors.bias != nullptr ? layout.p.r * pitch_ : 0),
          interleaved_(together_ > 1 ? together_ * layout.p.W * layout.p.r : 0) {}

    // Processes the coarse rows [h, h + count), at most count_rows_together(), for sub-pixel row i of one channel of an image.
    void rows(int64_t image_channel, int64_t i, int64_t h, int64_t count) const {
        const PixelShuffleParams& p = layout_.p;
        const int64_t plane = p.H * p.W, run = p.r * p.W;
        const T* coarse = static_cast<const T*>(t_.x) + (image_channel * p.r + i) * p.r * plane + h * p.W;
        const A* bias = static_cast<const A*>(t_.bias) + (image_channel % p.C * p.r + i) * p.r;
        T* fine = static_cast<T*>(t_.y) + ((image_channel * p.H + h) * p.r + i) * run;
        T* to = together_ > 1 ? static_cast<T*>(interleaved_) : fine;
        const auto as_it_is = [](auto v, int) __attribute__((always_inline)) { return v; };
        if (t_.bias == nullptr) {
            interleave_any_rows(p.r, (const U*)coarse, plane, count * p.W, (U*)to, as_it_is);
        } else if constexpr (kStaged) {
            for (int64_t j = 0; j < p.r; j++)
                compute_activation<true>(layout_, coarse + j * plane, bias + j, count * p.W, computed_ + j * pitch_);
            interleave_any_rows(p.r, (const U*)static_cast<T*>(computed_), pitch_, count * p.W, (U*)to, as_it_is);
        } else {
            interleave_any_rows(p.r, coarse, plane, count * p.W, to, [bias, act = layout_.act](auto v,
                                                                                                int j) __attribute__((always_inline)) {
                return activate(decltype(v)(v + bias[j]), act);
            });
        }
        for (int64_t k = 0; together_ > 1 && k < count; k++)
            __builtin_memcpy(fine + k * p.r * run, interleaved_ + k * run, run * sizeof(T));
    }

  private:
    const ShuffleLayout<T> layout_;
    const PixelShuffleForward t_;
    const int64_t together_, pitch_;
    const Buffer<T> computed_, interleaved_;
};

template <class T>
void forward_planes(const ShuffleLayout<T>& layout, const PixelShuffleForward& t, int threads) {
    const PixelShuffleParams& p = layout.p;
    const int64_t together = count_rows_together(p), groups = (p.H + together - 1) / together;
    parallel_for(p.B * p.C * p.r * groups, threads, [=](int64_t begin, int64_t end) {
        const ForwardPlanes<T> planes(layout, t);
        const int64_t H = layout.p.H, r = layout.p.r;
        for (int64_t task = begin; task < end; task++) {
            const int64_t h = task % groups * together, count = H - h < together ? H - h : together;
            planes.rows(task / groups / r, task / groups % r, h, count);
        }
    });
}

// The backward pass of one thread.
template <class T>
class BackwardPlanes {
    using A = compute_t<T>;
    using U = bits_t<T>;

  public:
    BackwardPlanes(const ShuffleLayout<T>& layout, const PixelShuffleBackward& tensors)
        : layout_(layout),
          t_(tensors),
          together_(count_rows_together(layout.p)),
          lanes_(layout.p.r * kLanes<A>),
          computed_(together_ * layout.p.r * layout.p.W),
          totals_(lanes_) {}

    // Processes the rows [begin, end) of coarse pixels, counted over the batch, of the planes of channel c and sub-pixel row i.
    // `sums`, unless null, receives the gradients of their biases.
    void rows(int64_t begin, int64_t end, int64_t c, int64_t i, A* sums) const {
        const PixelShuffleParams& p = layout_.p;
        __builtin_memset(totals_, 0, lanes_ * sizeof(A));
        for (int64_t row = begin; row < end;) {
            const int64_t image_channel = row / p.H * p.C + c, h = row % p.H;
            int64_t count = end - row < p.H - h ? end - row : p.H - h;
            if (count > together_) count = together_;
            const T* grad = gradients(((image_channel * p.H + h) * p.r + i) * p.r * p.W, count, sums != nullptr);
            T* coarse = static_cast<T*>(t_.grad_x) + ((image_channel * p.r + i) * p.r * p.H + h) * p.W;
            if (t_.grad_x != nullptr) deinterleave_any_rows(p.r, (const U*)grad, p.H * p.W, count * p.W, (U*)coarse);
            row += count;
        }
        for (int64_t j = 0; sums != nullptr && j < p.r; j++) {
            A sum = 0;
            for (int64_t k = j; k < lanes_; k += p.r) sum += totals_[k];
            sums[(i * p.r + j) * p.C + c] = sum;
        }
    }

  private:
    // Returns the gradients of `count` rows of sub-pixels with respect to the values before bias and activation, as one
    // contiguous block. For the bias, groups of r vectors are added to each other.
    const T* gradients(int64_t fine, int64_t count, bool summed) const {
        const T *grad_y = static_cast<const T*>(t_.grad_y), *y = static_cast<const T*>(t_.y);
        if (y == nullptr && !summed && together_ == 1) return grad_y + fine;
        const int64_t run = layout_.p.r * layout_.p.W;
        T* to = computed_;
        for (int64_t n = 0; n < count; n++, fine += layout_.p.r * run, to += run)
            for (int64_t k = 0; k < run; k += lanes_)
                compute_gradient<T>(layout_, grad_y + fine + k, y ? y + fine + k : nullptr,
                                      run - k < lanes_ ? run - k : lanes_, summed ? static_cast<A*>(totals_) : nullptr, to + k);
        return computed_;
    }

    const ShuffleLayout<T> layout_;
    const PixelShuffleBackward t_;
    const int64_t together_, lanes_;
    const Buffer<T> computed_;
    const Buffer<A> totals_;
};

template <class T>
void backward_planes(const ShuffleLayout<T>& layout, const PixelShuffleBackward& t, int threads) {
    using A = compute_t<T>;
    const PixelShuffleParams& p = layout.p;
    const int64_t image_rows = p.B * p.H, parts = pixel_shuffle_cpu_partials(p), channels = p.C * p.r * p.r;
    parallel_for(p.C * p.r * parts, threads, [=](int64_t begin, int64_t end) {
        const BackwardPlanes<T> planes(layout, t);
        for (int64_t task = begin; task < end; task++) {
            const int64_t part = task % parts, i = task / parts % layout.p.r, c = task / parts / layout.p.r;
            A* sums = t.grad_bias == nullptr ? nullptr : static_cast<A*>(t.partials) + part * channels;
            planes.rows(image_rows * part / parts, image_rows * (part + 1) / parts, c, i, sums);
        }
    });
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
