// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <stdint.h>

#include "core/isa.h"
#if FASTDS_TSAN
#include <thread>
#include <vector>
#else
#include <omp.h>
#endif

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Calls body(begin, end) over [0, n) in at most `threads` contiguous pieces of equal size, one per thread. A kernel's result
// must not depend on where the pieces end. The TSan build uses std::thread: libgomp's own barriers look like races to TSan.
template <class Body>
inline void parallel_for(int64_t n, int threads, const Body& body) {
    const int64_t pieces = n < threads ? n : threads;
    if (pieces <= 1) {
        if (n > 0) body(int64_t{0}, n);
        return;
    }
#if FASTDS_TSAN
    std::vector<std::thread> workers;
    for (int64_t i = 0; i < pieces; i++) workers.emplace_back([&, i] { body(n * i / pieces, n * (i + 1) / pieces); });
    for (auto& worker : workers) worker.join();
#else
#pragma omp parallel num_threads(static_cast<int>(pieces))
    {
        const int64_t i = omp_get_thread_num(), count = omp_get_num_threads();
        body(n * i / count, n * (i + 1) / count);
    }
#endif
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
