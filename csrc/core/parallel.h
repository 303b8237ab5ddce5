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

// Calls body(begin, end) for at most `threads` contiguous ranges that cover [0, n), one per thread and of nearly equal size.
// The result of a kernel must not depend on the boundaries of the ranges. Builds with ThreadSanitizer use std::thread, because
// it reports the barriers of libgomp as races.
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

// Calls body(next) once per thread. next() returns each of 0 .. n-1 once over all threads, then -1. This suits tasks of unequal
// cost. The assignment of tasks to threads varies between runs and must not change the result.
template <class Body>
inline void parallel_tasks(int64_t n, int threads, const Body& body) {
    int64_t taken = 0;
    const auto next = [&taken, n]() -> int64_t {
        const int64_t task = __atomic_fetch_add(&taken, 1, __ATOMIC_RELAXED);
        return task < n ? task : -1;
    };
    parallel_for(n < threads ? n : threads, threads, [&](int64_t, int64_t) { body(next); });
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
