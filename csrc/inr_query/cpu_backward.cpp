// SPDX-License-Identifier: Apache-2.0
// Gradients of the features of inr_query from the gradients of the rows that enter the trunk. The values of the forward pass
// are computed again.
//
// A task is a sample and a band of queries. It has its own copy of the gradient of the sample's maps and its own partial sums
// of the parameter gradients. Both are added in a fixed order afterwards, without atomics.
#include "core/parallel.h"
#include "inr_query/backward_partition.h"
#include "inr_query/cpu_common.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

template <int N, class A>
FASTDS_HD void add_to(A* p, Vec<A, N> v) {
    store_vec<N>(p, Vec<A, N>(load_vec<N>(p) + v));
}

// One task. It adds the gradients of its queries to `maps` (H, W, channels) and `partial` (kInrOffsetRows * D, then 2 * heads).
template <class T>
struct Task {
    using A = compute_t<T>;
    const Source<T>& source;
    Features<A, T, A> features;
    A* const maps;
    A* const partial;
    const Buffer<A> trash, dalpha;
    const int64_t D;

    Task(const Source<T>& s, A* grad_maps, A* grad_partial)
        : source(s), features(s), maps(grad_maps), partial(grad_partial), trash(s.channels), dalpha(4 * s.d.heads), D(s.d.D) {
        __builtin_memset(trash, 0, s.channels * sizeof(A));
    }

    void add(int64_t b, int64_t q, const A* grad) {
        const InrQueryDims& d = source.d;
        const QueryCorners<A> p = source.locate(b, q, features.corners);
        if (!p.any) return;
        const T* corner[4];
        A* target[4];
        for (int j = 0; j < 4; j++) {
            corner[j] = source.corner(p, b, j);
            target[j] = p.valid[j] ? maps + (p.row[j] * d.W + p.column[j]) * source.channels : static_cast<A*>(trash);
        }
        features.set_cell(b, q);
        const A none[2] = {0, 0};
        const A* cell = source.t.cell ? source.cell(b, q) : none;
        if (d.feature == inr_dot) {
            add_dot(p, corner[0], target[0], cell, grad);
        } else if (d.feature == inr_fourier) {
            add_fourier(p, corner, target, cell, grad);
        } else if (d.ensemble == inr_early_attn) {
            const Attention<A>& attention = features.attention;
            attention.compute_weights(p, corner);
            const int64_t width = D / d.heads;
            for (int64_t h = 0; h < d.heads; h++)
                add_affine(p, corner, target, cell, grad, attention.alpha + 4 * h, dalpha + 4 * h, h * width, (h + 1) * width);
            add_attention(p, corner, target);
        } else {
            add_affine(p, corner, target, cell, grad, p.weight, nullptr, 0, D);
        }
    }

  private:
    // Adds the gradients of the pre-activations of channels c .. c+N-1, summed over the corners, to the gradients of rho_w,
    // bias and cell_w (or phase).
    template <int N>
    FASTDS_HD void add_offset(int64_t c, int64_t width, Vec<A, N> along_y, Vec<A, N> along_x, Vec<A, N> all, const A* cell) {
        add_to<N>(partial + c, along_y);
        add_to<N>(partial + width + c, along_x);
        add_to<N>(partial + 2 * width + c, all);
        add_to<N>(partial + 3 * width + c, Vec<A, N>(all * cell[0]));
        add_to<N>(partial + 4 * width + c, Vec<A, N>(all * cell[1]));
    }

    // Computes dalpha_j = <grad, h_j> unless dalpha_out is null.
    FASTDS_HD void add_affine(const QueryCorners<A>& p, const T* const* corner, A* const* target, const A* cell, const A* grad,
                              const A* alpha, A* dalpha_out, int64_t begin, int64_t end) {
        const bool late = source.d.ensemble == inr_late, relu = source.d.relu;
        A sums[4] = {};
        for_runs<A>(begin, end, [&](auto run, int64_t c) {
            constexpr int N = decltype(run)::value;
            Vec<A, N> h[4] = {}, along_y{}, along_x{}, all{};
            affine_at<N>(features.offset, p, corner, features.corners, c, h);
            for (int j = 0; j < features.corners; j++) {
                const Vec<A, N> g = load_vec<N>(grad + (late ? j * D : 0) + c);
                const Vec<A, N> value = apply_relu<A, N>(relu, h[j]);
                if (dalpha_out != nullptr) {
                    const Vec<A, N> product = g * value;
                    if constexpr (N == 1) {
                        sums[j] += product;
                    } else {
                        for (int i = 0; i < N; i++) sums[j] += product[i];
                    }
                }
                const Vec<A, N> weighted = late ? g : Vec<A, N>(g * alpha[j]);
                const Vec<A, N> pre = relu ? Vec<A, N>(h[j] <= A(0) ? Vec<A, N>{} : weighted) : weighted;
                const Vec<A, N> pre_y = pre * p.rho_y[j], pre_x = pre * p.rho_x[j];
                add_to<N>(target[j] + c, pre);
                if (features.offset.slopes) {
                    add_to<N>(target[j] + D + c, pre_y);
                    add_to<N>(target[j] + 2 * D + c, pre_x);
                }
                along_y += pre_y;
                along_x += pre_x;
                all += pre;
            }
            add_offset<N>(c, D, along_y, along_x, all, cell);
        });
        for (int j = 0; dalpha_out != nullptr && j < 4; j++) dalpha_out[j] = sums[j];
    }

    // Propagates dalpha to keys, contents and rho_bias.
    FASTDS_HD void add_attention(const QueryCorners<A>& p, const T* const* corner, A* const* target) {
        const Attention<A>& a = features.attention;
        A* bias = partial + kInrOffsetRows * D;
        for (int64_t h = 0; h < a.heads; h++) {
            const A *alpha = a.alpha + 4 * h, *da = dalpha + 4 * h;
            A mean = 0, logit[4];
            for (int j = 0; j < 4; j++) mean += alpha[j] * da[j];
            for (int j = 0; j < 4; j++) {
                logit[j] = alpha[j] * (da[j] - mean);
                bias[h] += logit[j] * p.rho_y[j];
                bias[a.heads + h] += logit[j] * p.rho_x[j];
                logit[j] *= a.scale;
            }
            for_runs<A>(h * a.dk, (h + 1) * a.dk, [&](auto run, int64_t c) {
                constexpr int N = decltype(run)::value;
                const Vec<A, N> query = load_vec<N>(a.query + c);
                Vec<A, N> dq{};
                for (int j = 0; j < 4; j++) {
                    add_to<N>(target[j] + a.keys + c, Vec<A, N>(query * logit[j]));
                    dq += load_vec<N>(corner[j] + a.keys + c) * logit[j];
                }
                for (int j = 0; j < 4; j++) add_to<N>(target[j] + a.contents + c, Vec<A, N>(dq * p.weight[j]));
            });
        }
    }

    FASTDS_HD void add_fourier(const QueryCorners<A>& p, const T* const* corner, A* const* target, const A* cell, const A* grad) {
        const bool late = source.d.ensemble == inr_late;
        const int64_t half = features.offset.width;
        for_runs<A>(0, half, [&](auto run, int64_t n) {
            constexpr int N = decltype(run)::value;
            Vec<A, N> all{};
            for (int j = 0; j < features.corners; j++) {
                const A scale = late ? A(1) : p.weight[j];
                const A* g = grad + (late ? j * D : 0);
                const Vec<A, N> first = load_vec<N>(g + n) * scale, second = load_vec<N>(g + half + n) * scale;
                const auto wave = fourier_at<N>(features.offset, p, corner[j] + 2 * half, j, n);
                add_to<N>(target[j] + n, Vec<A, N>(first * wave.cosine));
                add_to<N>(target[j] + half + n, Vec<A, N>(second * wave.sine));
                const Vec<A, N> theta = (load_vec<N>(corner[j] + half + n) * second * wave.cosine -
                                         load_vec<N>(corner[j] + n) * first * wave.sine) *
                                        A(3.14159265358979323846);
                all += theta;
                A lanes[N];
                store_vec<N>(lanes, theta);
                A* frequency = target[j] + 2 * half + 2 * n;
                for (int i = 0; i < N; i++) {
                    frequency[2 * i] += lanes[i] * p.rho_y[j];
                    frequency[2 * i + 1] += lanes[i] * p.rho_x[j];
                }
            }
            add_offset<N>(n, D, Vec<A, N>{}, Vec<A, N>{}, all, cell);
        });
    }

    FASTDS_HD void add_dot(const QueryCorners<A>& p, const T* corner, A* target, const A* cell, const A* grad) {
        const int64_t O = source.d.O;
        const bool relu = source.d.relu;
        for (int64_t o = 0; o < O; o++) target[O * D + o] += grad[o];
        for_runs<A>(0, D, [&](auto run, int64_t c) {
            constexpr int N = decltype(run)::value;
            const Vec<A, N> input = features.template dot_input<N>(p, c), a = apply_relu<A, N>(relu, input);
            Vec<A, N> da{};
            for (int64_t o = 0; o < O; o++) {
                add_to<N>(target + o * D + c, Vec<A, N>(a * grad[o]));
                da += load_vec<N>(corner + o * D + c) * grad[o];
            }
            const Vec<A, N> pre = relu ? Vec<A, N>(input <= A(0) ? Vec<A, N>{} : da) : da;
            add_offset<N>(c, D, Vec<A, N>(pre * p.rho_y[0]), Vec<A, N>(pre * p.rho_x[0]), pre, cell);
        });
    }
};

template <class T>
void backward(const InrQueryDims& d, const InrQueryTensors& t, const compute_t<T>* grad_rows, const InrQueryGradients& g,
              int threads) {
    using A = compute_t<T>;
    const Source<T> source(d, t);
    const InrBackwardPartition partition(d);
    const int64_t pixels = d.H * d.W * source.channels, parameters = partition.parameters;
    const int64_t row = inr_rows_per_query(d) * (d.feature == inr_dot ? d.O : d.D);
    A* workspace = static_cast<A*>(g.workspace);
    A* partials = workspace;
    A* copies = workspace + partition.tasks() * parameters;  // copies for the bands from 1 on; band 0 writes to the result
    A* maps = static_cast<A*>(g.maps);
    parallel_tasks(partition.tasks(), threads, [&](const auto& next) {
        for (int64_t index; (index = next()) >= 0;) {
            const int64_t b = index / partition.bands, band = index % partition.bands;
            A* mine = band ? copies + (b * (partition.bands - 1) + band - 1) * pixels : maps + b * pixels;
            __builtin_memset(mine, 0, pixels * sizeof(A));
            __builtin_memset(partials + index * parameters, 0, parameters * sizeof(A));
            Task<T> task(source, mine, partials + index * parameters);
            for (int64_t q = d.Q * band / partition.bands; q < d.Q * (band + 1) / partition.bands; q++)
                task.add(b, q, grad_rows + (b * d.Q + q) * row);
        }
    });
    for (int64_t b = 0; b < d.B && partition.bands > 1; b++) {
        A* sum = maps + b * pixels;
        const A* rest = copies + b * (partition.bands - 1) * pixels;
        parallel_for(pixels, threads, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; i++)
                for (int64_t k = 0; k < partition.bands - 1; k++) sum[i] += rest[k * pixels + i];
        });
    }
    sum_in_order(static_cast<A*>(g.offsets), partials, partition.tasks(), parameters, kInrOffsetRows * d.D, 1);
    sum_in_order(static_cast<A*>(g.rho_bias), partials + kInrOffsetRows * d.D, partition.tasks(), parameters, 2 * d.heads, 1);
}

}  // namespace

void inr_query_features_backward(const InrQueryDims& dims, const InrQueryTensors& tensors, const void* grad_rows,
                                 const InrQueryGradients& gradients, int threads) {
    FASTDS_KERNEL_DTYPE_SWITCH(dims.dtype, backward<scalar>(dims, tensors, static_cast<const compute_t<scalar>*>(grad_rows),
                                                     gradients, threads))
}

}  // namespace FASTDS_ISA
}  // namespace fastds
