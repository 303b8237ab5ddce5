// SPDX-License-Identifier: Apache-2.0
// Matrix products in bfloat16 with the tile registers of Intel AMX: eight registers of 16 rows of 64 bytes.
//
// A thread configures the registers before its first tile instruction and releases them after its last one (class TileScope).
// has_amx() in isa.h returns whether AMX is usable.
#pragma once
#include "core/activation.h"
#include "core/masked_io.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Sizes of one tile in elements: kTileRows rows of A and of the sum, kTileDepth columns of A, kTileColumns columns of B and of
// the sum. kTileRowBytes is the size in bytes of one row of a tile in memory.
constexpr int kTileRows = 16, kTileDepth = 32, kTileColumns = 16, kTileRowBytes = 64;

// Operand of the instruction LDTILECFG. `depth` is the number of products that one instruction sums; it must be even. Registers
// 0 to 3 hold sums, 4 and 5 hold tiles of A, 6 and 7 hold tiles of B (see TileSums).
struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};

    explicit TileConfig(int64_t depth) {
        bytes[4] = bytes[5] = static_cast<uint16_t>(depth * sizeof(BFloat16));
        rows[6] = rows[7] = static_cast<uint8_t>(depth / 2);
    }
};

// Left operand of a product: rows of bfloat16 values. The stride of the rows is `row` elements. Each row consists of `runs`
// contiguous runs with a stride of `run` elements, and each run has `steps` * kTileDepth elements.
struct TileRows {
    const BFloat16* data;
    int64_t row, steps, runs = 1, run = 0;
};

#if defined(__AVX512BF16__)
// Wrappers of the tile instructions; strides are in bytes. They are written in inline assembly because the compiler's
// intrinsics would need an AMX flag for the whole file.
inline void configure_tiles(int64_t depth) {
    const TileConfig config(depth);
    asm volatile("ldtilecfg %0" ::"m"(config));
}
inline void release_tiles() { asm volatile("tilerelease"); }
template <int Register>
inline __attribute__((always_inline)) void zero_tile() {
    asm volatile("tilezero %%tmm%c0" ::"i"(Register));
}
template <int Register>
inline __attribute__((always_inline)) void load_tile(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(Register) : "memory");
}
template <int Register>
inline __attribute__((always_inline)) void store_tile(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(Register) : "memory");
}
// Sum += A * B in float32. A has up to 16 rows of up to 32 values. B has pairs of values: row k of the tile holds, for each of
// 16 columns, the elements 2k and 2k+1 of that column next to each other.
template <int Sum, int A, int B>
inline __attribute__((always_inline)) void multiply_tiles() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(A), "i"(B));
}

// Float32 sums of Rows x Columns tiles (1 or 2 in each direction) in the registers 0 to 3. In memory, the stride of the rows
// of the sums is `row` floats.
template <int Rows, int Columns>
struct TileSums {
    static inline __attribute__((always_inline)) void begin(const float* sums, int64_t row, bool zero) {
        const int64_t stride = row * sizeof(float);
        const float* below = sums + kTileRows * row;
        if (zero) {
            zero_tile<0>();
            if (Columns > 1) zero_tile<1>();
            if (Rows > 1) zero_tile<2>();
            if (Rows > 1 && Columns > 1) zero_tile<3>();
        } else {
            load_tile<0>(sums, stride);
            if (Columns > 1) load_tile<1>(sums + kTileColumns, stride);
            if (Rows > 1) load_tile<2>(below, stride);
            if (Rows > 1 && Columns > 1) load_tile<3>(below + kTileColumns, stride);
        }
    }
    // Adds one product. `below` is the distance in bytes between two tiles of A, `right` the distance between two tiles of B.
    static inline __attribute__((always_inline)) void add(const void* a, int64_t a_stride, int64_t below, const void* b,
                                                          int64_t b_stride, int64_t right) {
        load_tile<4>(a, a_stride);
        load_tile<6>(b, b_stride);
        multiply_tiles<0, 4, 6>();
        if (Columns > 1) {
            load_tile<7>(static_cast<const char*>(b) + right, b_stride);
            multiply_tiles<1, 4, 7>();
        }
        if (Rows > 1) {
            load_tile<5>(static_cast<const char*>(a) + below, a_stride);
            multiply_tiles<2, 5, 6>();
            if (Columns > 1) multiply_tiles<3, 5, 7>();
        }
    }
    static inline __attribute__((always_inline)) void end(float* sums, int64_t row) {
        const int64_t stride = row * sizeof(float);
        float* below = sums + kTileRows * row;
        store_tile<0>(sums, stride);
        if (Columns > 1) store_tile<1>(sums + kTileColumns, stride);
        if (Rows > 1) store_tile<2>(below, stride);
        if (Rows > 1 && Columns > 1) store_tile<3>(below + kTileColumns, stride);
    }
};

// Multiplies the rows of `a` from row `first` on by one packed block of columns (core/gemm.h) and stores the product in `sums`.
// The product has Rows x Columns tiles, 1 or 2 in each direction.
template <int Rows, int Columns>
void multiply_tile_rows(const TileRows& a, int64_t first, const BFloat16* b, float* sums) {
    using Sums = TileSums<Rows, Columns>;
    const int64_t stride = a.row * sizeof(*b);
    Sums::begin(sums, 0, true);
    for (int64_t run = 0; run < a.runs; run++) {
        const BFloat16* at = a.data + first * a.row + run * a.run;
        for (int64_t step = 0; step < a.steps; step++, at += kTileDepth, b += Columns * kTileColumns * kTileDepth)
            Sums::add(at, stride, kTileRows * stride, b, Columns * kTileRowBytes, kTileRowBytes);
    }
    Sums::end(sums, Columns * kTileColumns);
}

// Multiplies the first `depth` values of each row of A (`lines`) by B (`pairs`). The product is stored in `sums` if `fresh` is
// true, and added to `sums` otherwise. `depth` is a multiple of kTileDepth. B consists of pairs of rows, with the two values of
// a column next to each other. `line` is the distance between rows of A in elements, and `row` is the number of columns in a
// row of B. The result has Rows x Columns tiles, 1 or 2 in each direction.
template <int Rows, int Columns>
void add_pairs(const BFloat16* lines, int64_t line, const BFloat16* pairs, int64_t row, int64_t depth, bool fresh, float* sums,
               int64_t sums_row) {
    using Sums = TileSums<Rows, Columns>;
    const int64_t stride = line * sizeof(*lines);
    Sums::begin(sums, sums_row, fresh);
    for (int64_t i = 0; i < depth; i += kTileDepth, lines += kTileDepth, pairs += kTileDepth * row)
        Sums::add(lines, stride, kTileRows * stride, pairs, 2 * row * sizeof(*pairs), kTileRowBytes);
    Sums::end(sums, sums_row);
}

// Writes one row of sums (one or two vectors) as y = act(sums + residual). `residual` may be null. `lanes` masks the columns
// that exist.
template <int Vectors, class T>
FASTDS_HD void store_output_row(V left, V right, const T* residual, int act, float slope, T* y, __mmask32 lanes) {
    if (residual != nullptr) {
        left += load_masked(residual, static_cast<__mmask16>(lanes));
        if (Vectors > 1) right += load_masked(residual + kL, static_cast<__mmask16>(lanes >> kL));
    }
    if (act != act_none) {
        left = activate(left, act, slope);
        right = activate(right, act, slope);
    }
    if (Vectors > 1)
        store_pair(y, left, right, lanes);
    else
        store_masked(y, left, static_cast<__mmask16>(lanes));
}

// Prefetches both cache lines that one row of outputs may touch. Prefetching only the first line is slow when rows are not
// aligned to cache lines.
template <int Vectors, class T>
FASTDS_HD void prefetch_output_row(const T* y) {
    __builtin_prefetch(y, 1);
    __builtin_prefetch(y + Vectors * kL - 1, 1);
}

// Calls take(first, sums) for each group of up to 32 rows, where `sums` has rows of Columns vectors. Whole tiles are read, so
// that rows of `a` after the first `lines` rows may be read.
template <int Columns, class Take>
FASTDS_HD void for_tile_sums(const TileRows& a, int64_t lines, const BFloat16* b, const Take& take) {
    alignas(64) float sums[2 * kTileRows * Columns * kTileColumns];
    for (int64_t first = 0; first < lines; first += 2 * kTileRows) {
        lines - first > kTileRows ? multiply_tile_rows<2, Columns>(a, first, b, sums) : multiply_tile_rows<1, Columns>(a, first, b, sums);
        take(first, sums);
    }
}
#else  // Stubs for builds without AMX; they are never called.
inline void configure_tiles(int64_t) {}
inline void release_tiles() {}
template <int Columns, class Take>
void for_tile_sums(const TileRows&, int64_t, const void*, const Take&) {}
#endif

// Configures the tile registers of the current thread for the lifetime of the object, if `tiles` is true.
class TileScope {
public:
    explicit TileScope(bool tiles, int64_t depth = kTileDepth) : tiles_(tiles) {
        if (tiles) configure_tiles(depth);
    }
    ~TileScope() {
        if (tiles_) release_tiles();
    }

private:
    const bool tiles_;
};

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
