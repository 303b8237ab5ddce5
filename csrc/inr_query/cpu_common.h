// SPDX-License-Identifier: Apache-2.0
// Common parts of the CPU passes of inr_query: features of the corners of a query, and the trunk.
#pragma once
#include "core/amx.h"
#include "core/gemm.h"
#include "core/memory.h"
#include "inr_query/math.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Forward computation of the features of the corners of a query and of their ensemble, with channels as vectors.

template <int N>
struct Run {
    static constexpr int value = N;
};

// Calls f(Run<N>, first channel) over begin .. end-1 with the longest vectors that fit.
template <class A, class F>
FASTDS_HD void for_runs(int64_t begin, int64_t end, const F& f) {
    int64_t c = begin;
    for (; c + kLanes<A> <= end; c += kLanes<A>) f(Run<kLanes<A>>{}, c);
    if constexpr (kLanes<A> > 4)
        for (; c + 4 <= end; c += 4) f(Run<4>{}, c);
    for (; c < end; c++) f(Run<1>{}, c);
}

// Addresses of the maps of one call, and coordinates of its queries.
template <class T>
struct Source {
    using A = compute_t<T>;
    explicit Source(const InrQueryDims& dims, const InrQueryTensors& tensors)
        : d(dims),
          t(tensors),
          channels(inr_query_channels(dims)),
          rows(dims.rows.den ? dims.rows.size : 0),
          columns(dims.rows.den ? dims.columns.size : 0),
          nothing(channels) {
        for (int64_t k = 0; d.rows.den && k < d.rows.size; k++) rows[k] = get_grid_coordinate<A>(d.rows, k);
        for (int64_t k = 0; d.rows.den && k < d.columns.size; k++) columns[k] = get_grid_coordinate<A>(d.columns, k);
        __builtin_memset(nothing, 0, channels * sizeof(T));
    }

    QueryCorners<A> locate(int64_t b, int64_t q, int corners) const {
        const uint8_t* mask = t.mask ? t.mask + b * d.H * d.W : nullptr;
        if (d.rows.den) return locate_corners<A>(d, rows[q / d.columns.size], columns[q % d.columns.size], corners, mask);
        const int64_t at = 2 * (b * d.point_b + q);
        const A* frac = static_cast<const A*>(t.frac) + at;
        return locate_corners<A>(d, {t.base[at], frac[0]}, {t.base[at + 1], frac[1]}, corners, mask);
    }

    // Returns the address of channel 0 of the pixel at corner j. If the pixel is not valid, the address is that of zeros.
    const T* corner(const QueryCorners<A>& p, int64_t b, int j) const {
        if (!p.valid[j]) return nothing;
        return static_cast<const T*>(t.maps) + b * d.maps_b + p.row[j] * d.maps_h + p.column[j] * d.maps_w;
    }

    const A* cell(int64_t b, int64_t q) const { return static_cast<const A*>(t.cell) + b * d.cell_b + q * d.cell_q; }

    const InrQueryDims& d;
    const InrQueryTensors& t;
    const int64_t channels;
    const Buffer<Coordinate<A>> rows, columns;
    const Buffer<T> nothing;
};

// The terms R rho + Lambda kappa + b of a query, with R = rho_w, Lambda = cell_w and b = bias; rho is the offset from a corner
// and kappa the cell size. `constant` is Lambda kappa + b; the term of rho depends on the corner. For the Fourier feature,
// `constant` is phase * kappa.
template <class A>
struct OffsetTerms {
    explicit OffsetTerms(const InrQueryDims& dims, const InrQueryTensors& t)
        : slopes(dims.feature == inr_slope),
          width(dims.feature == inr_fourier ? dims.D / 2 : dims.D),
          zeros(width),
          constant(width) {
        const A* matrix = static_cast<const A*>(dims.feature == inr_fourier ? t.phase : t.cell_w);
        cell_y = matrix;
        cell_x = matrix ? matrix + width : nullptr;
        bias = dims.feature == inr_fourier || t.bias == nullptr ? zeros : static_cast<const A*>(t.bias);
        rho_y = t.rho_w ? static_cast<const A*>(t.rho_w) : zeros;
        rho_x = t.rho_w ? rho_y + width : zeros;
    }

    void set_cell(const A* cell) {
        if (cell_y == nullptr) {
            __builtin_memcpy(constant, bias, width * sizeof(A));
            return;
        }
        for_runs<A>(0, width, [&](auto run, int64_t c) {
            constexpr int N = decltype(run)::value;
            store_vec<N>(constant + c, Vec<A, N>(load_vec<N>(bias + c) + load_vec<N>(cell_y + c) * cell[0] +
                                                 load_vec<N>(cell_x + c) * cell[1]));
        });
    }

    const bool slopes;  // each corner has its own R, stored in the maps
    const int64_t width;
    const ZeroedBuffer<A> zeros;
    const Buffer<A> constant;
    const A *bias, *cell_y, *cell_x, *rho_y, *rho_x;
};

// Returns the ReLU of x if `relu` is true, otherwise x. NaN stays NaN.
template <class A, int N>
FASTDS_HD Vec<A, N> apply_relu(bool relu, Vec<A, N> x) {
    return relu ? Vec<A, N>(at_least(Vec<A, N>{}, x)) : x;
}

// Computes the pre-activations h[j] of the corners j < corners at channels c .. c+N-1.
template <int N, class A, class T>
FASTDS_HD void affine_at(const OffsetTerms<A>& o, const QueryCorners<A>& p, const T* const* corner, int corners, int64_t c,
                         Vec<A, N>* h) {
    const auto constant = load_vec<N>(o.constant + c), ry = load_vec<N>(o.rho_y + c), rx = load_vec<N>(o.rho_x + c);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        if (j >= corners) break;
        h[j] = load_vec<N>(corner[j] + c) + (constant + (ry * p.rho_y[j] + rx * p.rho_x[j]));
        if (o.slopes)
            h[j] += load_vec<N>(corner[j] + o.width + c) * p.rho_y[j] + load_vec<N>(corner[j] + 2 * o.width + c) * p.rho_x[j];
    }
}

// Returns <q, k_j> over n channels for the four corners, one per lane.
template <class A, class T>
FASTDS_HD Vec<A, 4> dot_corners(const A* q, const T* const* k, int64_t n) {
    Vec<A, 4> sum{};
    int64_t c = 0;
    if constexpr (kLanes<A> > 4) {
        if (n >= kLanes<A>) {
            Vec<A> p[4] = {};
            for (; c + kLanes<A> <= n; c += kLanes<A>)
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++) p[j] += load_vec<kLanes<A>>(q + c) * load_vec<kLanes<A>>(k[j] + c);
            if constexpr (kLanes<A> == 16) {
                Vec<A, 4> part[4];
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++) {
                    const auto half = get_half<0>(p[j]) + get_half<1>(p[j]);
                    part[j] = get_half<0>(half) + get_half<1>(half);
                }
                sum += sum_lanes<A>(part[0], part[1], part[2], part[3]);
            } else {
                Vec<A, 4> part[4];
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++) part[j] = get_half<0>(p[j]) + get_half<1>(p[j]);
                sum += sum_lanes<A>(part[0], part[1], part[2], part[3]);
            }
        }
    }
    Vec<A, 4> p[4] = {};
    for (; c + 4 <= n; c += 4)
        for (int j = 0; j < 4; j++) p[j] += load_vec<4>(q + c) * load_vec<4>(k[j] + c);
    sum += sum_lanes<A>(p[0], p[1], p[2], p[3]);
    for (; c < n; c++) {
        const Vec<A, 4> values = {A(load(k[0][c])), A(load(k[1][c])), A(load(k[2][c])), A(load(k[3][c]))};
        sum += q[c] * values;
    }
    return sum;
}

// Attention over the corners: alpha[4 h + j] = omega_j e^{l_jh} / (sum of these terms over j), where omega_j is the weight of
// corner j, and l_jh is the logit of corner j for head h.
template <class A>
struct Attention {
    explicit Attention(const InrQueryDims& d, const InrQueryTensors& t)
        : heads(d.heads), dk(d.dk), keys(inr_first_key(d)), contents(keys + d.heads * d.dk), scale(A(1) / A(__builtin_sqrt(double(d.dk)))),
          bias(static_cast<const A*>(t.rho_bias)), query(d.heads * d.dk), alpha(4 * d.heads) {}

    template <class T>
    FASTDS_HD void compute_weights(const QueryCorners<A>& p, const T* const* corner) const {
        for_runs<A>(0, heads * dk, [&](auto run, int64_t c) {
            constexpr int N = decltype(run)::value;
            Vec<A, N> sum{};
            for (int j = 0; j < 4; j++) sum += load_vec<N>(corner[j] + contents + c) * p.weight[j];
            store_vec<N>(query + c, sum);
        });
        const auto weight = load_vec<4>(p.weight), rho_y = load_vec<4>(p.rho_y), rho_x = load_vec<4>(p.rho_x);
        const auto present = weight > A(0);
        for (int64_t h = 0; h < heads; h++) {
            const T* key[4];
            for (int j = 0; j < 4; j++) key[j] = corner[j] + keys + h * dk;
            Vec<A, 4> logit = dot_corners<A>(query + h * dk, key, dk) * scale;
            if (bias != nullptr) logit += bias[h] * rho_y + bias[heads + h] * rho_x;
            Vec<A, 4> top = present ? logit : Vec<A, 4>{} - A(__builtin_inf());
            auto swapped = __builtin_shufflevector(top, top, 2, 3, 0, 1);
            top = top > swapped ? top : swapped;
            swapped = __builtin_shufflevector(top, top, 1, 0, 3, 2);
            top = top > swapped ? top : swapped;
            const auto parts = exp_parts<A>(Vec<A, 4>(present ? logit - top : Vec<A, 4>{}));
            const Vec<A, 4> e = weight * (parts.scale + parts.scale * parts.rest);
            const A total = (e[0] + e[1]) + (e[2] + e[3]);
            store_vec<4>(alpha + 4 * h, Vec<A, 4>(e / (total == 0 ? A(1) : total)));
        }
    }

    const int64_t heads, dk, keys, contents;
    const A scale;
    const A* bias;
    const Buffer<A> query, alpha;
};

// Returns sine and cosine of the phase of corner j at the frequencies n .. n+N-1. Frequency maps hold (row, column) pairs.
template <int N, class A, class T>
FASTDS_HD SinCos<Vec<A, N>> fourier_at(const OffsetTerms<A>& o, const QueryCorners<A>& p, const T* frequency, int j, int64_t n) {
    Vec<A, N> along_y{}, along_x{};
    if constexpr (N == 1) {
        along_y = A(load(frequency[2 * n]));
        along_x = A(load(frequency[2 * n + 1]));
    } else {
        A pairs[2 * N];
        store_vec<N>(pairs, load_vec<N>(frequency + 2 * n));
        store_vec<N>(pairs + N, load_vec<N>(frequency + 2 * n + N));
        for (int i = 0; i < N; i++) along_y[i] = pairs[2 * i], along_x[i] = pairs[2 * i + 1];
    }
    return sincos_pi<A>(Vec<A, N>(along_y * p.rho_y[j] + along_x * p.rho_x[j] + load_vec<N>(o.constant + n)));
}

// Writes the rows that enter the trunk: one row, or for `late` one per corner, with the stride row_stride. S is the storage
// type of the rows.
template <class S, class T, class A>
struct Features {
    const Source<T>& source;
    OffsetTerms<A> offset;
    const Attention<A> attention;
    const int corners;
    int64_t sample = -1;

    explicit Features(const Source<T>& s)
        : source(s), offset(s.d, s.t), attention(s.d, s.t), corners(s.d.ensemble == inr_none ? 1 : 4) {}

    // Makes the cell of query (b, q) the current one.
    FASTDS_HD void set_cell(int64_t b, int64_t q) {
        if (source.d.cell_q || b != sample) offset.set_cell(source.t.cell ? source.cell(b, q) : nullptr);
        sample = b;
    }

    // Not inlined, because it has several callers.
    __attribute__((noinline)) void write(const QueryCorners<A>& p, int64_t b, int64_t q, S* row, int64_t row_stride) {
        const InrQueryDims& d = source.d;
        const T* corner[4];
        for (int j = 0; j < 4; j++) corner[j] = source.corner(p, b, j);
        set_cell(b, q);
        if (d.feature == inr_dot) {
            write_dot(p, corner[0], row);
        } else if (d.feature == inr_fourier) {
            write_fourier(p, corner, row, row_stride);
        } else if (d.ensemble == inr_early_attn) {
            attention.compute_weights(p, corner);
            const int64_t width = d.D / d.heads;
            for (int64_t h = 0; h < d.heads; h++)
                write_affine(p, corner, row, row_stride, attention.alpha + 4 * h, h * width, (h + 1) * width);
        } else {
            write_affine(p, corner, row, row_stride, p.weight, 0, d.D);
        }
    }

  private:
    FASTDS_HD void write_affine(const QueryCorners<A>& p, const T* const* corner, S* row, int64_t row_stride, const A* alpha,
                                int64_t begin, int64_t end) const {
        const bool late = source.d.ensemble == inr_late, relu = source.d.relu;
        for_runs<A>(begin, end, [&](auto run, int64_t c) {
            constexpr int N = decltype(run)::value;
            Vec<A, N> h[4] = {}, sum{};
            affine_at<N>(offset, p, corner, corners, c, h);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                if (j >= corners) break;
                h[j] = apply_relu<A, N>(relu, h[j]);
                if (late) store_vec<N>(row + j * row_stride + c, h[j]);
                if (!late) sum += h[j] * alpha[j];
            }
            if (!late) store_vec<N>(row + c, sum);
        });
    }

    FASTDS_HD void write_fourier(const QueryCorners<A>& p, const T* const* corner, S* row, int64_t row_stride) const {
        const bool late = source.d.ensemble == inr_late;
        const int64_t half = offset.width;
        for_runs<A>(0, half, [&](auto run, int64_t n) {
            constexpr int N = decltype(run)::value;
            Vec<A, N> first{}, second{};
            for (int j = 0; j < corners; j++) {
                const auto wave = fourier_at<N>(offset, p, corner[j] + 2 * half, j, n);
                const Vec<A, N> c = load_vec<N>(corner[j] + n) * wave.cosine;
                const Vec<A, N> s = load_vec<N>(corner[j] + half + n) * wave.sine;
                if (late) {
                    store_vec<N>(row + j * row_stride + n, c);
                    store_vec<N>(row + j * row_stride + half + n, s);
                }
                first += c * p.weight[j];
                second += s * p.weight[j];
            }
            if (!late) {
                store_vec<N>(row + n, first);
                store_vec<N>(row + half + n, second);
            }
        });
    }

    // y_o = <a, G_o> + g_o; the row has O values.
    FASTDS_HD void write_dot(const QueryCorners<A>& p, const T* corner, S* row) const {
        const int64_t D = source.d.D, O = source.d.O;
        for (int64_t o = 0; o < O; o++) {
            A sum = load(corner[O * D + o]);
            for_runs<A>(0, D, [&](auto run, int64_t c) {
                constexpr int N = decltype(run)::value;
                const Vec<A, N> a = apply_relu<A, N>(source.d.relu, dot_input<N>(p, c));
                const Vec<A, N> product = a * load_vec<N>(corner + o * D + c);
                if constexpr (N == 1) {
                    sum += product;
                } else {
                    for (int i = 0; i < N; i++) sum += product[i];
                }
            });
            row[o] = store<S>(sum);
        }
    }

  public:
    // Returns the pre-activation of the dot feature at channels c .. c+N-1.
    template <int N>
    FASTDS_HD Vec<A, N> dot_input(const QueryCorners<A>& p, int64_t c) const {
        return load_vec<N>(offset.constant + c) +
               (load_vec<N>(offset.rho_y + c) * p.rho_y[0] + load_vec<N>(offset.rho_x + c) * p.rho_x[0]);
    }
};

// The trunk of inr_query, linear layers with ReLU between them, applied to a panel of rows.

// Computes the sums over the terms of x(row, term) * B(term, column) for n rows of x, which have the stride `stride`. B is
// packed by pack(). Each result is passed to write(row, first column, sums, number of vectors).
template <class Step, class Write>
FASTDS_HD void multiply_rows(typename Step::Stored* x, int64_t stride, int64_t terms, const typename Step::Stored* packed,
                             int64_t columns, int64_t n, const Blocking& blocking, const Write& write) {
    using A = typename Step::A;
    constexpr int lanes = kLanes<A>;
    const int64_t padded = round_up(terms, blocking.term_multiple<Step>()), steps = padded / Step::terms;
    for (int64_t i = 0; i < n; i++)  // zeros what the last step reads beyond the terms, which may be NaN left by another layer
        for (int64_t c = terms; c < padded; c++) x[i * stride + c] = {};
    const auto multiply_block = [&](auto width, int64_t column) __attribute__((noinline)) {
        constexpr int NV = decltype(width)::value, MR = tile_rows(NV);
        constexpr int64_t b_step = NV * lanes * Step::terms;
        if constexpr (Step::terms > 1 && NV <= 2)
            if (blocking.tiles) {
                for_tile_sums<NV>({x, stride, padded / kTileDepth}, n, packed, [&](int64_t first, const float* sums) {
                    for (int64_t r = first; r < min_of(first + 2 * kTileRows, n); r++, sums += NV * lanes)
                        write(r, column, sums, NV);
                });
                packed += steps * b_step;
                return;
            }
        for (int64_t r = 0; r < n; r += MR) {
            Vec<A> acc[MR][NV];
            clear<A>(acc);
            multiply<Step>(acc, x + r * stride, stride, Step::terms, packed, b_step, steps);
            A sums[MR * NV * lanes];
            store_tile(sums, acc);
            for (int64_t i = 0; i < MR && r + i < n; i++) write(r + i, column, sums + i * NV * lanes, NV);
        }
        packed += steps * b_step;
    };
    for_column_blocks<A>(columns, multiply_block, blocking.vectors());
}

// The trunk with packed weights and the stride of its rows.
template <class Step>
struct Trunk {
    using A = typename Step::A;
    using Stored = typename Step::Stored;

    Trunk(const InrQueryDims& dims, const InrQueryTensors& t)
        : d(dims), blocking{Step::terms > 1 && dims.tiles}, weights(total(dims)), bias(dims.layers * get_max_width(dims)),
          stride(round_up(get_max_width(dims), blocking.tiles ? 32 : 16)) {
        Stored* at = weights;
        for (int l = 0; l < d.layers; l++) {
            const int64_t in = inr_layer_inputs(d, l), out = d.width[l];
            const A* w = static_cast<const A*>(t.weight[l]);
            pack<Step>(at, out, in, [&](int64_t term, int64_t o) { return store<Stored>(w[o * in + term]); }, blocking);
            __builtin_memcpy(bias + l * get_max_width(d), t.layer_bias[l], out * sizeof(A));
            packed[l] = at;
            at += packed_size<Step>(out, in, blocking);
        }
    }

    static int64_t get_max_width(const InrQueryDims& d) {
        int64_t most = d.D > d.O ? d.D : d.O;
        for (int l = 0; l < d.layers; l++) most = d.width[l] > most ? d.width[l] : most;
        return most;
    }
    int64_t total(const InrQueryDims& d) const {
        int64_t sum = 0;
        for (int l = 0; l < d.layers; l++) sum += packed_size<Step>(d.width[l], inr_layer_inputs(d, l), blocking);
        return sum;
    }

    // Propagates n rows through all layers. `rows` holds the input; `rows` and `other` alternate as scratch. y receives the
    // values of the last layer in the compute type. The function is not inlined, because its code is the same for all storage
    // types with this step.
    __attribute__((noinline)) void run(Stored* rows, Stored* other, A* y, int64_t n) const {
        for (int l = 0; l + 1 < d.layers; l++) {
            layer(l, rows, other, n, true);
            Stored* next = other;
            other = rows;
            rows = next;
        }
        layer(d.layers - 1, rows, y, n, false);
    }

    // Computes the outputs y of one layer for n rows x.
    template <class Out>
    void layer(int l, Stored* x, Out* y, int64_t n, bool relu) const {
        constexpr int lanes = kLanes<A>;
        const int64_t out = d.width[l];
        const A* b = bias + l * get_max_width(d);
        const auto write = [&](int64_t row, int64_t column, const A* sum, int64_t vectors) {
            Out* to = y + row * stride + column;
            const auto value = [&](int64_t c) __attribute__((always_inline)) {
                return apply_relu<A, lanes>(relu, Vec<A>(load_vec<lanes>(sum + c) + load_vec<lanes>(b + column + c)));
            };
            if (column + vectors * lanes <= out)
                for (int64_t c = 0; c < vectors * lanes; c += lanes) store_vec<lanes>(to + c, value(c));
            else
                for (int64_t c = 0; c < vectors * lanes; c += lanes) store_first<lanes>(to + c, value(c), out - column - c);
        };
        multiply_rows<Step>(x, stride, inr_layer_inputs(d, l), packed[l], out, n, blocking, write);
    }

    const InrQueryDims& d;
    const Blocking blocking;
    const Buffer<Stored> weights;
    const Stored* packed[kInrLayers];  // packed weights of each layer, in `weights`
    const ZeroedBuffer<A> bias;
    const int64_t stride;  // distance between rows
};

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
