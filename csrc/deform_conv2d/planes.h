// SPDX-License-Identifier: Apache-2.0
// Access to contiguous (NCHW) tensors in panels of output pixels. Offsets and masks are transposed into rows of channels, and
// outputs are transposed back into planes, in memory that stays in the L2 cache. Transposing whole tensors would need one more
// pass through main memory.
#pragma once
#include "core/transpose_simd.h"
#include "deform_conv2d/gather.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

template <class T>
inline void transpose_elements(const T* from, int64_t from_row, int64_t rows, int64_t columns, T* to, int64_t to_row) {
    const auto transpose_as = [&](auto bits) {
        using Bits = decltype(bits);
        transpose_rows(reinterpret_cast<const Bits*>(from), from_row, rows, columns, reinterpret_cast<Bits*>(to), to_row);
    };
    if constexpr (sizeof(T) == 2) {
        transpose_as(uint16_t{});
    } else if constexpr (sizeof(T) == 4) {
        transpose_as(uint32_t{});
    } else {
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < columns; c++) to[c * to_row + r] = from[r * from_row + c];
    }
}

template <class T>
struct Planes {
    const DeformConv2dDims& d;
    const DeformConv2dForward& tensors;
    const int64_t samples, offset_item;
    const Buffer<char> offset;
    const Buffer<T> mask, y;

    Planes(const DeformConv2dDims& d, const DeformConv2dForward& tensors, int64_t panel)
        : d(d), tensors(tensors), samples(d.offset_groups * d.kh * d.kw), offset_item(d.offset_dtype == d.dtype ? sizeof(T) : sizeof(float)),
          offset(d.planar ? panel * 2 * samples * offset_item : 0), mask(d.planar && tensors.mask ? panel * samples : 0),
          y(d.planar ? panel * d.O : 0) {}

    // Calls f(p, n, image, position in the image) for each sequence of n pixels from p on that are consecutive in one image.
    template <class F>
    void for_runs(const int64_t* pixel, int64_t count, const F& f) const {
        const int64_t size = d.Ho * d.Wo;
        for (int64_t p = 0, end; p < count; p = end) {
            for (end = p + 1; end < count && pixel[end] == pixel[end - 1] + 1 && pixel[end] % size != 0;) end++;
            f(p, end - p, pixel[p] / size, pixel[p] % size);
        }
    }

    __attribute__((noinline)) void read(const int64_t* pixel, int64_t count) const {
        const int64_t size = d.Ho * d.Wo;
        for_runs(pixel, count, [&](int64_t p, int64_t n, int64_t b, int64_t at) {
            const auto read_offsets = [&](auto zero) {
                using S = decltype(zero);
                const S* from = static_cast<const S*>(tensors.offset) + 2 * samples * b * size + at;
                transpose_elements(from, size, 2 * samples, n, reinterpret_cast<S*>(&offset[0]) + p * 2 * samples, 2 * samples);
            };
            if (offset_item == sizeof(T))
                read_offsets(T{});
            else
                read_offsets(float{});
            if (tensors.mask != nullptr)
                transpose_elements(static_cast<const T*>(tensors.mask) + samples * b * size + at, size, samples, n,
                                   &mask[p * samples], samples);
        });
    }

    SampleRow row(int64_t p) const {
        return {&offset[p * 2 * samples * offset_item],
                tensors.mask ? reinterpret_cast<const char*>(&mask[p * samples]) : nullptr};
    }

    // Prefetches the shares p to last (of `count`) of the cache lines that write() fills and that the next panel reads. They
    // are short parts of many planes, which the hardware does not prefetch. All pixels are treated as if they were in one
    // image.
    FASTDS_HD void fetch(const int64_t* pixel, int64_t count, int64_t p, int64_t last) const {
        const int64_t size = d.Ho * d.Wo, b = pixel[0] / size, at = pixel[0] % size, left = size - at;
        fetch_planes<1>(static_cast<const char*>(tensors.y), sizeof(T), d.O, b, at, count < left ? count : left, p, last, count);
        const int64_t n = count < left - count ? count : left - count;  // pixels of the next panel
        fetch_planes<0>(static_cast<const char*>(tensors.offset), offset_item, 2 * samples, b, at + count, n, p, last, count);
        if (tensors.mask != nullptr)
            fetch_planes<0>(static_cast<const char*>(tensors.mask), sizeof(T), samples, b, at + count, n, p, last, count);
    }

    // Prefetches n elements from position `at` on in the planes of image b that belong to the shares p to last.
    template <int Written>
    FASTDS_HD void fetch_planes(const char* maps, int64_t item, int64_t planes, int64_t b, int64_t at, int64_t n, int64_t p,
                                int64_t last, int64_t shares) const {
        const int64_t size = d.Ho * d.Wo;
        for (int64_t plane = planes * p / shares; n > 0 && plane < planes * last / shares; plane++) {
            const char *from = maps + ((planes * b + plane) * size + at) * item, *end = from + n * item - 1;
            for (; from < end; from += 64) __builtin_prefetch(from, Written);
            __builtin_prefetch(end, Written);
        }
    }

    __attribute__((noinline)) void write(const int64_t* pixel, int64_t count) const {
        const int64_t size = d.Ho * d.Wo;
        for_runs(pixel, count, [&](int64_t p, int64_t n, int64_t b, int64_t at) {
            transpose_elements(&y[p * d.O], d.O, n, d.O, static_cast<T*>(tensors.y) + d.O * b * size + at, size);
        });
    }
};

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
