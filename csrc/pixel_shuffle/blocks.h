// SPDX-License-Identifier: Apache-2.0
// One coarse pixel: blocks of channels permuted in registers, and the channels left over one by one.
#pragma once
#include "pixel_shuffle/permute.h"
#include "pixel_shuffle/problem.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

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

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
