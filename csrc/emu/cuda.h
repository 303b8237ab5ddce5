// SPDX-License-Identifier: Apache-2.0
// Definitions of the part of the CUDA language that the kernels of this project use, in terms of the emulator.
// tests/gpuless/emu.py includes this file before each .cu file. core/mma.h emulates tensor cores, and
// core/pipeline.h copies that do not block.
#pragma once
#include <limits.h>
#include <math.h>

#include "emu/emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
// __shared__ is not defined, because FASTDS_SHARED and FASTDS_DYNAMIC_SHARED of core/launch.h declare shared memory.

// Vector types. They have CUDA's alignment, so that the undefined-behaviour sanitizer finds misaligned vector loads.
#define FASTDS_EMU_VECTORS(T, S, align2, align4)                                                   \
    struct alignas(align2) T##2 { S x, y; };                                                       \
    struct T##3 { S x, y, z; };                                                                    \
    struct alignas(align4) T##4 { S x, y, z, w; };                                                 \
    inline T##2 make_##T##2(S x, S y) { return {x, y}; }                                           \
    inline T##3 make_##T##3(S x, S y, S z) { return {x, y, z}; }                                   \
    inline T##4 make_##T##4(S x, S y, S z, S w) { return {x, y, z, w}; }
#define uint3 fastds_emu_uint3  // avoids a conflict with the emulator's own uint3
FASTDS_EMU_VECTORS(float, float, 8, 16)
FASTDS_EMU_VECTORS(double, double, 16, 16)
FASTDS_EMU_VECTORS(int, int, 8, 16)
FASTDS_EMU_VECTORS(uint, unsigned, 8, 16)
FASTDS_EMU_VECTORS(short, short, 4, 8)
FASTDS_EMU_VECTORS(ushort, unsigned short, 4, 8)
#undef uint3
#undef FASTDS_EMU_VECTORS

#define __syncthreads() ::fastds::emu::emulator.barrier({__FILE__, __LINE__})
#define __syncthreads_or(value) ::fastds::emu::sync_count({__FILE__, __LINE__}, value, 0)
#define __syncthreads_and(value) ::fastds::emu::sync_count({__FILE__, __LINE__}, value, 1)
#define __syncthreads_count(value) ::fastds::emu::sync_count({__FILE__, __LINE__}, value, 2)
#define __syncwarp(...) ::fastds::emu::SyncWarp{{__FILE__, __LINE__}}(__VA_ARGS__)
#define __shfl_sync(...) ::fastds::emu::shuffle({__FILE__, __LINE__}, __VA_ARGS__)
#define __shfl_up_sync(...) ::fastds::emu::shuffle_up({__FILE__, __LINE__}, __VA_ARGS__)
#define __shfl_down_sync(...) ::fastds::emu::shuffle_down({__FILE__, __LINE__}, __VA_ARGS__)
#define __shfl_xor_sync(...) ::fastds::emu::shuffle_xor({__FILE__, __LINE__}, __VA_ARGS__)
#define __ballot_sync(mask, value) ::fastds::emu::emulator.ballot({__FILE__, __LINE__}, mask, value)
#define __any_sync(mask, value) (::fastds::emu::emulator.ballot({__FILE__, __LINE__}, mask, value) != 0)
#define __all_sync(mask, value) (::fastds::emu::emulator.ballot({__FILE__, __LINE__}, mask, !(value)) == 0)

namespace fastds {
namespace emu {

struct SyncWarp {
    Site site;
    void operator()(unsigned mask = 0xffffffffu) const { emulator.collective(site, mask, 0, -1); }
};

template <class T>
T exchange(Site site, unsigned mask, T value, int source) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "warp shuffles move 4 or 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    bits = emulator.collective(site, mask, bits, source);
    memcpy(&value, &bits, sizeof(T));
    return value;
}

// Warp shuffles within segments of `width` lanes. The CUDA programming guide specifies the results at the ends of a segment.
template <class T>
T shuffle(Site site, unsigned mask, T value, int source, int width = 32) {
    return exchange(site, mask, value, (emulator.lane() & ~(width - 1)) | (source & (width - 1)));
}
template <class T>
T shuffle_up(Site site, unsigned mask, T value, unsigned delta, int width = 32) {
    const int lane = emulator.lane(), source = lane - static_cast<int>(delta);
    return exchange(site, mask, value, source < (lane & ~(width - 1)) ? lane : source);
}
template <class T>
T shuffle_down(Site site, unsigned mask, T value, unsigned delta, int width = 32) {
    const int lane = emulator.lane(), source = lane + static_cast<int>(delta);
    return exchange(site, mask, value, source > (lane | (width - 1)) ? lane : source);
}
template <class T>
T shuffle_xor(Site site, unsigned mask, T value, int lane_mask, int width = 32) {
    const int lane = emulator.lane(), source = lane ^ lane_mask;
    return exchange(site, mask, value, source > (lane | (width - 1)) ? lane : source);
}

// Reduces a value over the threads of the block. what: 0 for or, 1 for and, 2 for count.
inline int sync_count(Site site, int value, int what) {
    static char key;
    int& count = *static_cast<int*>(emulator.shared(&key, sizeof(int)));
    emulator.barrier(site);
    if (threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0) count = 0;
    emulator.barrier(site);
    count += value != 0;
    emulator.barrier(site);
    const int all = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
    return what == 0 ? count > 0 : what == 1 ? count == all : count;
}

// Atomic operations. Only one thread runs at a time, so that they need no synchronization.
template <class T, class F>
T atomic(T* address, const F& f) {
    const T old = *address;
    *address = f(old);
    return old;
}

}  // namespace emu
}  // namespace fastds

#define FASTDS_EMU_ATOMICS(T)                                                                                           \
    inline T atomicAdd(T* p, T v) { return fastds::emu::atomic(p, [=](T old) { return static_cast<T>(old + v); }); }     \
    inline T atomicExch(T* p, T v) { return fastds::emu::atomic(p, [=](T) { return v; }); }
#define FASTDS_EMU_INTEGER_ATOMICS(T)                                                                                    \
    FASTDS_EMU_ATOMICS(T)                                                                                               \
    inline T atomicMin(T* p, T v) { return fastds::emu::atomic(p, [=](T old) { return v < old ? v : old; }); }           \
    inline T atomicMax(T* p, T v) { return fastds::emu::atomic(p, [=](T old) { return v > old ? v : old; }); }           \
    inline T atomicOr(T* p, T v) { return fastds::emu::atomic(p, [=](T old) { return old | v; }); }                      \
    inline T atomicAnd(T* p, T v) { return fastds::emu::atomic(p, [=](T old) { return old & v; }); }                     \
    inline T atomicCAS(T* p, T expected, T v) {                                                                         \
        return fastds::emu::atomic(p, [=](T old) { return old == expected ? v : old; });                                \
    }
FASTDS_EMU_ATOMICS(float)
FASTDS_EMU_ATOMICS(double)
FASTDS_EMU_INTEGER_ATOMICS(int)
FASTDS_EMU_INTEGER_ATOMICS(unsigned)
FASTDS_EMU_INTEGER_ATOMICS(unsigned long long)
inline void atomicAdd(float4* p, float4 v) { p->x += v.x, p->y += v.y, p->z += v.z, p->w += v.w; }
#undef FASTDS_EMU_ATOMICS
#undef FASTDS_EMU_INTEGER_ATOMICS

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __trap() { abort(); }

template <class T>
inline T __ldg(const T* p) {
    return *p;
}
template <class T>
inline T __ldcs(const T* p) {
    return *p;
}
template <class T>
inline void __stcs(T* p, T value) {
    *p = value;
}

inline int __float_as_int(float v) {
    int bits;
    memcpy(&bits, &v, 4);
    return bits;
}
inline unsigned __float_as_uint(float v) { return static_cast<unsigned>(__float_as_int(v)); }
inline float __int_as_float(int bits) {
    float v;
    memcpy(&v, &bits, 4);
    return v;
}
inline float __uint_as_float(unsigned bits) { return __int_as_float(static_cast<int>(bits)); }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz(static_cast<unsigned>(v)); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1 / a; }
inline float __expf(float a) { return expf(a); }
inline float __logf(float a) { return logf(a); }
inline float __saturatef(float a) { return a > 0 ? (a < 1 ? a : 1) : 0; }
inline float rsqrtf(float a) { return 1 / sqrtf(a); }
inline double rsqrt(double a) { return 1 / sqrt(a); }

// CUDA defines min and max in the global namespace.
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline long min(long a, long b) { return a < b ? a : b; }
inline long max(long a, long b) { return a > b ? a : b; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
