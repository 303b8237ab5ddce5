// SPDX-License-Identifier: Apache-2.0
// Any factor, any number of channels, x in pixels or in planes: a chunk of a row of coarse pixels is calculated in the
// order in which it lies in memory, and its elements are then fetched from the first cache by a list of their places.
#pragma once
#include "core/buffer.h"
#include "pixel_shuffle/problem.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int64_t kChunkElements = 1024;  // enough to hide what a chunk costs; its list is made in every call
constexpr int64_t kPlaneRun = 48;         // at least so many pixels of a plane are read at once, each in its own page

// to[k] = from[places[k]]; `from` may be read two bytes past the end.
template <class T>
FASTDS_HD void fetch(const T* from, const int32_t* places, int64_t count, T* to) {
    int64_t k = 0;
#if defined(__AVX512F__)
    for (; sizeof(T) <= 4 && k + 16 <= count; k += 16) {
        const __m512i at = _mm512_loadu_si512(places + k);
        if constexpr (sizeof(T) == 4)
            _mm512_storeu_si512(to + k, _mm512_i32gather_epi32(at, from, 4));
        else
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + k),
                                _mm512_cvtepi32_epi16(_mm512_i32gather_epi32(at, from, 2)));
    }
#endif
    for (; k < count; k++) __builtin_memcpy(to + k, from + places[k], sizeof(T));
}

// The coarse pixels of a chunk, and where their elements lie in it.
struct Chunk {
    int64_t C, r, each, pixels, pitch;

    // planes: every channel of the chunk is a run of `pitch` elements.
    Chunk(const PixelShuffleParams& p, bool planes) : C(p.C), r(p.r), each(p.C * p.r * p.r) {
        const int64_t least = planes ? kPlaneRun : 1, fitting = kChunkElements / each;
        pixels = fitting > least ? fitting : least;
        if (pixels > p.W) pixels = p.W;
        const int64_t chunks = p.W > 0 ? (p.W + pixels - 1) / pixels : 1;
        pixels = (p.W + chunks - 1) / chunks;
        pitch = pixels + 16;  // of two powers of two the larger would crowd few sets of the cache
    }

    // Calls use(place among fine elements of sub-pixel row i, i, pixel, coarse channel) for every element.
    template <class Use>
    void for_each(const Use& use) const {
        for (int64_t w = 0; w < pixels; w++)
            for (int64_t c = 0; c < C; c++)
                for (int64_t i = 0; i < r; i++)
                    for (int64_t j = 0; j < r; j++) use((w * r + j) * C + c, i, w, (c * r + i) * r + j);
    }
};

// act(x + bias) of `count` elements; what follows them in `to` is overwritten, too. One: a single bias for all of them.
template <bool Plain, bool One, class T>
FASTDS_HD void calculate(const Problem<T>& problem, const T* x, const compute_t<T>* bias, int64_t count, T* to) {
    using A = compute_t<T>;
    constexpr int L = kLanes<A>;
    if constexpr (Plain) {
        __builtin_memcpy(to, x, count * sizeof(T));
    } else {
        for (int64_t k = 0; k < count; k += L) {
            const auto added = One ? broadcast<A, L>(*bias) : load_vec<L>(bias + (One ? 0 : k));
            store_vec<L>(to + k, activate(Vec<A, L>(load_first<L>(x + k, count - k) + added), problem.act));
        }
    }
}

template <bool Plain, class T>
void forward_places(const Problem<T>& problem, const PixelShuffleForward& t, int threads) {
    using A = compute_t<T>;
    const T* x = static_cast<const T*>(t.x);
    const A* bias = static_cast<const A*>(t.bias);
    const bool planes = t.planes;
    T* y = static_cast<T*>(t.y);
    parallel_for(problem.p.B * problem.p.H, threads, [=](int64_t begin, int64_t end) {
        const Problem<T> own = problem;
        const PixelShuffleParams& p = own.p;
        const Chunk chunk(p, planes);
        const int64_t run = p.r * p.C, next_row = planes ? p.r * chunk.pitch : p.r;
        const Buffer<T> calculated(chunk.each * (planes ? chunk.pitch : chunk.pixels));
        const Buffer<A> biases(chunk.each * (planes || Plain ? 1 : chunk.pixels));
        const Buffer<int32_t> places(chunk.pixels * run);
        chunk.for_each([&](int64_t fine, int64_t i, int64_t w, int64_t channel) {
            const int64_t place = planes ? channel * chunk.pitch + w : w * chunk.each + channel;
            if (i == 0) places[fine] = static_cast<int32_t>(place);
            if (!Plain && (!planes || w == 0)) biases[planes ? channel : place] = bias[i * run + fine % run];
        });
        for (int64_t row = begin; row < end; row++)
            for (int64_t w = 0; w < p.W; w += chunk.pixels) {
                const int64_t count = p.W - w < chunk.pixels ? p.W - w : chunk.pixels;
                if (planes) {
                    const T* plane = x + (row / p.H * chunk.each * p.H + row % p.H) * p.W + w;
                    for (int64_t o = 0; o < chunk.each; o++, plane += p.H * p.W)
                        calculate<Plain, true>(own, plane, biases + o, count, calculated + o * chunk.pitch);
                } else {
                    const T* from = x + own.coarse(row) + w * chunk.each;
                    calculate<Plain, false>(own, from, biases, count * chunk.each, static_cast<T*>(calculated));
                }
                T* fine = y + own.fine(row) + w * run;
                for (int64_t i = 0; i < p.r; i++)
                    fetch<T>(calculated + i * next_row, places, count * run, fine + i * own.row_stride);
            }
    });
}

// Gradients of a run of sub-pixels before bias and activation; sums, where not null, take them on top of what they hold.
template <class T>
FASTDS_HD void calculate_gradient(const Problem<T>& problem, const T* grad_y, const T* y, int64_t count,
                                  compute_t<T>* sums, T* to) {
    using A = compute_t<T>;
    constexpr int L = kLanes<A>;
    if (y == nullptr && sums == nullptr) {
        __builtin_memcpy(to, grad_y, count * sizeof(T));
        return;
    }
    for (int64_t k = 0; k < count; k += L) {
        auto grad = load_first<L>(grad_y + k, count - k);
        if (y != nullptr) grad = activation_gradient(grad, load_first<L>(y + k, count - k), problem.act);
        if (sums != nullptr) store_vec<L>(sums + k, Vec<A, L>(load_vec<L>(sums + k) + grad));
        store_vec<L>(to + k, grad);
    }
}

// The backward pass of one thread.
template <class T>
class BackwardPlaces {
    using A = compute_t<T>;

  public:
    BackwardPlaces(const Problem<T>& problem, const PixelShuffleBackward& tensors)
        : own_(problem),
          t_(tensors),
          chunk_(problem.p, false),
          run_(problem.p.r * problem.p.C),
          elements_(chunk_.pixels * chunk_.each),
          calculated_(elements_),
          totals_(elements_),
          places_(elements_) {
        chunk_.for_each([&](int64_t fine, int64_t i, int64_t w, int64_t channel) {
            places_[w * chunk_.each + channel] = static_cast<int32_t>(i * chunk_.pixels * run_ + fine);
        });
    }

    // Rows of coarse pixels; sums, where not null, take the gradient of the bias on top of what they hold.
    void rows(int64_t begin, int64_t end, A* sums) const {
        const PixelShuffleParams& p = own_.p;
        if (sums != nullptr) __builtin_memset(totals_, 0, (elements_ + kLanes<A>) * sizeof(A));
        for (int64_t row = begin; row < end; row++)
            for (int64_t w = 0; w < p.W; w += chunk_.pixels)
                pixels(row, w, p.W - w < chunk_.pixels ? p.W - w : chunk_.pixels, sums != nullptr);
        const int64_t fine_row = chunk_.pixels * run_;
        for (int64_t i = 0; sums != nullptr && i < p.r; i++)
            for (int64_t w = 0; w < chunk_.pixels; w++)
                for (int64_t k = 0; k < run_; k++) sums[i * run_ + k] += totals_[i * fine_row + w * run_ + k];
    }

  private:
    void pixels(int64_t row, int64_t w, int64_t count, bool summed) const {
        const T *grad_y = static_cast<const T*>(t_.grad_y), *y = static_cast<const T*>(t_.y);
        T* grad_x = static_cast<T*>(t_.grad_x);
        for (int64_t i = 0; i < own_.p.r; i++) {
            const int64_t at = own_.fine(row) + i * own_.row_stride + w * run_, part = i * chunk_.pixels * run_;
            calculate_gradient<T>(own_, grad_y + at, y ? y + at : nullptr, count * run_,
                                  summed ? totals_ + part : nullptr, calculated_ + part);
        }
        if (grad_x == nullptr) return;
        fetch<T>(calculated_, places_, count * chunk_.each, grad_x + own_.coarse(row) + w * chunk_.each);
    }

    const Problem<T> own_;
    const PixelShuffleBackward t_;
    const Chunk chunk_;
    const int64_t run_, elements_;
    const Buffer<T> calculated_;
    const Buffer<A> totals_;
    const Buffer<int32_t> places_;
};

template <class T>
void backward_places(const Problem<T>& problem, const PixelShuffleBackward& t, int threads) {
    using A = compute_t<T>;
    const int64_t rows = problem.p.B * problem.p.H, pieces = pixel_shuffle_cpu_partials(problem.p);
    const int64_t channels = problem.p.C * problem.p.r * problem.p.r;
    parallel_for(pieces, threads, [=](int64_t begin, int64_t end) {
        const BackwardPlaces<T> places(problem, t);
        for (int64_t piece = begin; piece < end; piece++) {
            A* sums = t.grad_bias == nullptr ? nullptr : static_cast<A*>(t.partials) + piece * channels;
            if (sums != nullptr) __builtin_memset(sums, 0, channels * sizeof(A));
            places.rows(rows * piece / pieces, rows * (piece + 1) / pieces, sums);
        }
    });
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
