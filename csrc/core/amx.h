// SPDX-License-Identifier: Apache-2.0
// The processor's matrix tiles for bfloat16 (AMX): eight registers of 16 rows x 64 bytes, and what multiplies them.
//
// A thread configures them before its first tile instruction and releases them after its last; see isa.h for has_amx().
#pragma once
#include <stdint.h>

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int kTileRows = 16, kTileDepth = 32, kTileColumns = 16;  // pixels, summed channels and outputs of a product

// What the instruction LDTILECFG reads.
struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

#if defined(__AVX512BF16__)
// Strides in bytes. In assembler: intrinsics want a flag of the compiler for the whole file.
inline void configure_tiles() {
    const TileConfig config;
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
// Sum += A B in float32. A: rows x 32 numbers; B: 16 x 16 pairs, those of one column side by side.
template <int Sum, int A, int B>
inline __attribute__((always_inline)) void multiply_tiles() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(A), "i"(B));
}
#else  // never called
inline void configure_tiles() {}
inline void release_tiles() {}
#endif

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
