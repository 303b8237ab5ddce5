// SPDX-License-Identifier: Apache-2.0
// CPU passes of pixel_shuffle over rows of pixels (channels_last) and over planes (NCHW), fused with bias, activation and their
// gradients.
#pragma once
#include "core/memory.h"
#include "pixel_shuffle/cpu_permute.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Bias, activation and their gradients, for contiguous runs of elements and for single vectors that are permuted next.

// Computes act(x + bias) for `count` elements, or copies x if bias is null. Up to one vector after the last element of `to` may
// be overwritten. If One is true, a single bias applies to all elements.
template <bool One, class T>
FASTDS_HD void compute_activation(const ShuffleLayout<T>& layout, const T* x, const compute_t<T>* bias, int64_t count, T* to) {
    using A = compute_t<T>;
    constexpr int L = kLanes<A>;
    if (bias == nullptr) {
        __builtin_memcpy(to, x, count * sizeof(T));
        return;
    }
    const auto each = [=, one = *bias, act = layout.act](const Vec<A, L>& v, int64_t k) __attribute__((always_inline)) {
        const auto added = One ? broadcast<A, L>(one) : load_vec<L>(bias + k);
        store_vec<L>(to + k, activate(Vec<A, L>(v + added), act));
    };
    int64_t k = 0;
#pragma GCC unroll 4
    for (; k + L <= count; k += L) each(load_vec<L>(x + k), k);
    if (k < count) each(load_first<L>(x + k, count - k), k);
}

// Computes the gradients of a run of sub-pixels with respect to the values before bias and activation. They are also added to
// `sums` unless it is null.
template <class T>
FASTDS_HD void compute_gradient(const ShuffleLayout<T>& layout, const T* grad_y, const T* y, int64_t count,
                                  compute_t<T>* sums, T* to) {
    using A = compute_t<T>;
    constexpr int L = kLanes<A>;
    if (y == nullptr && sums == nullptr) {
        __builtin_memcpy(to, grad_y, count * sizeof(T));
        return;
    }
    for (int64_t k = 0; k < count; k += L) {
        auto grad = load_first<L>(grad_y + k, count - k);
        if (y != nullptr) grad = activation_gradient(grad, load_first<L>(y + k, count - k), layout.act);
        if (sums != nullptr) store_vec<L>(sums + k, Vec<A, L>(load_vec<L>(sums + k) + grad));
        store_vec<L>(to + k, grad);
    }
}

// Returns the bits of the N elements from k on, converted to the storage type T. each(k) returns a vector of the elements from k
// on in the compute type. The result is built in registers, because a load that covers two earlier stores waits for both.
template <int N, class T, class Each>
FASTDS_HD Vec<bits_t<T>, N> convert_to_bits(const Each& each, int k = 0) {
    constexpr int L = kLanes<compute_t<T>>;
    if constexpr (N == L && sizeof(T) == sizeof(compute_t<T>)) {
        return each(k);
    } else if constexpr (N == L) {
        T stored[N];
        store_vec<L>(stored, each(k));
        Vec<bits_t<T>, N> bits;
        __builtin_memcpy(&bits, stored, sizeof(bits));
        return bits;
    } else {
        return concatenate(convert_to_bits<N / 2, T>(each, k), convert_to_bits<N / 2, T>(each, k + N / 2), lanes_of<N>{});
    }
}

template <int N>
FASTDS_HD Vec<int32_t, N> get_lane_indices() {
    Vec<int32_t, N> numbers;
    for (int i = 0; i < N; i++) numbers[i] = i;
    return numbers;
}

// Sources of the blocks of channels (cpu_permute.h). at<N>(k, o, again) returns the N elements from k on, which belong to
// the channels from o on of their pixel; the first `again` of them were read before. prefetch(k) announces that the elements
// from k on are read next. with_private_sums<Count>(use) calls use(source) with private sums of Count channels, which it adds
// to the sums afterwards. This source returns the elements unchanged.
template <class U>
struct UnchangedSource {
    static constexpr bool computes =false;
    const U* from;

    template <int N>
    FASTDS_HD Vec<U, N> at(int64_t k, int64_t, int64_t) const {
        Vec<U, N> v;
        __builtin_memcpy(&v, from + k, sizeof(v));
        return v;
    }
    FASTDS_HD void prefetch(int64_t) const {}
    template <int Count, class Use>
    FASTDS_HD void with_private_sums(const Use& use) const {
        use(*this);
    }
};

// Source of act(x + bias).
template <class T>
struct ActivatedSource {
    static constexpr bool computes =true;
    const T* x;
    const compute_t<T>* bias;
    Activation<compute_t<T>> act;

    template <int N>
    FASTDS_HD auto at(int64_t k, int64_t o, int64_t) const {
        constexpr int L = kLanes<compute_t<T>>;
        return convert_to_bits<N, T>([=](int n) __attribute__((always_inline)) {
            return activate(Vec<compute_t<T>, L>(load_vec<L>(x + k + n) + load_vec<L>(bias + o + n)), act);
        });
    }
};

// Source of the gradients with respect to the values before bias and activation. `sums` accumulates the gradients of each
// channel.
template <class T>
struct GradientSource {
    static constexpr bool computes =true;
    const T *grad_y, *y;
    compute_t<T>* sums;
    Activation<compute_t<T>> act;

    template <int N>
    FASTDS_HD auto at(int64_t k, int64_t o, int64_t again) const {
        using A = compute_t<T>;
        constexpr int L = kLanes<A>;
        return convert_to_bits<N, T>([=](int n) __attribute__((always_inline)) {
            const auto grad = activation_gradient(load_vec<L>(grad_y + k + n), load_vec<L>(y + k + n), act);
            const auto first = get_lane_indices<L>() >= static_cast<int>(again) - n ? grad : Vec<A, L>{};
            store_vec<L>(sums + o + n, Vec<A, L>(load_vec<L>(sums + o + n) + first));
            return grad;
        });
    }
    // Software prefetches, because the r rows of sub-pixels of two tensors are more streams than the hardware prefetcher follows.
    FASTDS_HD void prefetch(int64_t k) const {
        __builtin_prefetch(grad_y + k);
        __builtin_prefetch(y + k);
    }
    // The private sums stay in registers. In memory they would be stored between the results, which wait for their cache lines.
    template <int Count, class Use>
    FASTDS_HD void with_private_sums(const Use& use) const {
        compute_t<T> private_sums[Count] = {};
        use(GradientSource{grad_y, y, private_sums, act});
        for (int k = 0; k < Count; k++) sums[k] += private_sums[k];
    }
};

// Permutation of some coarse pixels of a row to sub-pixels, and back. Blocks of channels and single channels are permuted in
// registers, and a source may compute bias and activation while it reads. Two other methods only move values: factor 1 is a
// copy, and the elements of few channels are gathered with a table of positions.

// to[k] = from[places[k]]. `from` may be read up to two bytes after its end.
template <class U>
FASTDS_HD void fetch(const U* from, const int32_t* places, int64_t count, U* to) {
    int64_t k = 0;
#if defined(__AVX512F__)
    for (; sizeof(U) <= 4 && k + 16 <= count; k += 16) {
        const __m512i at = _mm512_loadu_si512(places + k);
        if constexpr (sizeof(U) == 4)
            _mm512_storeu_si512(to + k, _mm512_i32gather_epi32(at, from, 4));
        else
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + k),
                                _mm512_cvtepi32_epi16(_mm512_i32gather_epi32(at, from, 2)));
    }
#endif
    for (; k < count; k++) to[k] = from[places[k]];
}

enum class Method { copy, registers, places };

// Returns the smallest number of channels (other than one) that are permuted in registers.
template <class U>
int64_t least_channels(int r) {
    return is_transposed(r) ? kTransposed : kQuarter<U>;
}
template <class U>
Method select_method(const PixelShuffleParams& p) {
    if (p.r == 1) return Method::copy;
    return p.C == 1 || (kHasLanes<U> && p.C >= least_channels<U>(p.r)) ? Method::registers : Method::places;
}

template <int R, class From, class U>
FASTDS_HD void to_fine(int64_t C, bool streamed, const From& coarse, int64_t pixels, U* fine, int64_t fine_row) {
    if (C == 1)
        runs_to_fine<R>(coarse, pixels, fine, fine_row);
    else if constexpr (kHasLanes<U> && is_transposed(R))
        transposed_to_fine(R, C, streamed, coarse, pixels, fine, fine_row);
    else if constexpr (kHasLanes<U>)
        blocks_to_fine<R>(C, streamed, coarse, pixels, fine, fine_row);
}
template <int R, class From, class U>
FASTDS_HD void to_coarse(int64_t C, bool streamed, const From& fine, int64_t fine_row, int64_t pixels, U* coarse) {
    if (C == 1)
        runs_to_coarse<R>(fine, fine_row, pixels, coarse);
    else if constexpr (kHasLanes<U> && is_transposed(R))
        transposed_to_coarse(R, C, fine, fine_row, pixels, coarse);
    else if constexpr (kHasLanes<U>)
        blocks_to_coarse<R>(C, streamed, fine, fine_row, pixels, coarse);
}

// Returns whether bias, activation and gradients are computed during the permutation. This needs at least one vector of
// channels, or of sub-pixels of a row if there is a single channel.
template <class U>
bool computes_in_registers(const PixelShuffleParams& p) {
    if (!kHasLanes<U>) return false;
    if (p.C == 1) return has_runs(p.r) && p.W * p.r >= kWhole<U>;
    return p.C >= (is_transposed(p.r) ? kTransposed : kWhole<U>);
}

// Permutes coarse pixels of a row to sub-pixels.
template <class U>
class ToFine {
  public:
    ToFine(const PixelShuffleParams& p, bool streamed, int64_t most)
        : C_(p.C), r_(p.r), streamed_(streamed), method_(select_method<U>(p)), places_(method_ == Method::places ? most * r_ * C_ : 0) {
        for (int64_t k = 0; method_ == Method::places && k < most * r_ * C_; k++) {
            const int64_t w = k / C_ / r_, j = k / C_ % r_, c = k % C_;
            places_[k] = static_cast<int32_t>((w * C_ + c) * r_ * r_ + j);
        }
    }

    // Returns whether memory after the coarse pixels is read.
    bool needs_room() const { return method_ == Method::places; }

    void operator()(const U* coarse, int64_t pixels, U* fine, int64_t fine_row) const {
        switch (method_) {
            case Method::copy: __builtin_memcpy(fine, coarse, pixels * C_ * sizeof(U)); break;
            case Method::registers:
                dispatch_factor(r_, [=](auto r) {
                    to_fine<decltype(r)::value>(C_, streamed_, UnchangedSource<U>{coarse}, pixels, fine, fine_row);
                });
                break;
            case Method::places:
                for (int i = 0; i < r_; i++) fetch<U>(coarse + i * r_, places_, pixels * r_ * C_, fine + i * fine_row);
        }
    }

  private:
    const int64_t C_;
    const int r_;
    const bool streamed_;
    const Method method_;
    const Buffer<int32_t> places_;
};

// Permutation of sub-pixels to coarse pixels. `fine_row` is the number of elements between rows of sub-pixels.
template <class U>
class ToCoarse {
  public:
    ToCoarse(const PixelShuffleParams& p, bool streamed, int64_t most, int64_t fine_row)
        : C_(p.C),
          r_(p.r),
          fine_row_(fine_row),
          streamed_(streamed),
          method_(select_method<U>(p)),
          places_(method_ == Method::places ? most * r_ * r_ * C_ : 0) {
        for (int64_t k = 0; method_ == Method::places && k < most * r_ * r_ * C_; k++) {
            const int64_t w = k / (C_ * r_ * r_), c = k / (r_ * r_) % C_, i = k / r_ % r_, j = k % r_;
            places_[k] = static_cast<int32_t>(i * fine_row + (w * r_ + j) * C_ + c);
        }
    }

    // Returns whether memory after the sub-pixels is read.
    static bool needs_room(const PixelShuffleParams& p) { return select_method<U>(p) == Method::places; }

    void operator()(const U* fine, int64_t pixels, U* coarse) const {
        switch (method_) {
            case Method::copy: __builtin_memcpy(coarse, fine, pixels * C_ * sizeof(U)); break;
            case Method::registers:
                dispatch_factor(r_, [=](auto r) {
                    to_coarse<decltype(r)::value>(C_, streamed_, UnchangedSource<U>{fine}, fine_row_, pixels, coarse);
                });
                break;
            case Method::places: fetch<U>(fine, places_, pixels * r_ * r_ * C_, coarse);
        }
    }

  private:
    const int64_t C_;
    const int r_;
    const int64_t fine_row_;
    const bool streamed_;
    const Method method_;
    const Buffer<int32_t> places_;
};

// pixel_shuffle for contiguous (NCHW) tensors. A row of sub-pixels interleaves the elements of r coarse rows, which come from r
// planes.

// Loads or stores the first `count` elements of a vector. `count` may be negative or exceed N.
template <int N, class U>
FASTDS_HD Vec<U, N> load_partial(const U* from, int64_t count) {
    Vec<U, N> v{};
    if (count >= N) {
        __builtin_memcpy(&v, from, sizeof(v));
        return v;
    }
#if defined(__AVX512BW__)
    if constexpr (sizeof(U) == 4) return (Vec<U, N>)_mm512_maskz_loadu_epi32(count > 0 ? (1u << count) - 1 : 0, from);
    if constexpr (sizeof(U) == 2) return (Vec<U, N>)_mm512_maskz_loadu_epi16(count > 0 ? (1u << count) - 1 : 0, from);
#elif defined(__AVX2__)
    if constexpr (sizeof(U) == 4) return (Vec<U, N>)_mm256_maskload_epi32((const int*)from, lane_mask(0, static_cast<int>(count)));
#endif
    for (int64_t k = 0; k < count; k++) v[k] = from[k];
    return v;
}
template <int N, class U>
FASTDS_HD void store_partial(U* to, const Vec<U, N>& v, int64_t count) {
    if (count >= N) {
        __builtin_memcpy(to, &v, sizeof(v));
        return;
    }
#if defined(__AVX512BW__)
    if constexpr (sizeof(U) == 4) return _mm512_mask_storeu_epi32(to, count > 0 ? (1u << count) - 1 : 0, (__m512i)v);
    if constexpr (sizeof(U) == 2) return _mm512_mask_storeu_epi16(to, count > 0 ? (1u << count) - 1 : 0, (__m512i)v);
#elif defined(__AVX2__)
    if constexpr (sizeof(U) == 4) return _mm256_maskstore_epi32((int*)to, lane_mask(0, static_cast<int>(count)), (__m256i)v);
#endif
    for (int64_t k = 0; k < count; k++) to[k] = v[k];
}

// Interleaves R rows of W elements, which have the stride `pitch`, into one row. each(v, j) is applied to each vector v of
// row j.
template <int R, class U, class Each>
void interleave_rows(const U* rows, int64_t pitch, int64_t W, U* to, const Each& each) {
    constexpr int N = kVectorBytes / static_cast<int>(sizeof(U));
    for (int64_t w = 0; w < W; w += N) {
        Vec<U, N> v[R];
#pragma GCC unroll 8
        for (int j = 0; j < R; j++) v[j] = each(load_partial<N>(rows + j * pitch + w, W - w), j);
        interleave<R, N>(v);
#pragma GCC unroll 8
        for (int k = 0; k < R; k++) store_partial<N>(to + w * R + k * N, v[k], (W - w) * R - k * N);
    }
}
template <int R, class U>
void deinterleave_rows(const U* from, int64_t pitch, int64_t W, U* rows) {
    constexpr int N = kVectorBytes / static_cast<int>(sizeof(U));
    for (int64_t w = 0; w < W; w += N) {
        Vec<U, N> v[R];
#pragma GCC unroll 8
        for (int k = 0; k < R; k++) v[k] = load_partial<N>(from + w * R + k * N, (W - w) * R - k * N);
        deinterleave<R, N>(v);
#pragma GCC unroll 8
        for (int j = 0; j < R; j++) store_partial<N>(rows + j * pitch + w, v[j], W - w);
    }
}

// Versions for any factor.
template <class U, class Each>
__attribute__((noinline)) void interleave_any_rows(int r, const U* rows, int64_t pitch, int64_t W, U* to, const Each& each) {
    if constexpr (kHasLanes<U>)
        dispatch_factor(r, [=](auto factor) { interleave_rows<decltype(factor)::value>(rows, pitch, W, to, each); });
    else
        for (int64_t k = 0; k < W * r; k++) to[k] = rows[k % r * pitch + k / r];
}
template <class U>
__attribute__((noinline)) void deinterleave_any_rows(int r, const U* from, int64_t pitch, int64_t W, U* rows) {
    if constexpr (kHasLanes<U>)
        dispatch_factor(r, [=](auto factor) { deinterleave_rows<decltype(factor)::value>(from, pitch, W, rows); });
    else
        for (int64_t k = 0; k < W * r; k++) rows[k % r * pitch + k / r] = from[k];
}

// Returns the number of short rows of a plane that are interleaved together; the result is then copied row by row to its place.
FASTDS_HD int64_t count_rows_together(const PixelShuffleParams& p) {
    const int64_t fitting = p.W >= 32 ? 1 : 64 / p.W;
    return fitting < p.H ? fitting : p.H;
}

template <class T>
class ForwardPlanes {
    using A = compute_t<T>;
    using U = bits_t<T>;
    // Values are computed into a buffer first, then interleaved.
    static constexpr bool kStaged = sizeof(A) != sizeof(T) || !kHasLanes<T>;

  public:
    ForwardPlanes(const ShuffleLayout<T>& layout, const PixelShuffleForward& tensors)
        : layout_(layout),
          t_(tensors),
          together_(count_rows_together(layout.p)),
          pitch_(together_ * layout.p.W + kLanes<A>),
          computed_(kStaged && tensors.bias != nullptr ? layout.p.r * pitch_ : 0),
          interleaved_(together_ > 1 ? together_ * layout.p.W * layout.p.r : 0) {}

    // Processes the coarse rows [h, h + count), at most count_rows_together(), for sub-pixel row i of one channel of an image.
    void rows(int64_t image_channel, int64_t i, int64_t h, int64_t count) const {
        const PixelShuffleParams& p = layout_.p;
        const int64_t plane = p.H * p.W, run = p.r * p.W;
        const T* coarse = static_cast<const T*>(t_.x) + (image_channel * p.r + i) * p.r * plane + h * p.W;
        const A* bias = static_cast<const A*>(t_.bias) + (image_channel % p.C * p.r + i) * p.r;
        T* fine = static_cast<T*>(t_.y) + ((image_channel * p.H + h) * p.r + i) * run;
        T* to = together_ > 1 ? static_cast<T*>(interleaved_) : fine;
        const auto as_it_is = [](auto v, int) __attribute__((always_inline)) { return v; };
        if (t_.bias == nullptr) {
            interleave_any_rows(p.r, (const U*)coarse, plane, count * p.W, (U*)to, as_it_is);
        } else if constexpr (kStaged) {
            for (int64_t j = 0; j < p.r; j++)
                compute_activation<true>(layout_, coarse + j * plane, bias + j, count * p.W, computed_ + j * pitch_);
            interleave_any_rows(p.r, (const U*)static_cast<T*>(computed_), pitch_, count * p.W, (U*)to, as_it_is);
        } else {
            interleave_any_rows(p.r, coarse, plane, count * p.W, to, [bias, act = layout_.act](auto v,
                                                                                                int j) __attribute__((always_inline)) {
                return activate(decltype(v)(v + bias[j]), act);
            });
        }
        for (int64_t k = 0; together_ > 1 && k < count; k++)
            __builtin_memcpy(fine + k * p.r * run, interleaved_ + k * run, run * sizeof(T));
    }

  private:
    const ShuffleLayout<T> layout_;
    const PixelShuffleForward t_;
    const int64_t together_, pitch_;
    const Buffer<T> computed_, interleaved_;
};

template <class T>
void forward_planes(const ShuffleLayout<T>& layout, const PixelShuffleForward& t, int threads) {
    const PixelShuffleParams& p = layout.p;
    const int64_t together = count_rows_together(p), groups = (p.H + together - 1) / together;
    parallel_for(p.B * p.C * p.r * groups, threads, [=](int64_t begin, int64_t end) {
        const ForwardPlanes<T> planes(layout, t);
        const int64_t H = layout.p.H, r = layout.p.r;
        for (int64_t task = begin; task < end; task++) {
            const int64_t h = task % groups * together, count = H - h < together ? H - h : together;
            planes.rows(task / groups / r, task / groups % r, h, count);
        }
    });
}

// The backward pass of one thread.
template <class T>
class BackwardPlanes {
    using A = compute_t<T>;
    using U = bits_t<T>;

  public:
    BackwardPlanes(const ShuffleLayout<T>& layout, const PixelShuffleBackward& tensors)
        : layout_(layout),
          t_(tensors),
          together_(count_rows_together(layout.p)),
          lanes_(layout.p.r * kLanes<A>),
          computed_(together_ * layout.p.r * layout.p.W),
          totals_(lanes_) {}

    // Processes the rows [begin, end) of coarse pixels, counted over the batch, of the planes of channel c and sub-pixel row i.
    // `sums`, unless null, receives the gradients of their biases.
    void rows(int64_t begin, int64_t end, int64_t c, int64_t i, A* sums) const {
        const PixelShuffleParams& p = layout_.p;
        __builtin_memset(totals_, 0, lanes_ * sizeof(A));
        for (int64_t row = begin; row < end;) {
            const int64_t image_channel = row / p.H * p.C + c, h = row % p.H;
            int64_t count = end - row < p.H - h ? end - row : p.H - h;
            if (count > together_) count = together_;
            const T* grad = gradients(((image_channel * p.H + h) * p.r + i) * p.r * p.W, count, sums != nullptr);
            T* coarse = static_cast<T*>(t_.grad_x) + ((image_channel * p.r + i) * p.r * p.H + h) * p.W;
            if (t_.grad_x != nullptr) deinterleave_any_rows(p.r, (const U*)grad, p.H * p.W, count * p.W, (U*)coarse);
            row += count;
        }
        for (int64_t j = 0; sums != nullptr && j < p.r; j++) {
            A sum = 0;
            for (int64_t k = j; k < lanes_; k += p.r) sum += totals_[k];
            sums[(i * p.r + j) * p.C + c] = sum;
        }
    }

  private:
    // Returns the gradients of `count` rows of sub-pixels with respect to the values before bias and activation, as one
    // contiguous block. If `summed` is true, they are also added to the sums for the bias gradient.
    const T* gradients(int64_t fine, int64_t count, bool summed) const {
        const T *grad_y = static_cast<const T*>(t_.grad_y), *y = static_cast<const T*>(t_.y);
        if (y == nullptr && !summed && together_ == 1) return grad_y + fine;
        const int64_t run = layout_.p.r * layout_.p.W;
        T* to = computed_;
        for (int64_t n = 0; n < count; n++, fine += layout_.p.r * run, to += run)
            for (int64_t k = 0; k < run; k += lanes_)
                compute_gradient<T>(layout_, grad_y + fine + k, y ? y + fine + k : nullptr,
                                      run - k < lanes_ ? run - k : lanes_, summed ? static_cast<A*>(totals_) : nullptr, to + k);
        return computed_;
    }

    const ShuffleLayout<T> layout_;
    const PixelShuffleBackward t_;
    const int64_t together_, lanes_;
    const Buffer<T> computed_;
    const Buffer<A> totals_;
};

template <class T>
void backward_planes(const ShuffleLayout<T>& layout, const PixelShuffleBackward& t, int threads) {
    using A = compute_t<T>;
    const PixelShuffleParams& p = layout.p;
    const int64_t image_rows = p.B * p.H, parts = pixel_shuffle_cpu_partials(p), channels = p.C * p.r * p.r;
    parallel_for(p.C * p.r * parts, threads, [=](int64_t begin, int64_t end) {
        const BackwardPlanes<T> planes(layout, t);
        for (int64_t task = begin; task < end; task++) {
            const int64_t part = task % parts, i = task / parts % layout.p.r, c = task / parts / layout.p.r;
            A* sums = t.grad_bias == nullptr ? nullptr : static_cast<A*>(t.partials) + part * channels;
            planes.rows(image_rows * part / parts, image_rows * (part + 1) / parts, c, i, sums);
        }
    });
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
