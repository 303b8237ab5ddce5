// SPDX-License-Identifier: Apache-2.0
// Loads and stores of the first lanes of a vector: the last channels of a tensor, with nothing of its neighbour touched.
#pragma once
#include "core/simd.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int kL = kLanes<float>;
using V = Vec<float>;

#if defined(__AVX512F__)
FASTDS_HD V load_lanes(const float* p, int count) { return (V)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), p); }
FASTDS_HD __m256i load_lanes16(const void* p, int count) { return _mm256_maskz_loadu_epi16((__mmask16)((1u << count) - 1), p); }
FASTDS_HD V load_lanes(const Half* p, int count) { return (V)_mm512_cvtph_ps(load_lanes16(p, count)); }
FASTDS_HD V load_lanes(const BFloat16* p, int count) {
    return (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_lanes16(p, count)), 16);
}
FASTDS_HD void store_lanes(float* p, V v, int count) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << count) - 1), (__m512)v); }
template <class T>
FASTDS_HD void store_lanes(T* p, V v, int count) {
    T lanes[kL];
    store_vec<kL>(lanes, v);
    __m256i bits;
    __builtin_memcpy(&bits, lanes, sizeof(bits));
    _mm256_mask_storeu_epi16(p, (__mmask16)((1u << count) - 1), bits);
}
#else
#if defined(__AVX2__)
FASTDS_HD __m256i lane_mask(int count) {
    const Vec<int32_t, 8> lane = {0, 1, 2, 3, 4, 5, 6, 7};
    return (__m256i)(lane < (count - Vec<int32_t, 8>{}));
}
FASTDS_HD V load_lanes(const float* p, int count) { return (V)_mm256_maskload_ps(p, lane_mask(count)); }
FASTDS_HD void store_lanes(float* p, V v, int count) { _mm256_maskstore_ps(p, lane_mask(count), (__m256)v); }
#endif
template <class T>
FASTDS_HD V load_lanes(const T* p, int count) {
    float lanes[kL] = {};
    for (int i = 0; i < count; i++) lanes[i] = load(p[i]);
    return load_vec<kL>(lanes);
}
template <class T>
FASTDS_HD void store_lanes(T* p, V v, int count) {
    float lanes[kL];
    store_vec<kL>(lanes, v);
    for (int i = 0; i < count; i++) p[i] = store<T>(lanes[i]);
}
#endif

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
