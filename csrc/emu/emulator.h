// SPDX-License-Identifier: Apache-2.0
// Emulator that runs CUDA kernels on the CPU. It is used only by tests: tests/gpuless/emu.py builds it, and no installed module
// contains it.
//
// Blocks run one after another on one thread of the operating system. Each CUDA thread of a block is a fiber. A fiber runs
// until it returns or waits at a barrier or a warp collective; then the next fiber runs. If a kernel lacks a barrier, a fiber
// may therefore read values that are not yet written or already overwritten, so that the result is wrong. A seed determines the
// order of fibers and blocks, and which warps run slower than others, so that warps without a barrier between them drift apart.
// With seed 0 the order is ascending. Shared memory is allocated for each block and filled with 0xff bytes (NaN). Copies that do
// not block fill their destination with 0xff bytes when they start, and complete when their thread waits for them, or, if they
// arrive at a barrier, at some later time. The emulator does not model the memory order inside a warp or between atomics, nor
// threads that spin on a value of another thread.
#pragma once
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <map>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace fastds {
namespace emu {

struct Site {  // source position at which a thread waits
    const char* file;
    int line;
    bool operator==(const Site& other) const { return line == other.line && strcmp(file, other.file) == 0; }
    std::string text() const { return std::string(file) + ":" + std::to_string(line); }
};

enum class State { ready, at_barrier, at_collective, at_named, at_phase, returned };

struct Fiber {
    ucontext_t context;
    State state;
    Site site;
    uint3 index;
    // State of a warp collective: the participating lanes, the value that this lane gives, the lane that it reads, and the
    // value that it receives.
    unsigned mask;
    int source;
    uint64_t given, taken;
    int name, threads;                // of the named barrier at which the thread waits
    const uint64_t* phase_barrier;    // at which the thread waits, for a phase of this parity
    unsigned parity;
    unsigned waits;  // barriers and collectives at which the thread has waited
};

struct Launch {
    std::string kernel;
    dim3 grid, block;
    size_t shared_bytes;
};

class Emulator {
  public:
    uint64_t seed = 0;
    std::vector<Launch> launches;  // since the list was last cleared

    void launch(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread) {
        const std::lock_guard<std::mutex> lock(mutex_);
        launches.push_back({kernel, grid, block, shared_bytes});
        kernel_ = kernel;
        check_sizes(grid, block, shared_bytes);
        thread_ = &thread;
        gridDim = grid, blockDim = block;
        random_.seed(seed);
        const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
        std::vector<uint64_t> order(blocks);
        for (uint64_t i = 0; i < blocks; i++) order[i] = i;
        shuffle(order);
        for (const uint64_t i : order) {
            blockIdx = {unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / grid.x / grid.y)};
            run_block(shared_bytes);
        }
    }

    void barrier(Site site) { wait(State::at_barrier, site); }

    // A barrier of some of the threads, with a number from 1 to 15.
    void sync_named(Site site, int name, int threads) {
        Fiber& fiber = fibers_[current_];
        fiber.name = name, fiber.threads = threads;
        check_name(name, threads);
        wait(State::at_named, site);
    }
    void arrive_named(int name, int threads) {
        check_name(name, threads);
        arrived_[name] += 1;
    }

    // Barriers in shared memory, core/pipeline.h: bits 0 to 30 count missing arrivals, bits 31 to 61 hold the number of arrivals of
    // a phase, bit 63 is the parity of the current phase.
    void init_barrier(uint64_t* barrier, unsigned count) {
        if (count < 1) fail("a barrier needs at least one arrival");
        *barrier = count | uint64_t{count} << 31;
    }
    void arrive(uint64_t* barrier) {
        const uint64_t missing = *barrier & kCount, count = *barrier >> 31 & kCount;
        if (missing < 1 || missing > count || *barrier >> 62 & 1) fail("arrival at a barrier that is not initialised");
        *barrier = missing > 1 ? *barrier - 1 : (*barrier & ~kCount ^ kParity) | count;
    }
    void wait_for_phase(Site site, const uint64_t* barrier, unsigned parity) {
        Fiber& fiber = fibers_[current_];
        fiber.phase_barrier = barrier, fiber.parity = parity;
        wait(State::at_phase, site);
    }

    // Copies of 16 bytes to shared memory, of zeros if `from` is null. The destination is poisoned until the copy is complete.
    // Each call has code of its own, because emu/banks.h takes the accesses of one instruction together.
    __attribute__((always_inline)) void copy_async(void* to, const void* from) {
        if (!is_shared(to) || !is_shared(static_cast<char*>(to) + 15)) fail("a copy goes to " + name(current_) + " outside shared memory");
        if (reinterpret_cast<uint64_t>(to) % 16 != 0 || reinterpret_cast<uint64_t>(from) % 16 != 0) fail("misaligned copy");
        Copy copy{static_cast<char*>(to), {}};
        if (from != nullptr) memcpy(copy.bytes, from, 16);
        typedef int Words __attribute__((vector_size(16)));
        *static_cast<Words*>(to) = Words{-1, -1, -1, -1};  // one access of 16 bytes for emu/banks.h
        copies_[current_].back().push_back(copy);
    }
    void commit_copies() { copies_[current_].emplace_back(); }
    void wait_for_copies(unsigned pending) {
        auto& groups = copies_[current_];  // the last one is open
        while (groups.size() > pending + 1) {
            for (const Copy& copy : groups.front()) copy.complete();
            groups.erase(groups.begin());
        }
    }
    void arrive_after_copies(uint64_t* barrier) {
        arrivals_.push_back({barrier, {}});
        for (const auto& group : copies_[current_])
            arrivals_.back().copies.insert(arrivals_.back().copies.end(), group.begin(), group.end());
        copies_[current_].assign(1, {});
    }

    // Returns the value given by lane `source` of the warp, or all ones (NaN) if that lane does not take part.
    uint64_t collective(Site site, unsigned mask, uint64_t given, int source) {
        Fiber& fiber = fibers_[current_];
        if (!(mask >> (current_ % 32) & 1)) fail("thread " + name(current_) + " is not in its own warp mask at " + site.text());
        fiber.mask = mask, fiber.given = given, fiber.source = source;
        wait(State::at_collective, site);
        return fibers_[current_].taken;
    }

    // Returns a mask in which bit i is set if lane i of `mask` gave a value other than 0.
    unsigned ballot(Site site, unsigned mask, bool given) {
        collective(site, mask, given, kVotes);
        return static_cast<unsigned>(fibers_[current_].taken);
    }

    // Returns the values that all lanes of the full warp give, in the order of the lanes. They are valid until the next
    // collective of the warp.
    const uint64_t* of_all_lanes(Site site, uint64_t given) {
        collective(site, ~0u, given, kAll);
        return given_[current_ / 32];
    }

    // Called after each block; null: nothing. See emu/banks.h.
    void (*finish_block)(const std::string& kernel) = nullptr;

    unsigned thread() const { return current_; }
    unsigned waits() const { return fibers_[current_].waits; }
    bool is_shared(const void* address) const {
        for (unsigned i = 0; i < shared_count_; i++)
            if (address >= shared_[i].first && address < shared_[i].second) return true;
        return false;
    }

    int lane() const { return current_ % 32; }
    void* dynamic_shared() { return dynamic_.data; }
    void* shared(const void* site, size_t bytes) {
        auto& block = static_[site];
        if (block.data == nullptr) {
            block.allocate(bytes);
            add_shared(block.data, bytes);
        }
        return block.data;
    }

  private:
    static constexpr size_t kStack = 256 << 10, kGuard = 64 << 10;
    static constexpr unsigned kMostShared = 32, kSlowness = 4;
    static constexpr uint64_t kCount = 0x7fffffff, kParity = uint64_t{1} << 63;
    static constexpr int kVotes = -1, kAll = -2;  // special values of the source lane

    struct SharedBlock {
        char* data = nullptr;
        SharedBlock() = default;
        SharedBlock(const SharedBlock&) = delete;
        ~SharedBlock() { free(data); }
        void allocate(size_t bytes) {
            free(data);
            if (posix_memalign(reinterpret_cast<void**>(&data), 128, bytes > 0 ? bytes : 1) != 0) abort();
            memset(data, 0xff, bytes);
        }
    };

    void add_shared(const char* data, size_t bytes) {
        if (shared_count_ == kMostShared) fail("a kernel declares more variables in shared memory than the emulator lists");
        shared_[shared_count_] = {data, data + bytes};
        shared_count_++;
    }

    struct Copy {
        char* to;
        char bytes[16];
        __attribute__((no_sanitize_thread)) void complete() const { memcpy(to, bytes, 16); }
    };
    struct Arrival {  // at a barrier, after copies
        uint64_t* barrier;
        std::vector<Copy> copies;
    };

    void check_name(int name, int threads) const {
        if (name < 1 || name > 15 || threads % 32 != 0 || threads < 32) fail("named barriers have numbers 1 to 15 and whole warps");
    }

    template <class T>
    void shuffle(std::vector<T>& order) {
        if (seed != 0) std::shuffle(order.begin(), order.end(), random_);
    }

    [[noreturn]] void fail(const std::string& what) const {
        throw std::runtime_error("emulated CUDA: " + kernel_ + ": " + what);
    }

    std::string name(unsigned thread) const {
        const uint3 t = fibers_[thread].index;
        const auto triple = [](uint3 v) {
            return "(" + std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z) + ")";
        };
        return triple(t) + " of block " + triple(blockIdx);
    }

    void check_sizes(dim3 grid, dim3 block, size_t shared_bytes) const {
        const uint64_t threads = uint64_t{block.x} * block.y * block.z;
        if (threads < 1 || threads > 1024 || block.z > 64) fail("a block has 1 to 1024 threads, z at most 64");
        if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.x > INT32_MAX || grid.y > 65535 || grid.z > 65535)
            fail("a grid has 1 to 2^31 - 1 blocks along x and 1 to 65535 along y and z");
        if (shared_bytes > 227 * 1024) fail("a block has at most 227 KiB of shared memory");
    }

    // Stacks are reserved once. A guard page below each stack turns an overflow into a fault.
    void* stack(unsigned i) {
        if (stacks_ == nullptr) {
            void* memory = mmap(nullptr, 1024 * (kStack + kGuard), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (memory == MAP_FAILED) fail("no address space for the stacks of the threads");
            stacks_ = static_cast<char*>(memory);
        }
        char* bottom = stacks_ + i * (kStack + kGuard) + kGuard;
        if (i >= usable_stacks_) {
            if (mprotect(bottom, kStack, PROT_READ | PROT_WRITE) != 0) fail("no memory for the stacks of the threads");
            usable_stacks_ = i + 1;
        }
        return bottom;
    }

    void run_block(size_t shared_bytes) {
        const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
        dynamic_.allocate(shared_bytes);
        static_.clear();
        shared_count_ = 0;
        add_shared(dynamic_.data, shared_bytes);
        fibers_.resize(threads);
        order_.resize(threads);
        for (unsigned i = 0; i < threads; i++) {
            Fiber& fiber = fibers_[i];
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = stack(i);
            fiber.context.uc_stack.ss_size = kStack;
            fiber.context.uc_link = nullptr;
            const uint64_t self = reinterpret_cast<uint64_t>(this);
            makecontext(&fiber.context, reinterpret_cast<void (*)()>(&Emulator::enter), 2, static_cast<unsigned>(self >> 32),
                        static_cast<unsigned>(self));
            fiber.state = State::ready;
            fiber.waits = 0;
            fiber.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
            order_[i] = i;
        }
        error_.clear();
        copies_.assign(threads, std::vector<std::vector<Copy>>(1));
        arrivals_.clear();
        for (int& arrived : arrived_) arrived = 0;
        slow_.assign((threads + 31) / 32, false);
        if (seed != 0)
            for (size_t warp = 0; warp < slow_.size(); warp++) slow_[warp] = random_() % 2 == 0;
        for (unsigned round = 1;; round++) {
            shuffle(order_);
            const bool any = resume_ready(round % kSlowness == 0) || resume_ready(true);
            if (!error_.empty()) throw std::runtime_error(error_);
            if (!release_some(!any) && !any && !release_barrier()) break;
        }
        for (const auto& groups : copies_)
            for (const auto& group : groups)
                if (!group.empty()) fail("a thread returned before its copies were complete");
        if (finish_block != nullptr) finish_block(kernel_);
    }

    // Resumes the threads that wait for nothing, without slow warps unless `all`. Returns whether there are any.
    bool resume_ready(bool all) {
        bool any = false;
        for (const unsigned i : order_)
            if (fibers_[i].state == State::ready && (all || !slow_[i / 32])) resume(i), any = true;
        return any;
    }

    static void enter(unsigned high, unsigned low) {
        Emulator& self = *reinterpret_cast<Emulator*>(uint64_t{high} << 32 | low);
        self.arrived();
        try {
            (*self.thread_)();
        } catch (const std::exception& error) {
            if (self.error_.empty()) self.error_ = error.what();
        }
        self.fibers_[self.current_].state = State::returned;
        self.leave(true);
    }

    void wait(State state, Site site) {
        Fiber& fiber = fibers_[current_];
        fiber.state = state, fiber.site = site;
        fiber.waits++;
        leave(false);
        arrived();
    }

    // resume() switches from the scheduler to a fiber, leave() switches back, and arrived() is called in a fiber after a
    // switch. The calls of AddressSanitizer declare the stack in use.
    void resume(unsigned i) {
        current_ = i;
        threadIdx = fibers_[i].index;
#if defined(__SANITIZE_ADDRESS__)
        void* fake = nullptr;
        __sanitizer_start_switch_fiber(&fake, fibers_[i].context.uc_stack.ss_sp, kStack);
#endif
        swapcontext(&scheduler_, &fibers_[i].context);
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
    }
    void leave([[maybe_unused]] bool for_good) {
#if defined(__SANITIZE_ADDRESS__)
        void* fake = nullptr;
        __sanitizer_start_switch_fiber(for_good ? nullptr : &fake, scheduler_stack_, scheduler_stack_size_);
#endif
        swapcontext(&fibers_[current_].context, &scheduler_);
    }
    void arrived() {
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack_, &scheduler_stack_size_);
#endif
    }

    // Completes what can go on without all threads of the block. Copies that arrive at barriers complete at random times, at the
    // latest when nothing else goes on (`idle`).
    bool release_some(bool idle) {
        const bool any = release_warps() | release_named() | complete_arrivals(false) | release_phases();
        return any || (idle && complete_arrivals(true) && (release_phases(), true));
    }

    bool complete_arrivals(bool all) {
        std::vector<Arrival> later;
        const size_t before = arrivals_.size();
        shuffle(arrivals_);
        for (const Arrival& arrival : arrivals_) {
            if (!all && random_() % 2 == 0) {
                later.push_back(arrival);
                continue;
            }
            for (const Copy& copy : arrival.copies) copy.complete();
            arrive(arrival.barrier);
        }
        arrivals_ = later;
        return arrivals_.size() < before;
    }

    bool release_phases() {
        bool any = false;
        for (Fiber& fiber : fibers_)
            if (fiber.state == State::at_phase && (*fiber.phase_barrier >> 63) != fiber.parity) fiber.state = State::ready, any = true;
        return any;
    }

    bool release_named() {
        bool any = false;
        for (int name = 1; name < 16; name++) {
            int present = arrived_[name], threads = 0;
            for (const Fiber& fiber : fibers_) {
                if (fiber.state != State::at_named || fiber.name != name) continue;
                if (threads != 0 && threads != fiber.threads) fail("threads wait at a named barrier with different numbers of threads");
                present++, threads = fiber.threads;
            }
            if (threads == 0 || present < threads) continue;
            if (present > threads) fail("more threads than expected arrive at the named barrier " + std::to_string(name));
            arrived_[name] = 0, any = true;
            for (Fiber& fiber : fibers_)
                if (fiber.state == State::at_named && fiber.name == name) fiber.state = State::ready;
        }
        return any;
    }

    // Completes each collective at which all lanes of its mask wait, with the same mask; lanes that have returned are ignored.
    // Returns whether a collective was completed.
    bool release_warps() {
        bool any = false;
        const unsigned threads = static_cast<unsigned>(fibers_.size());
        for (unsigned first = 0; first < threads; first += 32) {
            const unsigned lanes = std::min(32u, threads - first);
            for (unsigned i = first; i < first + lanes; i++) {
                const Fiber& leader = fibers_[i];
                if (leader.state != State::at_collective) continue;
                bool complete = true;
                for (unsigned l = 0; l < lanes; l++) {
                    const Fiber& other = fibers_[first + l];
                    if (!(leader.mask >> l & 1) || other.state == State::returned) continue;
                    complete &= other.state == State::at_collective && other.mask == leader.mask && other.site == leader.site;
                }
                if (!complete) continue;
                finish_collective(first, lanes, leader.mask);
                any = true;
            }
        }
        return any;
    }

    void finish_collective(unsigned first, unsigned lanes, unsigned mask) {
        const auto takes_part = [&](unsigned l) {
            return l < lanes && (mask >> l & 1) && fibers_[first + l].state == State::at_collective;
        };
        unsigned votes = 0, present = 0;
        for (unsigned l = 0; l < lanes; l++)
            if (takes_part(l)) votes |= unsigned{fibers_[first + l].given != 0} << l, present |= 1u << l;
        for (unsigned l = 0; l < lanes; l++) {
            if (!takes_part(l)) continue;
            given_[first / 32][l] = fibers_[first + l].given;
            Fiber& fiber = fibers_[first + l];
            if (fiber.source == kAll && present != ~0u) fail("thread " + name(first + l) + waiting(fiber) + " without its whole warp");
            const unsigned source = static_cast<unsigned>(fiber.source);
            fiber.taken = fiber.source < 0 ? votes : takes_part(source) ? fibers_[first + source].given : ~uint64_t{0};
        }
        for (unsigned l = 0; l < lanes; l++)
            if (takes_part(l)) fibers_[first + l].state = State::ready;
    }

    // Releases the barrier at which all threads wait. Returns false if all threads have returned, and throws if the threads
    // wait at different positions.
    bool release_barrier() {
        unsigned returned = 0, first = 0;
        for (const Fiber& fiber : fibers_) returned += fiber.state == State::returned;
        if (returned == fibers_.size()) return false;
        while (fibers_[first].state == State::returned) first++;
        for (unsigned i = 0; i < fibers_.size(); i++) {
            const Fiber &a = fibers_[first], &b = fibers_[i];
            if (a.state == State::at_barrier && b.state == State::at_barrier && a.site == b.site) continue;
            if (i == first) continue;
            fail("divergent barrier: thread " + name(first) + waiting(a) + ", but thread " + name(i) + waiting(b));
        }
        if (fibers_[first].state != State::at_barrier) fail("thread " + name(first) + waiting(fibers_[first]) + " for ever");
        for (Fiber& fiber : fibers_) fiber.state = State::ready;
        return true;
    }

    static std::string waiting(const Fiber& fiber) {
        switch (fiber.state) {
            case State::returned: return " has returned";
            case State::at_barrier: return " waits at the barrier " + fiber.site.text();
            case State::at_named: return " waits at the named barrier " + fiber.site.text();
            case State::at_phase: return " waits for the phase of a barrier " + fiber.site.text();
            default: return " waits at the warp collective " + fiber.site.text();
        }
    }

    std::mutex mutex_;
    std::string kernel_, error_;
    std::mt19937_64 random_;
    const std::function<void()>* thread_ = nullptr;
    std::vector<Fiber> fibers_;
    std::vector<unsigned> order_;
    std::vector<bool> slow_;  // warps that run once in kSlowness rounds
    std::vector<std::vector<std::vector<Copy>>> copies_;  // by thread and group; the last group of a thread is open
    std::vector<Arrival> arrivals_;                       // whose copies are not complete
    int arrived_[16];                                     // threads that arrived at named barriers without waiting
    uint64_t given_[32][32];  // values of the last collective of each warp
    unsigned current_ = 0, usable_stacks_ = 0;
    ucontext_t scheduler_;
    char* stacks_ = nullptr;
    SharedBlock dynamic_;
    std::map<const void*, SharedBlock> static_;
    std::pair<const char*, const char*> shared_[kMostShared];  // begin and end of dynamic_ and of each of static_
    unsigned shared_count_ = 0;
    const void* scheduler_stack_ = nullptr;
    size_t scheduler_stack_size_ = 0;
};

inline Emulator emulator;

}  // namespace emu
}  // namespace fastds
