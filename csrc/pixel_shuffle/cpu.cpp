// SPDX-License-Identifier: Apache-2.0
// Parallel over rows of coarse pixels; bound by memory bandwidth. Blocks of whole registers of channels are permuted in
// registers, channels left over in narrower blocks and one by one.
#include "core/parallel.h"
#include "pixel_shuffle/math.h"
#include "pixel_shuffle/permute.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Permutations move storage values as bits.
template <class T>
struct BitsOf {
    using type = T;
};
template <>
struct BitsOf<Half> {
    using type = uint16_t;
};
template <>
struct BitsOf<BFloat16> {
    using type = uint16_t;
};
template <class T>
using bits_t = typename BitsOf<T>::type;

// Results from this size on go past the caches, which do not read lines first that are overwritten whole. glibc's memcpy
// does the same for copies that leave no room in the last level.
constexpr int64_t kStreamBytes = int64_t{16} << 20;

// One register to memory; streamed where it is a whole line.
template <class V, class T>
FASTDS_HD void store_line(T* to, const V& v, bool streamed) {
#if defined(__AVX512F__)
    if constexpr (sizeof(V) == 64) {
        if (streamed) {
            __m512i line;
            __builtin_memcpy(&line, &v, sizeof(line));
            _mm512_stream_si512(reinterpret_cast<__m512i*>(to), line);
            return;
        }
    }
#endif
    __builtin_memcpy(to, &v, sizeof(V));
}

// Streamed stores are visible to other threads after this.
FASTDS_HD void end_stream() {
#if defined(__AVX512F__)
    _mm_sfence();
#endif
}

template <class T>
struct Problem {
    using A = compute_t<T>;
    PixelShuffleParams p;
    Activation<A> act;
    int64_t row_stride;  // elements from sub-pixel (i, j) to (i + 1, j); to (i, j + 1) there are C
    bool streamed;       // the result is large, and its blocks of channels are whole lines

    explicit Problem(const PixelShuffleParams& params)
        : p(params), act(activation<A>(params)), row_stride(params.W * params.r * params.C) {
        const int64_t bytes = p.B * p.C * p.H * p.W * p.r * p.r * static_cast<int64_t>(sizeof(T));
        streamed = bytes >= kStreamBytes && p.C * sizeof(T) % 64 == 0;
    }

    // Where a row of coarse pixels starts, and its first row of sub-pixels; row counts through the batch.
    int64_t coarse(int64_t row) const { return row * p.W * p.C * p.r * p.r; }
    int64_t fine(int64_t row) const { return row * p.r * row_stride; }
};

// Lanes of one block that fit one vector of compute values.
template <class T, int N>
constexpr int kStep = N < kLanes<compute_t<T>> ? N : kLanes<compute_t<T>>;

// N channels of one coarse pixel: x to the sub-pixels y. bias null: a permutation that moves bits and nothing else.
template <int R, int N, bool Plain, class T>
FASTDS_HD void forward_block(const Problem<T>& problem, const T* x, const compute_t<T>* bias, T* y) {
    using A = compute_t<T>;
    using V = Vec<bits_t<T>, N>;
    constexpr int S = kStep<T, N>;
    const int64_t C = problem.p.C, row_stride = problem.row_stride;
    V v[R][R];
#pragma GCC unroll 4
    for (int g = 0; g < R; g++) {
#pragma GCC unroll 8
        for (int k = 0; k < R; k++) __builtin_memcpy(&v[g][k], x + (g * R + k) * N, sizeof(V));
        deinterleave<R, N>(v[g]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < R; j++) {
        V column[R];
#pragma GCC unroll 8
        for (int g = 0; g < R; g++) column[g] = v[g][j];
        deinterleave<R, N>(column);
#pragma GCC unroll 8
        for (int i = 0; i < R; i++) {
            T* out = y + i * row_stride + j * C;
            if constexpr (Plain) {
                store_line(out, column[i], problem.streamed);
            } else if constexpr (N == S && sizeof(T) == sizeof(A)) {
                Vec<A, N> value;
                __builtin_memcpy(&value, &column[i], sizeof(V));
                value = activate(Vec<A, N>(value + load_vec<N>(bias + (i * R + j) * C)), problem.act);
                store_line(out, value, problem.streamed);
            } else {
                T stored[N];
                __builtin_memcpy(&stored, &column[i], sizeof(V));
#pragma GCC unroll 8
                for (int k = 0; k < N; k += S) {
                    const auto value = load_vec<S>(stored + k) + load_vec<S>(bias + (i * R + j) * C + k);
                    store_vec<S>(out + k, activate(value, problem.act));
                }
            }
        }
    }
}

// Gradient of N values of one sub-pixel before bias and activation, as bits; at: where they lie in the fine rows. y null:
// no activation. sum, where not null, takes the gradient of the bias on top of what it holds.
template <int R, int N, bool Plain, class T>
FASTDS_HD auto sub_pixel_gradient(const Problem<T>& problem, const T* grad_y, const T* y, int64_t at,
                                  compute_t<T>* sum) {
    constexpr int S = kStep<T, N>;
    Vec<bits_t<T>, N> bits;
    if constexpr (Plain) {
        __builtin_memcpy(&bits, grad_y + at, sizeof(bits));
    } else {
        // The next pixel: two tensors by R * R sub-pixels are more streams than the processor follows by itself.
        __builtin_prefetch(grad_y + at + R * problem.p.C);
        if (y != nullptr) __builtin_prefetch(y + at + R * problem.p.C);
        T stored[N];
#pragma GCC unroll 8
        for (int k = 0; k < N; k += S) {
            auto grad = load_vec<S>(grad_y + at + k);
            if (y != nullptr) grad = activation_gradient(grad, load_vec<S>(y + at + k), problem.act);
            if (sum != nullptr) store_vec<S>(sum + k, decltype(grad)(load_vec<S>(sum + k) + grad));
            store_vec<S>(stored + k, grad);
        }
        __builtin_memcpy(&bits, &stored, sizeof(bits));
    }
    return bits;
}

// The way back.
template <int R, int N, bool Plain, class T>
FASTDS_HD void backward_block(const Problem<T>& problem, const T* grad_y, const T* y, T* grad_x, compute_t<T>* sums) {
    using V = Vec<bits_t<T>, N>;
    const int64_t C = problem.p.C, row_stride = problem.row_stride;
    V v[R][R];
#pragma GCC unroll 4
    for (int j = 0; j < R; j++) {
        V column[R];
#pragma GCC unroll 8
        for (int i = 0; i < R; i++) {
            compute_t<T>* sum = sums ? sums + (i * R + j) * C : nullptr;
            column[i] = sub_pixel_gradient<R, N, Plain>(problem, grad_y, y, i * row_stride + j * C, sum);
        }
        interleave<R, N>(column);
#pragma GCC unroll 8
        for (int g = 0; g < R; g++) v[g][j] = column[g];
    }
    if (grad_x == nullptr) return;
#pragma GCC unroll 4
    for (int g = 0; g < R; g++) {
        interleave<R, N>(v[g]);
#pragma GCC unroll 8
        for (int k = 0; k < R; k++) store_line(grad_x + (g * R + k) * N, v[g][k], problem.streamed);
    }
}

// Rows of sub-pixels that fill a vector of N channels.
template <int R, int N>
constexpr int kRowsOf = N > R && R > 0 ? N / R : 1;

// The same for the rows of sub-pixels from begin to end, where R * R vectors are more than there are registers.
template <int R, int N, bool Plain, class T>
FASTDS_HD void backward_rows(const Problem<T>& problem, int begin, int end, const T* grad_y, const T* y, T* grad_x,
                             compute_t<T>* sums) {
    constexpr int rows = kRowsOf<R, N>;
    const int64_t C = problem.p.C;
    for (int first = begin; first < end; first += rows) {
        Vec<bits_t<T>, N> v[rows][R];
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++) {
            const int64_t at = (first + i) * problem.row_stride;
#pragma GCC unroll 8
            for (int j = 0; j < R; j++) {
                compute_t<T>* sum = sums ? sums + ((first + i) * R + j) * C : nullptr;
                v[i][j] = sub_pixel_gradient<R, N, Plain>(problem, grad_y, y, at + j * C, sum);
            }
            interleave<R, N>(v[i]);  // (c, j)
        }
        if (grad_x == nullptr) continue;
#pragma GCC unroll 8
        for (int k = 0; k < R; k++) {
            Vec<bits_t<T>, N> runs[rows];
#pragma GCC unroll 4
            for (int i = 0; i < rows; i++) runs[i] = v[i][k];
            transpose_runs<rows, R, N>(runs);
#pragma GCC unroll 4
            for (int i = 0; i < rows; i++) {
                const int e = k * N + i * R;  // of (c, j)
                store_line(grad_x + e / R * R * R + first * R + e % R, runs[i], problem.streamed);
            }
        }
    }
}

// One channel of one coarse pixel, for any factor r.
template <bool Plain, class T>
FASTDS_HD void forward_channel(const Problem<T>& problem, const T* x, const compute_t<T>* bias, T* y) {
    const int64_t r = problem.p.r, C = problem.p.C;
    for (int64_t i = 0; i < r; i++)
        for (int64_t j = 0; j < r; j++) {
            T* out = y + i * problem.row_stride + j * C;
            const int64_t k = i * r + j;
            if constexpr (Plain)
                *out = x[k];
            else
                store_vec<1>(out, activate(load_vec<1>(x + k) + load_vec<1>(bias + k * C), problem.act));
        }
}

template <bool Plain, class T>
FASTDS_HD void backward_channel(const Problem<T>& problem, const T* grad_y, const T* y, T* grad_x,
                                compute_t<T>* sums) {
    const int64_t r = problem.p.r, C = problem.p.C;
    for (int64_t i = 0; i < r; i++)
        for (int64_t j = 0; j < r; j++) {
            const int64_t at = i * problem.row_stride + j * C, k = i * r + j;
            if constexpr (Plain) {
                grad_x[k] = grad_y[at];
            } else {
                auto grad = load_vec<1>(grad_y + at);
                if (y != nullptr) grad = activation_gradient(grad, load_vec<1>(y + at), problem.act);
                if (sums != nullptr) store_vec<1>(sums + k * C, decltype(grad)(load_vec<1>(sums + k * C) + grad));
                if (grad_x != nullptr) store_vec<1>(grad_x + k, grad);
            }
        }
}

// A single channel: coarse pixels of R runs of R elements, which keep their order within a run. Runs are shorter than
// vectors, so as many pixels as fill them are taken together; what is calculated does not ask where a run belongs.
template <int R, class T>
struct Pixels {
    static constexpr int lanes = kLanes<compute_t<T>>;
    static constexpr int each = R * R;
    static constexpr int elements = each > lanes ? each : lanes;
    static constexpr int count = elements / each;
};

// Whether there are such pixels: vectors have 2, 4, 8 or 16 lanes of the type that is calculated in.
template <int R, class T>
constexpr bool kWholePixels = (R == 2 || R == 4 || R == 8) && R <= kLanes<compute_t<T>> && sizeof(T) <= 4;

// Where the run of R elements that begins at element e of the pixels lies in the fine rows.
template <int R>
FASTDS_HD int64_t place_of_run(int e, int64_t row_stride) {
    return e / R % R * row_stride + e / (R * R) * R;
}

// The integers that runs of so many bytes are moved as.
template <int Bytes>
struct UnitOf {
    using type = uint64_t;
};
template <>
struct UnitOf<4> {
    using type = uint32_t;
};

// N elements from element e on, out of the fine rows into one register; through memory they would wait for each other.
template <int R, int N, class T>
FASTDS_HD auto joined_runs(const T* fine, int e, int64_t row_stride) {
    using U = typename UnitOf<R * sizeof(T)>::type;
    constexpr int units = N * sizeof(T) / sizeof(U);
    if constexpr (N == R) {
        Vec<U, units> run;
        __builtin_memcpy(&run, fine + place_of_run<R>(e, row_stride), sizeof(run));
        return run;
    } else {
        const auto low = joined_runs<R, N / 2>(fine, e, row_stride);
        const auto high = joined_runs<R, N / 2>(fine, e + N / 2, row_stride);
        if constexpr (units == 2)
            return Vec<U, 2>{low, high};
        else
            return side_by_side(low, high, lanes_of<units>{});
    }
}

// A row of coarse pixels, up to the last that fill vectors; gives how many those are.
template <int R, bool Plain, class T>
FASTDS_HD int64_t forward_pixels(const Problem<T>& problem, const T* x, const compute_t<T>* bias, T* y) {
    using P = Pixels<R, T>;
    compute_t<T> repeated[P::elements];
    if constexpr (!Plain)
        for (int e = 0; e < P::elements; e++) repeated[e] = bias[e % P::each];
    int64_t w = 0;
    for (; w + P::count <= problem.p.W; w += P::count, x += P::elements) {
        T stored[P::elements];
#pragma GCC unroll 16
        for (int e = 0; !Plain && e < P::elements; e += P::lanes) {
            const auto value = load_vec<P::lanes>(x + e) + load_vec<P::lanes>(repeated + e);
            store_vec<P::lanes>(stored + e, activate(value, problem.act));
        }
#pragma GCC unroll 16
        for (int e = 0; e < P::elements; e += R)
            __builtin_memcpy(y + w * R + place_of_run<R>(e, problem.row_stride), (Plain ? x : stored) + e, R * sizeof(T));
    }
    return w;
}

template <int R, bool Plain, class T>
FASTDS_HD int64_t backward_pixels(const Problem<T>& problem, const T* grad_y, const T* y, T* grad_x, compute_t<T>* sums) {
    using P = Pixels<R, T>;
    using A = compute_t<T>;
    A total[P::elements] = {};
    int64_t w = 0;
    for (; w + P::count <= problem.p.W; w += P::count) {
#pragma GCC unroll 16
        for (int e = 0; e < P::elements; e += P::lanes) {
            T above[P::lanes], result[P::lanes];
            const auto bits = joined_runs<R, P::lanes>(grad_y + w * R, e, problem.row_stride);
            __builtin_memcpy(above, &bits, sizeof(above));
            if constexpr (!Plain) {
                auto grad = load_vec<P::lanes>(above);
                if (y != nullptr) {
                    const auto sign = joined_runs<R, P::lanes>(y + w * R, e, problem.row_stride);
                    __builtin_memcpy(result, &sign, sizeof(result));
                    grad = activation_gradient(grad, load_vec<P::lanes>(result), problem.act);
                }
                store_vec<P::lanes>(total + e, Vec<A, P::lanes>(load_vec<P::lanes>(total + e) + grad));
                store_vec<P::lanes>(above, grad);
            }
            if (grad_x != nullptr) __builtin_memcpy(grad_x + w * P::each + e, above, sizeof(above));
        }
    }
    for (int e = 0; sums != nullptr && e < P::elements; e++) sums[e % P::each] += total[e];
    return w;
}

// Channels of the widest block. Factors 5, 6 and 7 have no network, double precision is for checking, and without AVX-512
// there is no permutation of 16-bit lanes: those go one by one.
#if defined(__AVX512BW__)
template <int R, class T>
constexpr int kBlock = R > 0 && sizeof(T) <= 4 ? kVectorBytes / static_cast<int>(sizeof(T)) : 1;
#else
template <int R, class T>
constexpr int kBlock = R > 0 && sizeof(T) == 4 ? kVectorBytes / static_cast<int>(sizeof(T)) : 1;
#endif

template <int N>
struct Width {
    static constexpr int value = N;
};

// Calls block(Width<N>, w, c) for the pixels of a row from `first` on and all channels.
template <int R, class T, class Block>
FASTDS_HD void for_row(const Problem<T>& problem, int64_t first, const Block& block) {
    constexpr int full = kBlock<R, T>, quarter = full / 4;
    for (int64_t w = first; w < problem.p.W; w++) {
        int64_t c = 0;
        if constexpr (full > 1)
            for (; c + full <= problem.p.C; c += full) block(Width<full>{}, w, c);
        if constexpr (quarter > 1)
            for (; c + quarter <= problem.p.C; c += quarter) block(Width<quarter>{}, w, c);
        for (; c < problem.p.C; c++) block(Width<1>{}, w, c);
    }
}

template <int R, bool Plain, class T>
void forward(const Problem<T>& problem, const PixelShuffleForward& t, int threads) {
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
            for_row<R>(own, done, [=](auto width, int64_t w, int64_t c) __attribute__((always_inline)) {
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
void backward(const Problem<T>& problem, const PixelShuffleBackward& t, int threads) {
    using A = compute_t<T>;
    const T *grad_y = static_cast<const T*>(t.grad_y), *y = static_cast<const T*>(t.y);
    T* grad_x = static_cast<T*>(t.grad_x);
    A *grad_bias = static_cast<A*>(t.grad_bias), *partials = static_cast<A*>(t.partials);
    const int64_t rows = problem.p.B * problem.p.H, factor = problem.p.r * problem.p.r;
    const int64_t channels = problem.p.C * factor;
    const int64_t pieces = pixel_shuffle_partials(problem.p);
    // Several rows of sub-pixels in each pass over a row of coarse pixels: few streams for the processor to follow.
    constexpr int at_once = kRowsOf<R, kBlock<R, T>>, passes = R * R > 16 ? R / at_once : 1;
    parallel_for(pieces, threads, [=](int64_t begin, int64_t end) {
        const Problem<T> own = problem;
        for (int64_t piece = begin; piece < end; piece++) {
            A* sums = grad_bias == nullptr ? nullptr : partials + piece * channels;
            if (sums != nullptr) __builtin_memset(sums, 0, channels * sizeof(A));
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
                    for_row<R>(own, done, [=](auto width, int64_t w, int64_t c) __attribute__((always_inline)) {
                        constexpr int N = decltype(width)::value;
                        const int64_t coarse = own.coarse(row) + (w * own.p.C + c) * factor;
                        const int64_t fine = own.fine(row) + w * own.p.r * own.p.C + c;
                        const T *above = grad_y + fine, *result = y ? y + fine : nullptr;
                        T* below = grad_x ? grad_x + coarse : nullptr;
                        A* bias = sums ? sums + c : nullptr;
                        if constexpr (N > 1 && passes > 1)
                            backward_rows<R, N, Plain>(own, first, first + at_once, above, result, below, bias);
                        else if constexpr (N > 1)
                            backward_block<R, N, Plain>(own, above, result, below, bias);
                        else if (pass == 0)
                            backward_channel<Plain>(own, above, result, below, bias);
                    });
                }
            }
        }
        if (own.streamed) end_stream();
    });
    if (grad_bias == nullptr) return;
    __builtin_memset(grad_bias, 0, channels * sizeof(A));
    for (int64_t piece = 0; piece < pieces; piece++)
        for (int64_t o = 0; o < channels; o++) grad_bias[o] += partials[piece * channels + o];
}

}  // namespace

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

void pixel_shuffle_forward(const PixelShuffleParams& params, const PixelShuffleForward& tensors, int threads) {
    if (tensors.bias == nullptr) {
        FASTDS_DTYPE_SWITCH(params.dtype,
                            FASTDS_FACTOR_SWITCH(params.r, forward<R, true>(Problem<scalar>(params), tensors, threads)))
    } else {
        FASTDS_DTYPE_SWITCH(params.dtype,
                            FASTDS_FACTOR_SWITCH(params.r, forward<R, false>(Problem<scalar>(params), tensors, threads)))
    }
}

void pixel_shuffle_backward(const PixelShuffleParams& params, const PixelShuffleBackward& tensors, int threads) {
    if (tensors.y == nullptr && tensors.grad_bias == nullptr) {
        FASTDS_DTYPE_SWITCH(params.dtype,
                            FASTDS_FACTOR_SWITCH(params.r, backward<R, true>(Problem<scalar>(params), tensors, threads)))
    } else {
        FASTDS_DTYPE_SWITCH(params.dtype,
                            FASTDS_FACTOR_SWITCH(params.r, backward<R, false>(Problem<scalar>(params), tensors, threads)))
    }
}

}  // namespace FASTDS_ISA
}  // namespace fastds
