// SPDX-License-Identifier: Apache-2.0
#include "core/team.h"

#include "core/team_simulation.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <ctime>
#include <stdexcept>
#include <string>

namespace fastds {
namespace {

enum class Mode { automatic, all, one };

constexpr int64_t kWindow = 2'000'000;  // ns of parallel loops after which the durations are compared
constexpr int64_t kShort = 50'000;      // ns; longer loops are all measured
constexpr int64_t kMeasuredShare = 4;   // one of this number of shorter loops is measured
constexpr int64_t kStall = 1'000'000;   // ns; a longer loop that is slower than on one thread waited for a thread to start
constexpr double kMaxStalled = 0.1;     // part of the duration of all loops
constexpr int64_t kFactor = 4;

std::atomic<Mode> mode{Mode::automatic};

// A time during which loops run on one thread. It grows by kFactor if several threads are slower again after it.
struct Pause {
    int64_t end = 0, length = kFirst;  // ns

    void update(bool slower, int64_t now) {
        if (slower) end = now + length;
        length = slower ? std::min(kFactor * length, kLongest) : std::max(length / kFactor, kFirst);
    }

    static constexpr int64_t kFirst = 20'000'000, kLongest = 1'000'000'000;
};

// Durations of the parallel loops of one thread, in ns. Earlier loops count less: the sums are divided by kFactor at each
// comparison.
struct Observed {
    double parallel = 0, single = 0;  // measured; CPU time, which is the duration on one thread
    double stalled = 0;               // measured, of loops that waited for a thread to start
    double since = 0;                 // measured since the last comparison
    int64_t last = 0, loops = 0;      // duration of the last loop; number of loops after short ones
    Pause own, torch;                 // of the loops of this module and of torch
    int scopes = 0, threads = 0;      // depth of scopes; number of threads of the outermost one
    bool slow = false;                // several threads were slower in the last comparison
    bool changed = false;             // whether torch's number of threads is 1 instead of `threads`

    // Returns whether a loop that starts now runs on one thread.
    bool is_paused(int64_t now) const { return now < own.end; }

    // Returns whether the next loop on several threads is measured. The CPU clock takes some 0.2 us, so that only some of the
    // loops after short ones are.
    bool is_measured() { return last > kShort || loops++ % kMeasuredShare == 0; }

    // Adds a loop on several threads. Returns whether durations were compared.
    bool add(const Team& team, int64_t now, int64_t work_cpu) {
        const int64_t duration = now - team.start;
        last = duration;
        if (!team.measured) return false;
        parallel += duration;
        since += duration;
        single += work_cpu;
        if (duration > kStall && duration > work_cpu) stalled += duration;
        if (since < kWindow) return false;
        own.update(parallel > single, now);
        torch.update(stalled > kMaxStalled * parallel, now);
        slow = now < std::max(own.end, torch.end);
        parallel /= kFactor;
        single /= kFactor;
        stalled /= kFactor;
        since = 0;
        return true;
    }
};

thread_local Observed observed;

std::atomic<void (*)(int)> set_openmp_threads{nullptr};

int64_t read_clock() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Sets the number of threads of torch inside of a scope.
void adapt_torch(Observed& o, bool single) {
    const auto set = set_openmp_threads.load(std::memory_order_relaxed);
    if (!set || o.threads <= 1 || single == o.changed) return;
    set(single ? 1 : o.threads);
    o.changed = single;
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
    if (now == Mode::all) return {static_cast<int>(pieces), false, 0};
    const int64_t start = read_clock();
    if (observed.is_paused(start)) return {1, false, start};
    return {static_cast<int>(pieces), observed.is_measured(), start};
}

void report_team(const Team& team, int64_t work_cpu) {
    if (team.start == 0) return;
    Observed& o = observed;
    if (o.add(team, read_clock(), work_cpu) && o.scopes > 0) adapt_torch(o, o.slow);
}

std::vector<int> simulate_teams(const std::vector<std::pair<int64_t, int64_t>>& loops) {
    Observed o;
    int64_t now = 1;
    std::vector<int> threads;
    for (const auto& [parallel, single] : loops) {
        const bool paused = o.is_paused(now);
        threads.push_back(paused ? 1 : 2);
        const Team team{2, !paused && o.is_measured(), now};
        now += paused ? single : parallel;
        if (!paused) o.add(team, now, single);
    }
    return threads;
}

void begin_scope(int threads) {
    Observed& o = observed;
    if (o.scopes++ > 0) return;
    o.threads = threads;
    adapt_torch(o, o.slow && mode.load(std::memory_order_relaxed) == Mode::automatic);
}

void end_scope() {
    Observed& o = observed;
    if (--o.scopes == 0) adapt_torch(o, false);
}

int scope_threads() { return observed.scopes > 0 ? observed.threads : 0; }

void set_openmp(void (*set)(int)) { set_openmp_threads = set; }

void set_team_mode(const char* name) {
    const std::string given = name;
    if (given != "auto" && given != "all" && given != "one")
        throw std::invalid_argument("team mode must be auto, all or one, got " + given);
    mode = given == "auto" ? Mode::automatic : given == "all" ? Mode::all : Mode::one;
}

}  // namespace fastds
