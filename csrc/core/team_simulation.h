// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <stdint.h>

#include <utility>
#include <vector>

namespace fastds {

// Returns the number of threads, 1 or 2, that choose_team would select for each of a sequence of loops, given as (duration on two
// threads, duration on one thread) in ns. For tests.
std::vector<int> simulate_teams(const std::vector<std::pair<int64_t, int64_t>>& loops);

}  // namespace fastds
