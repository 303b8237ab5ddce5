// SPDX-License-Identifier: Apache-2.0
// Constants that describe the build, and checks of arguments and CUDA calls. The checks throw exceptions and are therefore only
// for files that are compiled once. pybind11 converts std::invalid_argument to ValueError and std::runtime_error to
// RuntimeError.
#pragma once
#include <stdexcept>
#include <string>

#define FASTDS_CHECK(condition, message) \
    do {                                 \
        if (!(condition)) throw std::invalid_argument(message); \
    } while (0)

#if defined(__CUDACC__)
#include <cuda_runtime_api.h>
#define FASTDS_CUDA_CHECK(call)                                                                       \
    do {                                                                                              \
        const cudaError_t status = (call);                                                            \
        if (status != cudaSuccess)                                                                    \
            throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(status) + " in " #call); \
    } while (0)
#endif

namespace fastds {

// Constants that describe the build. setup.py writes their definitions into the build folder, next to build.ninja.
extern const char* const build_source_hash;  // hash of csrc/ and setup.py, see fastds/_source_hash.py
extern const char* const build_compiler;
extern const char* const build_debug;       // value of FASTDS_DEBUG
extern const char* const build_cuda_archs;  // for example "80 90"; empty without CUDA

}  // namespace fastds
