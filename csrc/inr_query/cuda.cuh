// SPDX-License-Identifier: Apache-2.0
// CUDA kernels of inr_query. Each warp processes one query, with its lanes over channels. A library's matrix product computes
// the trunk between the forward and the backward kernel.
//
// The forward kernel writes the rows that enter the trunk. The backward kernel adds the gradients of the maps with atomics in
// the compute type. It sums the parameter gradients per warp; the partial sums are added in a fixed order afterwards.
#pragma once
#include "core/launch.h"
#include "inr_query/math.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int kInrWarps = 4;  // warps of a block

FASTDS_HD float exp_of(float x) { return expf(x); }
FASTDS_HD double exp_of(double x) { return exp(x); }

// Returns the ReLU of x if `relu` is true, otherwise x. NaN stays NaN.
template <class A>
FASTDS_HD A apply_relu(bool relu, A x) {
    return relu && x <= A(0) ? A(0) : x;
}

// One query: its corners and cell size.
template <class T>
struct CudaQuery {
    using A = compute_t<T>;
    const InrQueryDims& d;
    const InrQueryTensors& t;
    int corners;
    QueryCorners<A> p;
    const T* corner[4];  // channel 0, or null if the pixel is invalid: its values are not read and count as 0
    A cell_y, cell_x;

    __device__ CudaQuery(const InrQueryDims& dims, const InrQueryTensors& tensors, int64_t b, int64_t q)
        : d(dims), t(tensors), corners(dims.ensemble == inr_none ? 1 : 4), cell_y(0), cell_x(0) {
        const uint8_t* mask = t.mask ? t.mask + b * d.H * d.W : nullptr;
        Coordinate<A> u, v;
        if (d.rows.den) {
            u = get_grid_coordinate<A>(d.rows, q / d.columns.size);
            v = get_grid_coordinate<A>(d.columns, q % d.columns.size);
        } else {
            const int64_t at = 2 * (b * d.point_b + q);
            const A* frac = static_cast<const A*>(t.frac) + at;
            u = {t.base[at], frac[0]};
            v = {t.base[at + 1], frac[1]};
        }
        p = locate_corners<A>(d, u, v, corners, mask);
        for (int j = 0; j < 4; j++)
            corner[j] = p.valid[j] ? static_cast<const T*>(t.maps) + b * d.maps_b + p.row[j] * d.maps_h + p.column[j] * d.maps_w
                                   : nullptr;
        if (t.cell) {
            const A* cell = static_cast<const A*>(t.cell) + b * d.cell_b + q * d.cell_q;
            cell_y = cell[0];
            cell_x = cell[1];
        }
    }

    __device__ A value(int j, int64_t c) const { return corner[j] ? static_cast<A>(load(corner[j][c])) : A(0); }

    // Returns R rho_j + Lambda kappa + b for channel c.
    __device__ A offset(int j, int64_t c) const {
        A sum = t.bias ? static_cast<const A*>(t.bias)[c] : A(0);
        if (const A* w = static_cast<const A*>(t.cell_w)) sum += w[c] * cell_y + w[d.D + c] * cell_x;
        if (const A* w = static_cast<const A*>(t.rho_w)) sum += w[c] * p.rho_y[j] + w[d.D + c] * p.rho_x[j];
        return sum;
    }

    // Returns the pre-activation of the affine or slope feature at channel c.
    __device__ A affine(int j, int64_t c) const {
        A h = value(j, c) + offset(j, c);
        if (d.feature == inr_slope) h += value(j, d.D + c) * p.rho_y[j] + value(j, 2 * d.D + c) * p.rho_x[j];
        return h;
    }

    __device__ SinCos<A> wave(int j, int64_t n) const {
        const int64_t half = d.D / 2, at = d.D + 2 * n;
        A theta = value(j, at) * p.rho_y[j] + value(j, at + 1) * p.rho_x[j];
        if (const A* w = static_cast<const A*>(t.phase)) theta += w[n] * cell_y + w[half + n] * cell_x;
        return sincos_pi<A>(theta);
    }
};

// Computes the attention of one query in the shared memory of its warp: query (heads * dk) and alpha (4 * heads).
template <class T, class A>
__device__ void attend(const CudaQuery<T>& q, A* query, A* alpha, int lane) {
    const InrQueryDims& d = q.d;
    const int64_t inner = d.heads * d.dk, keys = inr_first_key(d), contents = keys + inner;
    for (int64_t c = lane; c < inner; c += 32) {
        A sum = 0;
        for (int j = 0; j < 4; j++) sum += q.value(j, contents + c) * q.p.weight[j];
        query[c] = sum;
    }
    __syncwarp();
    const A scale = A(1) / static_cast<A>(sqrt(static_cast<double>(d.dk)));
    const A* bias = static_cast<const A*>(q.t.rho_bias);
    for (int64_t i = lane; i < 4 * d.heads; i += 32) {
        const int64_t h = i / 4;
        const int j = static_cast<int>(i % 4);
        A sum = 0;
        for (int64_t c = h * d.dk; c < (h + 1) * d.dk; c++) sum += query[c] * q.value(j, keys + c);
        sum *= scale;
        if (bias) sum += bias[h] * q.p.rho_y[j] + bias[d.heads + h] * q.p.rho_x[j];
        alpha[i] = sum;
    }
    __syncwarp();
    for (int64_t h = lane; h < d.heads; h += 32) {
        A top = 0, total = 0, e[4];
        bool first = true;
        for (int j = 0; j < 4; j++)
            if (q.p.weight[j] > A(0)) {
                const A logit = alpha[4 * h + j];
                top = first || logit > top ? logit : top;
                first = false;
            }
        for (int j = 0; j < 4; j++) {
            e[j] = q.p.weight[j] > A(0) ? q.p.weight[j] * exp_of(alpha[4 * h + j] - top) : A(0);
            total += e[j];
        }
        for (int j = 0; j < 4; j++) alpha[4 * h + j] = e[j] / (total == A(0) ? A(1) : total);
    }
    __syncwarp();
}

// Returns the number of elements of shared memory of one warp.
FASTDS_HD int64_t inr_shared(const InrQueryDims& d, bool backward) {
    return d.ensemble == inr_early_attn ? d.heads * d.dk + 4 * d.heads + (backward ? 4 * d.D + 4 * d.heads : 0) : 0;
}

// rows: (B, Q, D), for late (B, Q, 4, D), for dot (B, Q, O), in the storage type. weights: (B, Q, 4).
template <class T>
__global__ void inr_features_kernel(InrQueryDims d, InrQueryTensors t, T* rows, compute_t<T>* weights) {
    using A = compute_t<T>;
    FASTDS_DYNAMIC_SHARED(A, shared);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    A* query = shared + warp * inr_shared(d, false);
    A* alpha = query + d.heads * d.dk;
    const bool late = d.ensemble == inr_late;
    const int64_t per_query = late ? 4 : 1, width = d.feature == inr_dot ? d.O : d.D;
    for (int64_t at = static_cast<int64_t>(blockIdx.x) * kInrWarps + warp; at < d.B * d.Q;
         at += static_cast<int64_t>(gridDim.x) * kInrWarps) {
        const CudaQuery<T> q(d, t, at / d.Q, at % d.Q);
        T* row = rows + at * per_query * width;
        if (lane < 4) weights[4 * at + lane] = q.p.weight[lane];
        if (d.feature == inr_dot) {
            for (int64_t o = lane; o < d.O; o += 32) {
                A sum = q.value(0, d.O * d.D + o);
                for (int64_t c = 0; c < d.D; c++) sum += apply_relu<A>(d.relu, q.offset(0, c)) * q.value(0, o * d.D + c);
                row[o] = store<T>(sum);
            }
        } else if (d.feature == inr_fourier) {
            const int64_t half = d.D / 2;
            for (int64_t n = lane; n < half; n += 32) {
                A first = 0, second = 0;
                for (int j = 0; j < q.corners; j++) {
                    const auto wave = q.wave(j, n);
                    const A c = q.value(j, n) * wave.cosine, s = q.value(j, half + n) * wave.sine;
                    if (late) {
                        row[j * d.D + n] = store<T>(c);
                        row[j * d.D + half + n] = store<T>(s);
                    }
                    first += c * q.p.weight[j];
                    second += s * q.p.weight[j];
                }
                if (!late) {
                    row[n] = store<T>(first);
                    row[half + n] = store<T>(second);
                }
            }
        } else {
            const bool attention = d.ensemble == inr_early_attn;
            if (attention) attend(q, query, alpha, lane);
            const int64_t head = d.D / d.heads;
            for (int64_t c = lane; c < d.D; c += 32) {
                A sum = 0;
                for (int j = 0; j < q.corners; j++) {
                    const A h = apply_relu<A>(d.relu, q.affine(j, c));
                    if (late) row[j * d.D + c] = store<T>(h);
                    sum += h * (attention ? alpha[4 * (c / head) + j] : q.p.weight[j]);
                }
                if (!late) row[c] = store<T>(sum);
            }
            __syncwarp();
        }
    }
}

// The partial sums of one warp: kInrOffsetRows rows of D, then (2, heads).
template <class A>
struct WarpSums {
    A* row;
    int64_t D;
    A cell_y, cell_x;

    // Adds the gradients of the pre-activation of channel c, multiplied by the offsets (along_y, along_x) and alone (all).
    __device__ void add(int64_t c, A along_y, A along_x, A all) const {
        row[c] += along_y;
        row[D + c] += along_x;
        row[2 * D + c] += all;
        row[3 * D + c] += all * cell_y;
        row[4 * D + c] += all * cell_x;
    }
};

template <class T, class A>
__device__ void add_attention(const CudaQuery<T>& q, const WarpSums<A>& sums, A* const* target, const A* query, const A* alpha,
                              const A* products, A* logit, int lane) {
    const InrQueryDims& d = q.d;
    const int64_t head = d.D / d.heads, keys = inr_first_key(d), contents = keys + d.heads * d.dk;
    const A scale = A(1) / static_cast<A>(sqrt(static_cast<double>(d.dk)));
    for (int64_t i = lane; i < 4 * d.heads; i += 32) {
        A sum = 0;
        for (int64_t c = i / 4 * head; c < (i / 4 + 1) * head; c++) sum += products[i % 4 * d.D + c];
        logit[i] = sum;
    }
    __syncwarp();
    for (int64_t h = lane; h < d.heads; h += 32) {
        A mean = 0;
        for (int j = 0; j < 4; j++) mean += alpha[4 * h + j] * logit[4 * h + j];
        for (int j = 0; j < 4; j++) {
            const A g = alpha[4 * h + j] * (logit[4 * h + j] - mean);
            sums.row[kInrOffsetRows * d.D + h] += g * q.p.rho_y[j];
            sums.row[kInrOffsetRows * d.D + d.heads + h] += g * q.p.rho_x[j];
            logit[4 * h + j] = g * scale;
        }
    }
    __syncwarp();
    for (int64_t c = lane; c < d.heads * d.dk; c += 32) {
        const A* g = logit + 4 * (c / d.dk);
        A content = 0;
        for (int j = 0; j < 4; j++) {
            content += q.value(j, keys + c) * g[j];
            if (target[j]) atomicAdd(target[j] + keys + c, query[c] * g[j]);
        }
        for (int j = 0; j < 4; j++)
            if (target[j]) atomicAdd(target[j] + contents + c, content * q.p.weight[j]);
    }
    __syncwarp();
}

// grad_rows has the shape of the rows of the forward pass, in the compute type. grad_maps (B, H, W, channels) and partials (one
// row of `parameters` per warp) must be zero initially.
template <class T>
__global__ void inr_features_backward_kernel(InrQueryDims d, InrQueryTensors t, const compute_t<T>* grad_rows,
                                             compute_t<T>* grad_maps, int64_t channels, compute_t<T>* partials,
                                             int64_t parameters) {
    using A = compute_t<T>;
    FASTDS_DYNAMIC_SHARED(A, shared);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    A* query = shared + warp * inr_shared(d, true);
    A* alpha = query + d.heads * d.dk;
    A* products = alpha + 4 * d.heads;
    A* logit = products + 4 * d.D;
    const bool late = d.ensemble == inr_late, attention = d.ensemble == inr_early_attn;
    const int64_t per_query = late ? 4 : 1, width = d.feature == inr_dot ? d.O : d.D;
    const int64_t first = static_cast<int64_t>(blockIdx.x) * kInrWarps + warp;
    WarpSums<A> sums{partials + first * parameters, d.D, 0, 0};
    for (int64_t at = first; at < d.B * d.Q; at += static_cast<int64_t>(gridDim.x) * kInrWarps) {
        const int64_t b = at / d.Q;
        const CudaQuery<T> q(d, t, b, at % d.Q);
        if (!q.p.any) continue;
        const A* grad = grad_rows + at * per_query * width;
        A* target[4];
        for (int j = 0; j < 4; j++)
            target[j] = q.p.valid[j] ? grad_maps + ((b * d.H + q.p.row[j]) * d.W + q.p.column[j]) * channels : nullptr;
        sums.cell_y = q.cell_y;
        sums.cell_x = q.cell_x;
        if (d.feature == inr_dot) {
            for (int64_t o = lane; target[0] && o < d.O; o += 32) atomicAdd(target[0] + d.O * d.D + o, grad[o]);
            for (int64_t c = lane; c < d.D; c += 32) {
                const A input = q.offset(0, c), a = apply_relu<A>(d.relu, input);
                A da = 0;
                for (int64_t o = 0; o < d.O; o++) {
                    da += q.value(0, o * d.D + c) * grad[o];
                    if (target[0]) atomicAdd(target[0] + o * d.D + c, a * grad[o]);
                }
                const A pre = d.relu && input <= A(0) ? A(0) : da;
                sums.add(c, pre * q.p.rho_y[0], pre * q.p.rho_x[0], pre);
            }
        } else if (d.feature == inr_fourier) {
            const int64_t half = d.D / 2;
            for (int64_t n = lane; n < half; n += 32) {
                A all = 0;
                for (int j = 0; j < q.corners; j++) {
                    const A weight = late ? A(1) : q.p.weight[j];
                    const A* g = grad + (late ? j * d.D : 0);
                    const A gc = g[n] * weight, gs = g[half + n] * weight;
                    const auto wave = q.wave(j, n);
                    const A theta = (q.value(j, half + n) * gs * wave.cosine - q.value(j, n) * gc * wave.sine) *
                                    A(3.14159265358979323846);
                    all += theta;
                    if (!target[j]) continue;
                    atomicAdd(target[j] + n, gc * wave.cosine);
                    atomicAdd(target[j] + half + n, gs * wave.sine);
                    atomicAdd(target[j] + d.D + 2 * n, theta * q.p.rho_y[j]);
                    atomicAdd(target[j] + d.D + 2 * n + 1, theta * q.p.rho_x[j]);
                }
                sums.add(n, A(0), A(0), all);
            }
        } else {
            if (attention) attend(q, query, alpha, lane);
            const int64_t head = d.D / d.heads;
            for (int64_t c = lane; c < d.D; c += 32) {
                A along_y = 0, along_x = 0, all = 0;
                for (int j = 0; j < q.corners; j++) {
                    const A h = q.affine(j, c), g = grad[(late ? j * d.D : 0) + c];
                    if (attention) products[j * d.D + c] = g * apply_relu<A>(d.relu, h);
                    const A weight = late ? A(1) : attention ? alpha[4 * (c / head) + j] : q.p.weight[j];
                    const A pre = d.relu && h <= A(0) ? A(0) : g * weight;
                    if (target[j]) atomicAdd(target[j] + c, pre);
                    if (target[j] && d.feature == inr_slope) {
                        atomicAdd(target[j] + d.D + c, pre * q.p.rho_y[j]);
                        atomicAdd(target[j] + 2 * d.D + c, pre * q.p.rho_x[j]);
                    }
                    along_y += pre * q.p.rho_y[j];
                    along_x += pre * q.p.rho_x[j];
                    all += pre;
                }
                sums.add(c, along_y, along_x, all);
            }
            __syncwarp();
            if (attention) add_attention(q, sums, target, query, alpha, products, logit, lane);
        }
    }
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
