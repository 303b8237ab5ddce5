// SPDX-License-Identifier: Apache-2.0
// Tensor-core products of 16-bit types with float32 sums: the PTX instruction mma.sync.m16n8k16 of sm_80 and newer.
#pragma once
#include "core/dtype.h"
#include "core/launch.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Operands that one lane of the warp holds, with g = lane / 4 and t = lane % 4. A word holds two values that are adjacent in k,
// the first in its low half.
struct MmaOperands {
    uint32_t a[4];  // matrix a (16 x 16): rows g, g + 8 at k = 2 t, then rows g, g + 8 at k = 2 t + 8
    uint32_t b[2];  // matrix b (16 x 8): column g at k = 2 t, 2 t + 8
};

// Returns one of the two values of a word: the low one for `half` 0, the high one for `half` 1.
template <class T>
FASTDS_HD float unpack_value(uint32_t word, int half) {
    return load(T{static_cast<uint16_t>(word >> 16 * half)});
}

// Packs two values into a word, the first into its low half.
template <class T>
__device__ __forceinline__ uint32_t pack_pair(float low, float high) {
    return store<T>(low).bits | static_cast<uint32_t>(store<T>(high).bits) << 16;
}

// Computes sums += a * b (16 x 8) with the whole warp. In each lane sums[0] and sums[1] are row g at columns 2 t and 2 t + 1;
// sums[2] and sums[3] are row g + 8 at the same columns. The instruction does not exist below sm_80, so that the host checks
// get_compiled_capability() before a launch.
template <class T>
__device__ __forceinline__ void mma(float (&sums)[4], const MmaOperands& operands) {
#if FASTDS_EMU
    const emu::Site site{__FILE__, __LINE__};
    const uint64_t* addresses = emu::emulator.of_all_lanes(site, reinterpret_cast<uint64_t>(&operands));
    const auto of = [&](int lane) { return *reinterpret_cast<const MmaOperands*>(addresses[lane]); };
    const int lane = emu::emulator.lane();
    for (int i = 0; i < 4; i++) {
        const int row = lane / 4, column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 16; k++) {
            const MmaOperands left = of(row * 4 + k % 8 / 2), right = of(column * 4 + k % 8 / 2);
            sums[i] += unpack_value<T>(left.a[k / 8 * 2 + i / 2], k % 2) * unpack_value<T>(right.b[k / 8], k % 2);
        }
    }
    emu::SyncWarp{site}();  // keeps the operands until all lanes have read them
#else
    __trap();
#endif
}

#if __CUDA_ARCH__ >= 800
#define FASTDS_TENSOR_CORES(T, name)                                                                                     \
    template <>                                                                                                          \
    __device__ __forceinline__ uint32_t pack_pair<T>(float low, float high) {                                               \
        uint32_t word;                                                                                                   \
        asm("cvt.rn." name "x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));                                     \
        return word;                                                                                                     \
    }                                                                                                                    \
    template <>                                                                                                          \
    __device__ __forceinline__ void mma<T>(float (&sums)[4], const MmaOperands& operands) {                                   \
        asm("mma.sync.aligned.m16n8k16.row.col.f32." name "." name ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, " \
            "{%0, %1, %2, %3};"                                                                                          \
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                                                 \
            : "r"(operands.a[0]), "r"(operands.a[1]), "r"(operands.a[2]), "r"(operands.a[3]), "r"(operands.b[0]), "r"(operands.b[1]));                 \
    }
FASTDS_TENSOR_CORES(BFloat16, "bf16")
FASTDS_TENSOR_CORES(Half, "f16")
#undef FASTDS_TENSOR_CORES
#endif

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
