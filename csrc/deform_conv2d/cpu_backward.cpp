// SPDX-License-Identifier: Apache-2.0
// Backward pass of deform_conv2d on the CPU. For each task (backward_partition.h) and panel of output pixels, the gradients of
// the columns are the product of grad_y with the packed weights. These gradients are scattered to grad_x, and the gradients of
// offset and mask are computed from them. Then the masked samples replace these gradients, and the product of the
// samples with grad_y is added to a partial grad_weight. Only the columns of one panel are stored at a time.
#include "core/parallel.h"
#include "core/transpose_simd.h"
#include "deform_conv2d/cpu_backward.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Memory of a task: the samples and the current panel.
template <class T>
struct Scratch {
    using A = compute_t<T>;
    Scratch(const Plan<A>& plan, bool tiles, int64_t column_row, int64_t stored_row)
        : samples(plan.padded), columns(panel(tiles) * column_row), grad_y(panel(tiles) * plan.d.O + kTileRowsMultiple),
          products(4 * plan.padded), stored_grad_y(panel(tiles) * stored_row),
          lines(tiles ? round_up(plan.d.O, 2 * kTileRows) * kLine : 0),
          pairs(tiles ? kTilePanel * (column_row + 2 * kTileColumns) : 0) {}
    static int64_t panel(bool tiles) { return tiles ? kTilePanel : kPanel; }
    const Samples<A> samples;
    const ZeroedBuffer<A> columns, grad_y, products;  // a tile reads beyond the channels of the last pixel of grad_y
    const Buffer<T> stored_grad_y;
    // Operands for AMX tiles. lines: grad_y with the pixels of a channel next to each other. pairs: the columns, with the
    // values of two pixels next to each other.
    const Buffer<T> lines, pairs;
};

// ColumnStep is the multiply-add operation of the product that gives the gradients of the columns.
template <class T, class ColumnStep>
struct Backward {
    using A = compute_t<T>;
    using Stored = typename ColumnStep::Stored;

    const DeformConv2dDims& d;
    const DeformConv2dBackward& t;
    const int threads;
    const BackwardPartition partition{d};
    const BackwardWorkspace layout{d, partition, sizeof(A)};
    const Blocking blocking{ColumnStep::terms > 1 && d.tiles && (d.groups == 1 || d.O / d.groups % kTileDepth == 0)};
    const Parts parts{d, partition, ColumnStep{}, blocking};
    const OrderedAccumulator<T, A> sums{d, partition, layout, t.grad_x, t.workspace};
    const int64_t K = d.kh * d.kw, in = d.C / d.groups, out = d.O / d.groups, pixels = d.Ho * d.Wo;
    const int64_t column_row = round_up(K * partition.slice_channels, 16);
    const int64_t panel = Scratch<T>::panel(blocking.tiles);  // pixels
    // Distance between pixels of stored_grad_y in elements; with AMX tiles an odd number of cache lines.
    const int64_t grad_row = blocking.tiles ? (count_parts(d.O, kTileDepth) | 1) * kTileDepth : d.O;
    const bool sample_grads = t.grad_offset != nullptr || t.grad_mask != nullptr;
    const bool column_grads = sample_grads || t.grad_x != nullptr;
    const Buffer<Stored> packed{column_grads ? parts.packed_elements : 0};

    void run() {
        const bool bands = t.grad_x != nullptr && partition.bands > 1;
        if (bands) sums.start();
        if (column_grads) pack_weights();
        if (column_grads || t.grad_weight != nullptr || t.grad_bias != nullptr)
            parallel_tasks(partition.tasks(), threads, [&](const auto& next) {
                const TileScope tiles(blocking.tiles);
                const Buffer<A> window(bands ? sums.count_window_elements() : 0);
                for (int64_t task; (task = next()) >= 0;) run_task(task, window);
            });
        if (t.grad_weight != nullptr) sum_weight();
        if (t.grad_bias != nullptr) sum_bias();
        if (bands) sums.finish(threads);
    }

  private:
    A* partial_weight(int64_t partial) const { return static_cast<A*>(t.workspace) + partial * layout.weight; }
    A* partial_bias(int64_t partial) const {
        return reinterpret_cast<A*>(static_cast<char*>(t.workspace) + layout.bias_at) + partial * d.O;
    }

    // Packs the matrix B of the product grad_columns = grad_y * B. The rows of B are the output channels of the group; the
    // columns of B are the columns of a run (Part in cpu_backward.h).
    void pack_weights() const {
        const T* weight = static_cast<const T*>(t.weight);
        parallel_for(parts.count, threads, [&](int64_t first, int64_t last) {
            for (int64_t i = first; i < last; i++) {
                const Part& part = parts.list[i];
                const int64_t width = part.end - part.begin;
                Stored* to = packed + part.packed;
                for (int64_t run = 0; run < part.runs; run++, to += packed_size<ColumnStep>(part.run_columns, out, blocking)) {
                    const auto value = [&](int64_t o, int64_t column) {
                        const int64_t k = run + column / width, c = part.begin + column % width - part.group * in;
                        return store<Stored>(load(weight[((part.group * out + o) * in + c) * K + k]));
                    };
                    pack<ColumnStep>(to, part.run_columns, out, value, blocking);
                }
            }
        });
    }

    // `window` is the window of the thread, used if images are divided into bands.
    void run_task(int64_t task, A* window) const {
        const int64_t slice = task % partition.slices, partial = task / partition.slices;
        const int64_t chunk = partial / partition.bands, band = partial % partition.bands;
        const int64_t first = slice * partition.slice_groups;
        const int64_t groups = d.offset_groups - first < partition.slice_groups ? d.offset_groups - first : partition.slice_groups;
        const Plan<A> plan(d, first, groups, false, column_row, longest_run(d, groups, t.mask));
        const Image x(d, d.x_h, d.x_w);
        const Scratch<T> scratch(plan, blocking.tiles, column_row, grad_row);
        const int64_t channels = groups * plan.per_group;
        // The sums go directly to grad_x if only this task writes the slice and grad_x has the type of the accumulator.
        const bool direct = partition.bands == 1 && sizeof(T) == sizeof(A);
        const Buffer<A> accumulator(t.grad_x != nullptr && partition.bands == 1 && !direct ? d.H * d.W * channels : 0);

        if (t.grad_weight != nullptr)
            for (int64_t i = parts.begin[slice]; i < parts.begin[slice + 1]; i++)
                __builtin_memset(partial_weight(partial) + parts.list[i].partial, 0,
                                 out * K * (parts.list[i].end - parts.list[i].begin) * sizeof(A));
        A* bias = t.grad_bias != nullptr && slice == 0 ? partial_bias(partial) : nullptr;
        if (bias != nullptr) __builtin_memset(bias, 0, d.O * sizeof(A));

        for (int64_t b = d.B * chunk / partition.chunks; b < d.B * (chunk + 1) / partition.chunks; b++) {
            GradImage<A> grad_x{accumulator, Image(d, d.W * channels, channels), d.W, channels, 0, 0};
            const int64_t row_begin = d.Ho * band / partition.bands, row_end = d.Ho * (band + 1) / partition.bands;
            if (t.grad_x != nullptr && partition.bands > 1) grad_x.data = sums.get_image(window, row_begin, channels);
            if (direct) {
                grad_x.data = static_cast<A*>(t.grad_x) + b * d.H * d.W * d.C + first * plan.per_group;
                grad_x.image = Image(d, d.W * d.C, d.C);
            }
            const int64_t count = (row_end - row_begin) * d.Wo;
            PixelWalk walk(d, row_begin, row_end, d.W * channels * (sizeof(T) + sizeof(A)));
            Prefetch<A> prefetch(plan, x, sizeof(T), static_cast<const T*>(t.x) + first * plan.per_group, t.offset, t.mask, walk);
            walk.start(b * count);
            for (int64_t p = 0; p < count; p += panel) {
                const int64_t n = min_of(panel, count - p);
                load_grad_y(walk, n, scratch, bias);
                if (column_grads) multiply_columns(slice, n, scratch);
                run_samples(plan, x, walk, n, scratch, grad_x);
                if (t.grad_weight == nullptr) continue;
                prefetch.start(walk, min_of(panel, count - p - n));
                add_weights(slice, n, scratch, partial_weight(partial), prefetch);
            }
            if (t.grad_x == nullptr) continue;
            if (direct) {
                grad_x.zero(0, grad_x.begin);
                grad_x.zero(grad_x.end, d.H);
            } else if (partition.bands == 1) {
                write_slice(b, first * plan.per_group, grad_x);
            } else {
                sums.add(b, slice, band, grad_x);
            }
        }
    }

    int64_t pixel(const PixelWalk& at) const { return (at.b * d.Ho + at.i) * d.Wo + at.j; }

    // Loads grad_y of n pixels. The remaining pixels of the panel are set to zero, because whole tiles are read. Unless `bias`
    // is null, the sum over the pixels is added to `bias`.
    void load_grad_y(PixelWalk walk, int64_t n, const Scratch<T>& scratch, A* bias) const {
        A* grad_y = scratch.grad_y;
        T* stored = scratch.stored_grad_y;
        for (int64_t p = 0; p < n; p++, walk.next()) {
            const T* from = static_cast<const T*>(t.grad_y) + pixel(walk) * d.O;
            if constexpr (ColumnStep::terms > 1) {
                __builtin_memcpy(stored + p * grad_row, from, d.O * sizeof(T));
                __builtin_memset(stored + p * grad_row + d.O, 0, (grad_row - d.O) * sizeof(T));
            }
            for_channels<A>(d.O, [&](auto lanes, int64_t o) {
                constexpr int N = decltype(lanes)::value;
                store_vec<N>(grad_y + p * d.O + o, load_vec<N>(from + o));
            });
        }
        __builtin_memset(grad_y + n * d.O, 0, (panel - n) * d.O * sizeof(A));
        if constexpr (ColumnStep::terms > 1) __builtin_memset(stored + n * grad_row, 0, (panel - n) * grad_row * sizeof(T));
        if (bias == nullptr) return;
        for_channels<A>(d.O, [&](auto lanes, int64_t o) {
            constexpr int N = decltype(lanes)::value;
            Vec<A, N> sum{};
            for (int64_t p = 0; p < n; p++) sum += load_vec<N>(grad_y + p * d.O + o);
            store_vec<N>(bias + o, Vec<A, N>(load_vec<N>(bias + o) + sum));
        });
    }

    void multiply_columns(int64_t slice, int64_t n, const Scratch<T>& scratch) const {
        const Stored* grad_y;
        if constexpr (ColumnStep::terms > 1) {
            grad_y = scratch.stored_grad_y;
        } else {
            grad_y = scratch.grad_y;
        }
        multiply_parts<ColumnStep>(d, parts, blocking, slice, n, grad_y, grad_row, packed, scratch.columns, column_row);
    }

    void add_weights(int64_t slice, int64_t n, const Scratch<T>& scratch, A* partial, Prefetch<A>& prefetch) const {
#if defined(__AVX512BF16__)
        if constexpr (ColumnStep::terms > 1)
            if (blocking.tiles) {
                const uint16_t* rows = reinterpret_cast<const uint16_t*>(&scratch.stored_grad_y[0]);
                transpose_rows(rows, grad_row, kTilePanel, d.O, reinterpret_cast<uint16_t*>(&scratch.lines[0]), kLine);
                write_pairs(scratch.columns, column_row, n, scratch.pairs);
                return add_weight_on_tiles(d, parts, slice, scratch.lines, scratch.pairs, column_row, partial, prefetch);
            }
#endif
        add_weight<A>(d, parts, slice, n, scratch.grad_y, scratch.columns, column_row, partial, prefetch);
    }

    // Processes the n samples from `walk` on and advances `walk` beyond them.
    void run_samples(const Plan<A>& plan, const Image& image, PixelWalk& walk, int64_t n, const Scratch<T>& scratch,
                     GradImage<A>& grad_x) const {
        const T* x = static_cast<const T*>(t.x) + walk.b * d.x_b + plan.first * plan.per_group;
        const Samples<A>& samples = scratch.samples;
        A *columns = scratch.columns, *products = scratch.products;
        for (int64_t p = 0, run; p < n; p += run, columns += run * column_row, walk.advance(run)) {
            run = walk.run(plan.longest_run < n - p ? plan.longest_run : n - p);
            if (!column_grads && t.grad_weight == nullptr) continue;
            const SampleRow row = get_sample_row<T>(plan, t.offset, t.mask, walk);
            const RowRange rows = locate<true, T>(plan, row, walk, run, image, grad_x.image, samples);
            if (t.grad_x != nullptr) {
                grad_x.touch(rows);
                scatter<A>(plan, samples, run, columns, grad_x);
            }
            if (sample_grads) {
                compute_products(plan, samples, run, image, x, columns, products);
                write_gradients(plan, samples, run, pixel(walk), products);
            } else if (t.grad_weight != nullptr) {
                gather<A>(plan, samples, run, image, x, columns);
            }
        }
    }

    // `pixel` is the first pixel of the run.
    void write_gradients(const Plan<A>& plan, const Samples<A>& samples, int64_t run, int64_t pixel, const A* products) const {
        const int64_t q = (pixel * d.offset_groups + plan.first) * K;
        T* mask = t.grad_mask != nullptr ? static_cast<T*>(t.grad_mask) + q : nullptr;
        if (d.offset_dtype == d.dtype) {
            T* offset = t.grad_offset != nullptr ? static_cast<T*>(t.grad_offset) + 2 * q : nullptr;
            write_sample_gradients(samples, run * plan.samples, products, offset, mask);
        } else {
            float* offset = t.grad_offset != nullptr ? static_cast<float*>(t.grad_offset) + 2 * q : nullptr;
            write_sample_gradients(samples, run * plan.samples, products, offset, mask);
        }
    }

    void sum_weight() const {
        T* grad = static_cast<T*>(t.grad_weight);
        parallel_for(parts.count * out, threads, [&](int64_t first, int64_t last) {
            const Buffer<A> sum(K * partition.slice_channels);
            for (int64_t i = first; i < last; i++) {
                const Part& part = parts.list[i / out];
                const int64_t o = i % out, width = part.end - part.begin, row = K * width;
                __builtin_memset(sum, 0, row * sizeof(A));
                for (int64_t partial = 0; partial < partition.partials(); partial++) {
                    const A* from = partial_weight(partial) + part.partial + o * row;
                    for (int64_t e = 0; e < row; e++) sum[e] += from[e];
                }
                T* to = grad + ((part.group * out + o) * in + part.begin - part.group * in) * K;
                for (int64_t c = 0; c < width; c++)
                    for (int64_t k = 0; k < K; k++) to[c * K + k] = store<T>(sum[k * width + c]);
            }
        });
    }

    void sum_bias() const {
        for (int64_t o = 0; o < d.O; o++) {
            A sum = 0;
            for (int64_t partial = 0; partial < partition.partials(); partial++) sum += partial_bias(partial)[o];
            static_cast<T*>(t.grad_bias)[o] = store<T>(sum);
        }
    }

    // Copies the accumulator of this thread to grad_x.
    void write_slice(int64_t b, int64_t first_channel, const GradImage<A>& grad_x) const {
        for (int64_t y = 0; y < d.H; y++) {
            T* to = static_cast<T*>(t.grad_x) + (b * d.H + y) * d.W * d.C + first_channel;
            const A* from = grad_x.data + y * grad_x.image.row;
            const bool valid = y >= grad_x.begin && y < grad_x.end;
            for (int64_t x = 0; x < d.W; x++, to += d.C, from += grad_x.channels) {
                for_channels<A>(grad_x.channels, [&](auto lanes, int64_t c) {
                    constexpr int N = decltype(lanes)::value;
                    store_vec<N>(to + c, valid ? load_vec<N>(from + c) : Vec<A, N>{});
                });
            }
        }
    }
};

}  // namespace

void deform_conv2d_backward(const DeformConv2dDims& dims, const DeformConv2dBackward& tensors, int threads) {
#if defined(__AVX512BF16__)
    if (dims.dtype == bf16) {
        // grad_y and weight are bfloat16, so that the products are exact. Without AMX tiles, an odd number of output channels
        // of a group cannot be divided into pairs; the AVX2 version handles that case.
        const bool pairs = dims.O / dims.groups % 2 == 0 || (dims.tiles && dims.groups == 1);
        if (!pairs) return avx2::deform_conv2d_backward(dims, tensors, threads);
        return Backward<BFloat16, Bf16DotStep>{dims, tensors, threads}.run();
    }
    if (dims.dtype == f16) return Backward<Half, FmaStep<float>>{dims, tensors, threads}.run();
    Backward<float, FmaStep<float>>{dims, tensors, threads}.run();
#else
    FASTDS_KERNEL_DTYPE_SWITCH(dims.dtype, Backward<scalar, FmaStep<compute_t<scalar>>>{dims, tensors, threads}.run())
#endif
}

}  // namespace FASTDS_ISA
}  // namespace fastds
