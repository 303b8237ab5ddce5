// SPDX-License-Identifier: Apache-2.0
#include "core/isa.h"

#include <atomic>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__linux__) && defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fastds {
namespace {

constexpr Isa kAll[] = {Isa::avx512, Isa::avx2, Isa::baseline};  // in order of preference

Isa select_best() {
    for (Isa candidate : kAll)
        if (isa_usable(candidate)) return candidate;
    return Isa::baseline;
}

std::atomic<Isa> selected{select_best()};

// Returns whether the processor has AMX with bfloat16 and the operating system permits this process to use the tile registers.
bool request_amx() {
#if defined(__linux__) && defined(__x86_64__)
    constexpr unsigned amx_bf16 = 1u << 22, amx_tile = 1u << 24, need = amx_bf16 | amx_tile;
    constexpr int request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & need) == need && syscall(SYS_arch_prctl, request, tile_data) == 0;
#else
    return false;
#endif
}

}  // namespace

const char* isa_name(Isa isa) {
#if defined(__aarch64__)
    const char* lowest = "neon";  // part of every 64-bit Arm processor
#else
    const char* lowest = "baseline";
#endif
    return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : lowest;
}

// Returns whether this build has code for `isa` and the processor can run it. Every processor with AVX2 and FMA also has F16C.
// The AVX-512 objects use bfloat16 dot products. A processor with AVX-512 but without these instructions, such as
// Skylake-X or Ice Lake, therefore runs the AVX2 objects.
bool isa_usable(Isa isa) {
#if FASTDS_BUILD_AVX512
    if (isa == Isa::avx512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512bf16") && isa_usable(Isa::avx2);
#endif
#if FASTDS_BUILD_AVX2
    if (isa == Isa::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return isa == Isa::baseline;
}

Isa isa() { return selected.load(std::memory_order_relaxed); }

void set_isa(const char* name) {
    if (std::strcmp(name, "auto") == 0) {
        selected = select_best();
        return;
    }
    for (Isa candidate : kAll) {
        if (std::strcmp(name, isa_name(candidate)) != 0) continue;
        if (!isa_usable(candidate))
            throw std::invalid_argument(std::string("set_isa: '") + name + "' is not available on this machine or in this build");
        selected = candidate;
        return;
    }
    throw std::invalid_argument(std::string("set_isa: expected auto, baseline, avx2, avx512 or, on Arm, neon, got '") + name + "'");
}

bool has_amx() {
    static const bool granted = request_amx();
    return granted && isa() == Isa::avx512;
}

bool is_intel() {
#if defined(__x86_64__)
    static const bool found = __builtin_cpu_is("intel");
    return found;
#else
    return false;
#endif
}

void require_vectors(const char* function) {
    if (isa() == Isa::baseline)
        throw std::runtime_error(std::string(function) + " has no code for the baseline instruction set in this build");
}

}  // namespace fastds
