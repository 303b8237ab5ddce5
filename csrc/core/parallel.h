// SPDX-License-Identifier: Apache-2.0
// Index ranges, the partition of work into ranges, and parallel loops over them.
#pragma once
#include <stdint.h>

#include "core/isa.h"
#include "core/team.h"
#if FASTDS_TSAN
#include <thread>
#include <vector>
#else
#include <omp.h>
#endif

namespace fastds {
namespace FASTDS_ISA {
namespace {

inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

struct Range {
    int64_t begin, end;
};

// Partition of `count` items into the smallest number of parts of at most `most` items. count_parts() returns that number,
// get_part() one part; sizes differ by at most one.
inline int64_t count_parts(int64_t count, int64_t most) { return (count + most - 1) / most; }
inline Range get_part(int64_t count, int64_t parts, int64_t part) { return {count * part / parts, count * (part + 1) / parts}; }

// Divides a table of `rows` rows of `length` cells, counted row by row, among the threads, and returns the range of cells of
// one thread. A cell of row i costs first(i + 1) - first(i), where first(0) = 0. The total cost of each thread is nearly equal.
template <class First>
Range get_cells(int64_t rows, const First& first, int64_t length, int64_t threads, int64_t thread) {
    const auto begin_of = [&](int64_t thread) {
        const int64_t begin = first(rows) * length * thread / threads;
        int64_t row = 0;
        while (row < rows && first(row + 1) * length <= begin) row++;
        return row == rows ? rows * length : row * length + (begin - first(row) * length) / (first(row + 1) - first(row));
    };
    return {begin_of(thread), begin_of(thread + 1)};
}

// Splits a range of table cells, counted row by row, into rectangles: a part of a row, whole rows, a part of a row. Calls
// body(rows, columns) for each rectangle.
template <class Body>
inline void for_rectangles(Range cells, int64_t width, const Body& body) {
    while (cells.begin < cells.end) {
        const int64_t row = cells.begin / width, column = cells.begin % width, left = cells.end - cells.begin;
        const bool whole = column == 0 && left >= width;
        const Range rows{row, row + (whole ? left / width : 1)}, columns{column, min_of(column + left, width)};
        body(rows, columns);
        cells.begin += (rows.end - rows.begin) * (columns.end - columns.begin);
    }
}

// Calls work(i, count) once for each i in [0, count), where `count` <= `pieces` is the size of a team of threads.
// Builds with ThreadSanitizer use std::thread, because ThreadSanitizer reports the barriers of libgomp as races.
template <class Work>
inline void run_team(int64_t pieces, const Work& work) {
#if FASTDS_TSAN
    std::vector<std::thread> workers;
    for (int64_t i = 0; i < pieces; i++) workers.emplace_back([&, i] { work(i, pieces); });
    for (auto& worker : workers) worker.join();
#else
    const Team team = choose_team(pieces);
    if (team.threads == 1) {
        work(int64_t{0}, int64_t{1});
        return;
    }
    int64_t work_cpu = 0;
    Shares shares;
#pragma omp parallel num_threads(team.threads)
    {
        const int thread = omp_get_thread_num(), count = omp_get_num_threads();
        shares.enter(thread);
        const int64_t start_cpu = team.measured ? read_cpu_clock() : 0;
        for (int share = shares.claim(thread, count); share >= 0; share = shares.claim(thread, count))
            work(int64_t{share}, int64_t{count});
        if (team.measured) __atomic_fetch_add(&work_cpu, read_cpu_clock() - start_cpu, __ATOMIC_RELAXED);
        shares.leave(count, team.start);
    }
    report_team(team, work_cpu, shares.has_late_thread());
#endif
}

// Calls body(begin, end) for at most `threads` contiguous ranges that cover [0, n), one per thread and of nearly equal size.
// The result of a kernel must not depend on the boundaries of the ranges.
template <class Body>
inline void parallel_for(int64_t n, int threads, const Body& body) {
    const int64_t pieces = n < threads ? n : threads;
    if (pieces <= 1) {
        if (n > 0) body(int64_t{0}, n);
        return;
    }
    run_team(pieces, [&](int64_t i, int64_t count) {
        body(n * i / count, n * (i + 1) / count);
    });
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
