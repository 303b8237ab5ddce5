// SPDX-License-Identifier: Apache-2.0
// Parallel over rows of coarse pixels; bound by memory bandwidth. Blocks of whole registers of channels are permuted in
// registers, channels left over in narrower blocks and one by one (blocks.h); a single channel has a way of its own
// (pixels.h), and so have factors and numbers of channels without such blocks (places.h), and planes (planes.h).
#include "core/parallel.h"
#include "pixel_shuffle/blocks.h"
#include "pixel_shuffle/pixels.h"
#include "pixel_shuffle/places.h"
#include "pixel_shuffle/planes.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Channels of the widest block. Factors 5, 6 and 7 have no network: they go by places. So does float16 with a bias, which no
// network here uses: its blocks took a third of this file's compilation.
template <class T>
constexpr bool kHasBlocks = kHasLanes<T>;
template <>
constexpr bool kHasBlocks<Half> = false;
template <int R, class T>
constexpr int kBlock = R > 0 && kHasBlocks<T> ? kVectorBytes / static_cast<int>(sizeof(T)) : 1;

// Channels of a block where there are C, and how many of them whole blocks have.
template <int R, class T>
FASTDS_HD int64_t block_of(int64_t C) {
    constexpr int full = kBlock<R, T>, quarter = full / 4;
    return C >= full ? full : C >= quarter && quarter > 1 ? quarter : 1;
}
template <int R, class T>
FASTDS_HD int64_t in_blocks(int64_t C) {
    return C - C % block_of<R, T>(C);
}

// Whether there are no blocks.
template <int R, class T>
bool goes_by_places(const Problem<T>& problem) {
    if constexpr (kWholePixels<R, T>) {
        if (problem.p.C == 1) return false;
    }
    return R != 1 && block_of<R, T>(problem.p.C) == 1;
}

// Calls block(Width<N>, w, c, again) for the pixels of a row from `first` on and all channels. Channels after the last whole
// block make one with some of those before them, which are done again.
template <int R, class T, class Block>
FASTDS_HD void for_row(const Problem<T>& problem, int64_t first, const Block& block) {
    constexpr int full = kBlock<R, T>, quarter = full / 4;
    const int64_t C = problem.p.C, size = block_of<R, T>(C), whole = C - C % size;
    const auto blocks = [&](auto width) __attribute__((always_inline)) {
        for (int64_t w = first; w < problem.p.W; w++) {
            for (int64_t c = 0; c < whole; c += size) block(width, w, c, false);
            if (whole < C) block(width, w, C - size, true);
        }
    };
    if constexpr (full > 1) {
        if (size == full) return blocks(Width<full>{});
    }
    if constexpr (quarter > 1) {
        if (size == quarter) return blocks(Width<quarter>{});
    }
    blocks(Width<1>{});
}

template <int R, bool Plain, class T>
void forward(const Problem<T>& problem, const PixelShuffleForward& t, int threads) {
    if (goes_by_places<R>(problem)) return forward_places<Plain>(problem, t, threads);
    const T* x = static_cast<const T*>(t.x);
    const auto* bias = static_cast<const compute_t<T>*>(t.bias);
    T* y = static_cast<T*>(t.y);
    parallel_for(problem.p.B * problem.p.H, threads, [=](int64_t begin, int64_t end) {
        const Problem<T> own = problem;  // in registers: what lies behind a reference is read again after every store
        for (int64_t row = begin; row < end; row++) {
            const T* coarse = x + own.coarse(row);
            T* fine = y + own.fine(row);
            int64_t done = 0;
            if constexpr (kWholePixels<R, T>) {
                if (own.p.C == 1) done = forward_pixels<R, Plain>(own, coarse, bias, fine);
            }
            for_row<R>(own, done, [=](auto width, int64_t w, int64_t c, bool) __attribute__((always_inline)) {
                constexpr int N = decltype(width)::value;
                const T* from = coarse + (w * own.p.C + c) * own.p.r * own.p.r;
                T* to = fine + w * own.p.r * own.p.C + c;
                if constexpr (N > 1)
                    forward_block<R, N, Plain>(own, from, bias + c, to);
                else
                    forward_channel<Plain>(own, from, bias + c, to);
            });
        }
        if (own.streamed) end_stream();
    });
}

template <int R, bool Plain, class T>
void backward_blocks(const Problem<T>& problem, const PixelShuffleBackward& t, int threads) {
    using A = compute_t<T>;
    const T *grad_y = static_cast<const T*>(t.grad_y), *y = static_cast<const T*>(t.y);
    T* grad_x = static_cast<T*>(t.grad_x);
    A *grad_bias = static_cast<A*>(t.grad_bias), *partials = static_cast<A*>(t.partials);
    const int64_t rows = problem.p.B * problem.p.H, factor = problem.p.r * problem.p.r;
    const int64_t channels = problem.p.C * factor;
    const int64_t pieces = pixel_shuffle_cpu_partials(problem.p);
    // Several rows of sub-pixels in each pass over a row of coarse pixels: few streams for the processor to follow.
    constexpr int at_once = kRowsOf<R, kBlock<R, T>>, passes = R * R > 16 ? R / at_once : 1;
    parallel_for(pieces, threads, [=](int64_t begin, int64_t end) {
        const Problem<T> own = problem;
        const Buffer<A> sums_again(channels);  // of blocks whose first channels were summed already
        for (int64_t piece = begin; piece < end; piece++) {
            A *sums = grad_bias == nullptr ? nullptr : partials + piece * channels, *again = sums_again;
            if (sums != nullptr) __builtin_memset(sums, 0, channels * sizeof(A));
            if (sums != nullptr) __builtin_memset(again, 0, channels * sizeof(A));
            for (int64_t row = rows * piece / pieces; row < rows * (piece + 1) / pieces; row++) {
                int64_t done = 0;
                if constexpr (kWholePixels<R, T>) {
                    const T* result = y ? y + own.fine(row) : nullptr;
                    T* below = grad_x ? grad_x + own.coarse(row) : nullptr;
                    if (own.p.C == 1)
                        done = backward_pixels<R, Plain>(own, grad_y + own.fine(row), result, below, sums);
                }
                for (int pass = 0; pass < passes; pass++) {
                    const int first = pass * at_once;
                    for_row<R>(own, done, [=](auto width, int64_t w, int64_t c, bool done_before) __attribute__((always_inline)) {
                        constexpr int N = decltype(width)::value;
                        const int64_t coarse = own.coarse(row) + (w * own.p.C + c) * factor;
                        const int64_t fine = own.fine(row) + w * own.p.r * own.p.C + c;
                        const T *above = grad_y + fine, *result = y ? y + fine : nullptr;
                        T* below = grad_x ? grad_x + coarse : nullptr;
                        A* bias = !sums ? nullptr : done_before ? again + c : sums + c;
                        if constexpr (N > 1 && passes > 1)
                            backward_rows<R, N, Plain>(own, first, first + at_once, above, result, below, bias);
                        else if constexpr (N > 1)
                            backward_block<R, N, Plain>(own, above, result, below, bias);
                        else if (pass == 0)
                            backward_channel<Plain>(own, above, result, below, bias);
                    });
                }
            }
            for (int64_t k = 0; sums != nullptr && k < factor; k++)
                for (int64_t c = in_blocks<R, T>(own.p.C); c < own.p.C; c++) sums[k * own.p.C + c] += again[k * own.p.C + c];
        }
        if (own.streamed) end_stream();
    });
}

// Between the order of coarse channels, C rows of r * r, and that of the kernels.
template <class A>
void exchange(const A* from, int64_t rows, int64_t columns, A* to) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t column = 0; column < columns; column++) to[column * rows + row] = from[row * columns + column];
}

template <int R, bool Plain, class T>
void backward(const Problem<T>& problem, const PixelShuffleBackward& t, int threads) {
    if (t.planes)
        backward_planes(problem, t, threads);
    else if (goes_by_places<R>(problem))
        backward_places(problem, t, threads);
    else
        backward_blocks<R, Plain>(problem, t, threads);
    if (t.grad_bias == nullptr) return;
    using A = compute_t<T>;
    const int64_t C = problem.p.C, sub_pixels = problem.p.r * problem.p.r, channels = C * sub_pixels;
    const Buffer<A> sums(channels);
    __builtin_memset(sums, 0, channels * sizeof(A));
    for (int64_t piece = 0; piece < pixel_shuffle_cpu_partials(problem.p); piece++)
        for (int64_t o = 0; o < channels; o++) sums[o] += static_cast<A*>(t.partials)[piece * channels + o];
    exchange(static_cast<const A*>(sums), sub_pixels, C, static_cast<A*>(t.grad_bias));
}

// R: the factor where blocks of channels have a permutation of their own, else 0.
#define FASTDS_FACTOR_CASE(r, ...)                            \
    case r: {                                                 \
        constexpr int R = kBlock<r, scalar> > 1 ? r : 0;      \
        __VA_ARGS__;                                          \
        break;                                                \
    }
#define FASTDS_FACTOR_SWITCH(r, ...)          \
    switch (r) {                              \
        FASTDS_FACTOR_CASE(1, __VA_ARGS__)    \
        FASTDS_FACTOR_CASE(2, __VA_ARGS__)    \
        FASTDS_FACTOR_CASE(3, __VA_ARGS__)    \
        FASTDS_FACTOR_CASE(4, __VA_ARGS__)    \
        FASTDS_FACTOR_CASE(8, __VA_ARGS__)    \
        default: {                            \
            constexpr int R = 0;              \
            __VA_ARGS__;                      \
        }                                     \
    }

// A plain permutation asks for the size of an element alone.
int item_of(int dtype) { return dtype == f16 ? bf16 : dtype; }

template <int R, class T>
void forward_plain(const Problem<T>& problem, const PixelShuffleForward& t, int threads) {
    if (t.planes) return forward_planes<true>(problem, t, threads);
    forward<R, true>(problem, t, threads);
}

template <int R, class T>
void forward_ordered(const Problem<T>& problem, PixelShuffleForward t, int threads) {
    using A = compute_t<T>;
    if (t.planes) return forward_planes<false>(problem, t, threads);
    const int64_t C = problem.p.C, sub_pixels = problem.p.r * problem.p.r;
    const Buffer<A> ordered(C * sub_pixels);
    exchange(static_cast<const A*>(t.bias), C, sub_pixels, static_cast<A*>(ordered));
    t.bias = ordered;
    forward<R, false>(problem, t, threads);
}

// Fewer elements are moved before another thread is awake.
constexpr int64_t kWorthAThread = 1 << 13;
int worth(const PixelShuffleParams& p, int threads) {
    return p.B * p.C * p.r * p.r * p.H * p.W < kWorthAThread ? 1 : threads;
}

}  // namespace

void pixel_shuffle_forward(const PixelShuffleParams& params, const PixelShuffleForward& tensors, int threads) {
    threads = worth(params, threads);
    if (tensors.bias == nullptr) {
        FASTDS_KERNEL_DTYPE_SWITCH(item_of(params.dtype),
                            FASTDS_FACTOR_SWITCH(params.r, forward_plain<R>(Problem<scalar>(params), tensors, threads)))
    } else {
        FASTDS_KERNEL_DTYPE_SWITCH(params.dtype,
                            FASTDS_FACTOR_SWITCH(params.r, forward_ordered<R>(Problem<scalar>(params), tensors, threads)))
    }
}

void pixel_shuffle_backward(const PixelShuffleParams& params, const PixelShuffleBackward& tensors, int threads) {
    threads = worth(params, threads);
    if (tensors.y == nullptr && tensors.grad_bias == nullptr) {
        FASTDS_KERNEL_DTYPE_SWITCH(item_of(params.dtype),
                            FASTDS_FACTOR_SWITCH(params.r, backward<R, true>(Problem<scalar>(params), tensors, threads)))
    } else {
        FASTDS_KERNEL_DTYPE_SWITCH(params.dtype,
                            FASTDS_FACTOR_SWITCH(params.r, backward<R, false>(Problem<scalar>(params), tensors, threads)))
    }
}

}  // namespace FASTDS_ISA
}  // namespace fastds
