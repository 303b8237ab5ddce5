// SPDX-License-Identifier: Apache-2.0
// Computation of the samples of output pixels from the offsets: positions in the image and weights of the corners.
//
// All groups and taps of a pixel are computed together as vectors. The four corners of nearly all samples are inside the image.
// A vector with other samples takes a slower path and sets `border`.
#pragma once
#include "deform_conv2d/pixel_walk.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

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

// Computes the samples of a run of output pixels from their offsets and mask. `row` belongs to the first pixel; those of the
// other pixels follow it. Returns the rows that the samples touch in the gradient of x.
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

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
