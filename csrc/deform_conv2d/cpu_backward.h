// SPDX-License-Identifier: Apache-2.0
// Parts of the CPU backward pass: intersections of channel slices and groups, matrix products of a panel, gradients of samples,
// ordered accumulation of grad_x.
#pragma once
#include <sched.h>

#include "core/amx.h"
#include "core/gemm.h"
#include "core/parallel.h"
#include "deform_conv2d/backward_partition.h"
#include "deform_conv2d/cpu_common.h"
#include "deform_conv2d/math.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// This file computes the intersections of the channel slices of the backward pass (backward_partition.h) with the
// convolution groups.

// The channels [begin, end) that a slice and a convolution group have in common. In a row of columns (tap, channel of the
// slice) they form one run if they are the whole slice, otherwise one run per tap.
struct Part {
    int64_t group, begin, end;
    // In a row of columns, the part has `runs` runs of `run_columns` columns each. The first run begins at position `first`, and
    // the stride of the runs is `stride` columns.
    int64_t runs, run_columns, first, stride;
    int64_t packed, partial;                   // elements before this part in the packed weights and in a partial grad_weight
    int64_t slice;
};

// All parts, ordered by slice. The parts of a slice are [begin[slice], begin[slice + 1]).
struct Parts {
    // `blocking` is that of the packed weights.
    template <class Step>
    Parts(const DeformConv2dDims& d, const BackwardPartition& partition, Step, Blocking blocking)
        : list(d.groups + partition.slices), begin(partition.slices + 1), K(d.kh * d.kw), out(d.O / d.groups) {
        const int64_t in = d.C / d.groups;
        for (int64_t slice = 0; slice < partition.slices; slice++) {
            begin[slice] = count;
            const int64_t c0 = slice * partition.slice_channels;
            const int64_t c1 = c0 + partition.slice_channels < d.C ? c0 + partition.slice_channels : d.C;
            for (int64_t g = c0 / in; g * in < c1; g++) {
                Part part{};
                part.group = g;
                part.slice = slice;
                part.begin = g * in > c0 ? g * in : c0;
                part.end = (g + 1) * in < c1 ? (g + 1) * in : c1;
                const int64_t width = part.end - part.begin, whole = width == c1 - c0;
                part.runs = whole ? 1 : K;
                part.run_columns = whole ? K * width : width;
                part.first = part.begin - c0;
                part.stride = c1 - c0;
                part.packed = packed_elements;
                part.partial = partial_elements;
                packed_elements += part.runs * packed_size<Step>(part.run_columns, out, blocking);
                partial_elements += out * K * width;
                list[count++] = part;
            }
        }
        begin[partition.slices] = count;
    }
    const Buffer<Part> list;
    const Buffer<int64_t> begin;
    const int64_t K, out;
    int64_t count = 0, packed_elements = 0, partial_elements = 0;
};

// Matrix products of one panel of the backward pass (cpu_backward.cpp): the gradients of the columns and the contribution to
// grad_weight.

// Number of output pixels of a panel. kPanel is a multiple of all values of tile_rows(). kTilePanel, for AMX tiles, is the
// number of pixels that two multiplications sum.
constexpr int64_t kPanel = 48, kTilePanel = 2 * kTileDepth;
constexpr int64_t kLine = kTilePanel + kTileDepth;  // elements between channels of `lines`; an odd number of cache lines

// Calls each(row, column, vector) for the given number of rows of a tile of NV vectors in memory.
template <int NV, class A, class Each>
FASTDS_HD void for_tile_vectors(const A* sums, int64_t rows, const Each& each) {
    constexpr int64_t lanes = kLanes<A>;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < NV * lanes; c += lanes, sums += lanes) each(r, c, load_vec<lanes>(sums));
}

// Computes columns = grad_y * packed for the n pixels of a panel and the parts of a slice.
template <class Step>
void multiply_parts(const DeformConv2dDims& d, const Parts& parts, Blocking blocking, int64_t slice, int64_t n,
                    const typename Step::Stored* grad_y, int64_t grad_row, const typename Step::Stored* packed,
                    typename Step::A* columns, int64_t column_row) {
    using A = typename Step::A;
    constexpr int64_t terms = Step::terms;
    const int64_t out = d.O / d.groups, padded = round_up(out, blocking.term_multiple<Step>());
    for (int64_t i = parts.begin[slice]; i < parts.begin[slice + 1]; i++) {
        const Part& part = parts.list[i];
        const typename Step::Stored *b = packed + part.packed, *a = grad_y + part.group * out;
        for (int64_t run = 0; run < part.runs; run++) {
            A* to = columns + part.first + run * part.stride;
            const auto multiply_block = [&](auto width, int64_t column) __attribute__((noinline)) {
                constexpr int NV = decltype(width)::value, MR = tile_rows(NV), lanes = kLanes<A>;
                const auto write = [&](int64_t first, int64_t rows, const A* sums) {
                    for_tile_vectors<NV>(sums, rows, [&](int64_t r, int64_t c, Vec<A> v) {
                        store_first<lanes>(to + (first + r) * column_row + column + c, v, part.run_columns - column - c);
                    });
                };
                if constexpr (terms > 1 && NV <= 2)
                    if (blocking.tiles) {
                        for_tile_sums<NV>({a, grad_row, padded / kTileDepth}, n, b, [&](int64_t first, const float* sums) {
                            write(first, min_of(2 * kTileRows, n - first), sums);
                        });
                        b += NV * lanes * padded;
                        return;
                    }
                for (int64_t r = 0; r < n; r += MR) {
                    Vec<A> acc[MR][NV];
                    clear<A>(acc);
                    multiply<Step>(acc, a + r * grad_row, grad_row, terms, b, NV * lanes * terms, padded / terms);
                    A sums[MR * NV * lanes];
                    store_tile(sums, acc);
                    write(r, MR, sums);
                }
                b += NV * lanes * padded;
            };
            for_column_blocks<A>(part.run_columns, multiply_block, blocking.vectors());
        }
    }
}

// Computes partial += grad_y^T * columns, in the order (output channel, tap, channel of the part). The sum over a panel starts
// from zero and is then added to `partial`.
template <class A>
void add_weight(const DeformConv2dDims& d, const Parts& parts, int64_t slice, int64_t n, const A* grad_y, const A* columns,
                int64_t column_row, A* partial, Prefetch<A>& prefetch) {
    const int64_t out = d.O / d.groups;
    for (int64_t i = parts.begin[slice]; i < parts.begin[slice + 1]; i++) {
        const Part& part = parts.list[i];
        const int64_t row = part.runs * part.run_columns;
        for (int64_t run = 0; run < part.runs; run++) {
            const A *b = columns + part.first + run * part.stride, *a = grad_y + part.group * out;
            A* to = partial + part.partial + run * part.run_columns;
            for_column_blocks<A>(part.run_columns, [&](auto width, int64_t column) __attribute__((noinline)) {
                constexpr int NV = decltype(width)::value, MR = tile_rows(NV), lanes = kLanes<A>;
                for (int64_t o = 0; o < out; o += MR) {
                    Vec<A> acc[MR][NV];
                    clear<A>(acc);
                    prefetch.fetch(2);
                    multiply<FmaStep<A>>(acc, a + o, 1, d.O, b + column, column_row, n);
                    A sums[MR * NV * lanes];
                    store_tile(sums, acc);
                    for_tile_vectors<NV>(sums, min_of(MR, out - o), [&](int64_t m, int64_t c, Vec<A> v) {
                        add_first<lanes>(to + (o + m) * row + column + c, v, part.run_columns - column - c);
                    });
                }
            });
        }
    }
}

#if defined(__AVX512BF16__)
// Converts the columns of `n` pixels to bfloat16 pairs, with the values of two consecutive pixels next to each other. Pixels
// after the last are zeros.
inline void write_pairs(const float* columns, int64_t column_row, int64_t n, BFloat16* pairs) {
    const auto bits = [&](int64_t p, int64_t c) {
        if (p >= n) return __m512i{};
        return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)load_vec<kLanes<float>>(columns + p * column_row + c)));
    };
    for (int64_t p = 0; p < kTilePanel; p += 2, pairs += 2 * column_row)
        for (int64_t c = 0; c < column_row; c += kLanes<float>)
            _mm512_storeu_si512(pairs + 2 * c, _mm512_or_si512(bits(p, c), _mm512_slli_epi32(bits(p + 1, c), 16)));
}

// Like add_weight with AMX tiles, from the lines and pairs of a panel.
inline void add_weight_on_tiles(const DeformConv2dDims& d, const Parts& parts, int64_t slice, const BFloat16* lines,
                                const BFloat16* pairs, int64_t column_row, float* partial, Prefetch<float>& prefetch) {
    const int64_t out = d.O / d.groups;
    for (int64_t i = parts.begin[slice]; i < parts.begin[slice + 1]; i++) {
        const Part& part = parts.list[i];
        const int64_t row = part.runs * part.run_columns;
        for (int64_t run = 0; run < part.runs; run++) {
            const BFloat16 *b = pairs + 2 * (part.first + run * part.stride), *a = lines + part.group * out * kLine;
            float* to = partial + part.partial + run * part.run_columns;
            const auto add_block = [&](auto width, int64_t column) __attribute__((noinline)) {
                constexpr int NV = decltype(width)::value, lanes = kLanes<float>;
                if constexpr (NV <= 2)
                    for (int64_t o = 0; o < out; o += 2 * kTileRows) {
                        alignas(64) float sums[2 * kTileRows * NV * lanes];
                        prefetch.fetch(2 * kTileRows);
                        const auto multiply = out - o > kTileRows ? add_pairs<2, NV> : add_pairs<1, NV>;
                        multiply(a + o * kLine, kLine, b + 2 * column, column_row, kTilePanel, true, sums, NV * lanes);
                        for_tile_vectors<NV>(sums, min_of(2 * kTileRows, out - o), [&](int64_t m, int64_t c, Vec<float> v) {
                            add_first<lanes>(to + (o + m) * row + column + c, v, part.run_columns - column - c);
                        });
                    }
            };
            for_column_blocks<float>(part.run_columns, add_block, Blocking{true}.vectors());
        }
    }
}
#endif

// The two loops of the backward pass over the samples of a pixel. One loop adds their gradients to grad_x. The other computes
// the products from which the gradients of offset and mask follow.

// The channels of one slice of grad_x, or a private accumulator for them. Rows are zeroed when they are first touched; the rows
// [begin, end) are valid.
template <class A>
struct GradImage {
    A* data;
    Image image;
    int64_t width, channels, begin, end;

    void zero(int64_t first, int64_t last) const {
        for (int64_t y = first; y < last; y++) {
            A* row = data + y * image.row;
            if (image.pixel == channels) {
                __builtin_memset(row, 0, width * channels * sizeof(A));
            } else {
                for (int64_t x = 0; x < width; x++) __builtin_memset(row + x * image.pixel, 0, channels * sizeof(A));
            }
        }
    }
    void touch(RowRange rows) {
        if (rows.begin >= rows.end) return;
        if (begin == end) begin = end = rows.begin;
        if (rows.begin < begin) zero(rows.begin, begin), begin = rows.begin;
        if (rows.end > end) zero(end, rows.end), end = rows.end;
    }
};

template <int N, class A>
FASTDS_HD void add(A* p, Vec<A, N> w, Vec<A, N> v) {
    store_vec<N>(p, Vec<A, N>(load_vec<N>(p) + w * v));
}

// Adds weights * columns to grad_x, where the columns hold the gradients of the masked samples. The function is not inlined,
// because its code is the same for all storage types.
template <class A>
__attribute__((noinline)) void scatter(const Plan<A>& plan, const Samples<A>& s, int64_t run, const A* columns,
                                       const GradImage<A>& grad_x) {
    const int64_t *at = s.at_grad, *column = plan.column;
    const A* weights = s.weights;
    A* data = grad_x.data;
    const int64_t below = grad_x.image.below, right = grad_x.image.right;
    dispatch_channels(plan.per_group, [&](auto known) FASTDS_INLINE {
        const int64_t channels = decltype(known)::value ? decltype(known)::value : plan.per_group;
        for_samples(run * plan.samples, s, [&](auto border, int64_t q) FASTDS_INLINE {
            A *corner = data + at[q], *lower = corner + below;
            const A* grad = columns + column[q];
            for_channels<A>(channels, [&](auto lanes, int64_t c) FASTDS_INLINE {
                constexpr int N = decltype(lanes)::value;
                const Vec<A, N> g = load_vec<N>(grad + c);
                Vec<A, N> w[4], v[4];
                broadcast4<N>(weights + 4 * q, w);
                for (int n = 0; n < 4; n++) v[n] = g;
                if constexpr (decltype(border)::value) zero_outside<N, A>(s.inside + 4 * q, v);
                // Samples at the edge use the same arithmetic as others, because a result must not depend on which other
                // samples share the vector.
                add<N>(corner + c, w[0], v[0]);
                add<N>(corner + right + c, w[1], v[1]);
                add<N>(lower + c, w[2], v[2]);
                add<N>(lower + right + c, w[3], v[3]);
            });
        });
    });
}

// Products of one sample. For each channel, the gradient is read from `columns` and the masked sampled value is written in its
// place.
template <bool kBorder, class A, class T>
struct CornerProducts {
    const T* corner;
    const Image& image;
    const Bits<A>* inside;
    const A* weights;
    A* columns;
    const int64_t channels;

    // Adds the products of the channels c .. c+N-1, lane by lane, to p[corner].
    template <bool kAdd, int N>
    FASTDS_HD void step(int64_t c, Vec<A, N> (&p)[4]) const {
        const Vec<A, N> grad = load_vec<N>(columns + c);
        Vec<A, N> v[4];
        load_corners<kBorder, N, A>(corner + c, image, inside, v);
        store_vec<N>(columns + c, blend<N, A>(weights, v));
        for (int n = 0; n < 4; n++) p[n] = kAdd ? p[n] + grad * v[n] : grad * v[n];
    }

    // Folds the lanes of p in halves. On the way, vectors of each shorter length process the remaining channels.
    template <int N>
    FASTDS_HD Vec<A, 4> fold(int64_t c, Vec<A, N> (&p)[4]) const {
        if constexpr (N > 4) {
            Vec<A, N / 2> half[4];
            for (int n = 0; n < 4; n++) half[n] = get_half<0>(p[n]) + get_half<1>(p[n]);
            if (channels - c >= N / 2) step<true, N / 2>(c, half), c += N / 2;
            return fold<N / 2>(c, half);
        } else {
            Vec<A, 4> sum = sum_lanes<A>(p[0], p[1], p[2], p[3]);
            for (; c < channels; c++) sum += single(c);
            return sum;
        }
    }
    FASTDS_HD Vec<A, 4> single(int64_t c) const {
        A p[4];
        step<false, 1>(c, p);
        return load_vec<4>(p);
    }

    // kStart is the longest vector that fits the channels; 1 for fewer than 4 channels.
    template <int kStart>
    FASTDS_HD Vec<A, 4> sums() const {
        if constexpr (kStart == 1) {
            Vec<A, 4> sum{};
            for (int64_t c = 0; c < channels; c++) sum += single(c);
            return sum;
        } else {
            Vec<A, kStart> p[4];
            step<false, kStart>(0, p);
            int64_t c = kStart;
            for (; c + kStart <= channels; c += kStart) step<true, kStart>(c, p);
            return fold<kStart>(c, p);
        }
    }
};

// Computes products[4q + n], the sum over channels of (gradient of masked sample q) * (value of its corner n). On entry
// `columns` holds these gradients. On return it holds the masked samples.
template <class A, class T>
FASTDS_HD void compute_products(const Plan<A>& plan, const Samples<A>& s, int64_t run, const Image image, const T* x, A* columns,
                             A* products) {
    constexpr int widest = kLanes<A> > 4 ? kLanes<A> : 4, eight = widest > 8 ? 8 : widest;
    const int64_t *at = s.at, *column = plan.column;
    const A* weights = s.weights;
    const auto loop = [&](auto start, int64_t channels) FASTDS_INLINE {
        for_samples(run * plan.samples, s, [&](auto border, int64_t q) FASTDS_INLINE {
            const CornerProducts<decltype(border)::value, A, T> sample{x + at[q],       image, s.inside + 4 * q, weights + 4 * q,
                                                                       columns + column[q], channels};
            store_vec<4>(products + 4 * q, sample.template sums<decltype(start)::value>());
        });
    };
    const int64_t channels = plan.per_group;
    if (channels == 8) return loop(Lanes<eight>{}, 8);
    if (channels == 16) return loop(Lanes<widest>{}, 16);
    if (channels >= widest) return loop(Lanes<widest>{}, channels);
    if (channels >= eight) return loop(Lanes<eight>{}, channels);
    if (channels >= 4) return loop(Lanes<4>{}, channels);
    return loop(Lanes<1>{}, channels);
}

// Computes the gradients of the offsets and the mask of all samples from the products. `offset` points to the pair of the first
// sample.
template <class A, class T, class S>
__attribute__((noinline)) void write_sample_gradients(const Samples<A>& s, int64_t samples, const A* products, S* offset, T* mask) {
    constexpr int N = kLanes<A>;
    using V = Vec<A>;
    using C = compute_t<S>;
    using L = lanes_of<N>;
    for (int64_t q = 0; q < samples; q += N) {
        const A* p = products + 4 * q;
        V d02[2], d13[2];
        for (int n = 0; n < 2; n++) {
            const V first = load_vec<N>(p + 2 * n * N), second = load_vec<N>(p + (2 * n + 1) * N);
            d02[n] = every_second<0>(first, second, L{});
            d13[n] = every_second<1>(first, second, L{});
        }
        V d0 = every_second<0>(d02[0], d02[1], L{}), d2 = every_second<1>(d02[0], d02[1], L{});
        V d1 = every_second<0>(d13[0], d13[1], L{}), d3 = every_second<1>(d13[0], d13[1], L{});
        if (s.border[q / N]) {
            const auto moved_y = load_vec<N>(s.moved_y + q), moved_x = load_vec<N>(s.moved_x + q);
            swap_where(moved_y, d0, d2);
            swap_where(moved_y, d1, d3);
            swap_where(moved_x, d0, d1);
            swap_where(moved_x, d2, d3);
        }
        const V ly = load_vec<N>(s.ly + q), lx = load_vec<N>(s.lx + q), m = load_vec<N>(s.mask + q);
        const int64_t count = samples - q;
        if (mask != nullptr) {
            store_first<N>(mask + q, V(grad_of_mask(d0, d1, d2, d3, ly, lx)), count);
        }
        if (offset == nullptr) continue;
        const V grad_y = m * grad_of_y(d0, d1, d2, d3, lx), grad_x = m * grad_of_x(d0, d1, d2, d3, ly);
        const V first = alternate<0>(grad_y, grad_x, L{}), second = alternate<1>(grad_y, grad_x, L{});
        store_first<N>(offset + 2 * q, Vec<C, N>(__builtin_convertvector(first, Vec<C, N>)), 2 * count);
        store_first<N>(offset + 2 * q + N, Vec<C, N>(__builtin_convertvector(second, Vec<C, N>)), 2 * count - N);
    }
}

// Accumulation of grad_x when images are divided into bands (backward_partition.h). Each task accumulates its band in a
// thread-local window and adds it to the image, a few rows at a time, after all earlier bands have done so. The order of each
// sum therefore does not depend on the number of threads, and one window per thread is enough.

template <class T, class A>
struct OrderedAccumulator {
    OrderedAccumulator(const DeformConv2dDims& d, const BackwardPartition& partition, const BackwardWorkspace& layout,
                       void* grad_x, void* workspace)
        : d(d), partition(partition), grad_x(static_cast<T*>(grad_x)),
          sums(sizeof(T) == sizeof(A) ? static_cast<A*>(grad_x)
                                      : reinterpret_cast<A*>(static_cast<char*>(workspace) + layout.sums_at)),
          counters(reinterpret_cast<int32_t*>(static_cast<char*>(workspace) + layout.counters_at)) {}

    // Returns the number of elements of a thread's window. A window is twice as large as the image, but a task touches only a
    // few of its rows, which are about the same for all tasks.
    int64_t count_window_elements() const { return 2 * d.H * d.W * partition.slice_channels; }
    // Returns the address of row 0 of the image in a window, for a task whose band starts at output row `row_begin`.
    A* get_image(A* window, int64_t row_begin, int64_t channels) const {
        const int64_t y = row_begin * d.stride_h;
        return window + (d.H - 1 - (y < d.H ? y : d.H - 1)) * d.W * channels;
    }

    void start() const { __builtin_memset(counters, 0, d.B * partition.slices * count_row_chunks(d) * sizeof(int32_t)); }

    // Adds a band to the image. It must be called once for each band of image b and the slice. Tasks start in order, so that
    // the bands that this call waits for are being computed.
    void add(int64_t b, int64_t slice, int64_t band, const GradImage<A>& band_image) const {
        const int64_t chunks = count_row_chunks(d);
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            // 2 * (number of bands that are done) + (1 if one of them has added to these rows)
            int32_t* counter = counters + (b * partition.slices + slice) * chunks + chunk;
            int32_t state;
            while ((state = __atomic_load_n(counter, __ATOMIC_ACQUIRE)) / 2 != band) sched_yield();
            const int64_t begin = chunk * kOrderedRows, end = begin + kOrderedRows < d.H ? begin + kOrderedRows : d.H;
            const bool last = band + 1 == partition.bands, adds = begin < band_image.end && end > band_image.begin;
            if (adds || (last && state % 2 == 0)) {
                for (int64_t y = begin; y < end; y++) add_row(b, slice, y, band_image, state % 2 == 0);
                state |= 1;
            }
            __atomic_store_n(counter, state + 2, __ATOMIC_RELEASE);
        }
    }

    // Converts the sums to the type of grad_x.
    void finish(int threads) const {
        if (sizeof(T) == sizeof(A)) return;
        parallel_for(d.B * d.H, threads, [&](int64_t first, int64_t last) {
            for (int64_t row = first; row < last; row++)
                for_channels<A>(d.W * d.C, [&](auto lanes, int64_t e) {
                    constexpr int N = decltype(lanes)::value;
                    store_vec<N>(grad_x + row * d.W * d.C + e, load_vec<N>(sums + row * d.W * d.C + e));
                });
        });
    }

  private:
    // `fresh`: the row is not initialized yet.
    void add_row(int64_t b, int64_t slice, int64_t y, const GradImage<A>& band_image, bool fresh) const {
        const bool adds = y >= band_image.begin && y < band_image.end;
        if (!adds && !fresh) return;
        const bool whole = band_image.channels == d.C;
        const int64_t n = whole ? d.W * d.C : band_image.channels, pixels = whole ? 1 : d.W;
        A* to = sums + (b * d.H + y) * d.W * d.C + slice * partition.slice_channels;
        const A* from = band_image.data + y * band_image.image.row;
        for (int64_t x = 0; x < pixels; x++, to += d.C, from += n)
            for_channels<A>(n, [&](auto lanes, int64_t e) {
                constexpr int N = decltype(lanes)::value;
                const Vec<A, N> before = fresh ? Vec<A, N>{} : load_vec<N>(to + e);
                store_vec<N>(to + e, adds ? Vec<A, N>(before + load_vec<N>(from + e)) : before);
            });
    }

    const DeformConv2dDims& d;
    const BackwardPartition& partition;
    T* const grad_x;
    A* const sums;  // grad_x itself if it has the type of the sums
    int32_t* const counters;
};

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
