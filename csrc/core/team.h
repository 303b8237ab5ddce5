// SPDX-License-Identifier: Apache-2.0
// The number of threads of a parallel loop on a machine that other processes use, too.
//
// A loop on several threads ends when the last thread has ended. If another process occupies a core, the operating system may
// start a thread several ms late. The other threads then compute its share of the work (Shares), but each loop still waits
// until the thread has run for a moment. Therefore each thread that starts parallel loops compares their durations with estimates
// for one thread, and runs loops on one thread for a while if these are shorter, or until a core is idle. Inside of a scope
// (begin_scope), the parallel loops of torch in the same thread run on one thread for a while if threads often start late.
#pragma once
#include <stdint.h>

#include <atomic>

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
// the work of all threads, without the time for which they wait. `late`: a thread had not started when another one had ended.
void report_team(const Team& team, int64_t work_cpu, bool late);

// The shares of the work of a parallel loop, one for each thread of its team. A thread computes its own share first and then
// shares of threads that have not started, so that the loop does not wait for the work of a thread that starts late. The thread
// that starts the loop is thread 0 and constructs the object. No function is inline, because code that is compiled for several
// instruction sets must not contain symbols that the linker merges.
class Shares {
public:
    static constexpr int kMost = 64;  // in larger teams the shares are taken in order, whichever thread is first

    Shares();

    // Called by each thread before its first share. Moves a thread away from the core of thread 0: an operating system that starts
    // a thread on the core of the thread that woke it leaves it there for several ms, even if other cores are idle.
    void enter(int thread);

    // Returns a share that no thread computes yet, for a thread of a team of `count` threads, or -1.
    int claim(int thread, int count);

    // Called by each thread of a team of `count` threads after its last share. Returns when all threads have called it. A thread
    // waits actively for a while, and then sleeps, so that the operating system can run the others on its core. The threads of
    // OpenMP, in contrast, wait actively for several ms, also on the core that the last thread needs. `start` is Team::start.
    void leave(int count, int64_t start);

    // Returns whether a thread computed the share of another one.
    bool has_late_thread() const;

private:
    void wait(int count, int64_t start);

    const int first_core_;  // of thread 0; -1 where the operating system does not say it
    std::atomic<bool> taken_[kMost];
    std::atomic<bool> late_, sleeping_;
    std::atomic<int> next_, left_;
};

// Between begin_scope and end_scope, this thread sets torch's number of OpenMP threads to 1 for a while if threads of parallel
// loops often started late. end_scope restores the number, which begin_scope gets. Scopes may be nested.
void begin_scope(int threads);
void end_scope();
int scope_threads();  // the number of threads of the outermost scope, 0 outside of scopes

// Sets the function omp_set_num_threads of the OpenMP library that torch uses. Without it, scopes have no effect. `set_mkl` is
// MKL_Set_Num_Threads_Local, or null where torch has no MKL: after a call of torch.set_num_threads, MKL has its own number.
void set_thread_functions(void (*set_openmp)(int), int (*set_mkl)(int));

// "auto": as described above; "all": all threads in all loops; "one": one thread in all loops, and in scopes in those of torch. For
// tests and benchmarks.
void set_team_mode(const char* name);

}  // namespace fastds
