// SPDX-License-Identifier: Apache-2.0
// Common parts of the CPU forward and backward pass: order of pixels, positions of samples, gathering of samples, access to
// contiguous (NCHW) tensors.
#pragma once
#include "core/gemm.h"
#include "core/memory.h"
#include "core/transpose_simd.h"
#include "deform_conv2d/params.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Order in which output pixels are processed.

struct RowRange {
    int64_t begin, end;
};

// Walk over the output pixels of the rows [row_begin, row_end) of each image, in strips of columns. All rows of a strip follow
// each other, so that the part of x that their samples read stays in the L2 cache.
struct PixelWalk {
    PixelWalk(const DeformConv2dDims& d, int64_t row_begin, int64_t row_end, int64_t get_row_bytes)
        : row_begin(row_begin), row_end(row_end), columns(d.Wo) {
        // Least value of the maximum width of a strip, in pixels. It is larger for NCHW planes, because the rows of a strip are
        // the contiguous parts in which planes are read and written.
        const int64_t least = d.planar ? 128 : 16;
        // Estimated number of rows of x that the samples of one row of a strip read.
        constexpr int64_t kWindowBytes = 256 << 10, kWindowRows = 16;
        const int64_t fits = kWindowBytes * d.Wo / (kWindowRows * get_row_bytes), most = fits < least ? least : fits;
        const int64_t strips = (d.Wo + most - 1) / most;
        strip = (d.Wo + strips - 1) / strips;
    }
    void start(int64_t position) {
        const int64_t height = row_end - row_begin, pixels = height * columns;
        b = position / pixels;
        position %= pixels;
        begin = position / (height * strip) * strip;
        end = begin + strip < columns ? begin + strip : columns;
        position -= begin * height;
        i = row_begin + position / (end - begin);
        j = begin + position % (end - begin);
    }
    void next() { advance(1); }
    // Advances by a number of pixels within one row of the strip.
    void advance(int64_t pixels) {
        j += pixels;
        if (j < end) return;
        j = begin;
        if (++i < row_end) return;
        i = row_begin;
        begin = end < columns ? end : 0;
        if (begin == 0) b++;
        end = begin + strip < columns ? begin + strip : columns;
        j = begin;
    }
    // Returns how many of the next `most` pixels are in the current row of the strip.
    int64_t run(int64_t most) const { return end - j < most ? end - j : most; }

    int64_t row_begin, row_end, columns, strip;
    int64_t b = 0, i = 0, j = 0, begin = 0, end = 0;
};

// Computation of the samples of output pixels from the offsets: positions in the image and weights of the corners.
//
// All groups and taps of a pixel are computed together as vectors. The four corners of nearly all samples are inside the image.
// A vector with other samples takes a slower path and sets `border`.

// Returns the number of pixels of a row whose samples (of `groups` offset groups) are computed together, so that few lanes are
// unused. It is 1 if the offsets or masks of neighbouring pixels are not contiguous.
inline int64_t longest_run(const DeformConv2dDims& d, int64_t groups, const void* mask) {
    constexpr int64_t kSamples = 128;
    const int64_t samples = d.offset_groups * d.kh * d.kw;
    const bool follow = d.planar || (d.offset_w == 2 * samples && (mask == nullptr || d.mask_w == samples));
    return follow && groups == d.offset_groups && samples < kSamples ? kSamples / samples : 1;
}

// Data that are the same for all pixels of a call, for `groups` offset groups from `first` on and their channels. Sample q of a
// pixel is tap q % K of group q / K. The samples of a run of pixels follow each other.
template <class A>
struct Plan {
    // `column_row` is the number of elements in a row of columns, which holds the columns of one pixel.
    Plan(const DeformConv2dDims& dims, int64_t first, int64_t groups, bool by_group, int64_t column_row, int64_t longest_run)
        : d(dims), K(d.kh * d.kw), first(first), groups(groups), per_group(d.C / d.offset_groups), by_group(by_group), samples(groups * K),
          dense(column_row == samples * per_group), longest_run(longest_run),
          padded(round_up(longest_run * samples, kLanes<A>)), tap_y(padded), tap_x(padded), channel(padded), column(padded) {
        for (int64_t q = 0; q < padded; q++) {
            const int64_t pixel = q / samples, group = q % samples / K, k = q % K;
            tap_y[q] = static_cast<A>(k / d.kw * d.dil_h - d.pad_h);
            tap_x[q] = static_cast<A>(pixel * d.stride_w + k % d.kw * d.dil_w - d.pad_w);
            channel[q] = pixel < longest_run ? static_cast<int32_t>(group * per_group) : 0;
            column[q] = pixel * column_row + (by_group ? group * K + k : k * groups + group) * per_group;
        }
    }
    const DeformConv2dDims& d;
    const int64_t K, first, groups, per_group;  // per_group: channels of one offset group
    // Order of the columns: (group, tap, channel of the group) if true, otherwise (tap, channel).
    const bool by_group;
    const int64_t samples;                      // of one pixel
    const bool dense;                           // there is no gap between the columns of pixels
    const int64_t longest_run, padded;          // pixels of a run, and their samples rounded up to whole vectors
    const Buffer<A> tap_y, tap_x;               // coordinates of the undisplaced tap, relative to those of the first pixel of the run
    const Buffer<int32_t> channel;              // first channel of the sample, counted from the first channel of the plan
    const Buffer<int64_t> column;               // position of the sample in the columns of the run
};

// The plan's channels of an image: strides in elements between rows and pixels; the channels are contiguous.
struct Image {
    Image(const DeformConv2dDims& d, int64_t row, int64_t pixel)
        : row(row), pixel(pixel), below(d.H > 1 ? row : 0), right(d.W > 1 ? pixel : 0),
          narrow((d.H - 1) * row + (d.W - 1) * pixel + d.C <= INT32_MAX) {}
    int64_t row, pixel;
    int64_t below, right;  // distances from corner 0 of a cell to corners 2 and 1
    bool narrow;           // 32-bit integers suffice for all positions
};

// Prefetches the inputs of the samples of the next panel into the L2 cache, a few pixels per call, during the products of the
// current panel. The hardware does not recognize the access pattern, because the pixels are short and several rows of x are in
// use.
template <class A>
class Prefetch {
  public:
    // `item` is the size in bytes of an element of x and mask.
    Prefetch(const Plan<A>& plan, const Image& image, int64_t item, const void* x, const void* offset, const void* mask,
             const PixelWalk& walk)
        : plan_(plan), image_(image), item_(item), x_(static_cast<const char*>(x)), offset_(static_cast<const char*>(offset)),
          mask_(static_cast<const char*>(mask)), walk_(walk) {}

    // Sets the range of the following calls of fetch(): `pixels` pixels from `walk` on.
    void start(const PixelWalk& walk, int64_t pixels) {
        walk_ = walk;
        left_ = pixels;
    }
    FASTDS_HD void fetch(int64_t pixels) {
        for (; pixels > 0 && left_ > 0; pixels--, left_--, walk_.next()) fetch_pixel();
    }

  private:
    // Always inline, because GCC removes calls of a function that only prefetches.
    FASTDS_HD void fetch_pixel() const {
        const DeformConv2dDims& d = plan_.d;
        if (!d.planar) fetch_maps(d);
        const int64_t y = walk_.i * d.stride_h + kRows, x = walk_.j * d.stride_w;
        if (y < d.H && x < d.W)
            fetch_lines(x_ + (walk_.b * d.x_b + y * image_.row + x * image_.pixel) * item_,
                        plan_.groups * plan_.per_group * item_);
    }
    FASTDS_HD void fetch_maps(const DeformConv2dDims& d) const {
        const int64_t offset = walk_.b * d.offset_b + walk_.i * d.offset_h + walk_.j * d.offset_w + 2 * plan_.first * plan_.K;
        const int64_t offset_bytes = d.offset_dtype == d.dtype ? item_ : static_cast<int64_t>(sizeof(float));
        fetch_lines(offset_ + offset * offset_bytes, 2 * plan_.samples * offset_bytes);
        if (mask_ != nullptr)
            fetch_lines(mask_ + (walk_.b * d.mask_b + walk_.i * d.mask_h + walk_.j * d.mask_w + plan_.first * plan_.K) * item_,
                        plan_.samples * item_);
    }

    static constexpr int64_t kRows = 8;  // samples rarely access rows further down; each row is prefetched once, before its first use
    static FASTDS_HD void fetch_lines(const void* from, int64_t bytes) {
        const char* end = static_cast<const char*>(from) + bytes;
        for (const char* line = static_cast<const char*>(from) - reinterpret_cast<uintptr_t>(from) % 64; line < end; line += 64)
            __builtin_prefetch(line, 0, 2);
    }
    const Plan<A>& plan_;
    const Image image_;
    const int64_t item_;
    const char *const x_, *const offset_, *const mask_;
    PixelWalk walk_;
    int64_t left_ = 0;
};

// A signed integer of the size of A, for masks.
template <class A>
struct BitsOf {
    using type = int32_t;
};
template <>
struct BitsOf<double> {
    using type = int64_t;
};
template <class A>
using Bits = typename BitsOf<A>::type;

// The samples of a run of pixels, in blocks of one vector. All four corners of a stored cell are inside the image. A sample at
// the edge uses the nearest such cell: its weights are moved to the matching corners, and `inside` disables the other corners.
template <class A>
struct Samples {
    explicit Samples(int64_t n)
        : weights(4 * n), at(n), at_grad(n), ly(n), lx(n), mask(n), border(n / kLanes<A>), inside(4 * n), moved_y(n), moved_x(n) {}
    const Buffer<A> weights;             // four per sample: mask times the weight of each corner
    const Buffer<int64_t> at, at_grad;   // position of corner 0 in the image and in its gradient
    const ZeroedBuffer<A> ly, lx, mask;         // for the backward pass: fractions in the cell before it was moved, and the mask
    const Buffer<bool> border;           // of a block: `inside` and the members below are needed
    const Buffer<Bits<A>> inside;        // four per sample: -1 if the corner counts, otherwise 0
    const Buffer<Bits<A>> moved_y, moved_x;  // -1 or 0: the cell was moved, so that its rows (columns) are exchanged
};

// Stores the four values of each of N samples next to each other.
template <class S, int N>
FASTDS_HD void store_fours(S* to, const Vec<S, N> (&w)[4]) {
    // Interleaves the pairs (w0, w2) and (w1, w3) first, so that the second interleaving gives the order of the corners.
    using L = lanes_of<N>;
    const Vec<S, N> even[2] = {alternate<0>(w[0], w[2], L{}), alternate<1>(w[0], w[2], L{})};
    const Vec<S, N> odd[2] = {alternate<0>(w[1], w[3], L{}), alternate<1>(w[1], w[3], L{})};
    for (int n = 0; n < 2; n++) {
        store_vec<N>(to + 2 * n * N, alternate<0>(even[n], odd[n], L{}));
        store_vec<N>(to + (2 * n + 1) * N, alternate<1>(even[n], odd[n], L{}));
    }
}

template <class M, class V>
FASTDS_HD void swap_where(const M& where, V& a, V& b) {
    const V c = where ? b : a;
    b = where ? a : b;
    a = c;
}

// The first and last row that samples touch, for each lane.
template <int N>
struct TouchedRows {
    Vec<int32_t, N> first = Vec<int32_t, N>{} + INT32_MAX, last = Vec<int32_t, N>{};

    FASTDS_HD void add(const Vec<int32_t, N>& y) {
        first = y < first ? y : first;
        last = y > last ? y : last;
    }
};

// A block of samples: coordinates in the image and mask.
template <class A>
struct Block {
    int64_t q;
    Vec<A> y, x, mask;
    A fallback_y, fallback_x;  // a position inside the image for samples outside, which have weight 0
};

template <class A>
FASTDS_HD void store_positions(const Image& image, const Vec<int32_t, kLanes<A>>& y0, const Vec<int32_t, kLanes<A>>& x0,
                               const int32_t* channel, int64_t* at) {
    constexpr int N = kLanes<A>;
    using Long = Vec<int64_t, N>;
    const Vec<int32_t, N> c = load_vec<N>(channel);
    if (image.narrow) {
        const int32_t row = static_cast<int32_t>(image.row), pixel = static_cast<int32_t>(image.pixel);
        store_vec<N>(at, Long(__builtin_convertvector(y0 * row + x0 * pixel + c, Long)));
    } else {
        store_vec<N>(at, Long(__builtin_convertvector(y0, Long) * image.row + __builtin_convertvector(x0, Long) * image.pixel +
                              __builtin_convertvector(c, Long)));
    }
}

template <bool kBackward, bool kBorder, class A>
FASTDS_HD void locate_block(const Plan<A>& plan, const Image& image, const Image& grad, const Block<A>& block,
                            const Samples<A>& s, TouchedRows<kLanes<A>>& touched) {
    constexpr int N = kLanes<A>;
    using Int = Vec<int32_t, N>;
    using Mask = Vec<Bits<A>, N>;
    const int32_t H = static_cast<int32_t>(plan.d.H), W = static_cast<int32_t>(plan.d.W);
    const int64_t q = block.q;
    Vec<A> y = block.y, x = block.x;
    Mask counts{};
    if constexpr (kBorder) {
        counts = (y > -1) & (y < static_cast<A>(H)) & (x > -1) & (x < static_cast<A>(W));
        y = counts ? y : block.fallback_y;
        x = counts ? x : block.fallback_x;
    }
    Int y0 = __builtin_convertvector(y, Int), x0 = __builtin_convertvector(x, Int);
    if constexpr (kBorder) {  // the floor, since y > -1
        y0 += __builtin_convertvector(y < 0, Int);
        x0 += __builtin_convertvector(x < 0, Int);
    }
    const Vec<A> ly = y - __builtin_convertvector(y0, Vec<A>), lx = x - __builtin_convertvector(x0, Vec<A>);
    const Vec<A> low = (1 - ly) * block.mask, high = ly * block.mask;
    Vec<A> w[4] = {low * (1 - lx), low * lx, high * (1 - lx), high * lx};
    if constexpr (kBorder) {
        const auto widen = [](const Int& v) { return Mask(__builtin_convertvector(v, Mask)); };
        const Mask row[2] = {counts & widen(y0 >= 0), counts & widen(y0 + 1 < H)}, column[2] = {widen(x0 >= 0), widen(x0 + 1 < W)};
        Mask inside[4] = {row[0] & column[0], row[0] & column[1], row[1] & column[0], row[1] & column[1]};
        const int32_t last_y = H > 1 ? H - 2 : 0, last_x = W > 1 ? W - 2 : 0;
        const Int cell_y = y0 < 0 ? 0 : y0 > last_y ? last_y : y0, cell_x = x0 < 0 ? 0 : x0 > last_x ? last_x : x0;
        const Mask moved_y = widen(cell_y != y0), moved_x = widen(cell_x != x0);
        for (int n = 0; n < 2; n++) {
            swap_where(moved_y, inside[n], inside[n + 2]);
            swap_where(moved_y, w[n], w[n + 2]);
        }
        for (int n = 0; n < 4; n += 2) {
            swap_where(moved_x, inside[n], inside[n + 1]);
            swap_where(moved_x, w[n], w[n + 1]);
        }
        y0 = cell_y;
        x0 = cell_x;
        store_fours<Bits<A>, N>(s.inside + 4 * q, inside);
        store_vec<N>(s.moved_y + q, moved_y);
        store_vec<N>(s.moved_x + q, moved_x);
    }
    s.border[q / N] = kBorder;
    store_fours<A, N>(s.weights + 4 * q, w);
    store_positions<A>(image, y0, x0, plan.channel + q, s.at + q);
    if constexpr (kBackward) {
        store_positions<A>(grad, y0, x0, plan.channel + q, s.at_grad + q);
        store_vec<N>(s.ly + q, ly);
        store_vec<N>(s.lx + q, lx);
        store_vec<N>(s.mask + q, block.mask);
        touched.add(y0);
    }
}

template <bool kBackward, class A>
__attribute__((noinline)) void locate_border(const Plan<A>& plan, const Image& image, const Image& grad, const Block<A>& block,
                                             const Samples<A>& s, TouchedRows<kLanes<A>>& touched) {
    locate_block<kBackward, true>(plan, image, grad, block, s, touched);
}

template <class A, class S>
FASTDS_HD void read_offsets(const S* offset, int64_t samples, Vec<A>& y, Vec<A>& x) {
    constexpr int N = kLanes<A>;
    const Vec<A> first = __builtin_convertvector(load_first<N>(offset, 2 * samples), Vec<A>);
    const Vec<A> second = __builtin_convertvector(load_first<N>(offset + N, 2 * samples - N), Vec<A>);
    y = every_second<0>(first, second, lanes_of<N>{});
    x = every_second<1>(first, second, lanes_of<N>{});
}

// Start of the offsets and of the mask of an output pixel. `mask` is null if there is none.
struct SampleRow {
    const char *offset, *mask;
};
template <class T, class A>
FASTDS_HD SampleRow get_sample_row(const Plan<A>& plan, const void* offset, const void* mask, const PixelWalk& p) {
    const DeformConv2dDims& d = plan.d;
    const int64_t item = sizeof(T), offset_item = d.offset_dtype == d.dtype ? item : static_cast<int64_t>(sizeof(float));
    const int64_t q = plan.first * plan.K;
    SampleRow row{static_cast<const char*>(offset) + (p.b * d.offset_b + p.i * d.offset_h + p.j * d.offset_w + 2 * q) * offset_item,
                  nullptr};
    if (mask != nullptr) row.mask = static_cast<const char*>(mask) + (p.b * d.mask_b + p.i * d.mask_h + p.j * d.mask_w + q) * item;
    return row;
}

// Computes the samples of a run of output pixels from their offsets and mask. `row` points to the offsets and mask of the first
// pixel, which the offsets and masks of the other pixels follow. If kBackward is true, the function returns the range of rows
// that the samples touch in the gradient of x.
template <bool kBackward, class T, class A>
FASTDS_HD RowRange locate(const Plan<A>& plan, const SampleRow& row, const PixelWalk& pixel, int64_t run, const Image& image,
                          const Image& grad, const Samples<A>& s) {
    constexpr int N = kLanes<A>;
    const DeformConv2dDims& d = plan.d;
    const int64_t samples = run * plan.samples;
    const T* m = reinterpret_cast<const T*>(row.mask);
    const A last_y = static_cast<A>(d.H - 1), last_x = static_cast<A>(d.W - 1);
    const A pixel_y = static_cast<A>(pixel.i * d.stride_h), pixel_x = static_cast<A>(pixel.j * d.stride_w);
    Block<A> block;
    block.fallback_y = pixel_y < last_y ? pixel_y : last_y;
    block.fallback_x = pixel_x < last_x ? pixel_x : last_x;
    block.mask = Vec<A>{} + 1;
    TouchedRows<N> touched;
    for (int64_t q = 0; q < samples; q += N) {
        Vec<A> y, x;
        if (d.offset_dtype == d.dtype) {
            read_offsets<A>(reinterpret_cast<const T*>(row.offset) + 2 * q, samples - q, y, x);
        } else {
            read_offsets<A>(reinterpret_cast<const float*>(row.offset) + 2 * q, samples - q, y, x);
        }
        block.q = q;
        block.y = (pixel_y + load_vec<N>(plan.tap_y + q)) + y;
        block.x = (pixel_x + load_vec<N>(plan.tap_x + q)) + x;
        if (m != nullptr) block.mask = load_first<N>(m + q, samples - q);
        if (all_lanes((block.y >= 0) & (block.y < last_y) & (block.x >= 0) & (block.x < last_x))) {
            locate_block<kBackward, false>(plan, image, grad, block, s, touched);
        } else {
            locate_border<kBackward>(plan, image, grad, block, s, touched);
        }
    }
    if constexpr (!kBackward) return {0, 0};
    return {reduce_lanes<int32_t, N>(touched.first, [](const auto& a, const auto& b) { return a < b ? a : b; }),
            reduce_lanes<int32_t, N>(touched.last, [](const auto& a, const auto& b) { return a > b ? a : b; }) + (d.H > 1 ? 2 : 1)};
}

// Loops over the samples of a pixel, and the gathering of the sampled values. The position and weights of each sample are read
// once for all channels of its offset group, which are processed as vectors.

// Forces inlining of lambdas, which the compiler otherwise calls if they are used several times.
#define FASTDS_INLINE __attribute__((always_inline))

template <int N>
struct Lanes {
    static constexpr int value = N;
};

// Calls f(Lanes<N>, first channel) over n channels with the longest vectors that fit. A constant n leaves no branches.
template <class A, class F>
FASTDS_HD void for_channels(int64_t n, const F& f) {
    int64_t c = 0;
    for (; c + kLanes<A> <= n; c += kLanes<A>) f(Lanes<kLanes<A>>{}, c);
    if constexpr (kLanes<A> > 8)
        if (n - c >= 8) f(Lanes<8>{}, c), c += 8;
    if constexpr (kLanes<A> > 4)
        if (n - c >= 4) f(Lanes<4>{}, c), c += 4;
    for (; c < n; c++) {
        __asm__ volatile("");  // at most three channels: prevents GCC from vectorizing this loop
        f(Lanes<1>{}, c);
    }
}

template <bool B>
struct Border {
    static constexpr bool value = B;
};

// Calls f(Border<b>, q) for each sample, or for every kStep-th one. b is true if corners may be outside the image.
template <int kStep = 1, class A, class F>
FASTDS_HD void for_samples(int64_t samples, const Samples<A>& s, const F& f) {
    for (int64_t begin = 0; begin < samples; begin += kLanes<A>) {
        const int64_t end = begin + kLanes<A> < samples ? begin + kLanes<A> : samples;
        if (s.border[begin / kLanes<A>]) {
            for (int64_t q = begin; q < end; q += kStep) f(Border<true>{}, q);
        } else {
            for (int64_t q = begin; q < end; q += kStep) f(Border<false>{}, q);
        }
    }
}

// Calls f(Lanes<n>) for the numbers of channels that have specialized loops, otherwise f(Lanes<0>).
template <class F>
FASTDS_HD void dispatch_channels(int64_t channels, const F& f) {
    if (channels == 8) {
        f(Lanes<8>{});
    } else if (channels == 16) {
        f(Lanes<16>{});
    } else {
        f(Lanes<0>{});
    }
}

template <int N, class A>
FASTDS_HD void zero_outside(const Bits<A>* inside, Vec<A, N> (&v)[4]) {
    Vec<Bits<A>, N> counts[4];
    broadcast4<N>(inside, counts);
    for (int n = 0; n < 4; n++) v[n] = counts[n] ? v[n] : 0;
}

// Loads all lanes of a vector. FirstLanes (core/simd.h) loads only the first ones.
template <class T, int N>
struct AllLanes {
    FASTDS_HD Vec<compute_t<T>, N> load(const T* p) const { return load_vec<N>(p); }
};

// Loads the corners of a sample, with zeros for those outside the image. `corner` points to the first requested channel of
// corner 0.
template <bool kBorder, int N, class A, class T, class Which = AllLanes<T, N>>
FASTDS_HD void load_corners(const T* corner, const Image& image, const Bits<A>* inside, Vec<A, N> (&v)[4],
                            const Which& lanes = {}) {
    const T* below = corner + image.below;
    v[0] = lanes.load(corner);
    v[1] = lanes.load(corner + image.right);
    v[2] = lanes.load(below);
    v[3] = lanes.load(below + image.right);
    if constexpr (kBorder) zero_outside<N, A>(inside, v);
}

template <int N, class A>
FASTDS_HD Vec<A, N> blend(const A* weights, const Vec<A, N> (&v)[4]) {
    Vec<A, N> w[4];
    broadcast4<N>(weights, w);
    return (w[0] * v[0] + w[1] * v[1]) + (w[2] * v[2] + w[3] * v[3]);
}

// Gathers the channels of each sample in vectors of N. In the last vector only the lanes that are channels are loaded; the
// others are zero.
template <int N, bool kWhole, class A, class T, class Out>
FASTDS_HD void gather_vectors(const Plan<A>& plan, const Samples<A>& s, int64_t samples, const Image image, const T* x,
                              Out* columns) {
    const int64_t channels = plan.per_group, whole = kWhole ? channels / N * N : 0;
    const FirstLanes<T, N> rest(channels - whole);
    for_samples(samples, s, [&](auto border, int64_t q) FASTDS_INLINE {
        const T* corner = x + s.at[q];
        Out* out = columns + plan.column[q];
        const auto take = [&](int64_t c, const auto& lanes) FASTDS_INLINE {
            Vec<A, N> v[4];
            load_corners<decltype(border)::value, N, A>(corner + c, image, s.inside + 4 * q, v, lanes);
            store_vec<N>(out + c, blend<N, A>(s.weights + 4 * q, v));
        };
        for (int64_t c = 0; c < whole; c += N) take(c, AllLanes<T, N>{});
        if (!kWhole || channels != whole) take(whole, rest);
    });
}

#if defined(__AVX512F__)
// Gathers samples with eight channels, which fill half a vector: two samples at a time, possibly of two pixels. kDense: the
// columns have no gaps.
template <bool kDense, class T, class Out>
FASTDS_HD void gather_eights(const Plan<float>& plan, const Samples<float>& s, int64_t samples, const Image image, const T* x,
                             Out* columns) {
    using V = Vec<float>;
    const int64_t step[4] = {0, image.right, image.below, image.below + image.right};
    for_samples<2>(samples, s, [&](auto border, int64_t q) FASTDS_INLINE {
        const T *a = x + s.at[q], *b = x + s.at[q + 1];
        V v[4], w[4];
        for (int n = 0; n < 4; n++) v[n] = load_two(a + step[n], b + step[n]);
        if constexpr (decltype(border)::value) {
            V counts[4];
            broadcast4_two((const float*)static_cast<const Bits<float>*>(s.inside + 4 * q), counts);
            for (int n = 0; n < 4; n++) v[n] = (Vec<Bits<float>>)counts[n] ? v[n] : 0;
        }
        broadcast4_two(s.weights + 4 * q, w);
        const V both = (w[0] * v[0] + w[1] * v[1]) + (w[2] * v[2] + w[3] * v[3]);
        if constexpr (kDense) {
            store_vec<16>(columns + 8 * q, both);
        } else {
            Vec<float, 8> halves[2];
            __builtin_memcpy(halves, &both, sizeof(both));
            for (int n = 0; n < 2; n++) store_vec<8>(columns + plan.column[q + n], halves[n]);
        }
    });
}
#endif

// Gathers the columns of a run of pixels: mask * (sampled value) at plan.column[q] + channel. Up to one vector of unspecified
// values follows the last channel. x points to the first channel of the plan in the image.
template <class A, class T, class Out>
FASTDS_HD void gather(const Plan<A>& plan, const Samples<A>& s, int64_t run, const Image image, const T* x, Out* columns) {
    const int64_t *at = s.at, *column = plan.column, samples = run * plan.samples;
    const A* weights = s.weights;
#if defined(__AVX512F__)
    if constexpr (kLanes<A> == 16)
        if (plan.by_group && plan.per_group == 8)
            return plan.dense ? gather_eights<true>(plan, s, samples, image, x, columns)
                              : gather_eights<false>(plan, s, samples, image, x, columns);
#endif
    if constexpr (FirstLanes<T, kLanes<A>>::fast)
        if (plan.by_group && plan.per_group % kLanes<A> != 0) {  // the next sample overwrites the excess lanes of a vector
            constexpr int N = kLanes<A>, eight = N < 8 ? N : 8;
            if (plan.per_group == 4) return gather_vectors<4, true>(plan, s, samples, image, x, columns);
            if (plan.per_group <= 4) return gather_vectors<4, false>(plan, s, samples, image, x, columns);
            if (plan.per_group <= eight) return gather_vectors<eight, false>(plan, s, samples, image, x, columns);
            return gather_vectors<N, true>(plan, s, samples, image, x, columns);
        }
    dispatch_channels(plan.per_group, [&](auto known) FASTDS_INLINE {
        const int64_t channels = decltype(known)::value ? decltype(known)::value : plan.per_group;
        for_samples(samples, s, [&](auto border, int64_t q) FASTDS_INLINE {
            const T* corner = x + at[q];
            Out* out = columns + column[q];
            for_channels<A>(channels, [&](auto lanes, int64_t c) FASTDS_INLINE {
                constexpr int N = decltype(lanes)::value;
                Vec<A, N> v[4];
                load_corners<decltype(border)::value, N, A>(corner + c, image, s.inside + 4 * q, v);
                store_vec<N>(out + c, blend<N, A>(weights + 4 * q, v));
            });
        });
    });
}

// Access to contiguous (NCHW) tensors in panels of output pixels. Offsets and masks are transposed into rows of channels, and
// outputs are transposed back into planes, in memory that stays in the L2 cache. Transposing whole tensors would need one more
// pass through main memory.

template <class T>
inline void transpose_elements(const T* from, int64_t from_row, int64_t rows, int64_t columns, T* to, int64_t to_row) {
    const auto transpose_as = [&](auto bits) {
        using Bits = decltype(bits);
        transpose_rows(reinterpret_cast<const Bits*>(from), from_row, rows, columns, reinterpret_cast<Bits*>(to), to_row);
    };
    if constexpr (sizeof(T) == 2) {
        transpose_as(uint16_t{});
    } else if constexpr (sizeof(T) == 4) {
        transpose_as(uint32_t{});
    } else {
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < columns; c++) to[c * to_row + r] = from[r * from_row + c];
    }
}

template <class T>
struct Planes {
    const DeformConv2dDims& d;
    const DeformConv2dForward& tensors;
    const int64_t samples, offset_item;
    const Buffer<char> offset;
    const Buffer<T> mask, y;

    Planes(const DeformConv2dDims& d, const DeformConv2dForward& tensors, int64_t panel)
        : d(d), tensors(tensors), samples(d.offset_groups * d.kh * d.kw), offset_item(d.offset_dtype == d.dtype ? sizeof(T) : sizeof(float)),
          offset(d.planar ? panel * 2 * samples * offset_item : 0), mask(d.planar && tensors.mask ? panel * samples : 0),
          y(d.planar ? panel * d.O : 0) {}

    // Calls f(p, n, image, position in the image) for each sequence of n pixels from p on that are consecutive in one image.
    template <class F>
    void for_runs(const int64_t* pixel, int64_t count, const F& f) const {
        const int64_t size = d.Ho * d.Wo;
        for (int64_t p = 0, end; p < count; p = end) {
            for (end = p + 1; end < count && pixel[end] == pixel[end - 1] + 1 && pixel[end] % size != 0;) end++;
            f(p, end - p, pixel[p] / size, pixel[p] % size);
        }
    }

    __attribute__((noinline)) void read(const int64_t* pixel, int64_t count) const {
        const int64_t size = d.Ho * d.Wo;
        for_runs(pixel, count, [&](int64_t p, int64_t n, int64_t b, int64_t at) {
            const auto read_offsets = [&](auto zero) {
                using S = decltype(zero);
                const S* from = static_cast<const S*>(tensors.offset) + 2 * samples * b * size + at;
                transpose_elements(from, size, 2 * samples, n, reinterpret_cast<S*>(&offset[0]) + p * 2 * samples, 2 * samples);
            };
            if (offset_item == sizeof(T))
                read_offsets(T{});
            else
                read_offsets(float{});
            if (tensors.mask != nullptr)
                transpose_elements(static_cast<const T*>(tensors.mask) + samples * b * size + at, size, samples, n,
                                   &mask[p * samples], samples);
        });
    }

    SampleRow row(int64_t p) const {
        return {&offset[p * 2 * samples * offset_item],
                tensors.mask ? reinterpret_cast<const char*>(&mask[p * samples]) : nullptr};
    }

    // Prefetches the shares p to last (of `count`) of the cache lines that write() fills and that the next panel reads. These
    // lines are short parts of many planes, which the hardware does not prefetch. All pixels are treated as if they were in one
    // image.
    FASTDS_HD void fetch(const int64_t* pixel, int64_t count, int64_t p, int64_t last) const {
        const int64_t size = d.Ho * d.Wo, b = pixel[0] / size, at = pixel[0] % size, left = size - at;
        fetch_planes<1>(static_cast<const char*>(tensors.y), sizeof(T), d.O, b, at, count < left ? count : left, p, last, count);
        const int64_t n = count < left - count ? count : left - count;  // pixels of the next panel
        fetch_planes<0>(static_cast<const char*>(tensors.offset), offset_item, 2 * samples, b, at + count, n, p, last, count);
        if (tensors.mask != nullptr)
            fetch_planes<0>(static_cast<const char*>(tensors.mask), sizeof(T), samples, b, at + count, n, p, last, count);
    }

    // Prefetches n elements from position `at` on in the planes of image b that belong to the shares p to last.
    template <int Written>
    FASTDS_HD void fetch_planes(const char* maps, int64_t item, int64_t planes, int64_t b, int64_t at, int64_t n, int64_t p,
                                int64_t last, int64_t shares) const {
        const int64_t size = d.Ho * d.Wo;
        for (int64_t plane = planes * p / shares; n > 0 && plane < planes * last / shares; plane++) {
            const char *from = maps + ((planes * b + plane) * size + at) * item, *end = from + n * item - 1;
            for (; from < end; from += 64) __builtin_prefetch(from, Written);
            __builtin_prefetch(end, Written);
        }
    }

    __attribute__((noinline)) void write(const int64_t* pixel, int64_t count) const {
        const int64_t size = d.Ho * d.Wo;
        for_runs(pixel, count, [&](int64_t p, int64_t n, int64_t b, int64_t at) {
            transpose_elements(&y[p * d.O], d.O, n, d.O, static_cast<T*>(tensors.y) + d.O * b * size + at, size);
        });
    }
};

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
