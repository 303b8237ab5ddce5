// SPDX-License-Identifier: Apache-2.0
// Sizes and addresses of one inr_query call; plain data shared by the binding and the kernels.
//
// maps is NHWC with its own batch, row and pixel strides (channel stride 1) in the storage type; everything else is dense in
// the compute type (float, or double for double): rho_w, cell_w and phase as (2, D) or (2, N): all row parts, then all column
// parts. Channels of maps: affine D, slope 3D (constant part, slopes along rows, along columns), fourier 2N amplitudes and 2N frequencies (row, column pairs), dot O*D and O constants;
// early_attn adds heads*dk keys and heads*dk contents behind.
#pragma once
#include <stdint.h>

#include "core/isa.h"

namespace fastds {

enum InrFeature : int { inr_affine = 0, inr_fourier = 1, inr_dot = 2, inr_slope = 3 };
enum InrEnsemble : int { inr_none = 0, inr_late = 1, inr_early_area = 2, inr_early_attn = 3 };

constexpr int kInrLayers = 8;
constexpr int64_t kInrHeads = 64;

// Index coordinates of a grid axis: u_k = (start + step * k) / den.
struct InrAxis {
    int64_t size, step, start, den;
};

struct InrQueryDims {
    int dtype;  // DType of maps
    int feature, ensemble;
    int relu;   // activation of affine, slope and dot features
    int areas;  // corner weights from offset areas, as published for LIIF, instead of the bilinear ones
    int wrap_y, wrap_x;
    int64_t B, Q, H, W, D, O, heads, dk;  // D: width of a corner's feature
    int64_t maps_b, maps_h, maps_w;
    InrAxis rows, columns;     // of a grid; rows.den 0: base and frac name the points
    int64_t point_b;           // queries between the points of two samples, 0 where they share them
    int64_t cell_b, cell_q;    // elements of cell between samples and between queries, 0 where shared
    int layers;                // of the trunk
    int64_t width[kInrLayers];  // outputs of each
    bool tiles;                 // bfloat16 on matrix tiles (AMX)
};

struct InrQueryTensors {
    const void* maps;
    const int32_t* base;  // (B or 1, Q, 2)
    const void* frac;     // (B or 1, Q, 2)
    const void *rho_w, *cell_w, *bias, *rho_bias, *phase, *cell;  // each may be null
    const void* skip;     // (B, H, W, O) or null
    const uint8_t* mask;  // (B, H, W) or null
    const void* weight[kInrLayers];  // (out, in)
    const void* layer_bias[kInrLayers];
};

// Gradients of the features; dense, a null one is not written. maps: (B, H, W, channels), offsets: kInrOffsetRows rows of D.
struct InrQueryGradients {
    void* maps;
    void* offsets;
    void* rho_bias;  // (2, heads)
    void* workspace;
};

// Rows of InrQueryGradients::offsets: row and column part of rho_w, bias, row and column part of cell_w or phase.
constexpr int64_t kInrOffsetRows = 5;

// y: (B, Q, O).
FASTDS_PER_ISA(void inr_query_forward(const InrQueryDims& dims, const InrQueryTensors& tensors, void* y, int threads))
// What enters the trunk: rows (B, Q, D) or for late (B, Q, 4, D), and the corner weights (B, Q, 4) with 0 for absent ones.
FASTDS_PER_ISA(void inr_query_features(const InrQueryDims& dims, const InrQueryTensors& tensors, void* rows, void* weights,
                                       int threads))
// grad_rows as rows above (for dot: (B, Q, O)).
FASTDS_PER_ISA(void inr_query_features_backward(const InrQueryDims& dims, const InrQueryTensors& tensors,
                                                const void* grad_rows, const InrQueryGradients& gradients, int threads))

// The backward pass through the trunk: from grad_y (B, Q, O) to grad_rows, and to the gradients of all layers, one after the
// other, each of weight (out, in) and bias. workspace: inr_trunk_workspace bytes.
FASTDS_PER_ISA(void inr_query_trunk_backward(const InrQueryDims& dims, const InrQueryTensors& tensors, const void* grad_y,
                                             void* grad_rows, void* grad_layers, void* workspace, int threads))

// Of the features on a GPU; rows in the storage type. The parameters' gradients come as partial sums, (inr_query_cuda_partials,
// kInrOffsetRows * D + 2 * heads); these and grad_maps start at zero.
void inr_query_features_cuda(const InrQueryDims& dims, const InrQueryTensors& tensors, void* rows, void* weights, int device,
                             void* stream);
void inr_query_features_backward_cuda(const InrQueryDims& dims, const InrQueryTensors& tensors, const void* grad_rows,
                                      void* grad_maps, void* partials, int device, void* stream);
int64_t inr_query_cuda_partials(const InrQueryDims& dims);

// Rows that enter the trunk.
static inline int64_t inr_rows_per_query(const InrQueryDims& d) { return d.ensemble == inr_late ? 4 : 1; }

static inline int64_t inr_layer_inputs(const InrQueryDims& d, int layer) { return layer ? d.width[layer - 1] : d.D; }

static inline int64_t inr_query_channels(const InrQueryDims& d) {
    if (d.feature == inr_dot) return d.O * (d.D + 1);
    if (d.feature == inr_fourier) return 2 * d.D;
    const int64_t affine = d.feature == inr_slope ? 3 * d.D : d.D;
    return affine + (d.ensemble == inr_early_attn ? 2 * d.heads * d.dk : 0);
}

}  // namespace fastds
