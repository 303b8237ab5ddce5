// SPDX-License-Identifier: Apache-2.0
// Copies for conv2d. Memory bandwidth limits their speed.
#include "conv2d/params.h"
#include "core/parallel.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Copies one row of pixels and adds the border.
void copy_row(const Conv2dBorder& call, const char* from, char* to) {
    const int64_t pixel = call.C * call.item;
    __builtin_memset(to, 0, call.before * pixel);
    to += call.before * pixel;
    if (call.stride_w == call.C)
        __builtin_memcpy(to, from, call.W * pixel);
    else
        for (int64_t x = 0; x < call.W; x++) __builtin_memcpy(to + x * pixel, from + x * call.stride_w * call.item, pixel);
    __builtin_memset(to + call.W * pixel, 0, call.after * pixel);
}

template <class T>
void copy_taps(const Conv2dTaps& call, int64_t output) {
    const int64_t side = (call.size + 2) / 3, block = call.C * 9;
    const T* from = static_cast<const T*>(call.from) + output * side * side * block;
    T* to = static_cast<T*>(call.to) + output * call.C * call.size * call.size;
    for (int64_t c = 0; c < call.C; c++)
        for (int64_t i = 0; i < call.size; i++)
            for (int64_t j = 0; j < call.size; j++, to++)
                *to = from[(i / 3 * side + j / 3) * block + c * 9 + i % 3 * 3 + j % 3];
}

}  // namespace

void conv2d_border(const Conv2dBorder& call) {
    const int64_t rows = call.before + call.H + call.after, bytes = (call.before + call.W + call.after) * call.C * call.item;
    parallel_for(call.B * rows, call.threads, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; row++) {
            const int64_t b = row / rows, y = row % rows - call.before;
            char* to = static_cast<char*>(call.to) + row * bytes;
            if (y < 0 || y >= call.H)
                __builtin_memset(to, 0, bytes);
            else
                copy_row(call, static_cast<const char*>(call.from) + (b * call.stride_b + y * call.stride_h) * call.item, to);
        }
    });
}

void conv2d_taps(const Conv2dTaps& call) {
    parallel_for(call.O, call.threads, [&](int64_t begin, int64_t end) {
        for (int64_t o = begin; o < end; o++) call.item == 2 ? copy_taps<uint16_t>(call, o) : copy_taps<uint32_t>(call, o);
    });
}

}  // namespace FASTDS_ISA
}  // namespace fastds
