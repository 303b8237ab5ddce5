// SPDX-License-Identifier: Apache-2.0
// Vector types of the CPU kernels. Vec<S, N> is a GCC vector of any power-of-two length, which the compiler maps to the
// instruction set of the file: Vec<float, 16> is one AVX-512 register or four SSE registers. Arithmetic uses the built-in
// operators. This file adds loads and stores with conversion from and to the storage types, and permutations.
#pragma once
#include "core/dtype.h"
#if defined(__F16C__)
// GCC 12 reports the undefined operands inside the intrinsics wherever they are inlined.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
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

// AVX-512 and NEON have 32 vector registers, the other instruction sets 16.
#if defined(__AVX512F__) || defined(__aarch64__)
#define FASTDS_MANY_REGISTERS 1
#else
#define FASTDS_MANY_REGISTERS 0
#endif

template <class A>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(A));

// Types that can be elements of a vector: all except the 16-bit storage types.
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
    using type = S;  // a scalar, so that the same code computes the remainder of a loop
};
template <class S, int N = kLanes<S>>
using Vec = typename VecOf<S, N>::type;

template <class A, int N>
FASTDS_HD Vec<A, N> broadcast(A value) {
    return value - Vec<A, N>{};
}

// Returns the same pointer or index, hiding its value from the optimizer. Otherwise the compiler computes all addresses of a
// block before the surrounding loop. The addresses do not fit into the registers, and reloading them can take as long as the
// block itself.
template <class P>
FASTDS_HD P opaque(P place) {
    asm("" : "+r"(place));
    return place;
}

// Unaligned loads of N storage values, converted to the compute type.
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
#if defined(__AVX512F__)
        if constexpr (N == 16)
            return (Vec<float, N>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
#endif
#if defined(__AVX2__)  // GCC 12 converts eight values in two halves
        if constexpr (N == 8)
            return (Vec<float, N>)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
        if constexpr (N == 4) return (Vec<float, N>)_mm_slli_epi32(_mm_cvtepu16_epi32(_mm_loadl_epi64((const __m128i*)p)), 16);
#endif
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
    if constexpr (N > 1) {
#if defined(__aarch64__)
        Vec<__fp16, N> halves;
        __builtin_memcpy(&halves, p, sizeof(halves));
        return __builtin_convertvector(halves, Vec<float, N>);
#else
        Vec<float, N> v{};
        for (int i = 0; i < N; i++) v[i] = load(p[i]);
        return v;
#endif
    }
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
        if constexpr (N == 4) return _mm_storel_epi64((__m128i*)p, (__m128i)_mm_cvtneps_pbh((__m128)v));
#endif
        const auto bits = (Vec<uint32_t, N>)v;
        const auto rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
        const auto nan = (bits >> 16) | 0x40u;
        const auto is_nan = (Vec<uint32_t, N>)(v != v);
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
#if defined(__aarch64__)
        const auto halves = __builtin_convertvector(v, Vec<__fp16, N>);
        __builtin_memcpy(p, &halves, sizeof(halves));
#else
        for (int i = 0; i < N; i++) p[i] = store<Half>(v[i]);
#endif
    }
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// Returns the mask of the 32-bit lanes [from, to) for masked loads and stores.
FASTDS_HD __m256i lane_mask(int from, int to) {
    const Vec<int32_t, 8> lane = {0, 1, 2, 3, 4, 5, 6, 7}, none = {};
    return (__m256i)((lane >= from - none) & (lane < to - none));
}
#endif

// Loads the first `count` values and sets the other lanes to zero. `count` may exceed N.
template <int N, class T>
FASTDS_HD Vec<compute_t<T>, N> load_first(const T* p, int64_t count) {
    if (count >= N) return load_vec<N>(p);
#if defined(__AVX512BW__)
    const uint32_t first = (1u << (count > 0 ? count : 0)) - 1;
    if constexpr (N == 16 && sizeof(T) == 4) return (Vec<float, N>)_mm512_maskz_loadu_ps(first, p);
    if constexpr (N == 16 && sizeof(T) == 2) {
        const __m256i bits = _mm256_maskz_loadu_epi16(first, p);
        return load_vec<N>((const T*)&bits);
    }
#endif
    T lanes[N] = {};
    for (int i = 0; i < count; i++) lanes[i] = p[i];
    return load_vec<N>(lanes);
}

// Loads of the first lanes of vectors, for loops in which the number of lanes (0 to N) is constant. `fast` is true if a load
// is one instruction.
template <class T, int N>
struct FirstLanes {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    static constexpr bool fast = sizeof(T) <= 4;
    explicit FirstLanes(int64_t count) : lanes((1u << count) - 1) {}
    const uint32_t lanes;
#elif defined(__AVX2__)
    static constexpr bool fast = sizeof(T) == 4 && N <= 8;
    explicit FirstLanes(int64_t count) {
        for (int i = 0; i < N; i++) lanes[i] = i < count ? -1 : 0;
    }
    Vec<int32_t, N> lanes;
#else
    static constexpr bool fast = false;
    explicit FirstLanes(int64_t) {}
#endif
    FASTDS_HD Vec<compute_t<T>, N> load(const T* p) const {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
        if constexpr (sizeof(T) == 4) {
            if constexpr (N == 16) return (Vec<float, N>)_mm512_maskz_loadu_ps(lanes, p);
            if constexpr (N == 8) return (Vec<float, N>)_mm256_maskz_loadu_ps(lanes, p);
            if constexpr (N == 4) return (Vec<float, N>)_mm_maskz_loadu_ps(lanes, p);
        } else {
            const __m256i bits = _mm256_maskz_loadu_epi16(lanes, p);
            return load_vec<N>((const T*)&bits);
        }
#elif defined(__AVX2__)
        if constexpr (N == 8) return (Vec<float, N>)_mm256_maskload_ps(p, (__m256i)lanes);
        if constexpr (N == 4) return (Vec<float, N>)_mm_maskload_ps(p, (__m128i)lanes);
#endif
    }
};

// Stores only the first `count` lanes. `count` may exceed N.
template <int N, class T>
FASTDS_HD void store_first(T* p, Vec<compute_t<T>, N> v, int64_t count) {
    if (count >= N) {
        store_vec<N>(p, v);
        return;
    }
#if defined(__AVX512F__)
    if constexpr (N * sizeof(T) == 64 && sizeof(T) == 4) {
        _mm512_mask_storeu_ps(p, (1u << (count > 0 ? count : 0)) - 1, (__m512)v);
        return;
    }
#endif
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

// Index sequence 0 .. N-1, for shuffles whose lanes are given by a formula.
template <int... I>
struct LaneList {};
template <int N, int... I>
struct CountedLanes : CountedLanes<N - 1, N - 1, I...> {};
template <int... I>
struct CountedLanes<0, I...> {
    using type = LaneList<I...>;
};
template <int N>
using lanes_of = typename CountedLanes<N>::type;

// Deinterleaves the concatenation of a and b, in runs of Run elements: returns the even runs (Odd = 0) or the odd runs (Odd =
// 1).
template <int Odd, int Run = 1, class V, int... I>
FASTDS_HD V every_second(const V& a, const V& b, LaneList<I...>) {
    return __builtin_shufflevector(a, b, ((2 * (I / Run) + Odd) * Run + I % Run)...);
}
// Interleaves a and b in runs of Run elements (a0 b0 a1 b1 ...) and returns the first or the second half of the result.
template <int Half, int Run = 1, class V, int... I>
FASTDS_HD V alternate(const V& a, const V& b, LaneList<I...>) {
    constexpr int N = sizeof...(I);
    return __builtin_shufflevector(a, b, (I / Run % 2 * N + (Half * N / Run + I / Run) / 2 * Run + I % Run)...);
}
template <int I, class V>
FASTDS_HD auto get_half(const V& v) {
    using S = __typeof__(+v[0]);
    constexpr int N = sizeof(V) / sizeof(S) / 2;
    Vec<S, N> part;
    __builtin_memcpy(&part, (const char*)&v + I * sizeof(part), sizeof(part));
    return part;
}

// Returns true if no lane of a comparison result is 0.
template <class V>
FASTDS_HD bool all_lanes(const V& v) {
#if defined(__AVX512F__)
    if constexpr (sizeof(V) == 64 && sizeof(v[0]) == 4) return _mm512_test_epi32_mask((__m512i)v, (__m512i)v) == 0xffff;
    if constexpr (sizeof(V) == 64 && sizeof(v[0]) == 8) return _mm512_test_epi64_mask((__m512i)v, (__m512i)v) == 0xff;
#elif defined(__AVX2__)
    if constexpr (sizeof(V) == 32) return _mm256_movemask_epi8((__m256i)v) == -1;
#endif
    bool all = true;
    for (unsigned i = 0; i < sizeof(v) / sizeof(v[0]); i++) all &= v[i] != 0;
    return all;
}

// Reduces all lanes by f, which takes two vectors or two elements.
template <class S, int N, class F>
FASTDS_HD S reduce_lanes(const Vec<S, N>& v, const F& f) {
    if constexpr (N == 2) {
        return f(S(v[0]), S(v[1]));
    } else {
        return reduce_lanes<S, N / 2>(f(get_half<0>(v), get_half<1>(v)), f);
    }
}

// Sets v[i] to p[i] in all lanes, for i = 0 .. 3. Full AVX vectors of 4-byte elements need one load and four permutations,
// because loads are the scarcer resource.
template <int N, class A>
FASTDS_HD void broadcast4(const A* p, Vec<A, N> (&v)[4]) {
#if defined(__AVX512F__)
    if constexpr (N == 16 && sizeof(A) == 4) {
        const __m512 four = _mm512_broadcast_f32x4(_mm_loadu_ps((const float*)p));
        v[0] = (Vec<A, N>)_mm512_permute_ps(four, 0x00);
        v[1] = (Vec<A, N>)_mm512_permute_ps(four, 0x55);
        v[2] = (Vec<A, N>)_mm512_permute_ps(four, 0xaa);
        v[3] = (Vec<A, N>)_mm512_permute_ps(four, 0xff);
        return;
    }
#endif
#if defined(__AVX__)
    if constexpr (N == 8 && sizeof(A) == 4) {
        const __m256 four = _mm256_broadcast_ps((const __m128*)p);
        v[0] = (Vec<A, N>)_mm256_permute_ps(four, 0x00);
        v[1] = (Vec<A, N>)_mm256_permute_ps(four, 0x55);
        v[2] = (Vec<A, N>)_mm256_permute_ps(four, 0xaa);
        v[3] = (Vec<A, N>)_mm256_permute_ps(four, 0xff);
        return;
    }
#endif
    for (int i = 0; i < 4; i++) v[i] = broadcast<A, N>(p[i]);
}

#if defined(__AVX512F__)
// load_two() loads eight values from `a` and eight from `b` into one vector. broadcast4_two() sets v[i] to p[i] in the low half
// and p[4 + i] in the high half.
FASTDS_HD Vec<float, 16> load_two(const float* a, const float* b) {
    return (Vec<float, 16>)_mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(a)), _mm256_loadu_ps(b), 1);
}
template <class T>
FASTDS_HD Vec<float, 16> load_two(const T* a, const T* b) {
    T both[16];
    const __m256i bits = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)a)),
                                                 _mm_loadu_si128((const __m128i*)b), 1);
    _mm256_storeu_si256((__m256i*)both, bits);
    return load_vec<16>(both);
}
FASTDS_HD void broadcast4_two(const float* p, Vec<float, 16> (&v)[4]) {
    const __m512 both = _mm512_castps256_ps512(_mm256_loadu_ps(p));
    const __m512i at = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4);
    for (int i = 0; i < 4; i++) v[i] = (Vec<float, 16>)_mm512_permutexvar_ps(_mm512_add_epi32(at, _mm512_set1_epi32(i)), both);
}
#endif

// Returns a vector whose elements are the sums of the lanes of a, b, c and d.
template <class A>
FASTDS_HD Vec<A, 4> sum_lanes(const Vec<A, 4>& a, const Vec<A, 4>& b, const Vec<A, 4>& c, const Vec<A, 4>& d) {
    const auto ab = __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
    const auto cd = __builtin_shufflevector(c, d, 0, 4, 1, 5) + __builtin_shufflevector(c, d, 2, 6, 3, 7);
    return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
