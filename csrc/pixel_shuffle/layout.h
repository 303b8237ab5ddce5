// SPDX-License-Identifier: Apache-2.0
// Common parts of the CPU passes of pixel_shuffle: positions of rows, and storage of results.
#pragma once
#include "core/simd.h"
#include "pixel_shuffle/math.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Permutations move stored values as integers.
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

// Results of at least this size are written with non-temporal stores, which do not read the cache lines that they overwrite.
// memcpy of glibc does the same for copies that do not fit into the last-level cache.
constexpr int64_t kStreamBytes = int64_t{16} << 20;

// Stores a register. `streamed` uses a non-temporal store if the register is a whole cache line.
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

// Makes non-temporal stores visible to other threads.
FASTDS_HD void end_stream() {
#if defined(__AVX512F__)
    _mm_sfence();
#endif
}

template <class T>
struct ShuffleLayout {
    using A = compute_t<T>;
    PixelShuffleParams p;
    Activation<A> act;
    int64_t row_stride;  // elements from sub-pixel (i, j) to (i + 1, j); the distance to (i, j + 1) is C
    bool streamed;       // the result is large, and its blocks of channels are whole cache lines

    explicit ShuffleLayout(const PixelShuffleParams& params)
        : p(params), act(make_activation<A>(params)), row_stride(params.W * params.r * params.C) {
        const int64_t bytes = p.B * p.C * p.H * p.W * p.r * p.r * static_cast<int64_t>(sizeof(T));
        streamed = bytes >= kStreamBytes && p.C * sizeof(T) % 64 == 0;
    }

    // Return the position of a row of coarse pixels and of its first row of sub-pixels. `row` counts over the batch.
    int64_t coarse(int64_t row) const { return row * p.W * p.C * p.r * p.r; }
    int64_t fine(int64_t row) const { return row * p.r * row_stride; }
};

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
