// SPDX-License-Identifier: Apache-2.0
#include "core/team.h"

#include "core/team_simulation.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <climits>
#include <cstdio>
#include <ctime>
#include <stdexcept>
#include <string>

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

namespace fastds {
namespace {

enum class Mode { automatic, all, one };

constexpr int64_t kWindow = 2'000'000;  // ns of parallel loops after which the durations are compared
constexpr int64_t kShort = 200'000;     // ns; longer loops are all measured
constexpr uint32_t kMeasuredShare = 4;  // one of this number of shorter loops is measured
constexpr double kMaxLate = 0.5;        // part of the duration of all loops, of loops in which a thread started late
constexpr int64_t kStall = 1'000'000;   // ns; a loop that waits longer for a thread has met another process on its core
constexpr int64_t kFactor = 4;
constexpr int64_t kFirstLook = 1'000'000, kLongestLook = 1'000'000'000;  // ns between readings of the number of running threads
constexpr int64_t kActiveWait = 20'000, kYield = 1'000'000;  // ns of waiting for other threads before a thread sleeps
constexpr int kPauses = 16;                                  // between readings of the clock

std::atomic<Mode> mode{Mode::automatic};

// A time during which loops run on one thread. It grows by kFactor if several threads are slower again after it, and shrinks by
// kFactor if they are not.
struct Pause {
    int64_t end = 0, length = kFirst;  // ns

    void update(bool slower, int64_t now) {
        if (now < end) return;
        if (slower) end = now + length;
        length = slower ? std::min(kFactor * length, kLongest) : std::max(length / kFactor, kFirst);
    }

    static constexpr int64_t kFirst = 20'000'000, kLongest = 1'000'000'000;
};

// Durations of the parallel loops of one thread, in ns. Earlier loops count less: the sums are divided by kFactor at each
// comparison.
struct Observed {
    double parallel = 0, single = 0;  // measured; CPU time, which is the duration on one thread
    double late_loops = 0;            // measured, of loops in which a thread started late
    double since = 0;                 // measured since the last comparison
    int64_t last = 0;                 // duration of the last loop
    uint32_t loops = 0;               // number of loops after short ones
    int64_t look = 0, wait = kFirstLook;  // time of the next reading of the number of running threads; ns between readings
    bool stalled = false;             // a loop waited for a thread for kStall since the last comparison
    bool resumed = false;             // a pause was ended early, and durations were not compared since
    Pause own, torch;                 // of the loops of this module and of torch
    int scopes = 0, threads = 0;      // depth of scopes; number of threads of the outermost one
    int mkl_threads = 0;              // of the thread before a scope changed it; 0: MKL's own default
    bool slow = false;                // several threads were slower in the last comparison
    bool changed = false;             // whether torch's number of threads is 1 instead of `threads`

    // Returns whether a loop that starts now runs on one thread. Ends the pauses early if has_idle_core(): the other processes
    // have ended or wait. If several threads are slower again, the next readings come at longer intervals, because the threads
    // may be slow for another reason, such as a quota.
    template <class Function>
    bool is_paused(int64_t now, const Function& has_idle_core) {
        if (now >= own.end) return false;
        if (now < look) return true;
        look = now + wait;
        if (!has_idle_core()) return true;
        own.end = torch.end = now;
        parallel = single = late_loops = since = 0;
        slow = false;
        resumed = true;
        return false;
    }

    // Returns whether the next loop on several threads is measured. The CPU clock takes some 0.2 us, so that only some of the
    // loops after short ones are: one of kMeasuredShare at irregular distances, because networks repeat their loops.
    bool is_measured() { return last > kShort || loops++ * 2654435769u < UINT32_MAX / kMeasuredShare; }

    // Adds a loop on several threads. Returns whether durations were compared.
    bool add(const Team& team, int64_t now, int64_t work_cpu, bool late) {
        const int64_t duration = now - team.start;
        last = duration;
        // Half of the work is the duration without a late thread. Loops that are not measured follow short ones.
        stalled |= late && duration - work_cpu / 2 > kStall;
        if (!team.measured) return false;
        parallel += duration;
        since += duration;
        single += work_cpu;
        if (late) late_loops += duration;
        if (since < kWindow) return false;
        own.update(parallel > single, now);
        // The kernels here compute the shares of late threads, so that several threads may still be faster. Torch waits for them.
        torch.update(stalled || late_loops > kMaxLate * parallel, now);
        slow = now < std::max(own.end, torch.end);
        wait = !slow ? kFirstLook : resumed ? std::min(kFactor * wait, kLongestLook) : wait;
        look = now + wait;
        resumed = false;
        parallel /= kFactor;
        single /= kFactor;
        late_loops /= kFactor;
        stalled = false;
        since = 0;
        return true;
    }
};

thread_local Observed observed;

std::atomic<void (*)(int)> set_openmp_threads{nullptr};
std::atomic<int (*)(int)> set_mkl_threads{nullptr};

int64_t read_clock() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void pause_core() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

// Sleeps until `value` is not `seen` any more, if `seen` is less than `count`.
void sleep_until_change(std::atomic<int>& value, int seen, int count) {
#if defined(__linux__)
    if (seen < count) syscall(SYS_futex, &value, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
#else
    if (seen < count) sched_yield();
#endif
}

// Returns the core on which the calling thread runs, or -1 where the operating system does not say it.
int get_core() {
#if defined(__linux__)
    return sched_getcpu();
#else
    return -1;
#endif
}

// Moves the calling thread to another core. It may return to the core later.
void leave_core([[maybe_unused]] int core) {
#if defined(__linux__)
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    cpu_set_t others = allowed;
    CPU_CLR(core, &others);
    if (CPU_COUNT(&others) == 0) return;
    if (sched_setaffinity(0, sizeof others, &others) == 0) sched_setaffinity(0, sizeof allowed, &allowed);
#endif
}

// Wakes the threads that sleep until `value` changes.
void wake_all([[maybe_unused]] std::atomic<int>& value) {
#if defined(__linux__)
    syscall(SYS_futex, &value, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
#endif
}

// Sets the number of threads of torch inside of a scope.
void adapt_torch(Observed& o, bool single) {
    const auto set = set_openmp_threads.load(std::memory_order_relaxed);
    if (!set || o.threads <= 1 || single == o.changed) return;
    set(single ? 1 : o.threads);
    if (const auto set_mkl = set_mkl_threads.load(std::memory_order_relaxed)) {
        const int before = set_mkl(single ? 1 : o.mkl_threads);
        if (single) o.mkl_threads = before;
    }
    o.changed = single;
}

// Returns whether fewer threads run or are ready to run on this machine than it has cores. Returns false if the file is missing
// or if this process may use only a part of the cores and another thread runs.
bool find_idle_core() {
    static const int file = open("/proc/loadavg", O_RDONLY | O_CLOEXEC);
    static const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    char text[64];
    const ssize_t length = file < 0 ? -1 : pread(file, text, sizeof text - 1, 0);
    int running = 0;
    if (length <= 0) return false;
    text[length] = 0;
    if (std::sscanf(text, "%*f %*f %*f %d/", &running) != 1) return false;
    bool all = false;
#if defined(__linux__)
    cpu_set_t allowed;
    all = sched_getaffinity(0, sizeof allowed, &allowed) == 0 && CPU_COUNT(&allowed) == cores;
#endif
    return running <= 1 || (all && running < cores);
}

}  // namespace

int64_t read_cpu_clock() {
    timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

Team choose_team(int64_t pieces) {
    const Mode now = mode.load(std::memory_order_relaxed);
    if (now == Mode::one) return {1, false, 0};
    const int64_t start = read_clock();
    if (now == Mode::all) return {static_cast<int>(pieces), false, start};
    const bool slow = observed.slow;
    if (observed.is_paused(start, find_idle_core)) return {1, false, start};
    if (slow != observed.slow && observed.scopes > 0) adapt_torch(observed, false);
    return {static_cast<int>(pieces), observed.is_measured(), start};
}

void report_team(const Team& team, int64_t work_cpu, bool late) {
    Observed& o = observed;
    if (o.add(team, read_clock(), work_cpu, late) && o.scopes > 0) adapt_torch(o, o.slow);
}

Shares::Shares() : first_core_(get_core()), taken_{}, late_(false), sleeping_(false), next_(0), left_(0) {}

void Shares::enter(int thread) {
    if (thread != 0 && first_core_ >= 0 && get_core() == first_core_) leave_core(first_core_);
}

int Shares::claim(int thread, int count) {
    if (count > kMost) {
        const int share = next_.fetch_add(1);
        return share < count ? share : -1;
    }
    for (int k = 0; k < count; k++) {
        const int share = thread + k < count ? thread + k : thread + k - count;
        if (taken_[share].load(std::memory_order_relaxed) || taken_[share].exchange(true)) continue;
        if (k > 0) late_.store(true, std::memory_order_relaxed);
        return share;
    }
    return -1;
}

void Shares::leave(int count, int64_t start) {
    if (left_.fetch_add(1) != count - 1)
        wait(count, start);
    else if (sleeping_.load())
        wake_all(left_);
}

bool Shares::has_late_thread() const { return late_.load(std::memory_order_relaxed); }

void Shares::wait(int count, int64_t start) {
    const int64_t begin = read_clock(), active_end = begin + kActiveWait + (begin - start) / 2, end = active_end + kYield;
    for (int left = left_.load(); left < count; left = left_.load()) {
        const int64_t now = read_clock();
        if (now < active_end) {
            for (int k = 0; k < kPauses && left_.load(std::memory_order_relaxed) < count; k++) pause_core();
        } else if (now < end) {
            sched_yield();
        } else {
            sleeping_.store(true);
            sleep_until_change(left_, left_.load(), count);
        }
    }
}

std::vector<std::pair<int, int>> simulate_teams(const std::vector<std::tuple<int64_t, int64_t, bool>>& loops) {
    Observed o;
    int64_t now = 1;
    std::vector<std::pair<int, int>> threads;
    for (const auto& [parallel, single, idle] : loops) {
        const bool paused = o.is_paused(now, [idle = idle] { return idle; });
        threads.push_back({paused ? 1 : 2, o.slow ? 1 : 2});
        const Team team{2, !paused && o.is_measured(), now};
        now += paused ? single : parallel;
        if (!paused) o.add(team, now, single, parallel > single);
    }
    return threads;
}

void begin_scope(int threads) {
    Observed& o = observed;
    if (o.scopes++ > 0) return;
    o.threads = threads;
    const Mode now = mode.load(std::memory_order_relaxed);
    adapt_torch(o, now == Mode::one || (o.slow && now == Mode::automatic));
}

void end_scope() {
    Observed& o = observed;
    if (--o.scopes == 0) adapt_torch(o, false);
}

int scope_threads() { return observed.scopes > 0 ? observed.threads : 0; }

void set_thread_functions(void (*set_openmp)(int), int (*set_mkl)(int)) {
    set_mkl_threads = set_mkl;
    set_openmp_threads = set_openmp;
}

void set_team_mode(const char* name) {
    const std::string given = name;
    if (given != "auto" && given != "all" && given != "one")
        throw std::invalid_argument("team mode must be auto, all or one, got " + given);
    mode = given == "auto" ? Mode::automatic : given == "all" ? Mode::all : Mode::one;
}

}  // namespace fastds
