// SPDX-License-Identifier: Apache-2.0
// Permutation between coarse channels and sub-pixels in registers, for the CPU kernels of pixel_shuffle.
#pragma once
#include "core/simd.h"
#include "pixel_shuffle/math.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Common parts of the CPU passes of pixel_shuffle: positions of rows, and storage of results.

// Permutations move stored values as integers.
template <class T>
struct BitsOf {
    using type = T;
};
template <>
struct BitsOf<Half> {
    using type = uint16_t;
};
template <>
struct BitsOf<BFloat16> {
    using type = uint16_t;
};
template <class T>
using bits_t = typename BitsOf<T>::type;

// Results of at least this size are written with non-temporal stores, which do not read the cache lines that they overwrite.
// memcpy of glibc does the same for copies that do not fit into the last-level cache.
constexpr int64_t kStreamBytes = int64_t{16} << 20;

// Stores a register. `streamed` uses a non-temporal store if the register is a whole cache line.
template <class V, class T>
FASTDS_HD void store_line(T* to, const V& v, bool streamed) {
#if defined(__AVX512F__)
    if constexpr (sizeof(V) == 64) {
        if (streamed) {
            __m512i line;
            __builtin_memcpy(&line, &v, sizeof(line));
            _mm512_stream_si512(reinterpret_cast<__m512i*>(to), line);
            return;
        }
    }
#endif
    __builtin_memcpy(to, &v, sizeof(V));
}

// Makes non-temporal stores visible to other threads.
FASTDS_HD void end_stream() {
#if defined(__AVX512F__)
    _mm_sfence();
#endif
}

template <class T>
struct ShuffleLayout {
    using A = compute_t<T>;
    PixelShuffleParams p;
    Activation<A> act;
    int64_t row_stride;  // elements from sub-pixel (i, j) to (i + 1, j); the distance to (i, j + 1) is C
    bool streamed;       // the result is large, and its blocks of channels are whole cache lines

    explicit ShuffleLayout(const PixelShuffleParams& params)
        : p(params), act(make_activation<A>(params)), row_stride(params.W * params.r * params.C) {
        const int64_t bytes = p.B * p.C * p.H * p.W * p.r * p.r * static_cast<int64_t>(sizeof(T));
        streamed = bytes >= kStreamBytes && p.C * sizeof(T) % 64 == 0;
    }

    // Return the position of a row of coarse pixels and of its first row of sub-pixels. `row` counts over the batch.
    int64_t coarse(int64_t row) const { return row * p.W * p.C * p.r * p.r; }
    int64_t fine(int64_t row) const { return row * p.r * row_stride; }
};

// Permutation in registers from r*r vectors of consecutive coarse channels to one vector of channels per sub-pixel, and back.
//
// N channels of one coarse pixel are r*r*N consecutive elements (c, i, j). Selecting every r-th element twice, first by j and
// then by i, leaves the vector of N channels of each sub-pixel. Each step consists of shuffles with two source vectors.

template <int N>
struct Width {
    static constexpr int value = N;
};

// Calls use(Width<r>).
template <class Use>
FASTDS_HD void dispatch_factor(int r, const Use& use) {
    switch (r) {
        case 1: return use(Width<1>{});
        case 2: return use(Width<2>{});
        case 3: return use(Width<3>{});
        case 4: return use(Width<4>{});
        case 5: return use(Width<5>{});
        case 6: return use(Width<6>{});
        case 7: return use(Width<7>{});
        default: return use(Width<8>{});
    }
}

// True if values of a type are permuted in registers: 16- and 32-bit values in AVX2 and AVX-512 builds. Values of other types
// are gathered one by one.
#if defined(__AVX2__)
template <class T>
constexpr bool kHasLanes = sizeof(T) <= 4;
#else
template <class T>
constexpr bool kHasLanes = false;
#endif

// Number of elements in a register, and in a quarter of one.
template <class U>
constexpr int kWhole = kHasLanes<U> ? kVectorBytes / static_cast<int>(sizeof(U)) : 1;
template <class U>
constexpr int kQuarter = kWhole<U> < 4 ? 1 : kWhole<U> / 4;

// Odd factors: the first shuffle selects lanes from two vectors, each further one from one more vector. Step K leaves the lanes
// that it does not select unchanged.
//
// Returns the elements J, J + R, J + 2R, ... of the sequence v[0], v[1], ...
template <int J, int K, int R, class V, int... I>
FASTDS_HD V select_every(const V (&v)[R], const V& before, LaneList<I...> lanes) {
    constexpr int N = sizeof...(I);
    if constexpr (K == R) {
        return before;
    } else {
        constexpr auto from = [](int i) { return R * i + J; };
        return select_every<J, K + 1>(
            v, V(__builtin_shufflevector(before, v[K], (from(I) / N == K ? N + from(I) % N : K == 1 ? from(I) % N : I)...)),
            lanes);
    }
}
// Returns vector number Part of the sequence v[0][0], v[1][0], ..., v[0][1], ...
template <int Part, int K, int R, class V, int... I>
FASTDS_HD V interleave_part(const V (&v)[R], const V& before, LaneList<I...> lanes) {
    constexpr int N = sizeof...(I);
    if constexpr (K == R) {
        return before;
    } else {
        constexpr auto at = [](int i) { return Part * N + i; };
        return interleave_part<Part, K + 1>(
            v, V(__builtin_shufflevector(before, v[K], (at(I) % R == K ? N + at(I) / R : K == 1 ? at(I) / R : I)...)), lanes);
    }
}

// Permutes all R vectors.
template <int R, class V, int... J, int... I>
FASTDS_HD void split_odd(V (&v)[R], LaneList<J...>, LaneList<I...> lanes) {
    const V results[R] = {select_every<J, 1>(v, v[0], lanes)...};
    for (int k = 0; k < R; k++) v[k] = results[k];
}
template <int R, class V, int... J, int... I>
FASTDS_HD void join_odd(V (&v)[R], LaneList<J...>, LaneList<I...> lanes) {
    const V results[R] = {interleave_part<J, 1>(v, v[0], lanes)...};
    for (int k = 0; k < R; k++) v[k] = results[k];
}

// Concatenates a and b to a vector with twice the lanes.
template <class V, int... I>
FASTDS_HD auto concatenate(const V& a, const V& b, LaneList<I...>) {
#if defined(__AVX512F__)
    // Inserts b as the upper half, because GCC 12 translates the shuffle of 16-bit lanes to a slow general permutation.
    if constexpr (sizeof(V) == 32)
        return (decltype(__builtin_shufflevector(a, b, I...)))_mm512_inserti64x4(_mm512_castsi256_si512((__m256i)a), (__m256i)b, 1);
    else
#endif
        return __builtin_shufflevector(a, b, I...);
}

// Returns the even (Part 0) or odd (Part 1) runs of Run elements of a and b, alternating between the two.
template <int Run, int Part, class V, int... I>
FASTDS_HD V interleave_runs(const V& a, const V& b, LaneList<I...>) {
    constexpr int N = sizeof...(I);
    return __builtin_shufflevector(a, b, (I + Part * Run + (I / Run % 2 == 0 ? 0 : N - Run))...);
}

// Transposes P vectors of P runs of R elements each: run q of vector p is exchanged with run p of vector q.
template <int P, int R, int N, int Run = R, class V>
FASTDS_HD void transpose_runs(V (&v)[P]) {
    if constexpr (Run < P * R) {
        constexpr int apart = Run / R;
        for (int p = 0; p < P; p++) {
            if (p / apart % 2 != 0) continue;
            const V a = v[p], b = v[p + apart];
            v[p] = interleave_runs<Run, 0>(a, b, lanes_of<N>{});
            v[p + apart] = interleave_runs<Run, 1>(a, b, lanes_of<N>{});
        }
        transpose_runs<P, R, N, 2 * Run>(v);
    }
}

// True if R vectors of R lanes are permuted by a transpose. For 8 vectors of 8 lanes of AVX2, a transpose needs fewer
// instructions than repeated deinterleaving; for shorter vectors it needs more.
template <int R, int N, class V>
constexpr bool kFastTranspose = R == 8 && N == R && sizeof(V) == 32;

// v[0], v[1], ... is one sequence of R*N elements. Afterwards v[j] holds its elements j, j + R, j + 2R, ... With Run > 1, runs
// of Run elements take the place of elements; R must then be a power of two.
template <int R, int N, int Run = 1, class V>
FASTDS_HD void deinterleave(V (&v)[R]) {
    using L = lanes_of<N>;
    if constexpr (N == Run || R == 1) {
        return;  // one element or run per vector is already in place
    } else if constexpr (Run == 1 && kFastTranspose<R, N, V>) {
        transpose_runs<R, 1, N>(v);
    } else if constexpr (R % 2 == 1) {
        static_assert(Run == 1, "runs of an odd number of vectors are not permuted");
        split_odd(v, lanes_of<R>{}, L{});
    } else {
        V even[R / 2], odd[R / 2];
        for (int k = 0; k < R / 2; k++) {
            even[k] = every_second<0, Run>(v[2 * k], v[2 * k + 1], L{});
            odd[k] = every_second<1, Run>(v[2 * k], v[2 * k + 1], L{});
        }
        deinterleave<R / 2, N, Run>(even);
        deinterleave<R / 2, N, Run>(odd);
        for (int k = 0; k < R / 2; k++) {
            v[2 * k] = even[k];
            v[2 * k + 1] = odd[k];
        }
    }
}

// The inverse of deinterleave.
template <int R, int N, int Run = 1, class V>
FASTDS_HD void interleave(V (&v)[R]) {
    using L = lanes_of<N>;
    if constexpr (N == Run || R == 1) {
        return;
    } else if constexpr (Run == 1 && kFastTranspose<R, N, V>) {
        transpose_runs<R, 1, N>(v);
    } else if constexpr (R % 2 == 1) {
        static_assert(Run == 1, "runs of an odd number of vectors are not permuted");
        join_odd(v, lanes_of<R>{}, L{});
    } else {
        V even[R / 2], odd[R / 2];
        for (int k = 0; k < R / 2; k++) {
            even[k] = v[2 * k];
            odd[k] = v[2 * k + 1];
        }
        interleave<R / 2, N, Run>(even);
        interleave<R / 2, N, Run>(odd);
        for (int k = 0; k < R / 2; k++) {
            v[2 * k] = alternate<0, Run>(even[k], odd[k], L{});
            v[2 * k + 1] = alternate<1, Run>(even[k], odd[k], L{});
        }
    }
}

// Permutation of blocks of channels of one coarse pixel in registers: coarse order (c, i, j) to the fine order, r rows i of (j,
// c), and back. The source of the elements (cpu_fused.h) applies bias, activation or their gradients while it reads.

// A block of channels of one pixel: its position in the coarse tensor and in the sub-pixels, its first channel, and the number of
// its leading channels that another block has already processed.
struct Place {
    int64_t coarse, fine, c, again;
};

// Permutes N channels of a coarse pixel x to the sub-pixels y. `fine_row` is the number of elements between rows of sub-pixels.
template <int R, int N, class From, class U>
FASTDS_HD void block_to_fine(const From& x, const Place& place, U* y, int64_t C, int64_t fine_row, bool streamed) {
    using V = Vec<U, N>;
    V v[R][R];
#pragma GCC unroll 4
    for (int g = 0; g < R; g++) {
#pragma GCC unroll 8
        for (int k = 0; k < R; k++) {
            const int e = (g * R + k) * N;
            v[g][k] = x.template at<N>(place.coarse + e, place.c * R * R + e, 0);
        }
        deinterleave<R, N>(v[g]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < R; j++) {
        V column[R];
#pragma GCC unroll 8
        for (int g = 0; g < R; g++) column[g] = v[g][j];
        deinterleave<R, N>(column);
#pragma GCC unroll 8
        for (int i = 0; i < R; i++) store_line(y + place.fine + i * fine_row + j * C, column[i], streamed);
    }
}

// Permutes the N channels of the sub-pixels y to the coarse pixel x, the inverse of block_to_fine.
template <int R, int N, class From, class U>
FASTDS_HD void block_to_coarse(const From& y, const Place& place, U* x, int64_t C, int64_t fine_row, bool streamed) {
    using V = Vec<U, N>;
    V v[R][R];
#pragma GCC unroll 4
    for (int j = 0; j < R; j++) {
        V column[R];
        int64_t at = place.fine + j * C, channel = j * C + place.c;
#pragma GCC unroll 8
        for (int i = 0; i < R; i++, at = opaque(at + fine_row), channel = opaque(channel + R * C)) {
            y.prefetch(at + R * C);
            column[i] = y.template at<N>(at, channel, place.again);
        }
        interleave<R, N>(column);
#pragma GCC unroll 8
        for (int g = 0; g < R; g++) v[g][j] = column[g];
    }
#pragma GCC unroll 4
    for (int g = 0; g < R; g++) {
        interleave<R, N>(v[g]);
#pragma GCC unroll 8
        for (int k = 0; k < R; k++) store_line(x + place.coarse + (g * R + k) * N, v[g][k], streamed);
    }
}

// Variant for factors with more vectors (R * R) than registers. The variant processes as many rows of sub-pixels at a time as
// fill a vector. Vector k of a row holds the elements (c, j) from k * N on. In the coarse tensor, the elements of the next rows
// follow after the R elements of one row.
template <int R, int N>
constexpr int kRowsOf = N > R ? N / R : 1;
template <int R, int N>
FASTDS_HD int64_t coarse_place(int first, int k, int i) {
    const int e = k * N + i * R;
    return e / R * R * R + first * R + e % R;
}
template <int R, int N, class From, class U>
FASTDS_HD void rows_to_fine(const From& x, const Place& place, U* y, int64_t C, int64_t fine_row, bool streamed) {
    using V = Vec<U, N>;
    constexpr int rows = kRowsOf<R, N>;
    for (int first = 0; first < R; first += rows) {
        V v[rows][R];
#pragma GCC unroll 8
        for (int k = 0; k < R; k++) {
            V runs[rows];
#pragma GCC unroll 4
            for (int i = 0; i < rows; i++) {
                const int64_t e = coarse_place<R, N>(first, k, i);
                runs[i] = x.template at<N>(place.coarse + e, place.c * R * R + e, 0);
            }
            transpose_runs<rows, R, N>(runs);
#pragma GCC unroll 4
            for (int i = 0; i < rows; i++) v[i][k] = runs[i];
        }
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++) {
            deinterleave<R, N>(v[i]);
#pragma GCC unroll 8
            for (int j = 0; j < R; j++) store_line(y + place.fine + (first + i) * fine_row + j * C, v[i][j], streamed);
        }
    }
}

// Permutes sub-pixels to a coarse pixel, for the rows of sub-pixels from `first` on that fill a vector.
template <int R, int N, class From, class U>
FASTDS_HD void rows_to_coarse(const From& y, int first, const Place& place, U* x, int64_t C, int64_t fine_row, bool streamed) {
    using V = Vec<U, N>;
    constexpr int rows = kRowsOf<R, N>;
    V v[rows][R];
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++) {
        // The channel is opaque, the position is not: opaque positions are slower for 16-bit values.
        int64_t channel = (first + i) * R * C + place.c;
#pragma GCC unroll 8
        for (int j = 0; j < R; j++, channel = opaque(channel + C)) {
            const int64_t at = place.fine + (first + i) * fine_row + j * C;
            y.prefetch(at + R * C);
            v[i][j] = y.template at<N>(at, channel, place.again);
        }
        interleave<R, N>(v[i]);
    }
#pragma GCC unroll 8
    for (int k = 0; k < R; k++) {
        V runs[rows];
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++) runs[i] = v[i][k];
        transpose_runs<rows, R, N>(runs);
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++) store_line(x + place.coarse + coarse_place<R, N>(first, k, i), runs[i], streamed);
    }
}

// Calls block(place) for all channels of some pixels, N at a time. If the last block is incomplete, it starts earlier and
// processes some channels again.
template <int R, int N, class Block>
FASTDS_HD void for_blocks(int64_t C, int64_t pixels, const Block& block) {
    const int64_t whole = C - C % N;
    for (int64_t w = 0; w < pixels; w++) {
        const auto at = [=](int64_t c, int64_t again) __attribute__((always_inline)) {
            block(Place{(w * C + c) * R * R, w * R * C + c, c, again});
        };
        for (int64_t c = 0; c < whole; c += N) at(c, 0);
        if (whole < C) at(C - N, N - (C - whole));
    }
}

// Calls use(Width<N>) with the block size for C channels. Blocks of a quarter of a vector are used only without bias and
// activation; otherwise few channels are computed beforehand, many pixels at a time.
template <class U, class From, class Use>
FASTDS_HD void dispatch_width(int64_t C, const Use& use) {
    if (From::computes || C >= kWhole<U>)
        use(Width<kWhole<U>>{});
    else if constexpr (!From::computes)
        use(Width<kQuarter<U>>{});
}

template <int R, class From, class U>
__attribute__((noinline)) void blocks_to_fine(int64_t C, bool streamed, const From& coarse, int64_t pixels, U* fine,
                                              int64_t fine_row) {
    const From source = coarse;
    dispatch_width<U, From>(C, [=](auto width) __attribute__((always_inline)) {
        constexpr int N = decltype(width)::value;
        if constexpr (R * R > 16) {
            // Vectors of whole cache lines are read faster in the order of memory, except for float on Intel processors.
            if (N * sizeof(U) <= 32 || (sizeof(U) == 4 && is_intel()))
                return for_blocks<R, N>(C, pixels, [=](const Place& place) __attribute__((always_inline)) {
                    rows_to_fine<R, N>(source, place, fine, C, fine_row, streamed);
                });
        }
        for_blocks<R, N>(C, pixels, [=](const Place& place) __attribute__((always_inline)) {
            block_to_fine<R, N>(source, place, fine, C, fine_row, streamed);
        });
    });
}

template <int R, class From, class U>
__attribute__((noinline)) void blocks_to_coarse(int64_t C, bool streamed, const From& fine, int64_t fine_row, int64_t pixels,
                                                U* coarse) {
    const From source = fine;
    // Each pass over the pixels reads few rows of sub-pixels, because the hardware prefetcher follows only few streams.
    dispatch_width<U, From>(C, [=](auto width) __attribute__((always_inline)) {
        constexpr int N = decltype(width)::value, rows = R * R > 16 ? kRowsOf<R, N> : R;
        for (int first = 0; first < R; first += rows)
            for_blocks<R, N>(C, pixels, [=](const Place& place) __attribute__((always_inline)) {
                if constexpr (rows < R)
                    rows_to_coarse<R, N>(source, first, place, coarse, C, fine_row, streamed);
                else
                    block_to_coarse<R, N>(source, place, coarse, C, fine_row, streamed);
            });
    });
}

// pixel_shuffle of a single channel. A coarse pixel consists of R runs of R elements, whose order within a run does not change.
// R vectors hold N / R pixels. Their runs are permuted in registers, so that vector i holds the runs of fine row i.

constexpr bool has_runs(int r) { return r == 2 || r == 4 || r == 8; }

// Elements of such a vector, or 0 if the factor has none.
template <int R, class U>
constexpr int kRunLanes = kHasLanes<U> && has_runs(R) ? kWhole<U> : 0;

// Calls block(w, again) for blocks of `together` pixels, which begin at pixel w. The last block may overlap the block before,
// which has then processed its first `again` pixels.
template <class Block>
FASTDS_HD void for_pixels(int64_t pixels, int64_t together, const Block& block) {
    const int64_t whole = pixels - pixels % together;
    for (int64_t w = 0; w < whole; w += together) block(w, 0);
    if (whole < pixels) block(pixels - together, together - (pixels - whole));
}

// The source receives the position of an element in the R vectors of a block (coarse or fine) in place of its channel.
template <int R, class From, class U>
__attribute__((noinline)) void runs_to_fine(const From& coarse, int64_t pixels, U* fine, int64_t fine_row) {
    constexpr int N = kRunLanes<R, U>, together = N / R;
    if constexpr (N > 0)
        if (pixels >= together)
            return for_pixels(pixels, together, [=](int64_t w, int64_t) __attribute__((always_inline)) {
                Vec<U, N> v[R];
#pragma GCC unroll 8
                for (int k = 0; k < R; k++) v[k] = coarse.template at<N>(w * R * R + k * N, k * N, 0);
                deinterleave<R, N, R>(v);
#pragma GCC unroll 8
                for (int i = 0; i < R; i++) __builtin_memcpy(fine + i * fine_row + w * R, &v[i], sizeof(v[i]));
            });
    if constexpr (!From::computes)
        for (int64_t w = 0; w < pixels; w++)
            for (int i = 0; i < R; i++)
                __builtin_memcpy(fine + i * fine_row + w * R, coarse.from + (w * R + i) * R, R * sizeof(U));
}
template <int R, class From, class U>
__attribute__((noinline)) void runs_to_coarse(const From& fine, int64_t fine_row, int64_t pixels, U* coarse) {
    constexpr int N = kRunLanes<R, U>, together = N / R;
    if constexpr (N > 0)
        if (pixels >= together)
            return fine.template with_private_sums<R * N>([=](const From& source) __attribute__((always_inline)) {
                for_pixels(pixels, together, [=](int64_t w, int64_t again) __attribute__((always_inline)) {
                    Vec<U, N> v[R];
#pragma GCC unroll 8
                    for (int i = 0; i < R; i++) v[i] = source.template at<N>(i * fine_row + w * R, i * N, again * R);
                    interleave<R, N, R>(v);
#pragma GCC unroll 8
                    for (int k = 0; k < R; k++) __builtin_memcpy(coarse + w * R * R + k * N, &v[k], sizeof(v[k]));
                });
            });
    if constexpr (!From::computes)
        for (int64_t w = 0; w < pixels; w++)
            for (int i = 0; i < R; i++)
                __builtin_memcpy(coarse + (w * R + i) * R, fine.from + i * fine_row + w * R, R * sizeof(U));
}

// pixel_shuffle for the factors 5, 6 and 7, which have more sub-pixels (r*r) than there are registers. A coarse pixel is a
// matrix with one row of r*r sub-pixels per channel. Squares of this matrix are transposed to vectors of channels, and back.

constexpr bool is_transposed(int r) { return r > 4 && r < 8; }
// Channels and sub-pixels of a square; at most 25, the number of sub-pixels of the smallest of these factors.
constexpr int kTransposed = kLanes<float>;

// Calls square(c, e, channels_again, sub_pixels_again) for the channels c .. c + N - 1 and sub-pixels e .. e + N - 1. Other
// squares have already processed the first channels_again and sub_pixels_again of them. Together the squares cover C channels
// of r*r sub-pixels.
template <class Square>
FASTDS_HD void for_squares(int64_t C, int64_t each, const Square& square) {
    constexpr int64_t N = kTransposed;
    for (int64_t c = 0; c < C; c += N) {
        const int64_t beyond_c = c + N > C ? c + N - C : 0;
        for (int64_t e = 0; e < each; e += N) {
            const int64_t beyond_e = e + N > each ? e + N - each : 0;
            square(c - beyond_c, e - beyond_e, beyond_c, beyond_e);
        }
    }
}

// Offsets of the sub-pixels of a pixel in the fine rows.
struct SubPixels {
    int64_t at[64];
    SubPixels(int r, int64_t C, int64_t fine_row) {
        for (int e = 0; e < r * r; e++) at[e] = e / r * fine_row + e % r * C;
    }
};

template <class From, class U>
__attribute__((noinline)) void transposed_to_fine(int r, int64_t C, bool streamed, const From& coarse, int64_t pixels, U* fine,
                                                  int64_t fine_row) {
    constexpr int N = kTransposed;
    const From source = coarse;
    const int64_t each = r * r;
    const SubPixels places(r, C, fine_row);
    for (int64_t w = 0; w < pixels; w++, fine += r * C)
        for_squares(C, each, [&](int64_t c, int64_t e, int64_t, int64_t) __attribute__((always_inline)) {
            Vec<U, N> v[N];
#pragma GCC unroll 16
            for (int k = 0; k < N; k++) {
                const int64_t channel = (c + k) * each + e;
                v[k] = source.template at<N>(w * C * each + channel, channel, 0);
            }
            transpose_runs<N, 1, N>(v);
#pragma GCC unroll 16
            for (int k = 0; k < N; k++) store_line(fine + places.at[e + k] + c, v[k], streamed);
        });
}

template <class From, class U>
__attribute__((noinline)) void transposed_to_coarse(int r, int64_t C, const From& fine, int64_t fine_row, int64_t pixels,
                                                    U* coarse) {
    constexpr int N = kTransposed;
    const From source = fine;
    const int64_t each = r * r;
    const SubPixels places(r, C, fine_row);
    for (int64_t w = 0; w < pixels; w++, coarse += C * each)
        for_squares(C, each, [&](int64_t c, int64_t e, int64_t c_again, int64_t e_again) __attribute__((always_inline)) {
            Vec<U, N> v[N];
#pragma GCC unroll 16
            for (int k = 0; k < N; k++) {
                const int64_t at = w * r * C + places.at[e + k] + c, again = k < e_again ? N : c_again;
                source.prefetch(at + r * C);
                v[k] = source.template at<N>(at, (e + k) * C + c, again);
            }
            transpose_runs<N, 1, N>(v);
#pragma GCC unroll 16
            for (int k = 0; k < N; k++) __builtin_memcpy(coarse + (c + k) * each + e, &v[k], sizeof(v[k]));
        });
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
