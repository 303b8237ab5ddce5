// SPDX-License-Identifier: Apache-2.0
// Masked loads and stores of vectors. They access the last channels of a tensor without touching the memory that follows.
#pragma once
#include "core/simd.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int kL = kLanes<float>;
using V = Vec<float>;

// Masked access to the lanes [from, to) of a vector. A load sets the other lanes to zero. `at` is the address of lane 0, even
// if lane 0 is not accessed.
#if defined(__AVX512F__)
FASTDS_HD __mmask16 lane_mask(int from, int to) { return (__mmask16)((1u << to) - (1u << from)); }
FASTDS_HD V load_masked(const float* at, __mmask16 lanes) { return (V)_mm512_maskz_loadu_ps(lanes, at); }
FASTDS_HD V load_masked(const BFloat16* at, __mmask16 lanes) {
    return (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, at)), 16);
}
FASTDS_HD void store_masked(float* at, V v, __mmask16 lanes) { _mm512_mask_storeu_ps(at, lanes, (__m512)v); }
#if defined(__AVX512BF16__)
FASTDS_HD void store_masked(BFloat16* at, V v, __mmask16 lanes) {
    _mm256_mask_storeu_epi16(at, lanes, (__m256i)_mm512_cvtneps_pbh((__m512)v));
}
#endif
template <class T>
FASTDS_HD void store_masked(T* at, V v, __mmask16 lanes) {
    T numbers[kL];
    store_vec<kL>(numbers, v);
    __m256i bits;
    __builtin_memcpy(&bits, numbers, sizeof(bits));
    _mm256_mask_storeu_epi16(at, lanes, bits);
}
// Stores two consecutive vectors.
FASTDS_HD void store_pair(float* to, V left, V right, __mmask32 lanes) {
    store_masked(to, left, static_cast<__mmask16>(lanes));
    store_masked(to + kL, right, static_cast<__mmask16>(lanes >> kL));
}
#if defined(__AVX512BF16__)
FASTDS_HD void store_pair(BFloat16* to, V left, V right, __mmask32 lanes) {
    _mm512_mask_storeu_epi16(to, lanes, (__m512i)_mm512_cvtne2ps_pbh((__m512)right, (__m512)left));
}
#endif
FASTDS_HD V load_range(const float* at, int from, int to) { return load_masked(at, lane_mask(from, to)); }
FASTDS_HD __m256i load_range16(const void* at, int from, int to) { return _mm256_maskz_loadu_epi16(lane_mask(from, to), at); }
FASTDS_HD V load_range(const Half* at, int from, int to) { return (V)_mm512_cvtph_ps(load_range16(at, from, to)); }
FASTDS_HD V load_range(const BFloat16* at, int from, int to) { return load_masked(at, lane_mask(from, to)); }
template <class T>
FASTDS_HD void store_range(T* at, V v, int from, int to) {
    store_masked(at, v, lane_mask(from, to));
}
#else
#if defined(__AVX2__)
FASTDS_HD V load_range(const float* at, int from, int to) { return (V)_mm256_maskload_ps(at, lane_mask(from, to)); }
FASTDS_HD void store_range(float* at, V v, int from, int to) { _mm256_maskstore_ps(at, lane_mask(from, to), (__m256)v); }
#endif
// These functions are not inlined, because the loops would be repeated at each load of a tile.
template <class T>
__attribute__((noinline)) V load_range(const T* at, int from, int to) {
    float lanes[kL] = {};
    for (int i = from; i < to; i++) lanes[i] = load(at[i]);
    return load_vec<kL>(lanes);
}
template <class T>
__attribute__((noinline)) void store_range(T* at, V v, int from, int to) {
    float lanes[kL];
    store_vec<kL>(lanes, v);
    for (int i = from; i < to; i++) at[i] = store<T>(lanes[i]);
}
#endif

template <class T>
FASTDS_HD V load_lanes(const T* p, int count) {
    return load_range(p, 0, count);
}
template <class T>
FASTDS_HD void store_lanes(T* p, V v, int count) {
    store_range(p, v, 0, count);
}

// True if a load with any mask is one instruction.
#if defined(__AVX512F__)
constexpr bool kFastMasks = true;
#else
constexpr bool kFastMasks = false;
#endif

// Calls vector(channel, number of lanes) for all channels, one vector at a time. The call for whole vectors passes the constant
// kL, so that the compiler generates a version without masks, which is faster.
template <class Vector>
FASTDS_HD void for_vectors(int64_t channels, const Vector& vector) {
    int64_t c = 0;
    for (; c + kL <= channels; c += kL) vector(c, kL);
    if (c < channels) vector(c, static_cast<int>(channels - c));
}
template <class T>
FASTDS_HD V load_partial(const T* p, int count) {
    const bool whole = count == kL;
    return (kFastMasks ? __builtin_constant_p(whole) && whole : whole) ? load_vec<kL>(p) : load_lanes(p, count);
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
