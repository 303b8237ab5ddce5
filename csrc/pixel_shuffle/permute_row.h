// SPDX-License-Identifier: Apache-2.0
// Permutation of some coarse pixels of a row to sub-pixels, and back. Blocks of channels and single channels are permuted in
// registers, where a source may also compute bias and activation (elementwise.h). There are two methods for bits alone: factor
// 1 is a copy, and the elements of few channels are gathered by a table of positions.
#pragma once
#include "core/buffer.h"
#include "pixel_shuffle/permute_blocks.h"
#include "pixel_shuffle/elementwise.h"
#include "pixel_shuffle/single_channel.h"
#include "pixel_shuffle/permute_squares.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

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

// Returns whether bias, activation and gradients are computed during the permutation, which needs whole vectors.
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

// The inverse permutation. `fine_row` is the number of elements between rows of sub-pixels.
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

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
