// SPDX-License-Identifier: Apache-2.0
// window_attention2d: y_p = sum_d softmax_d(q_p . k_{p+d}) v_{p+d}, with d from -floor(n/2) to n - floor(n/2) - 1 in rows and
// columns. Keys outside the image take part in the softmax with logit 0 and value 0. The logits are not scaled.
#pragma once
#include <stdint.h>

#include "core/dtype.h"

namespace fastds {

// A tensor (B, C, H, W) with any strides, in elements.
struct AttentionMap {
    void* data;
    int64_t b, c, h, w;
};

struct AttentionDims {
    int dtype;  // of all tensors except lse, which has the compute type
    int64_t B, C, H, W, window;
};

struct AttentionForward {
    AttentionMap q, k, v, y;
    void* lse;  // (B, H, W): logarithm of the sum of the exponentials of the logits
    void* workspace;
};

struct AttentionBackward {
    AttentionMap grad_y, q, k, v, y;
    const void* lse;
    AttentionMap grad_q, grad_k, grad_v;
    void* workspace;
};

FASTDS_PER_ISA(void window_attention2d_forward(const AttentionDims& dims, const AttentionForward& tensors, int threads))
FASTDS_PER_ISA(void window_attention2d_backward(const AttentionDims& dims, const AttentionBackward& tensors, int threads))

// Layout of a planar copy (B, C', rows, columns). C' is C rounded up to a multiple of 8. A frame of zeros is window - 1 pixels
// wide, and the columns are rounded up so that whole vectors can be read anywhere.
namespace {
struct AttentionPlanes {
    int64_t channels, rows, columns, before, after;

    explicit AttentionPlanes(const AttentionDims& d) {
        before = d.window - 1;  // covers the keys of a query and the queries of a key
        after = d.window - 1;
        channels = (d.C + 7) / 8 * 8;
        rows = d.H + before + after;
        columns = before + (d.W + 15) / 16 * 16 + after;
    }
    int64_t plane() const { return rows * columns; }
    int64_t image() const { return channels * plane(); }
};
}  // namespace

}  // namespace fastds
