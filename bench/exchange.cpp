// SPDX-License-Identifier: Apache-2.0
// Two threads of two processors that answer each other.
#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <thread>

namespace {

void stay_on(int processor) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(processor, &set);
  pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
}

}  // namespace

// Nanoseconds from a message to its answer, the mean of `count`.
extern "C" double exchange_ns(int count, int processor, int other_processor) {
  alignas(128) std::atomic<int> said{-1};
  const auto say_after = [&](int first) {
    for (int i = first; i < 2 * count; i += 2) {
      while (said.load(std::memory_order_acquire) != i) {
      }
      said.store(i + 1, std::memory_order_release);
    }
  };
  double seconds = 0;
  std::thread one([&] {
    stay_on(processor);
    while (said.load() != 0) {
    }
    const auto start = std::chrono::steady_clock::now();
    say_after(0);
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  });
  std::thread other([&] {
    stay_on(other_processor);
    said.store(0);
    say_after(1);
  });
  one.join();
  other.join();
  return 1e9 * seconds / count;
}
