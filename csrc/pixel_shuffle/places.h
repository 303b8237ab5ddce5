// SPDX-License-Identifier: Apache-2.0
// Any factor, any number of channels: a chunk of a row of coarse pixels is calculated in the order in which it lies in
// memory, and its elements are then fetched from the first cache by a list of their places.
#pragma once
#include "core/buffer.h"
#include "pixel_shuffle/calculate.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int64_t kChunkElements = 1024;  // enough to hide what a chunk costs; its list is made in every call

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
    int64_t C, r, each, pixels;

    explicit Chunk(const PixelShuffleParams& p) : C(p.C), r(p.r), each(p.C * p.r * p.r) {
        const int64_t fitting = kChunkElements / each;
        pixels = fitting > 1 ? fitting : 1;
        if (pixels > p.W) pixels = p.W;
        const int64_t chunks = p.W > 0 ? (p.W + pixels - 1) / pixels : 1;
        pixels = (p.W + chunks - 1) / chunks;
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

template <bool Plain, class T>
void forward_places(const Problem<T>& problem, const PixelShuffleForward& t, int threads) {
    using A = compute_t<T>;
    const T* x = static_cast<const T*>(t.x);
    const A* bias = static_cast<const A*>(t.bias);
    T* y = static_cast<T*>(t.y);
    parallel_for(problem.p.B * problem.p.H, threads, [=](int64_t begin, int64_t end) {
        const Problem<T> own = problem;
        const PixelShuffleParams& p = own.p;
        const Chunk chunk(p);
        const int64_t run = p.r * p.C, elements = chunk.pixels * chunk.each;
        const Buffer<T> calculated(elements);
        const Buffer<A> biases(Plain ? 1 : elements);
        const Buffer<int32_t> places(chunk.pixels * run);
        chunk.for_each([&](int64_t fine, int64_t i, int64_t w, int64_t channel) {
            const int64_t place = w * chunk.each + channel;
            if (i == 0) places[fine] = static_cast<int32_t>(place);
            if (!Plain) biases[place] = bias[i * run + fine % run];
        });
        for (int64_t row = begin; row < end; row++)
            for (int64_t w = 0; w < p.W; w += chunk.pixels) {
                const int64_t count = p.W - w < chunk.pixels ? p.W - w : chunk.pixels;
                const T* from = x + own.coarse(row) + w * chunk.each;
                calculate<Plain, false>(own, from, biases, count * chunk.each, static_cast<T*>(calculated));
                T* fine = y + own.fine(row) + w * run;
                for (int64_t i = 0; i < p.r; i++)
                    fetch<T>(calculated + i * p.r, places, count * run, fine + i * own.row_stride);
            }
    });
}

// The backward pass of one thread.
template <class T>
class BackwardPlaces {
    using A = compute_t<T>;

  public:
    BackwardPlaces(const Problem<T>& problem, const PixelShuffleBackward& tensors)
        : own_(problem),
          t_(tensors),
          chunk_(problem.p),
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
