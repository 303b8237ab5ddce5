#!/usr/bin/env bash
# Tests and benchmarks that need a GPU, in two calls: the first of at most five minutes, the second of at most seven. Each call
# builds _fastds in place and prints a table at the end. A part that fails or is stopped prints one line, and one for each
# failed test or row; the others go on.
#
#   bench/gpu_suite.sh [--call first|second|both] [--parts LIST] [--dry-run] [--out DIR]
#
# The first call answers which kernels are the fastest: counters of Nsight Compute (profile), then benchmark rows (bench) of
# deform_conv2d forward and backward by every kernel and by torchvision, of a convolution, cells and gates, and of networks.
# The second call has all tests, CUDA C++ under memcheck and racecheck, and the other benchmark rows (others). --parts
# replaces --call by a list of build, profile, bench, smoke, memcheck, tests, others and racecheck. Results are written row by
# row, so that a stopped call loses none.
# Requires python3 with torch >= 2.10 and triton, pytest, setuptools, ninja and nvcc; no network. The headers of pybind11
# come from the environment, or from torch. Logs, results (CSV) and the table go to DIR (build/gpu_suite by default); the
# results also go to bench/results/gpu.csv. --dry-run tests the script without a GPU: it compiles one binding, runs the
# tests and benchmarks on a CPU in tiny sizes, runs every row of a GPU with kernels that do nothing, and writes the results
# and the table.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() { sed -n '2,18s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
dry=0 call=first parts='' out=build/gpu_suite
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry=1 ;;
    --call) call=${2:?--call needs first, second or both}; shift ;;
    --parts) parts=${2:?--parts needs a list}; shift ;;
    --out) out=${2:?--out needs a folder}; shift ;;
    -h | --help) usage; exit 0 ;;
    *) echo "gpu_suite.sh: unknown argument $1" >&2; usage >&2; exit 2 ;;
  esac
  shift
done
first=build,profile,bench second=build,tests,memcheck,others,racecheck
case $call in
  first) call=$first total=295 ;; # seconds for all parts
  second) call=$second total=410 ;;
  both) call=$first,$second total=705 ;;
  *) echo "gpu_suite.sh: unknown call $call" >&2; exit 2 ;;
esac
[ -z "$parts" ] || total=600
parts=${parts:-$call}
for part in ${parts//,/ }; do
  case ,$first,$second,smoke, in
    *",$part,"*) ;;
    *) echo "gpu_suite.sh: unknown part $part" >&2; exit 2 ;;
  esac
done
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
python=$(command -v python3 || command -v python) || { echo "gpu_suite.sh: no python3" >&2; exit 2; }
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 TRITON_DEFAULT_FP_FUSION=1
failed=0
[ "$dry" = 0 ] || total=3600 # nothing is measured, and the machine may be busy

# run NAME SECONDS COMMAND...: runs a part, prints one line and writes the output to NAME.log.
run() {
  local name=$1 limit=$2 begin=$SECONDS code=0
  shift 2
  case ,$parts, in *",$name,"*) ;; *) return 0 ;; esac
  [ "$dry" = 0 ] || limit=900
  [ "$limit" -le $((total - SECONDS)) ] || limit=$((total - SECONDS))
  [ "$limit" -gt 10 ] || { failed=$((failed + 1)); echo "FAILED  $name: no time is left"; return; }
  timeout -s INT -k 10 "$limit" "$@" >"$out/$name.log" 2>&1 || code=$?
  if [ "$code" = 0 ]; then
    echo "ok      $name ($((SECONDS - begin)) s): $(summary "$name")"
  else
    failed=$((failed + 1))
    [ "$code" = 124 ] && code="124, stopped after $limit s"
    echo "FAILED  $name ($((SECONDS - begin)) s, exit status $code): $(summary "$name") [$out/$name.log]"
  fi
}

# summary NAME: the line of a log with the result of pytest, of a sanitizer or of the benchmarks, or the last line.
summary() {
  local found
  found=$(grep -E '(passed|failed|error|skipped|deselected).* in [0-9]|ERROR SUMMARY|RACECHECK SUMMARY|rows in .*failed|collected' \
    "$out/$1.log" | tail -n 1)
  [ -n "$found" ] || found=$(grep -vE '^[[:space:]]*$' "$out/$1.log" | tail -n 1)
  printf '%s' "${found:0:300}"
}

# headers [torch]: makes setup.py find the headers of pybind11 that torch ships, if pybind11 is not installed or for "torch".
headers() {
  [ "${1:-}" = torch ] || ! "$python" -c 'import pybind11' 2>/dev/null || return 0
  mkdir -p "$out/pybind11_of_torch"
  "$python" - "$out/pybind11_of_torch/pybind11.py" <<'PYTHON'
import importlib.util, pathlib, sys
include = pathlib.Path(importlib.util.find_spec("torch").origin).parent / "include"
assert (include / "pybind11" / "pybind11.h").is_file(), f"no pybind11 and no headers in {include}"
pathlib.Path(sys.argv[1]).write_text(f"def get_include():\n    return {str(include)!r}\n")
PYTHON
  export PYTHONPATH="$out/pybind11_of_torch:$PYTHONPATH"
}

build() {
  if [ "$dry" = 1 ]; then
    local source flags
    for source in environment torch; do
      headers $source || return
      flags=$("$python" -c '
import sysconfig, pybind11
print("-isystem", sysconfig.get_path("include"), "-isystem", pybind11.get_include())') || return
      # shellcheck disable=SC2086
      g++ -std=c++17 -fsyntax-only -DFASTDS_BUILD_CUDA=0 -Icsrc $flags -x c++ csrc/null_op/bind.h || return
    done
    echo "one binding compiles with pybind11's own headers and with those of torch"
    return
  fi
  headers || return
  FASTDS_CUDA_ARCHS=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())') || return
  FASTDS_CUDA=1 FASTDS_CUDA_ARCHS=$FASTDS_CUDA_ARCHS MAX_JOBS=$(nproc) "$python" setup.py -q build_ext --inplace &&
    "$python" -m fastds.info
}

# gpu_tests OPTIONS...: runs tests/gpu by pytest, under the command $checker if it is set. Each process has one thread, because
# as many processes as cores compile kernels.
gpu_tests() {
  export OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1
  # shellcheck disable=SC2086
  ${checker:-} "$python" -m pytest -v -p no:cacheprovider -o addopts=--import-mode=importlib -o faulthandler_timeout=60 -ra --durations=5 \
    "$@" tests/gpu
}

# processes MAX: prints the option of pytest for several processes if xdist is installed.
processes() { "$python" -c 'import xdist' 2>/dev/null && echo "-n$(($(nproc) < $1 ? $(nproc) : $1))"; }

smoke() {
  [ "$dry" = 0 ] || { FASTDS_GPU_DRY_RUN=1 gpu_tests --collect-only -q -m smoke; return; }
  gpu_tests -m smoke $(processes 8)
}

tests() {
  # On CPU tensors; tests outside of tests/gpu compare the CPU kernels with references.
  [ "$dry" = 1 ] && {
    local long='agrees_with_reference or many_tiles or small or gradcheck or training_step or deterministic or same_bits'
    FASTDS_GPU_DRY_RUN=1 gpu_tests -k "not ($long or preciplstm or trajgru)"
    return
  }
  gpu_tests $(processes 12)
}

# sanitizer TOOL: runs the tests marked "sanitize" under compute-sanitizer, without torch's caching of allocations, so that
# accesses out of bounds are found. Tests that start Triton kernels are left out, and for racecheck those of kernels with a
# window: racecheck reports false races of asynchronous copies.
sanitizer() {
  local left_out='triton or implicit_gemm or epilogues or window_attention2d or guided'
  [ "$1" = memcheck ] || left_out+=' or test_window'
  local options=(-m sanitize -k "not ($left_out)")
  if [ "$dry" = 1 ]; then
    [ "$1" = memcheck ] || { echo "would run the tests that memcheck runs"; return; }
    gpu_tests --collect-only -q "${options[@]}"
    return
  fi
  local tool
  tool=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | tail -n 1)
  [ -n "$tool" ] || { echo "there is no compute-sanitizer on PATH or in /usr/local/cuda"; return 1; }
  local checker="$tool --tool $1 --error-exitcode 9 --print-limit 20"
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 gpu_tests "${options[@]}"
}

# bench ROWS SECONDS: runs a part of the benchmark rows and writes ROWS.csv.
bench() {
  local options=(--rows "$1" --seconds "$2")
  if [ "$dry" = 1 ]; then
    "$python" -m bench.gpu_bench --rows "$1" --device none --seconds 800 --out "$out/$1_none.csv" || return
    options=(--rows "$1" --device cpu --seconds 800)
  fi
  rm -f "$out/$1.csv"
  OMP_NUM_THREADS=$(nproc) TORCHINDUCTOR_COMPILE_THREADS=1 "$python" -m bench.gpu_bench "${options[@]}" --out "$out/$1.csv"
}

profile() {
  local rows=(-m bench.gpu_bench --profile --only 'conv3x3,conv_lstm_cell,deform_conv2d')
  [ "$dry" = 0 ] || { "$python" "${rows[@]}" --device cpu; return; }
  local sections=(SpeedOfLight MemoryWorkloadAnalysis Occupancy LaunchStats WarpStateStats) tool
  # Wavefronts of the data and tag stages of L1, and sectors of global loads: whether a gather takes one cycle for each line.
  local metrics=l1tex__t_output_wavefronts_pipe_lsu_mem_global_op_ld.sum,l1tex__data_pipe_lsu_wavefronts_mem_lg.sum
  metrics+=,l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum,l1tex__t_requests_pipe_lsu_mem_global_op_ld.sum
  metrics+=,smsp__inst_executed.sum,gpu__time_duration.sum
  tool=$(command -v ncu || ls /usr/local/cuda*/bin/ncu /opt/nvidia/nsight-compute/*/ncu 2>/dev/null | tail -n 1)
  [ -n "$tool" ] || { echo "there is no ncu on PATH, in /usr/local/cuda or /opt/nvidia"; return 1; }
  "$tool" --profile-from-start off --clock-control none "${sections[@]/#/--section=}" --metrics "$metrics" \
    "$python" "${rows[@]}"
}

export -f build headers gpu_tests processes smoke tests sanitizer bench profile
export python out dry
if [ "$dry" = 1 ]; then
  echo "dry run: nothing here is a measurement"
elif ! "$python" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
  echo "gpu_suite.sh: $python sees no CUDA device; --dry-run tests the script without one" >&2
  exit 2
fi
run build 80 bash -uo pipefail -c build
run profile 50 bash -uo pipefail -c profile
run bench 165 bash -uo pipefail -c 'bench first 140'
run smoke 90 bash -uo pipefail -c smoke
run memcheck 45 bash -uo pipefail -c 'sanitizer memcheck'
run tests 130 bash -uo pipefail -c tests
run others 105 bash -uo pipefail -c 'bench others 90'
run racecheck 40 bash -uo pipefail -c 'sanitizer racecheck'
grep -hE '^(FAILED|ERROR|LEFT OUT) ' "$out"/{smoke,tests,memcheck,racecheck,bench,others}.log 2>/dev/null | cut -c1-240 | head -n 40
# Tables of all measured rows, also if the time was over before the last row.
for rows in first others; do
  [ -f "$out/$rows.csv" ] || continue
  save=(--save)
  [ "$dry" = 1 ] && save=()
  "$python" -m bench.report "$out/$rows.csv" --all "${save[@]}" >"$out/table_$rows.md"
  echo && cat "$out/table_$rows.md"
done
echo
echo "$failed of the parts $parts failed, $SECONDS s"
[ "$failed" = 0 ]
