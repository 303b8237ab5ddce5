// SPDX-License-Identifier: Apache-2.0
// Instruction sets. Every csrc/*/cpu*.cpp is compiled once per instruction set with FASTDS_ISA naming its namespace
// (baseline, avx2, avx512); everything else is compiled once.
//
// Contract of the files compiled per instruction set: all code sits in namespace fastds::FASTDS_ISA, helpers in an anonymous
// namespace inside it, and nothing comes from the C++ library. An inline function or template with external linkage would
// become a weak symbol, of which the linker keeps any one copy: then a baseline machine runs AVX-512 code.
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

enum class Isa { baseline, avx2, avx512 };  // on 64-bit Arm the baseline is called neon

// The instruction set that FASTDS_DISPATCH uses: the best one this machine and this build have, or the forced one.
Isa isa();
const char* isa_name(Isa isa);
bool isa_usable(Isa isa);
void set_isa(const char* name);  // "auto" or one of isa_name()
#if FASTDS_EMU
inline bool has_amx() { return false; }
#else
bool has_amx();  // matrix tiles for bfloat16, beside isa() avx512
#endif
bool is_intel();  // the processor
void need_vectors(const char* function);  // throws std::runtime_error where isa() is baseline

}  // namespace fastds

// FASTDS_EMU: a test build of an op's CUDA kernels alone, see emu/emulator.h.
// FASTDS_BUILD_AVX2 and FASTDS_BUILD_AVX512 come from setup.py: the compiler knew the flags.
#if FASTDS_BUILD_AVX512 && !FASTDS_BUILD_AVX2
#error "an AVX-512 build needs the AVX2 build beside it"
#elif FASTDS_EMU
#define FASTDS_PER_ISA(declaration) \
    namespace baseline { declaration; }
#define FASTDS_DISPATCH(function, ...) \
    ([&]() -> decltype(baseline::function(__VA_ARGS__)) { throw std::logic_error(#function " is not in the emulator"); }())
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

// Float64 is for checking: of the ops that dispatch by this its code stands in the baseline objects alone.
#if FASTDS_EMU
#define FASTDS_DISPATCH_TYPED(wide, function, ...) FASTDS_DISPATCH(function, __VA_ARGS__)
#else
#define FASTDS_DISPATCH_TYPED(wide, function, ...) \
    ((wide) ? baseline::function(__VA_ARGS__) : FASTDS_DISPATCH(function, __VA_ARGS__))
#endif

// The same for ops of which setup.py builds no baseline object beside the vector ones (VECTOR_OPS); refuses a forced baseline.
#if FASTDS_EMU || !FASTDS_BUILD_AVX2
#define FASTDS_DISPATCH_VECTOR(function, ...) FASTDS_DISPATCH(function, __VA_ARGS__)
#elif FASTDS_BUILD_AVX512
#define FASTDS_DISPATCH_VECTOR(function, ...)                                   \
    (::fastds::isa() == ::fastds::Isa::avx512 ? avx512::function(__VA_ARGS__)   \
                                              : (::fastds::need_vectors(#function), avx2::function(__VA_ARGS__)))
#else
#define FASTDS_DISPATCH_VECTOR(function, ...) (::fastds::need_vectors(#function), avx2::function(__VA_ARGS__))
#endif
