// SPDX-License-Identifier: Apache-2.0
// Sizes and addresses of one inr_query call, in plain structs shared by the binding and the kernels.
//
// maps is NHWC in the storage type with its own batch, row and pixel strides (channel stride 1). All other tensors are
// contiguous in the compute type (double for double, otherwise float). rho_w, cell_w and phase are (2, D) or (2, N): first all
// row parts, then all column parts.
//
// The number of channels of maps depends on the feature. `affine` has D; `slope` has 3D (constant part, slopes along rows,
// slopes along columns); `fourier` has 2N amplitudes and 2N frequencies as (row, column) pairs, with D = 2N; `dot` has O*D
// values and O constants. The ensemble `early_attn` appends heads*dk keys and heads*dk contents.
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
    int areas;  // corner weights from offset areas, as published for LIIF, instead of bilinear weights
    int wrap_y, wrap_x;
    int64_t B, Q, H, W, D, O, heads, dk;  // D: width of a corner's feature
    int64_t maps_b, maps_h, maps_w;
    InrAxis rows, columns;     // of a grid; if rows.den is 0, base and frac give the points
    int64_t point_b;           // queries between the points of two samples; 0 if the samples share them
    int64_t cell_b, cell_q;    // elements of cell between samples and between queries; 0 if shared
    int layers;                // of the trunk
    int64_t width[kInrLayers];  // outputs of each layer
    bool tiles;                 // use AMX tiles for bfloat16
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

// Contiguous gradients of the inputs of the features. maps has the shape (B, H, W, channels), and offsets has the shape
// (kInrOffsetRows, D), where D is the width of the features of a corner.
struct InrQueryGradients {
    void* maps;
    void* offsets;
    void* rho_bias;  // (2, heads)
    void* workspace;
};

// Rows of InrQueryGradients::offsets: row part and column part of rho_w, bias, row part and column part of cell_w or phase.
constexpr int64_t kInrOffsetRows = 5;

// Forward pass. y has the shape (B, Q, O).
FASTDS_PER_ISA(void inr_query_forward(const InrQueryDims& dims, const InrQueryTensors& tensors, void* y, int threads))
// Writes the rows that enter the trunk, (B, Q, D) or for late (B, Q, 4, D), and the corner weights (B, Q, 4), which are 0 for
// absent corners.
FASTDS_PER_ISA(void inr_query_features(const InrQueryDims& dims, const InrQueryTensors& tensors, void* rows, void* weights,
                                       int threads))
// Backward pass through the features. grad_rows has the shape of the rows that inr_query_features() writes; for the dot feature
// it is (B, Q, O).
FASTDS_PER_ISA(void inr_query_features_backward(const InrQueryDims& dims, const InrQueryTensors& tensors,
                                                const void* grad_rows, const InrQueryGradients& gradients, int threads))

// Backward pass through the trunk: from grad_y (B, Q, O) to grad_rows, and to grad_layers, which holds the gradients of all
// layers one after the other, each as weight (out, in) and bias. workspace: inr_trunk_workspace bytes.
FASTDS_PER_ISA(void inr_query_trunk_backward(const InrQueryDims& dims, const InrQueryTensors& tensors, const void* grad_y,
                                             void* grad_rows, void* grad_layers, void* workspace, int threads))

// CUDA versions for the features; rows are in the storage type. The parameter gradients are partial sums of shape
// (inr_query_cuda_partials, kInrOffsetRows * D + 2 * heads). These sums and grad_maps must be zero initially.
void inr_query_features_cuda(const InrQueryDims& dims, const InrQueryTensors& tensors, void* rows, void* weights, int device,
                             void* stream);
void inr_query_features_backward_cuda(const InrQueryDims& dims, const InrQueryTensors& tensors, const void* grad_rows,
                                      void* grad_maps, void* partials, int device, void* stream);
int64_t inr_query_cuda_partials(const InrQueryDims& dims);

// Number of rows per query that enter the trunk.
static inline int64_t inr_rows_per_query(const InrQueryDims& d) { return d.ensemble == inr_late ? 4 : 1; }

static inline int64_t inr_layer_inputs(const InrQueryDims& d, int layer) { return layer ? d.width[layer - 1] : d.D; }

static inline int64_t inr_query_channels(const InrQueryDims& d) {
    if (d.feature == inr_dot) return d.O * (d.D + 1);
    if (d.feature == inr_fourier) return 2 * d.D;
    const int64_t affine = d.feature == inr_slope ? 3 * d.D : d.D;
    return affine + (d.ensemble == inr_early_attn ? 2 * d.heads * d.dk : 0);
}

}  // namespace fastds
