#!/usr/bin/env bash
# Everything that needs a GPU, in two calls of at most six minutes; each builds _fastds in place and prints a table last.
# A part that fails or is stopped is one line, the tests and rows that failed in it another; the rest goes on.
#
#   bench/gpu_suite.sh [--call first|second|both] [--parts LIST] [--dry-run] [--out DIR]
#
# The first call has what decides: smoke tests, the rows of every op that matter most (bench), CUDA C++ under memcheck, four
# kernels under Nsight Compute (profile). The second has all tests, the other rows and racecheck. --parts, of build, smoke,
# bench, memcheck, profile, tests, others and racecheck, takes the place of --call.
# Needs python3 with torch >= 2.10 and triton, pytest, setuptools, ninja and nvcc; no network. pybind11's headers come
# from the environment, else from torch. Logs, the results (JSON) and the table go to DIR (build/gpu_suite by default);
# the results also to bench/results/<device>.json. --dry-run tries all of it as far as a machine without a GPU can: the
# compiler on one binding, the tests and rows on a CPU in tiny sizes, JSON and table.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() { sed -n '2,14s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
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
first=build,smoke,bench,memcheck,profile second=build,tests,others,racecheck
case $call in
  first) call=$first ;;
  second) call=$second ;;
  both) call=$first,$second ;;
  *) echo "gpu_suite.sh: unknown call $call" >&2; exit 2 ;;
esac
parts=${parts:-$call}
for part in ${parts//,/ }; do
  case ,$first,$second, in
    *",$part,"*) ;;
    *) echo "gpu_suite.sh: unknown part $part" >&2; exit 2 ;;
  esac
done
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
python=$(command -v python3 || command -v python) || { echo "gpu_suite.sh: no python3" >&2; exit 2; }
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 TRITON_DEFAULT_FP_FUSION=1
failed=0
total=345 # seconds for all parts together; those of either call sum up to no more
[ "$dry" = 0 ] || total=3600 # the machine may be busy, and nothing is measured

# run NAME SECONDS COMMAND...: one line, the whole output in NAME.log.
run() {
  local name=$1 limit=$2 begin=$SECONDS code=0
  shift 2
  case ,$parts, in *",$name,"*) ;; *) return 0 ;; esac
  [ "$dry" = 0 ] || limit=900
  [ "$limit" -le $((total - SECONDS)) ] || limit=$((total - SECONDS))
  [ "$limit" -gt 10 ] || { failed=$((failed + 1)); echo "FAILED  $name: no time is left for it"; return; }
  timeout -s INT -k 10 "$limit" "$@" >"$out/$name.log" 2>&1 || code=$?
  if [ "$code" = 0 ]; then
    echo "ok      $name ($((SECONDS - begin)) s): $(summary "$name")"
  else
    failed=$((failed + 1))
    [ "$code" = 124 ] && code="124, stopped after $limit s"
    echo "FAILED  $name ($((SECONDS - begin)) s, exit status $code): $(summary "$name") [$out/$name.log]"
  fi
}

# The line of a log that says most.
summary() {
  local found
  found=$(grep -E '(passed|failed|error|skipped|deselected).* in [0-9]|ERROR SUMMARY|RACECHECK SUMMARY|rows in .*failed|collected' \
    "$out/$1.log" | tail -n 1)
  [ -n "$found" ] || found=$(grep -vE '^[[:space:]]*$' "$out/$1.log" | tail -n 1)
  printf '%s' "${found:0:300}"
}

# setup.py asks pybind11 where its headers are; where it is not installed, or with "torch", take those that torch ships.
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

# gpu_tests OPTIONS...: tests/gpu by pytest, which $checker may run. One thread a process: as many processes as cores compile kernels.
gpu_tests() {
  export OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1
  # shellcheck disable=SC2086
  ${checker:-} "$python" -m pytest -v -p no:cacheprovider -o addopts=--import-mode=importlib -o faulthandler_timeout=60 -ra --durations=5 \
    "$@" tests/gpu
}

# processes MOST: the option of several processes where there is xdist.
processes() { "$python" -c 'import xdist' 2>/dev/null && echo "-n$(($(nproc) < $1 ? $(nproc) : $1))"; }

smoke() {
  [ "$dry" = 0 ] || { FASTDS_GPU_DRY_RUN=1 gpu_tests --collect-only -q -m smoke; return; }
  gpu_tests -m smoke $(processes 8)
}

tests() {
  # On CPU tensors; the agreement of the CPU kernels is tested elsewhere.
  [ "$dry" = 1 ] && {
    local long='agrees_with_reference or many_tiles or small or gradcheck or training_step or deterministic or same_bits'
    FASTDS_GPU_DRY_RUN=1 gpu_tests -k "not ($long or preciplstm or trajgru)"
    return
  }
  gpu_tests $(processes 12)
}

# sanitizer TOOL: CUDA C++ in the tests marked "sanitize", with every allocation of its own so that a stray access shows.
# Of Triton's asynchronous copies racecheck reports what is no race.
sanitizer() {
  local options=(-m sanitize -k 'not triton and not conv3x3 and not window and not guided')
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

# bench ROWS SECONDS: the rows go to a file of their own.
bench() {
  local options=(--rows "$1" --seconds "$2")
  [ "$dry" = 1 ] && options=(--rows "$1" --device cpu --seconds 800)
  rm -f "$out/$1.json"
  OMP_NUM_THREADS=$(nproc) TORCHINDUCTOR_COMPILE_THREADS=1 "$python" -m bench.gpu_bench "${options[@]}" --out "$out/$1.json"
}

profile() {
  local rows=(-m bench.gpu_bench --profile --only 'conv3x3,conv_lstm_cell,deform_conv2d,inr_query')
  [ "$dry" = 0 ] || { "$python" "${rows[@]}" --device cpu; return; }
  local sections=(SpeedOfLight MemoryWorkloadAnalysis Occupancy LaunchStats WarpStateStats) tool
  tool=$(command -v ncu || ls /usr/local/cuda*/bin/ncu /opt/nvidia/nsight-compute/*/ncu 2>/dev/null | tail -n 1)
  [ -n "$tool" ] || { echo "there is no ncu on PATH, in /usr/local/cuda or /opt/nvidia"; return 1; }
  "$tool" --profile-from-start off --clock-control none "${sections[@]/#/--section=}" "$python" "${rows[@]}"
}

export -f build headers gpu_tests processes smoke tests sanitizer bench profile
export python out dry
if [ "$dry" = 1 ]; then
  echo "dry run: nothing here is a measurement"
elif ! "$python" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
  echo "gpu_suite.sh: $python sees no CUDA device; --dry-run tries what a machine without one can" >&2
  exit 2
fi
run build 70 bash -uo pipefail -c build
run smoke 90 bash -uo pipefail -c smoke
run bench 105 bash -uo pipefail -c 'bench first 90'
run memcheck 45 bash -uo pipefail -c 'sanitizer memcheck'
run profile 35 bash -uo pipefail -c profile
run tests 130 bash -uo pipefail -c tests
run others 105 bash -uo pipefail -c 'bench others 90'
run racecheck 40 bash -uo pipefail -c 'sanitizer racecheck'
grep -hE '^(FAILED|ERROR|LEFT OUT) ' "$out"/{smoke,tests,memcheck,racecheck,bench,others}.log 2>/dev/null | cut -c1-240 | head -n 40
# Of what was measured, also if the time was over before the last row.
for rows in first others; do
  [ -f "$out/$rows.json" ] || continue
  save=(--save)
  [ "$dry" = 1 ] && save=()
  "$python" -m bench.report "$out/$rows.json" --all "${save[@]}" >"$out/table_$rows.md"
  echo && cat "$out/table_$rows.md"
done
echo
echo "$failed of the parts $parts failed, $SECONDS s"
[ "$failed" = 0 ]
