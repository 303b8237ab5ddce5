// SPDX-License-Identifier: Apache-2.0
// Argument and CUDA checks for files that are compiled once. pybind11 converts std::invalid_argument to ValueError and
// std::runtime_error to RuntimeError.
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
