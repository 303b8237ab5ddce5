// SPDX-License-Identifier: Apache-2.0
// Copies that conv2d needs for filters larger than 3x3, which the conv3x3 engine processes as blocks of 3x3 taps: a border of
// zeros around the inputs, and the conversion of the gradient of the blocks to the gradient of the filter.
#pragma once
#include <stdint.h>

#include "core/isa.h"

namespace fastds {

// Copies tensors (B, H, W, C) of elements of `item` bytes and adds a border of zeros: `before` rows and columns before and
// `after` rows and columns after the image. `from` has strides in elements and channel stride 1; `to` is contiguous.
struct Conv2dBorder {
    const void* from;
    void* to;
    int64_t B, H, W, C, stride_b, stride_h, stride_w, before, after, item;
    int threads;
};

// Sets to[o, c, i, j] = from[o, i / 3, j / 3, c, i % 3, j % 3] for i, j < size. Both arrays are contiguous; `from` has
// (size + 2) / 3 blocks in each direction.
struct Conv2dTaps {
    const void* from;
    void* to;
    int64_t O, C, size, item;
    int threads;
};

FASTDS_PER_ISA(void conv2d_border(const Conv2dBorder& call))
FASTDS_PER_ISA(void conv2d_taps(const Conv2dTaps& call))

}  // namespace fastds
