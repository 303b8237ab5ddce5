// SPDX-License-Identifier: Apache-2.0
// Parts of kernels that load tiles into shared memory ahead of their use: copies that do not block, barriers of some of the threads
// of a block, and loads of matrices for core/mma.h. They run on sm_80 and newer.
#pragma once
#include "core/isa.h"
#include "core/launch.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// A barrier in shared memory. It completes a phase when `count` arrivals have been made, and starts the next one. Phases have
// the parities 0, 1, 0, ...
struct PhaseBarrier {
    uint64_t state;
};

#if FASTDS_EMU

FASTDS_HD void copy_async(void* to, const void* from, bool valid) { emu::emulator.copy_async(to, valid ? from : nullptr); }
inline void commit_copies() { emu::emulator.commit_copies(); }
template <int kPending>
void wait_for_copies() {
    emu::emulator.wait_for_copies(kPending);
}
inline void init_barrier(PhaseBarrier& barrier, unsigned count) { emu::emulator.init_barrier(&barrier.state, count); }
inline void arrive(PhaseBarrier& barrier) { emu::emulator.arrive(&barrier.state); }
inline void arrive_after_copies(PhaseBarrier& barrier) { emu::emulator.arrive_after_copies(&barrier.state); }
#define FASTDS_WAIT_FOR_PHASE(barrier, parity) ::fastds::emu::emulator.wait_for_phase({__FILE__, __LINE__}, &(barrier).state, parity)
#define FASTDS_SYNC_NAMED(name, threads) ::fastds::emu::emulator.sync_named({__FILE__, __LINE__}, name, threads)
#define FASTDS_ARRIVE_NAMED(name, threads) ::fastds::emu::emulator.arrive_named(name, threads)

inline void load_matrices(uint32_t (&to)[4], const void* row) {
    const emu::Site site{__FILE__, __LINE__};
    const uint64_t* rows = emu::emulator.of_all_lanes(site, reinterpret_cast<uint64_t>(row));
    const int lane = emu::emulator.lane();
    for (int i = 0; i < 4; i++)
        __builtin_memcpy(&to[i], reinterpret_cast<const char*>(rows[i * 8 + lane / 4]) + lane % 4 * 4, 4);
    emu::SyncWarp{site}();  // keeps the addresses until all lanes have read them
}

#else

// Code for older GPUs only has to compile; the host checks get_compiled_capability() before a launch.
#if __CUDA_ARCH__ >= 800
#define FASTDS_ASM_SM80(...) asm volatile(__VA_ARGS__)
#else
#define FASTDS_ASM_SM80(...) __trap()
#endif

__device__ __forceinline__ uint32_t get_shared_address(const void* at) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

// Starts the copy of 16 bytes from global to shared memory, or writes zeros if `valid` is false.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool valid) {
    FASTDS_ASM_SM80("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(get_shared_address(to)), "l"(from), "r"(valid ? 16 : 0)
                 : "memory");
}

// Ends a group of copies of this thread.
__device__ __forceinline__ void commit_copies() { FASTDS_ASM_SM80("cp.async.commit_group;" ::: "memory"); }

// Waits for the groups of copies of this thread except the last kPending. Other threads see the copies after a barrier.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
    FASTDS_ASM_SM80("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ void init_barrier(PhaseBarrier& barrier, unsigned count) {
    FASTDS_ASM_SM80("mbarrier.init.shared.b64 [%0], %1;" ::"r"(get_shared_address(&barrier)), "r"(count) : "memory");
}

__device__ __forceinline__ void arrive(PhaseBarrier& barrier) {
    FASTDS_ASM_SM80("{ .reg .b64 token; mbarrier.arrive.shared.b64 token, [%0]; }" ::"r"(get_shared_address(&barrier)) : "memory");
}

// Arrives when all copies that this thread has started are complete.
__device__ __forceinline__ void arrive_after_copies(PhaseBarrier& barrier) {
    FASTDS_ASM_SM80("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(get_shared_address(&barrier)) : "memory");
}

// Waits until the phase of this parity is complete. The barrier must not be more than one phase ahead.
__device__ __forceinline__ void wait_for_phase(PhaseBarrier& barrier, unsigned parity) {
    uint32_t complete = 0;
    while (complete == 0)
        FASTDS_ASM_SM80(
            "{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
            : "=r"(complete)
            : "r"(get_shared_address(&barrier)), "r"(parity)
            : "memory");
}

// Barrier `name`, 1 to 15, of `threads` threads of the block, a multiple of 32.
__device__ __forceinline__ void sync_named(int name, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

// Arrives at a named barrier without waiting.
__device__ __forceinline__ void arrive_named(int name, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(name), "r"(threads) : "memory");
}
#define FASTDS_WAIT_FOR_PHASE(barrier, parity) wait_for_phase(barrier, parity)
#define FASTDS_SYNC_NAMED(name, threads) sync_named(name, threads)
#define FASTDS_ARRIVE_NAMED(name, threads) arrive_named(name, threads)

// Loads four 8 x 8 matrices of 16-bit values. Lane l gives the address of row l % 8 of matrix l / 8 in shared memory, a multiple of
// 16 bytes. to[i] has the values 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of matrix i.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const void* row) {
    FASTDS_ASM_SM80("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(get_shared_address(row))
                 : "memory");
}

#undef FASTDS_ASM_SM80

#endif

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
