// SPDX-License-Identifier: Apache-2.0
// What a larger convolution needs around the engine of conv3x3, which convolves by its blocks of 3x3 taps: maps with a border of
// zeros, and the gradient of the blocks as that of the filter.
#pragma once
#include <stdint.h>

#include "core/isa.h"

namespace fastds {

// Maps (B, H, W, C) of numbers of `item` bytes; from: strides in elements, of channels 1; to: dense, `before` rows and columns of
// zeros before and `after` behind.
struct Conv2dBorder {
    const void* from;
    void* to;
    int64_t B, H, W, C, stride_b, stride_h, stride_w, before, after, item;
    int threads;
};

// to[o, c, i, j] = from[o, i / 3, j / 3, c, i % 3, j % 3], both dense, i and j < size; from has (size + 2) / 3 blocks each way.
struct Conv2dTaps {
    const void* from;
    void* to;
    int64_t O, C, size, item;
    int threads;
};

FASTDS_PER_ISA(void conv2d_border(const Conv2dBorder& call))
FASTDS_PER_ISA(void conv2d_taps(const Conv2dTaps& call))

}  // namespace fastds
