// SPDX-License-Identifier: Apache-2.0
// Access to feature maps as rows of a matrix product, in place or copied to memory of the thread.
#pragma once
#include <type_traits>

#include "conv1x1/params.h"
#include "core/gemm.h"
#include "core/masked_io.h"
#include "core/parallel.h"
#include "core/transpose_simd.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int64_t kMinThreadedProducts = 64 << 10;  // multiplications; smaller products run on one thread

// Multiply-add operation for inputs of type T.
template <class T>
struct StepOf {
    using type = FmaStep<float>;
};
#if defined(__AVX512BF16__)
template <>
struct StepOf<BFloat16> {
    using type = Bf16DotStep;
};
#endif

// Merges all images into one if the pixels of both feature maps are evenly spaced across images.
template <class Call>
Call merge_images(Call call, const Conv1x1Map& one, const Conv1x1Map& other) {
    if (one.b == call.pixels * one.p && other.b == call.pixels * other.p) {
        call.pixels *= call.batch;
        call.batch = 1;
    }
    return call;
}

// Allocates parts of a workspace one after the other, each on its own cache lines.
struct Workspace {
    char* next;

    template <class S>
    S* take(int64_t count) {
        S* part = reinterpret_cast<S*>(next);
        next += round_up(count * static_cast<int64_t>(sizeof(S)), 64);
        return part;
    }
    int64_t bytes() const { return next - static_cast<char*>(nullptr); }  // valid if the workspace started at null
};

template <class T>
const T* get_pixel(const Conv1x1Map& map, int64_t b, int64_t first) {
    return static_cast<const T*>(map.data) + b * map.b + first * map.p;
}

// Pixels whose channels are contiguous; the stride of the pixels is `pixel` elements.
template <class T>
struct Pixels {
    const T* from;
    int64_t pixel;
};

// Returns `count` pixels of 16-bit elements of image b with contiguous channels: in place, or transposed to `work`, which has
// room for all channels of all pixels.
template <class T>
Pixels<T> get_contiguous_channels(const Conv1x1Map& map, int64_t b, int64_t first, int64_t count, uint16_t* work) {
    const T* from = get_pixel<T>(map, b, first);
    if (map.c == 1) return {from, map.p};
    transpose_rows(reinterpret_cast<const uint16_t*>(from), map.c, map.channels, count, work, map.channels);
    return {reinterpret_cast<const T*>(work), map.channels};
}

// Copies pixels of type T to rows of S with a stride of `row` elements. `work` is passed to get_contiguous_channels(). A step
// of 16-bit S takes two elements; therefore a zero follows the last channel of each row.
template <class S, class T>
void stage(const Conv1x1Map& map, int64_t b, int64_t first, int64_t count, S* to, int64_t row, uint16_t* work) {
    using Bits = std::conditional_t<sizeof(S) == sizeof(float), uint32_t, uint16_t>;
    Pixels<T> pixels{get_pixel<T>(map, b, first), map.p};
    if (map.c != 1 && sizeof(T) == sizeof(S)) {
        transpose_rows(reinterpret_cast<const Bits*>(pixels.from), map.c, map.channels, count, reinterpret_cast<Bits*>(to), row);
        for (int64_t i = 0; sizeof(S) == 2 && i < count; i++) to[i * row + map.channels] = S{};
        return;
    }
    if constexpr (sizeof(T) != sizeof(float)) pixels = get_contiguous_channels<T>(map, b, first, count, work);
    const T* from = pixels.from;
    for (int64_t i = 0; i < count; i++, from += pixels.pixel, to += row) {
        if constexpr (sizeof(S) == sizeof(float)) {
            for (int64_t c = 0; c < map.channels; c += kL)
                store_vec<kL>(to + c, load_partial(from + c, static_cast<int>(min_of(kL, map.channels - c))));
        } else {
            const uint16_t* bits = reinterpret_cast<const uint16_t*>(from);
            for (int64_t c = 0; c < map.channels; c += kSquare)  // sets the lanes after the last channel to zero
                store_vec<kSquare>(reinterpret_cast<uint16_t*>(to) + c, load_row(bits + c, min_of(kSquare, map.channels - c)));
        }
    }
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
