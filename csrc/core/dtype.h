// SPDX-License-Identifier: Apache-2.0
// Storage types and their conversions. Kernels load a storage type into its compute type (double for double, float for all
// others) and store with rounding to nearest even. Half and BFloat16 are defined here because the headers must compile with
// nvcc and also with g++ alone, which has no cuda_bf16.h.
#pragma once
#include <stdint.h>

#include "core/isa.h"

namespace fastds {

enum DType : int { f32 = 0, f64 = 1, f16 = 2, bf16 = 3 };

namespace FASTDS_ISA {
namespace {

struct Half {
    uint16_t bits;
};
struct BFloat16 {
    uint16_t bits;
};

template <class T>
struct ComputeType {
    using type = float;
};
template <>
struct ComputeType<double> {
    using type = double;
};
template <class T>
using compute_t = typename ComputeType<T>::type;

FASTDS_HD float bits_to_float(uint32_t bits) {
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}
FASTDS_HD uint32_t float_to_bits(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    return bits;
}

FASTDS_HD float load(float value) { return value; }
FASTDS_HD double load(double value) { return value; }
FASTDS_HD float load(BFloat16 value) { return bits_to_float(static_cast<uint32_t>(value.bits) << 16); }

FASTDS_HD float load(Half value) {
#if defined(__CUDA_ARCH__)
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
    return result;
#elif defined(__F16C__) && !defined(__CUDACC__)
    return __builtin_ia32_vcvtph2ps((__attribute__((vector_size(16))) short){(short)value.bits})[0];
#else
    const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
    const uint32_t magnitude = value.bits & 0x7fffu;
    if (magnitude >= 0x7c00u) return bits_to_float(sign | 0x7f800000u | (magnitude << 13));  // infinity or NaN
    // The factor 2^112 converts the exponent bias of half to that of float. The product is exact for normal and denormal
    // halves.
    return bits_to_float(sign | float_to_bits(bits_to_float(magnitude << 13) * 5.192296858534828e33f));
#endif
}

template <class T>
FASTDS_HD T store(compute_t<T> value);
template <>
FASTDS_HD float store<float>(float value) {
    return value;
}
template <>
FASTDS_HD double store<double>(double value) {
    return value;
}
template <>
FASTDS_HD BFloat16 store<BFloat16>(float value) {
#if __CUDA_ARCH__ >= 800
    BFloat16 result;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
#else
    const uint32_t bits = float_to_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};  // NaN stays NaN
    return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
#endif
}
template <>
FASTDS_HD Half store<Half>(float value) {
#if defined(__CUDA_ARCH__)
    Half result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
#elif defined(__F16C__) && !defined(__CUDACC__)
    return {static_cast<uint16_t>(
        __builtin_ia32_vcvtps2ph((__attribute__((vector_size(16))) float){value, 0.f, 0.f, 0.f}, 0)[0])};
#else
    const uint32_t bits = float_to_bits(value), magnitude = bits & 0x7fffffffu;
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
    if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};   // NaN
    if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // rounds to infinity
    if (magnitude < 0x38800000u) {  // Denormal half: adding 0.5 makes the float addition round at 2^-24.
        return {static_cast<uint16_t>(sign | (float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u))};
    }
    return {static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13))};
#endif
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds

// setup.py defines FASTDS_DOUBLE as 0 for the AVX2 and AVX-512 objects (see FASTDS_DISPATCH_TYPED). In these objects
// FASTDS_KERNEL_DTYPE_SWITCH has no case for float64.
#ifndef FASTDS_DOUBLE
#define FASTDS_DOUBLE 1
#endif

// Executes the statements with `scalar` defined as the storage type of `dtype`.
#define FASTDS_DTYPE_SWITCH(dtype, ...)                                  \
    switch (dtype) {                                                     \
        case ::fastds::f32: { using scalar = float; __VA_ARGS__; break; } \
        case ::fastds::f64: { using scalar = double; __VA_ARGS__; break; } \
        case ::fastds::f16: { using scalar = Half; __VA_ARGS__; break; } \
        case ::fastds::bf16: { using scalar = BFloat16; __VA_ARGS__; break; } \
    }
#if FASTDS_DOUBLE
#define FASTDS_KERNEL_DTYPE_SWITCH(dtype, ...) FASTDS_DTYPE_SWITCH(dtype, __VA_ARGS__)
#else
#define FASTDS_KERNEL_DTYPE_SWITCH(dtype, ...)                           \
    switch (dtype) {                                                     \
        case ::fastds::f32: { using scalar = float; __VA_ARGS__; break; } \
        case ::fastds::f16: { using scalar = Half; __VA_ARGS__; break; } \
        case ::fastds::bf16: { using scalar = BFloat16; __VA_ARGS__; break; } \
        default: break;                                                  \
    }
#endif
