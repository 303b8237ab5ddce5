// SPDX-License-Identifier: Apache-2.0
// Vectors of the CPU kernels: GCC vector types of any power-of-two length, which the compiler maps to the instruction set of
// the file (a Vec<float, 16> is one AVX-512 register or four SSE ones). Arithmetic is by operators; here are loads and stores
// that convert from and to the storage types, and the few permutations that have no operator.
#pragma once
#include "core/dtype.h"
#if defined(__F16C__)
// GCC 12 warns about the intrinsics' own "undefined" operands wherever they are inlined.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#endif

namespace fastds {
namespace FASTDS_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class A>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(A));

// The element types that have vectors; the storage types have not.
template <class S>
struct IsElement {
    using yes = int;
};
template <>
struct IsElement<Half> {};
template <>
struct IsElement<BFloat16> {};

template <class S, int N>
struct VecOf {
    typedef S type __attribute__((vector_size(N * sizeof(S))));
};
template <class S>
struct VecOf<S, 1> {
    using type = S;  // so that the scalar tail of a loop is the same code
};
template <class S, int N = kLanes<S>>
using Vec = typename VecOf<S, N>::type;

template <class A, int N>
FASTDS_HD Vec<A, N> broadcast(A value) {
    return value - Vec<A, N>{};
}

// Unaligned loads of N storage values as compute values.
template <int N, class A, typename IsElement<A>::yes = 0>
FASTDS_HD Vec<A, N> load_vec(const A* p) {
    Vec<A, N> v;
    __builtin_memcpy(&v, p, sizeof(v));
    return v;
}
template <int N>
FASTDS_HD Vec<float, N> load_vec(const BFloat16* p) {
    if constexpr (N == 1) {
        return load(*p);
    } else {
        Vec<uint16_t, N> bits;
        __builtin_memcpy(&bits, p, sizeof(bits));
        return (Vec<float, N>)(__builtin_convertvector(bits, Vec<uint32_t, N>) << 16);
    }
}
template <int N>
FASTDS_HD Vec<float, N> load_vec(const Half* p) {
    if constexpr (N == 1) return load(*p);
#if defined(__F16C__)
#if defined(__AVX512F__)
    if constexpr (N == 16) return (Vec<float, N>)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#endif
    if constexpr (N == 8) return (Vec<float, N>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
    if constexpr (N == 4) return (Vec<float, N>)_mm_cvtph_ps(_mm_loadl_epi64((const __m128i*)p));
#endif
    Vec<float, N> v;
    if constexpr (N > 1)
        for (int i = 0; i < N; i++) v[i] = load(p[i]);
    return v;
}

template <int N, class A, typename IsElement<A>::yes = 0>
FASTDS_HD void store_vec(A* p, Vec<A, N> v) {
    __builtin_memcpy(p, &v, sizeof(v));
}
template <int N>
FASTDS_HD void store_vec(BFloat16* p, Vec<float, N> v) {
    if constexpr (N == 1) {
        *p = store<BFloat16>(v);
    } else {
#if defined(__AVX512BF16__)
        if constexpr (N == 16) {
            const __m256bh bits = _mm512_cvtneps_pbh((__m512)v);
            __builtin_memcpy(p, &bits, sizeof(bits));
            return;
        }
        if constexpr (N == 8) {
            const __m128bh bits = _mm256_cvtneps_pbh((__m256)v);
            __builtin_memcpy(p, &bits, sizeof(bits));
            return;
        }
#endif
        const auto bits = (Vec<uint32_t, N>)v;
        const auto rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
        const auto nan = (bits >> 16) | 0x40u;
        const auto is_nan = (Vec<uint32_t, N>)((bits & 0x7fffffffu) > 0x7f800000u);
        const auto half = __builtin_convertvector((is_nan & nan) | (~is_nan & rounded), Vec<uint16_t, N>);
        __builtin_memcpy(p, &half, sizeof(half));
    }
}
template <int N>
FASTDS_HD void store_vec(Half* p, Vec<float, N> v) {
    if constexpr (N == 1) {
        *p = store<Half>(v);
    } else {
#if defined(__F16C__)
#if defined(__AVX512F__)
        if constexpr (N == 16) return _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, 0));
#endif
        if constexpr (N == 8) return _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, 0));
        if constexpr (N == 4) return _mm_storel_epi64((__m128i*)p, _mm_cvtps_ph((__m128)v, 0));
#endif
        for (int i = 0; i < N; i++) p[i] = store<Half>(v[i]);
    }
}

// The first `count` lanes only; count may exceed N.
template <int N, class T>
FASTDS_HD void store_first(T* p, Vec<compute_t<T>, N> v, int64_t count) {
    if (count >= N) {
        store_vec<N>(p, v);
        return;
    }
    compute_t<T> lanes[N];
    __builtin_memcpy(lanes, &v, sizeof(v));
    for (int i = 0; i < count; i++) p[i] = store<T>(lanes[i]);
}

template <int N, class A>
FASTDS_HD void add_first(A* p, Vec<A, N> v, int64_t count) {
    if (count >= N) {
        store_vec<N>(p, Vec<A, N>(load_vec<N>(p) + v));
        return;
    }
    A lanes[N];
    __builtin_memcpy(lanes, &v, sizeof(v));
    for (int i = 0; i < count; i++) p[i] += lanes[i];
}

template <int I, class V>
FASTDS_HD auto half_of(const V& v) {
    using S = __typeof__(+v[0]);
    constexpr int N = sizeof(V) / sizeof(S) / 2;
    Vec<S, N> part;
    __builtin_memcpy(&part, (const char*)&v + I * sizeof(part), sizeof(part));
    return part;
}

// The sums of the lanes of four vectors, as one vector of four.
template <class A>
FASTDS_HD Vec<A, 4> sum_lanes(const Vec<A, 4>& a, const Vec<A, 4>& b, const Vec<A, 4>& c, const Vec<A, 4>& d) {
    const auto ab = __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
    const auto cd = __builtin_shufflevector(c, d, 0, 4, 1, 5) + __builtin_shufflevector(c, d, 2, 6, 3, 7);
    return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
