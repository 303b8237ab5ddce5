// SPDX-License-Identifier: Apache-2.0
// window_attention2d: y_p = sum_d softmax_d(q_p . k_{p+d}) v_{p+d}, d over -floor(n/2) .. n - floor(n/2) - 1 in rows and columns.
// Keys outside the field have logit 0 and value 0 and take part. No scaling.
#pragma once
#include <stdint.h>

#include "core/dtype.h"

namespace fastds {

// A map (B, C, H, W): any strides, in elements.
struct AttentionMap {
    void* data;
    int64_t b, c, h, w;
};

struct AttentionDims {
    int dtype;  // of every map; lse is in the compute type
    int64_t B, C, H, W, window;
};

struct AttentionForward {
    AttentionMap q, k, v, y;
    void* lse;  // (B, H, W) log of the sum of exp of the logits
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

// A planar copy (B, C', rows, columns): C' = C rounded up to 8, a frame of zeros as wide as the window reaches, columns
// rounded up so that whole vectors may be read anywhere.
namespace {
struct AttentionPlanes {
    int64_t channels, rows, columns, before, after;

    explicit AttentionPlanes(const AttentionDims& d) {
        before = d.window - 1;  // both kinds of neighbours, a query's keys and a key's queries
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
