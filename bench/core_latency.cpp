// SPDX-License-Identifier: Apache-2.0
// Latency of messages between two threads, each pinned to one processor.
#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <thread>

namespace {

void pin_to(int processor) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(processor, &set);
  pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
}

}  // namespace

// Returns the mean nanoseconds from a message to its answer over `count` pairs of messages.
extern "C" double core_latency_ns(int count, int processor, int other_processor) {
  alignas(128) std::atomic<int> message{-1};
  // Answers every second message, beginning with `first`.
  const auto exchange_from = [&](int first) {
    for (int i = first; i < 2 * count; i += 2) {
      while (message.load(std::memory_order_acquire) != i) {
      }
      message.store(i + 1, std::memory_order_release);
    }
  };
  double seconds = 0;
  std::thread one([&] {
    pin_to(processor);
    while (message.load() != 0) {
    }
    const auto start = std::chrono::steady_clock::now();
    exchange_from(0);
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  });
  std::thread other([&] {
    pin_to(other_processor);
    message.store(0);
    exchange_from(1);
  });
  one.join();
  other.join();
  return 1e9 * seconds / count;
}
