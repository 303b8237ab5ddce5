// SPDX-License-Identifier: Apache-2.0
// CPU kernels of window_attention2d with an online softmax, as in FlashAttention: they process the logits of one window row at
// a time with a running maximum and sum, and store nothing of size window^2.
//
// The inputs are copied to planes with a frame of zeros, because keys outside the image count as zeros. A vector holds L
// adjacent pixels of one channel. Two loops over the columns of the window do all the work: `dot` holds up to kChunk channels
// of the pixels in registers and computes one vector of logits per column; `weigh` holds as many sums in registers. The
// backward pass runs once per query for grad_q and once per key for grad_k and grad_v and computes the logits again, so that no
// two threads write to the same element.
#include "core/parallel.h"
#include "core/simd.h"
#include "core/vec_math.h"
#include "window_attention2d/params.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int64_t kMaxWindow = 64;
constexpr int64_t kMaxChannels = 64;
#if defined(__AVX512F__)
constexpr int kChunk = 24;
#else
constexpr int kChunk = 8;
#endif

template <class A>
using Lanes = Vec<A>;

template <class A>
FASTDS_HD Lanes<A> at(const A* p) {
    return load_vec<kLanes<A>>(p);
}

// Computes out[j] += sum over N channels of fixed[c] * moving[c][step * j]. If `first` is true, out[j] is set instead.
template <int N, class A>
FASTDS_HD void dot(const A* fixed, const A* moving, int64_t plane, int64_t window, int step, Lanes<A>* out, bool first) {
    Lanes<A> values[N];
#pragma GCC unroll 24
    for (int c = 0; c < N; c++) values[c] = at(fixed + c * plane);
    for (int64_t j = 0; j < window; j++) {
        const A* p = moving + step * j;
        Lanes<A> even = first ? Lanes<A>{} : out[j], odd{};
#pragma GCC unroll 24
        for (int c = 0; c < N; c += 2) {
            even += values[c] * at(p + c * plane);
            odd += values[c + 1] * at(p + (c + 1) * plane);
        }
        out[j] = even + odd;
    }
}

// Computes sums[c] = sums[c] * factor + sum over j of weights[j] * moving[c][step * j], for N channels c.
template <int N, class A>
FASTDS_HD void weigh(Lanes<A>* sums, Lanes<A> factor, const Lanes<A>* weights, const A* moving, int64_t plane, int64_t window,
                     int step) {
    Lanes<A> values[N];
#pragma GCC unroll 24
    for (int c = 0; c < N; c++) values[c] = sums[c] * factor;
    for (int64_t j = 0; j < window; j++) {
        const A* p = moving + step * j;
        const Lanes<A> weight = weights[j];
#pragma GCC unroll 24
        for (int c = 0; c < N; c++) values[c] += weight * at(p + c * plane);
    }
#pragma GCC unroll 24
    for (int c = 0; c < N; c++) sums[c] = values[c];
}

// Calls f(Size<N>, first channel) for chunks of 24, 16 or 8 channels that cover `channels`, a multiple of 8.
template <int N>
struct Size {
    static constexpr int value = N;
};
template <class F>
FASTDS_HD void for_chunks(int64_t channels, const F& f) {
    int64_t c = 0;
    if constexpr (kChunk >= 24)
        for (; c + 24 <= channels; c += 24) f(Size<24>{}, c);
    if constexpr (kChunk >= 16)
        for (; c + 16 <= channels; c += 16) f(Size<16>{}, c);
    for (; c < channels; c += 8) f(Size<8>{}, c);
}

template <class A>
inline void dot_all(const A* fixed, const A* moving, const AttentionPlanes& s, int64_t window, int step, Lanes<A>* out) {
    for_chunks(s.channels, [&](auto size, int64_t c) {
        dot<decltype(size)::value>(fixed + c * s.plane(), moving + c * s.plane(), s.plane(), window, step, out, c == 0);
    });
}
template <class A>
inline void weigh_all(Lanes<A>* sums, Lanes<A> factor, const Lanes<A>* weights, const A* moving, const AttentionPlanes& s,
                      int64_t window, int step) {
    for_chunks(s.channels, [&](auto size, int64_t c) {
        weigh<decltype(size)::value>(sums + c, factor, weights, moving + c * s.plane(), s.plane(), window, step);
    });
}

template <class A>
FASTDS_HD Lanes<A> exp_of(Lanes<A> x) {
    const auto parts = exp_parts<A>(x);
    return parts.scale + parts.scale * parts.rest;
}

// Planar copies.

// Fills all rows of all channels of all samples, including the frame.
template <class T, class A>
void fill_planes(const AttentionMap& map, A* planes, const AttentionDims& d, const AttentionPlanes& s, int threads) {
    const T* data = static_cast<const T*>(map.data);
    parallel_for(d.B * s.rows, threads, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; task++) {
            const int64_t b = task / s.rows, row = task % s.rows, y = row - s.before;
            for (int64_t c = 0; c < s.channels; c++) {
                A* to = planes + b * s.image() + c * s.plane() + row * s.columns;
                __builtin_memset(to, 0, s.columns * sizeof(A));
                if (y < 0 || y >= d.H || c >= d.C) continue;
                const T* from = data + b * map.b + c * map.c + y * map.h;
                for (int64_t x = 0; x < d.W; x++) to[s.before + x] = load(from[x * map.w]);
            }
        }
    });
}

// Writes all channels of up to one vector of pixels of a row of the result. sums[c] holds channel c.
template <class T, class A>
inline void write_lanes(const AttentionMap& map, int64_t b, int64_t y, int64_t x, int64_t C, int64_t W, const Lanes<A>* sums) {
    T* to = static_cast<T*>(map.data) + b * map.b + y * map.h + x * map.w;
    const int64_t n = W - x < kLanes<A> ? W - x : kLanes<A>;
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < C; c++) to[i * map.w + c * map.c] = store<T>(sums[c][i]);
}

template <class A, class Body>
inline void for_rows(const AttentionDims& d, int threads, const Body& body) {
    parallel_tasks(d.B * d.H, threads, [&](const auto& next) {
        for (int64_t task; (task = next()) >= 0;)
            for (int64_t x = 0; x < d.W; x += kLanes<A>) body(task / d.H, task % d.H, x);
    });
}

// Forward pass.

template <class T>
void forward(const AttentionDims& d, const AttentionForward& tensors, int threads) {
    using A = compute_t<T>;
    const AttentionPlanes s(d);
    const int64_t size = d.B * s.image(), n = d.window, half = n / 2;
    A *q = static_cast<A*>(tensors.workspace), *k = q + size, *v = k + size;
    fill_planes<T>(tensors.q, q, d, s, threads);
    fill_planes<T>(tensors.k, k, d, s, threads);
    fill_planes<T>(tensors.v, v, d, s, threads);
    A* lse = static_cast<A*>(tensors.lse);
    for_rows<A>(d, threads, [&](int64_t b, int64_t y, int64_t x) {
        const int64_t centre = b * s.image() + (y + s.before) * s.columns + s.before + x;
        Lanes<A> logits[kMaxWindow], sums[kMaxChannels] = {};
        Lanes<A> highest = Lanes<A>{} - A(1e30), total{};
        for (int64_t i = 0; i < n; i++) {
            const int64_t row = centre + (i - half) * s.columns - half;
            dot_all(q + centre, k + row, s, n, 1, logits);
            Lanes<A> top = highest;
            for (int64_t j = 0; j < n; j++) top = logits[j] > top ? logits[j] : top;
            const Lanes<A> factor = exp_of<A>(highest - top);
            total *= factor;
            for (int64_t j = 0; j < n; j++) {
                logits[j] = exp_of<A>(logits[j] - top);
                total += logits[j];
            }
            weigh_all(sums, factor, logits, v + row, s, n, 1);
            highest = top;
        }
        for (int64_t c = 0; c < d.C; c++) sums[c] = sums[c] / total;
        write_lanes<T, A>(tensors.y, b, y, x, d.C, d.W, sums);
        for (int64_t i = 0; i < kLanes<A> && x + i < d.W; i++)
            lse[(b * d.H + y) * d.W + x + i] = highest[i] + static_cast<A>(__builtin_log(total[i]));
    });
}

// Backward pass. With P = exp(logit - lse), D_p = g_p . y_p and S = P (g_p . v - D_p):
//   grad_q_p = sum S k, grad_k = sum_p S q_p, grad_v = sum_p P g_p.
// lse and D have one plane each in addition to the inputs. Outside the image lse is large, so that P is 0 there.

template <class T>
void backward(const AttentionDims& d, const AttentionBackward& tensors, int threads) {
    using A = compute_t<T>;
    const AttentionPlanes s(d);
    const int64_t size = d.B * s.image(), n = d.window, half = n / 2;
    A *q = static_cast<A*>(tensors.workspace), *k = q + size, *v = k + size, *g = v + size, *lse = g + size;
    A* inner = lse + d.B * s.plane();
    fill_planes<T>(tensors.q, q, d, s, threads);
    fill_planes<T>(tensors.k, k, d, s, threads);
    fill_planes<T>(tensors.v, v, d, s, threads);
    fill_planes<T>(tensors.grad_y, g, d, s, threads);
    const T* result = static_cast<const T*>(tensors.y.data);
    parallel_for(d.B * s.rows, threads, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; task++) {
            const int64_t b = task / s.rows, y = task % s.rows - s.before;
            for (int64_t column = 0; column < s.columns; column++) {
                const int64_t x = column - s.before;
                const bool inside = y >= 0 && y < d.H && x >= 0 && x < d.W;
                A sum = 0;
                if (inside)
                    for (int64_t c = 0; c < d.C; c++)
                        sum += g[b * s.image() + c * s.plane() + (y + s.before) * s.columns + column] *
                               load(result[b * tensors.y.b + c * tensors.y.c + y * tensors.y.h + x * tensors.y.w]);
                inner[task * s.columns + column] = sum;
                lse[task * s.columns + column] = inside ? static_cast<const A*>(tensors.lse)[(b * d.H + y) * d.W + x] : A(1e30);
            }
        }
    });
    if (tensors.grad_q.data)
        for_rows<A>(d, threads, [&](int64_t b, int64_t y, int64_t x) {
            const int64_t pixel = (y + s.before) * s.columns + s.before + x, centre = b * s.image() + pixel;
            const Lanes<A> pixel_lse = at(lse + b * s.plane() + pixel), pixel_inner = at(inner + b * s.plane() + pixel);
            Lanes<A> logits[kMaxWindow], slopes[kMaxWindow], sums[kMaxChannels] = {};
            for (int64_t i = 0; i < n; i++) {
                const int64_t row = centre + (i - half) * s.columns - half;
                dot_all(q + centre, k + row, s, n, 1, logits);
                dot_all(g + centre, v + row, s, n, 1, slopes);
                for (int64_t j = 0; j < n; j++) slopes[j] = exp_of<A>(logits[j] - pixel_lse) * (slopes[j] - pixel_inner);
                weigh_all(sums, Lanes<A>{} + A(1), slopes, k + row, s, n, 1);
            }
            write_lanes<T, A>(tensors.grad_q, b, y, x, d.C, d.W, sums);
        });
    if (!tensors.grad_k.data && !tensors.grad_v.data) return;
    for_rows<A>(d, threads, [&](int64_t b, int64_t y, int64_t x) {
        const int64_t pixel = (y + s.before) * s.columns + s.before + x, centre = b * s.image() + pixel;
        Lanes<A> weights[kMaxWindow], slopes[kMaxWindow], sums_k[kMaxChannels] = {}, sums_v[kMaxChannels] = {};
        for (int64_t i = 0; i < n; i++) {  // queries at p = key - d, with the columns in reversed order
            const int64_t shift = -(i - half) * s.columns + half, row = centre + shift, line = b * s.plane() + pixel + shift;
            dot_all(k + centre, q + row, s, n, -1, weights);
            dot_all(v + centre, g + row, s, n, -1, slopes);
            for (int64_t j = 0; j < n; j++) {
                weights[j] = exp_of<A>(weights[j] - at(lse + line - j));
                slopes[j] = weights[j] * (slopes[j] - at(inner + line - j));
            }
            if (tensors.grad_k.data) weigh_all(sums_k, Lanes<A>{} + A(1), slopes, q + row, s, n, -1);
            if (tensors.grad_v.data) weigh_all(sums_v, Lanes<A>{} + A(1), weights, g + row, s, n, -1);
        }
        if (tensors.grad_k.data) write_lanes<T, A>(tensors.grad_k, b, y, x, d.C, d.W, sums_k);
        if (tensors.grad_v.data) write_lanes<T, A>(tensors.grad_v, b, y, x, d.C, d.W, sums_v);
    });
}

#if defined(__AVX512F__)
// Returns whether the AVX2 code with vectors of 8 pixels reads at least a quarter fewer pixels than vectors of 16, for short
// rows.
bool half_vectors_pay(const AttentionDims& d) { return 4 * round_up(d.W, 8) <= 3 * round_up(d.W, 16); }
#endif

}  // namespace

void window_attention2d_forward(const AttentionDims& dims, const AttentionForward& tensors, int threads) {
#if defined(__AVX512F__)
    if (half_vectors_pay(dims)) return avx2::window_attention2d_forward(dims, tensors, threads);
#endif
    FASTDS_KERNEL_DTYPE_SWITCH(static_cast<DType>(dims.dtype), forward<scalar>(dims, tensors, threads))
}

void window_attention2d_backward(const AttentionDims& dims, const AttentionBackward& tensors, int threads) {
#if defined(__AVX512F__)
    if (half_vectors_pay(dims)) return avx2::window_attention2d_backward(dims, tensors, threads);
#endif
    FASTDS_KERNEL_DTYPE_SWITCH(static_cast<DType>(dims.dtype), backward<scalar>(dims, tensors, threads))
}

}  // namespace FASTDS_ISA
}  // namespace fastds
