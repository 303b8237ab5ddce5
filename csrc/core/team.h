// SPDX-License-Identifier: Apache-2.0
// The number of threads of a parallel loop on a machine that other processes use, too.
//
// A loop on several threads ends when the last thread has ended. If another process occupies a core, the operating system
// starts a thread up to 24 ms late, and the loop takes longer than on one thread. Therefore each thread that starts parallel
// loops compares their durations with estimates for one thread, and runs loops on one thread for a while if these are shorter.
// Inside of a scope (begin_scope), the parallel loops of torch in the same thread then run on one thread, too.
#pragma once
#include <stdint.h>

namespace fastds {

struct Team {
    int threads;
    bool measured;
    int64_t start;  // ns
};

// Returns the number of threads, 1 or `pieces`, of a parallel loop that begins now.
Team choose_team(int64_t pieces);

int64_t read_cpu_clock();  // CPU time of the calling thread in ns

// Reports the end of a parallel loop on several threads. If choose_team has set `measured`, work_cpu is the CPU time in ns of
// the work of all threads, without the time for which they wait.
void report_team(const Team& team, int64_t work_cpu);

// Between begin_scope and end_scope, this thread sets torch's number of OpenMP threads to 1 for a while if parallel loops
// waited for threads to start. end_scope restores the number, which begin_scope gets. Scopes may be nested.
void begin_scope(int threads);
void end_scope();
int scope_threads();  // the number of threads of the outermost scope, 0 outside of scopes

// Sets the function omp_set_num_threads of the OpenMP library that torch uses. Without it, scopes have no effect.
void set_openmp(void (*set)(int));

// "auto": as described above; "all": all threads in all loops; "one": one thread in all loops. For tests and benchmarks.
void set_team_mode(const char* name);

}  // namespace fastds
