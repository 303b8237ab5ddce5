// SPDX-License-Identifier: Apache-2.0
// For files compiled once. pybind11 turns std::invalid_argument into ValueError and std::runtime_error into RuntimeError.
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
