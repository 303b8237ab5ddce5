// SPDX-License-Identifier: Apache-2.0
// Instruction sets and dispatch. Each file csrc/*/cpu*.cpp is compiled once per instruction set, with FASTDS_ISA defined as the
// name of its namespace (baseline, avx2, avx512). All other files are compiled once.
//
// Rule for the files compiled per instruction set: all code is in the namespace fastds::FASTDS_ISA, helpers are in an anonymous
// namespace inside it, and nothing from the C++ standard library is used. An inline function or template with external linkage
// becomes a weak symbol, and the linker keeps an arbitrary one of its copies. A processor without AVX-512 could then run
// AVX-512 code.
#pragma once
#if FASTDS_EMU
#include <stdexcept>
#endif

#ifndef FASTDS_ISA
#define FASTDS_ISA once
#endif

#if defined(__CUDACC__)
#define FASTDS_HD __host__ __device__ __forceinline__
#else
#define FASTDS_HD inline __attribute__((always_inline))
#endif

namespace fastds {

enum class Isa { baseline, avx2, avx512 };  // on 64-bit Arm the name of baseline is "neon"

// Returns the instruction set that FASTDS_DISPATCH uses: the best one that this processor and this build support, or the one
// set by set_isa().
#if FASTDS_EMU
inline Isa isa() { return Isa::baseline; }
#else
Isa isa();
#endif
const char* isa_name(Isa isa);
bool isa_usable(Isa isa);
void set_isa(const char* name);  // "auto" or a name that isa_name() returns
#if FASTDS_EMU
inline bool has_amx() { return false; }
#else
bool has_amx();  // AMX with bfloat16 is usable and isa() is avx512
#endif
bool is_intel();  // the processor is made by Intel
void require_vectors(const char* function);  // throws std::runtime_error if isa() is baseline

}  // namespace fastds

// FASTDS_EMU is defined in test builds that run an op's CUDA kernels on the CPU (emu/emulator.h). setup.py defines
// FASTDS_BUILD_AVX2 and FASTDS_BUILD_AVX512 if the compiler supports the flags.
#if FASTDS_BUILD_AVX512 && !FASTDS_BUILD_AVX2
#error "an AVX-512 build also needs the AVX2 build"
#elif FASTDS_EMU
#define FASTDS_PER_ISA(declaration) \
    namespace baseline { declaration; }
#define FASTDS_DISPATCH(function, ...) \
    ([&]() -> decltype(baseline::function(__VA_ARGS__)) { throw std::logic_error(#function " is not available in the emulator"); }())
#elif FASTDS_BUILD_AVX512
#define FASTDS_PER_ISA(declaration)      \
    namespace baseline { declaration; }  \
    namespace avx2 { declaration; }      \
    namespace avx512 { declaration; }
#define FASTDS_DISPATCH(function, ...)                                       \
    (::fastds::isa() == ::fastds::Isa::avx512 ? avx512::function(__VA_ARGS__) \
     : ::fastds::isa() == ::fastds::Isa::avx2 ? avx2::function(__VA_ARGS__)   \
                                              : baseline::function(__VA_ARGS__))
#elif FASTDS_BUILD_AVX2
#define FASTDS_PER_ISA(declaration)      \
    namespace baseline { declaration; }  \
    namespace avx2 { declaration; }
#define FASTDS_DISPATCH(function, ...) \
    (::fastds::isa() == ::fastds::Isa::avx2 ? avx2::function(__VA_ARGS__) : baseline::function(__VA_ARGS__))
#else
#define FASTDS_PER_ISA(declaration) \
    namespace baseline { declaration; }
#define FASTDS_DISPATCH(function, ...) baseline::function(__VA_ARGS__)
#endif

// Dispatch for ops whose float64 code is compiled only into the baseline objects, because float64 is used only for checks.
// `is_double` is true for float64.
#if FASTDS_EMU
#define FASTDS_DISPATCH_TYPED(is_double, function, ...) FASTDS_DISPATCH(function, __VA_ARGS__)
#else
#define FASTDS_DISPATCH_TYPED(is_double, function, ...) \
    ((is_double) ? baseline::function(__VA_ARGS__) : FASTDS_DISPATCH(function, __VA_ARGS__))
#endif

// Dispatch for the ops in VECTOR_OPS of setup.py, which have no baseline object if the AVX2 objects are built. Throws if the
// instruction set is forced to baseline.
#if FASTDS_EMU || !FASTDS_BUILD_AVX2
#define FASTDS_DISPATCH_VECTOR(function, ...) FASTDS_DISPATCH(function, __VA_ARGS__)
#elif FASTDS_BUILD_AVX512
#define FASTDS_DISPATCH_VECTOR(function, ...)                                   \
    (::fastds::isa() == ::fastds::Isa::avx512 ? avx512::function(__VA_ARGS__)   \
                                              : (::fastds::require_vectors(#function), avx2::function(__VA_ARGS__)))
#else
#define FASTDS_DISPATCH_VECTOR(function, ...) (::fastds::require_vectors(#function), avx2::function(__VA_ARGS__))
#endif
