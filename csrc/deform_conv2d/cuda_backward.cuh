// SPDX-License-Identifier: Apache-2.0
// Kernels of the CUDA backward pass with respect to x, offset and mask, and with respect to weight.
#pragma once
#include "deform_conv2d/cuda.cuh"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// CUDA backward pass with respect to x, offset and mask.
//
// A pair is an offset group and a tap, with the number q = group * K + k. A block processes some pixels and some pairs. It
// multiplies grad_y by the weights of the pairs' channels, which gives the gradients of the columns in shared memory. Then each
// group of lanes takes one sample, adds its channels to grad_x and sums the products for grad_offset and grad_mask. Each
// element of grad_offset and grad_mask is computed by one block in a fixed order. Many blocks add to grad_x, either with
// floating-point atomics (Unordered) or with integer atomics, whose result does not depend on the order (Ordered).

// Assignment of pairs and channels to tiles. If the channels of each offset group belong to one convolution group ("nested"), a
// tile may hold pairs of all offset groups of that convolution group. Otherwise it holds pairs of one offset group, whose
// channels are then divided by convolution group.
struct PairTiles {
    static constexpr int kColumns = 64;  // columns (pair, channel) of one product
    static constexpr int kPairs = 16;    // maximum pairs of a tile

    explicit PairTiles(const DeformConv2dDims& d) {
        const int64_t K = d.kh * d.kw, per_group = d.C / d.offset_groups, group_channels = d.C / d.groups;
        nested = group_channels % per_group == 0;
        run = static_cast<int>(nested ? group_channels / per_group * K : K);
        pairs = static_cast<int>(kColumns / (per_group < kColumns ? per_group : kColumns));
        if (pairs > kPairs) pairs = kPairs;
        tiles_of_run = (run + pairs - 1) / pairs;
        tiles = d.offset_groups * K / run * tiles_of_run;
    }
    bool nested;
    int run, pairs, tiles_of_run;  // pairs that may share tiles; pairs of a tile; tiles of such a set of pairs
    int64_t tiles;
};

// Accumulation of grad_x in fixed point. Sums of integers have the same bits in any order. The unit of the integers follows
// from an upper bound of a term: max |grad_y| * max |weight| * max |mask| times the number of outputs of a group. It is large
// enough that one term of each sample of an image can be added without overflow. For double, a second word counts 2^-30 of the
// unit. An element that receives a term that is not finite becomes NaN.
struct OrderedLayout {
    OrderedLayout(const DeformConv2dDims& d, int words) : n(d.B * d.H * d.W * d.C), words(words) {}
    int64_t flags_at() const { return n * words * 8; }
    int64_t maxima_at() const { return flags_at() + (n + 63) / 64 * 8; }
    int64_t bytes() const { return maxima_at() + 3 * 8; }
    int64_t n;
    int words;
};

constexpr double kSecondWord = 1 << 30;

// Returns the number of units per 1. `maxima` holds the bits of `factors` largest values.
__device__ __forceinline__ double get_fixed_point_scale(const unsigned long long* maxima, int factors, int64_t outputs,
                                                        int64_t terms) {
    int exponent = ilogb(static_cast<double>(outputs)) + ilogb(static_cast<double>(terms)) + 2;  // exponent of a bound of the sum
    for (int i = 0; i < factors; i++) {
        double largest;
        __builtin_memcpy(&largest, maxima + i, 8);
        if (largest == 0) return 1;  // all terms are 0
        exponent += ilogb(largest) + 1;
    }
    return ldexp(1.0, max(-1000, min(1000, 61 - exponent)));
}

template <class A>
struct Ordered {
    static constexpr int kWords = sizeof(A) / 4;
    unsigned long long* sum;  // kWords * n elements
    unsigned* flags;
    const unsigned long long* maxima;
    int factors;
    int64_t n, outputs, terms;
    double scale;

    __device__ __forceinline__ void prepare() { scale = get_fixed_point_scale(maxima, factors, outputs, terms); }
    template <int V>
    __device__ __forceinline__ void add(int64_t element, const A (&value)[V]) const {
#pragma unroll
        for (int v = 0; v < V; v++) {
            const double scaled = static_cast<double>(value[v]) * scale, whole = rint(scaled);
            if (!(fabs(scaled) < 4611686018427387904.0)) {  // NaN or infinite: finite values stay below 2^62 because of the bound
                atomicOr(flags + (element + v) / 32, 1u << ((element + v) % 32));
                continue;
            }
            atomicAdd(sum + element + v, static_cast<unsigned long long>(static_cast<long long>(whole)));
            if constexpr (kWords == 2)
                atomicAdd(sum + n + element + v,
                          static_cast<unsigned long long>(static_cast<long long>(rint((scaled - whole) * kSecondWord))));
        }
    }
};

// Finds the largest finite |value|. It is stored as the bits of a double, which have the order of integers.
template <class T>
__global__ void largest_kernel(const T* __restrict__ values, int64_t n, unsigned long long* largest) {
    double most = 0;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
         i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
        const double value = fabs(static_cast<double>(load(values[i])));
        if (value > most && value <= 1.7976931348623157e308) most = value;
    }
#pragma unroll
    for (int m = 16; m > 0; m >>= 1) {
        const double other = __shfl_xor_sync(0xffffffffu, most, m);
        if (other > most) most = other;
    }
    unsigned long long bits;
    __builtin_memcpy(&bits, &most, 8);
    if (threadIdx.x % 32 == 0) atomicMax(largest, bits);
}

template <class T>
__global__ void from_fixed_point_kernel(Ordered<compute_t<T>> grad, T* __restrict__ grad_x) {
    grad.prepare();
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= grad.n) return;
    double value = static_cast<double>(static_cast<long long>(grad.sum[i]));
    if constexpr (Ordered<compute_t<T>>::kWords == 2)
        value += static_cast<double>(static_cast<long long>(grad.sum[grad.n + i])) / kSecondWord;
    value /= grad.scale;
    if (grad.flags[i / 32] >> (i % 32) & 1u) value = static_cast<double>(NAN);
    grad_x[i] = store<T>(static_cast<compute_t<T>>(value));
}

// Returns the place of a pixel in the row of a column of gradients in shared memory. Groups of four pixels are exchanged, so that
// lanes that write different columns use different banks.
__device__ __forceinline__ int get_place(int column, int pixel) { return pixel ^ column / 4 % 8 * 4; }

// These tensors are contiguous: grad_y (pixels, O), weight (K, O, C/groups), grad_offset (pixels, 2 pairs), grad_mask (pixels,
// pairs). GradX is Unordered or Ordered; if needs_x is false, nothing is added to grad_x.
template <class T, int V, class GradX>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
deform_conv2d_backward_samples_kernel(const DeformConv2dDims d, const PairTiles tiles, const Inputs<T> in,
                                      const T* __restrict__ grad_y, const T* __restrict__ weight, GradX grad_x, const bool needs_x,
                                      void* __restrict__ grad_offset, T* __restrict__ grad_mask) {
    using A = compute_t<T>;
    constexpr int kM = sizeof(A) == 8 ? 32 : 64, kN = PairTiles::kColumns;
    using Product = Tile<A, kM, kN, kM / 8, 4>;
    constexpr int kOperands = kStep * (Product::kRowA + Product::kRowB), kColumnGrads = kN * Product::kRowA;
    FASTDS_SHARED(A, memory, [kOperands > kColumnGrads ? kOperands : kColumnGrads]);
    FASTDS_SHARED(A, sums, [3][PairTiles::kPairs][kM + 4]);  // gradients of mask, row and column of each sample
    FASTDS_SHARED(Pixel<A>, pixels, [kM]);
    auto* const slab_y = reinterpret_cast<A(*)[Product::kRowA]>(memory);                              // [kStep]
    auto* const slab_w = reinterpret_cast<A(*)[Product::kRowB]>(memory + kStep * Product::kRowA);     // [kStep]
    // Gradients of the sampled values (columns), [kN]. They reuse the memory of the slabs.
    auto* const column_grads = reinterpret_cast<A(*)[Product::kRowA]>(memory);

    const Groups size(d);
    const int group_channels = size.channels, group_outputs = size.outputs, per_offset_group = size.per_offset_group, K = size.K;
    const int thread = threadIdx.x;
    const unsigned tile_count = static_cast<unsigned>(tiles.tiles);
    const int64_t first = static_cast<int64_t>(blockIdx.x / tile_count) * kM;
    const int tile = static_cast<int>(blockIdx.x % tile_count);
    const int in_run = tile % tiles.tiles_of_run * tiles.pairs, q0 = tile / tiles.tiles_of_run * tiles.run + in_run;
    const int count = min(tiles.pairs, tiles.run - in_run), first_channel = q0 / K * per_offset_group;
    const bool needs_samples = grad_offset != nullptr || grad_mask != nullptr;
    const int64_t pixel_count = d.B * d.Ho * d.Wo;
    grad_x.prepare();

    for (int p = thread; p < kM; p += kThreads) pixels[p] = get_pixel<A>(d, first + p);
    for (int i = thread; i < 3 * PairTiles::kPairs * (kM + 4); i += kThreads) (&sums[0][0][0])[i] = 0;

    const int last_group = tiles.nested ? first_channel / group_channels : (first_channel + per_offset_group - 1) / group_channels;
    for (int group = first_channel / group_channels; group <= last_group; group++) {
        // The channels [low, high) of each pair that belong to this convolution group.
        const int low = tiles.nested ? 0 : max(0, group * group_channels - first_channel);
        const int high = tiles.nested ? per_offset_group : min(per_offset_group, (group + 1) * group_channels - first_channel);
        for (int c0 = low; c0 < high; c0 += kN) {
            const int width = min(kN, high - c0);
            Product product;
            const int column = thread % kN, pair = column / width, q = q0 + pair;  // column, pair and q of this thread in slab_w
            const int channel = q / K * per_offset_group + c0 + column % width - group * group_channels;
            const bool used = pair < count;
            for (int o0 = 0; o0 < group_outputs; o0 += kStep) {
                __syncthreads();
                for (int i = thread; i < kStep * kM; i += kThreads) {
                    const int term = i % kStep, p = i / kStep;
                    const bool there = o0 + term < group_outputs && first + p < pixel_count;
                    slab_y[term][p] = there ? load(grad_y[(first + p) * d.O + group * group_outputs + o0 + term]) : A(0);
                }
                for (int term = thread / kN; term < kStep; term += kThreads / kN) {
                    const int64_t o = static_cast<int64_t>(q % K) * d.O + group * group_outputs + o0 + term;
                    const bool there = used && o0 + term < group_outputs;
                    slab_w[term][column] = there ? load(weight[o * group_channels + channel]) : A(0);
                }
                __syncthreads();
                product.multiply(slab_y, slab_w);
            }
            __syncthreads();
#pragma unroll
            for (int n = 0; n < 4; n++) {
                A grads[kM / 8];
#pragma unroll
                for (int m = 0; m < kM / 8; m++) grads[m] = product.acc[m][n];
#pragma unroll
                for (int m = 0; m < kM / 8; m += 4) {
                    const A pack[4] = {grads[m], grads[m + 1], grads[m + 2], grads[m + 3]};
                    store_row(&column_grads[product.column + n][get_place(product.column, product.row + m)], pack);
                }
            }
            __syncthreads();

            int lanes = 1;  // lanes that share a sample
            while (lanes < 8 && 2 * lanes * V <= width) lanes *= 2;
            const int samples = count * kM, lane = thread % lanes;
            for (int base = 0; base < samples; base += kThreads / lanes) {
                const int i = base + thread / lanes, p = i % kM, mine = i / kM;
                Sample<A> sample;
                A dot[4] = {};
                const int at = q0 + mine;
                const bool there = i < samples && sample.locate(d, in, pixels[p], Tap<A>(d, at % K), at);
                if (there) {
                    const int64_t c_first = static_cast<int64_t>(at / K) * per_offset_group + c0;
                    for (int c = lane * V; c < width; c += lanes * V) {
                        A grad[V];
#pragma unroll
                        for (int v = 0; v < V; v++) grad[v] = column_grads[mine * width + c + v][get_place(mine * width + c + v, p)];
#pragma unroll
                        for (int n = 0; n < 4; n++) {
                            if (!sample.cell.corner[n]) continue;
                            if (needs_samples) {
                                A corner[V];
                                load_pack<V>(in.x + pixels[p].x + c_first + c + sample.element(n, d.x_h, d.x_w), corner);
#pragma unroll
                                for (int v = 0; v < V; v++) dot[n] += grad[v] * corner[v];
                            }
                            if (needs_x) {
                                A part[V];
#pragma unroll
                                for (int v = 0; v < V; v++) part[v] = sample.weight[n] * grad[v];
                                grad_x.add(pixels[p].grad_x + sample.element(n, d.W * d.C, d.C) + c_first + c, part);
                            }
                        }
                    }
                }
                if (!needs_samples) continue;
#pragma unroll
                for (int n = 0; n < 4; n++)
                    for (int m = lanes / 2; m > 0; m >>= 1) dot[n] += __shfl_xor_sync(0xffffffffu, dot[n], m);
                if (there && lane == 0) {
                    const A ly = sample.cell.ly, lx = sample.cell.lx;
                    sums[0][mine][p] += grad_of_mask(dot[0], dot[1], dot[2], dot[3], ly, lx);
                    sums[1][mine][p] += sample.mask * grad_of_y(dot[0], dot[1], dot[2], dot[3], lx);
                    sums[2][mine][p] += sample.mask * grad_of_x(dot[0], dot[1], dot[2], dot[3], ly);
                }
            }
        }
    }
    __syncthreads();
    const int64_t pair_count = d.offset_groups * K;
    for (int i = thread; i < count * kM; i += kThreads) {
        const int mine = i % count, p = i / count;
        if (first + p >= pixel_count) break;
        const int64_t to = (first + p) * pair_count + q0 + mine;
        if (grad_mask != nullptr) grad_mask[to] = store<T>(sums[0][mine][p]);
        if (grad_offset == nullptr) continue;
        if (d.offset_dtype == f32) {
            static_cast<float*>(grad_offset)[2 * to] = static_cast<float>(sums[1][mine][p]);
            static_cast<float*>(grad_offset)[2 * to + 1] = static_cast<float>(sums[2][mine][p]);
        } else {
            static_cast<T*>(grad_offset)[2 * to] = store<T>(sums[1][mine][p]);
            static_cast<T*>(grad_offset)[2 * to + 1] = store<T>(sums[2][mine][p]);
        }
    }
}

// CUDA backward pass with respect to weight. The sum over pixels is divided into parts, which are added in a fixed order.
//
// A block computes kM outputs x kN terms e = k * C/groups + c of one group over the pixels of its part. It processes slabs of
// kStep pixels, whose samples it gathers like the forward pass.

struct WeightPartition {
    static constexpr int kM = 64, kN = 64;
    explicit WeightPartition(const DeformConv2dDims& d) {
        // There are enough blocks for the largest devices, unless parts would have fewer than about 16 slabs or there would be
        // more than 2^26 partial sums. The partition depends only on the shape.
        const int64_t terms = d.kh * d.kw * (d.C / d.groups), pixels = d.B * d.Ho * d.Wo;
        output_tiles = (d.O / d.groups + kM - 1) / kM, term_tiles = (terms + kN - 1) / kN;
        tiles = d.groups * output_tiles * term_tiles;
        parts = (1024 + tiles - 1) / tiles;
        const int64_t longest = (pixels + 16 * kStep - 1) / (16 * kStep), most = (int64_t{1} << 26) / (d.O * terms);
        if (parts > longest) parts = longest;
        if (parts > most) parts = most;
        if (parts < 1) parts = 1;
        part_pixels = (pixels + parts - 1) / parts;
    }
    int64_t output_tiles, term_tiles, tiles, parts, part_pixels;
};

// partial: (parts, O, K, C/groups).
template <class T, int V>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
deform_conv2d_backward_weight_kernel(const DeformConv2dDims d, const WeightPartition partition, const Inputs<T> in,
                                     const T* __restrict__ grad_y, compute_t<T>* __restrict__ partial) {
    using A = compute_t<T>;
    constexpr int kM = WeightPartition::kM, kN = WeightPartition::kN, kLanesOfPixel = kN / V;
    using Product = Tile<A, kM, kN, 8, 4>;
    FASTDS_SHARED(A, outputs, [kStep][Product::kRowA]);
    FASTDS_SHARED(A, columns, [kStep][Product::kRowB]);
    FASTDS_SHARED(Pixel<A>, pixels, [2][kStep]);  // of this slab and of the next one

    const Groups size(d);
    const int group_channels = size.channels, group_outputs = size.outputs, per_offset_group = size.per_offset_group, K = size.K;
    const int thread = threadIdx.x;
    const unsigned tiles = static_cast<unsigned>(partition.tiles), term_tiles = static_cast<unsigned>(partition.term_tiles);
    const unsigned tile = blockIdx.x % tiles, output_tiles = static_cast<unsigned>(partition.output_tiles);
    const int64_t part = blockIdx.x / tiles, terms = static_cast<int64_t>(K) * group_channels;
    const int group = tile / term_tiles / output_tiles, o0 = tile / term_tiles % output_tiles * kM;
    const int64_t e0 = static_cast<int64_t>(tile % term_tiles) * kN;

    const int lane = thread % kLanesOfPixel * V;  // the thread's term of the tile
    const int k = static_cast<int>((e0 + lane) / group_channels);
    const int channel = group * group_channels + static_cast<int>((e0 + lane) % group_channels);
    const int q = channel / per_offset_group * K + k;
    const Tap<A> tap(d, k);

    const int64_t pixel_count = d.B * d.Ho * d.Wo, begin = part * partition.part_pixels;
    const int64_t end = begin + partition.part_pixels < pixel_count ? begin + partition.part_pixels : pixel_count;
    Product product;
    if (thread < kStep) pixels[0][thread] = get_pixel<A>(d, begin + thread < end ? begin + thread : pixel_count);
    int slab = 0;
    for (int64_t p0 = begin; p0 < end; p0 += kStep, slab ^= 1) {
        __syncthreads();
        for (int p = thread / kLanesOfPixel; p < kStep; p += kThreads / kLanesOfPixel) {
            A values[V] = {};
            Sample<A> sample;
            const Pixel<A>& pixel = pixels[slab][p];
            if (k < K && sample.locate(d, in, pixel, tap, q)) sample.template value<V>(d, in.x + pixel.x + channel, values);
            store_row(&columns[p][lane], values);
        }
        for (int i = thread; i < kStep * kM; i += kThreads) {
            const int p = i / kM, o = i % kM;
            const bool there = p0 + p < end && o0 + o < group_outputs;
            outputs[p][o] = there ? load(grad_y[(p0 + p) * d.O + group * group_outputs + o0 + o]) : A(0);
        }
        const int64_t next = p0 + kStep + thread;
        if (thread < kStep) pixels[slab ^ 1][thread] = get_pixel<A>(d, next < end ? next : pixel_count);
        __syncthreads();
        product.multiply(outputs, columns);
    }

#pragma unroll
    for (int m = 0; m < 8; m++)
#pragma unroll
        for (int n = 0; n < 4; n++) {
            const int o = o0 + product.row + m;
            const int64_t e = e0 + product.column + n;
            if (o < group_outputs && e < terms) partial[((part * d.O) + group * group_outputs + o) * terms + e] = product.acc[m][n];
        }
}

// grad_weight (O, C/groups, K): one thread per element adds the parts in ascending order.
template <class T>
__global__ void deform_conv2d_sum_weight_kernel(const compute_t<T>* __restrict__ partial, T* __restrict__ grad_weight,
                                                int64_t parts,
                                                int64_t outputs, int64_t group_channels, int64_t K) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, n = outputs * group_channels * K;
    if (i >= n) return;
    const int64_t o = i / (K * group_channels), k = i / group_channels % K, c = i % group_channels;
    compute_t<T> sum = 0;
    for (int64_t part = 0; part < parts; part++) sum += partial[part * n + i];
    grad_weight[(o * group_channels + c) * K + k] = store<T>(sum);
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
