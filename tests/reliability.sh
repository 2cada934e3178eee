#!/usr/bin/env bash
# Every tool that can catch this library, on Debian or Ubuntu, x86-64:  tests/reliability.sh [quick|full|coverage]
# quick: the C core alone, 340 s of processor time. full: with more of each, valgrind, and the Python suite under
# sanitizers, fuzzed, forked and counted. Both print a table: checks run, reports found, seconds.
# coverage: the lines of C and of Python that C program and Python suite together reach.
set -euo pipefail
cd "$(dirname "$0")/c"

mode=${1:-quick}
case $mode in quick | full | coverage) ;; *) echo "usage: reliability.sh [quick|full|coverage]"; exit 2 ;; esac
root=$(cd ../.. && pwd)
builds=$root/build/reliability/$mode
log=$builds/log
table=$builds/table
mkdir -p "$builds"
: >"$table"
export OMP_WAIT_POLICY=passive # three threads on two cores: do not spin
export UBSAN_OPTIONS=print_stacktrace=1

by_mode() { if [ "$mode" = quick ]; then echo "$1"; else echo "$2"; fi; }

install_tools() {
    local missing=()
    local tool
    for tool in gcc make clang valgrind qemu-x86_64 aarch64-linux-gnu-gcc; do
        command -v "$tool" >/dev/null || missing+=("$tool")
    done
    [ -n "$(archer)" ] || missing+=(libomp)
    if [ ${#missing[@]} != 0 ]; then
        echo "to be installed for: ${missing[*]}"
        as_root apt-get update -qq
        install gcc libc6-dev make clang libomp-dev valgrind qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross
    fi
    # Debian has clang's sanitizers in a package of their own, which is named after the version.
    [ -e "$(clang -print-file-name=libclang_rt.tsan-x86_64.a)" ] ||
        install "libclang-rt-$(clang -dumpversion | cut -d. -f1)-dev"
}

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

install() { as_root apt-get install -qq -y --no-install-recommends "$@" >/dev/null; }

archer() { # tells ThreadSanitizer which threads wait for which in an OpenMP region
    find /usr/lib/llvm-* -name libarcher.so 2>/dev/null | sort -V | tail -n 1
}

build() { # build NAME [MAKE VARIABLE=...]...: sets $program
    program=$builds/$1/reliability
    echo "building $1"
    make -s -j"$(nproc)" BUILD="$builds/$1" "${@:2}"
}

row() { printf '%-58s %12s %8s %8s\n' "$@" | tee -a "$table"; }

run() { # run TITLE COMMAND...: a row of the table; stops at the first report
    local started=$SECONDS status=0 checks reports
    "${@:2}" >"$log" 2>&1 || status=$?
    checks=$(sed -nE 's/^checks ([0-9]+) failed [0-9]+$/\1/p; s/^(.* )?([0-9]+) passed.*/\2/p' "$log")
    reports=$(grep -cE '^FAILED|^CRASH|ERROR: |WARNING: ThreadSanitizer|runtime error' "$log" || true)
    grep -q 'not enough memory' "$log" && checks="no memory"
    row "$1" "${checks:-none}" "$reports" $((SECONDS - started))
    if [ "$status" != 0 ] || [ "$reports" != 0 ] || [ -z "$checks" ]; then
        tail -n 60 "$log"
        exit 1
    fi
}

notices() { # notices TITLE ERROR COMMAND...: does the tool report an error made on purpose?
    if { "${@:3}" planted "$2" >"$log" 2>&1; } 2>/dev/null; then # the shell would tell of each crash
        echo "$1 does not notice: $2"
        exit 1
    fi
    row "$1 notices: $2" 1 1 0
}

# ---- the C core, without Python ----------------------------------------------------------------------------

forbidden_pages() {
    local sets="v4 v3 v2 baseline"
    [ "$mode" = full ] || grep -q avx512dq /proc/cpuinfo || sets="v3 v2 baseline"
    build plain FLAGS=-O3 ISAS="$sets"
    notices "Forbidden pages" over "$program"
    notices "Forbidden pages" under "$program"
    run "Every combination, small shapes" "$program" light "$(by_mode 20 1)"
    run "More than one block" "$program" heavy "$(by_mode 100 4)"
    run "Extreme numbers" "$program" extremes
    run "Failing allocations" "$program" allocations
    if [ "$mode" = full ]; then
        run "2^31 elements, through mirrored pages" "$program" large
        run "2^31 elements, in place" "$program" large-in-place
    fi
    local cpu
    for cpu in qemu64 Nehalem; do
        run "As on another processor: $cpu" qemu-x86_64 -cpu "$cpu" "$program" light "$(by_mode 200 20)"
    done
}

# Undefined behaviour is looked for by gcc alone: clang takes five times as long to compile that into the kernels.
sanitized() { # sanitized CC SANITIZERS
    build "sanitized-$1" CC="$1" ISAS="$(by_mode baseline "v4 v3 v2 baseline")" \
        FLAGS="-O1 -fsanitize=$2 -fno-sanitize-recover=all"
    local error
    for error in heap leak; do notices "Sanitizers of $1" "$error" "$program"; done
    [ "$2" = address ] || notices "Sanitizers of $1" undefined "$program"
    run "Sanitizers of $1: small shapes" "$program" light "$(by_mode 100 10)"
    run "Sanitizers of $1: more than one block" "$program" heavy "$(by_mode 500 50)"
    [ "$mode" = full ] || return 0
    run "Sanitizers of $1: extreme numbers" "$program" extremes
    run "Sanitizers of $1: failing allocations" "$program" allocations
}

# Archer asks for ignore_noninstrumented_modules: the OpenMP runtime's own code is not compiled for ThreadSanitizer, and
# archer stands for what it synchronizes. Nothing of this project is left out.
threads() {
    build thread CC=clang FLAGS="-O1 -g1 -fsanitize=thread" ISAS="$(by_mode baseline "v4 v3 v2 baseline")"
    local -x OMP_TOOL_LIBRARIES TSAN_OPTIONS="ignore_noninstrumented_modules=1 exitcode=66"
    OMP_TOOL_LIBRARIES=$(archer)
    notices "Thread" race "$program"
    run "Thread: small shapes" "$program" light "$(by_mode 200 40)"
    run "Thread: more than one block" "$program" heavy "$(by_mode 500 100)"
}

memcheck() { # without OpenMP, whose threads' own memory valgrind takes for lost
    build serial FLAGS="-O1 -g1" OPENMP= ISAS="v3 baseline"
    local tool=(valgrind -q --error-exitcode=9 --leak-check=full --num-callers=8 "$program")
    local error
    for error in heap leak uninitialised; do notices "Valgrind" "$error" "${tool[@]}"; done
    run "Valgrind: small shapes" "${tool[@]}" light 20
    run "Valgrind: more than one block" "${tool[@]}" heavy 200
}

arm64() {
    build arm64 CC=aarch64-linux-gnu-gcc FLAGS=-O2 ISAS="neon baseline"
    local tool=(qemu-aarch64 -L /usr/aarch64-linux-gnu "$program")
    notices "arm64" over "${tool[@]}"
    run "arm64: small shapes" "${tool[@]}" light "$(by_mode 400 20)"
    run "arm64: more than one block" "${tool[@]}" heavy "$(by_mode 4000 100)"
    [ "$mode" = quick ] || run "arm64: extreme numbers" "${tool[@]}" extremes
}

# ---- the Python suite --------------------------------------------------------------------------------------

python_environment() { # with what the tests need, made where the Python at hand has not got it
    python=${PYTHON:-python3}
    "$python" -c 'import numpy, pytest, xdist, hypothesis, ml_dtypes, pytest_run_parallel, setuptools
assert setuptools.__version__ >= "77"' 2>/dev/null && return
    [ -d "$builds/venv" ] || "$python" -m venv "$builds/venv"
    python=$builds/venv/bin/python
    "$python" -m pip install -q "${root}[test]" pytest-xdist
}

build_python() { # build_python NAME CFLAGS [VARIABLE=...]...: a copy of the sources, built in place; sets $copy
    copy=$builds/python-$1
    mkdir -p "$copy"
    tar -C "$root" --exclude=./build --exclude=./.git --exclude='*.so' -c . | tar -C "$copy" -x
    echo "building python-$1"
    (cd "$copy" && env INPLACE_ABN_CFLAGS="$2" "${@:3}" "$python" setup.py -q build_ext --inplace >/dev/null)
}

pytest() { # pytest ARGUMENTS...: of the copy
    (cd "$copy" && PYTHONPATH=$copy "$python" -m pytest -q -p no:cacheprovider "$@")
}

# Leaks are counted by tests of their own: the interpreter itself keeps memory until its end. libstdc++ beside libasan,
# or the exceptions of NumPy's C++ would not be found.
python_sanitized() {
    build_python sanitized "-O1 -g -UNDEBUG -fsanitize=address,undefined -fno-sanitize-recover=undefined"
    local -x ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=debug
    local preload
    preload="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libstdc++.so)"
    local overrun="import ctypes; c = ctypes.CDLL(None); c.malloc.restype = ctypes.c_void_p
c.memset(ctypes.c_void_p(c.malloc(8)), 0, 9)"
    LD_PRELOAD=$preload notices "Python, sanitizers" heap "$python" -c "$overrun"
    LD_PRELOAD=$preload INPLACE_ABN_FUZZ=2000 run "Python, sanitizers: hostile calls, contexts, fuzzing" \
        pytest -n 2 -m "not slow and not torch" -k "not float64" tests/test_{arguments,arguments_backward,context}.py \
        tests/test_{context_object,hostile_arguments,hostile_context,accepted,fuzz,guarded,nomemory,regressions}.py
}

python_suite() {
    build_python plain ""
    run "Python: four threads run each test at once" pytest --parallel-threads=4 -m "not slow" \
        -k "not float64 and not bfloat16" tests/test_{forward,guarded,statistics,context}.py
    run "Python: 10,000 calls of each function" pytest -n 2 tests/test_hostile_leaks.py
    INPLACE_ABN_FORKS=100 run "Python: 100 rounds of forks, pools, copies" pytest tests/test_processes.py
    INPLACE_ABN_FUZZ=20000 run "Python: 20,000 fuzz examples" pytest -n 2 tests/test_fuzz.py
    run "Python: interpreter, interrupts, failing memory" pytest tests/test_{interpreter,nomemory,threads}.py
    run "Python: numerical torture, five gigabytes" pytest -n 2 tests/test_{torture,extremes,large}.py
}

# ---- coverage ----------------------------------------------------------------------------------------------

# Kernels are compiled once per instruction set: a line counts as reached if it was in any of them.
coverage() {
    local flags="-O0 -g --coverage -fprofile-abs-path -fprofile-update=atomic"
    python_environment
    "$python" -m pip install -q gcovr coverage
    find "$builds" -name '*.gcda' -delete
    build coverage FLAGS="$flags"
    run "Coverage, C program: small shapes" "$program" light 100
    run "Coverage, C program: more than one block" "$program" heavy 500
    run "Coverage, C program: extreme numbers" "$program" extremes
    run "Coverage, C program: failing allocations" "$program" allocations
    build_python coverage "$flags"
    run "Coverage, Python suite" env -C "$copy" PYTHONPATH="$copy" \
        "$python" -m coverage run --source=inplace_abn -m pytest -q -p no:cacheprovider -m "not slow" \
        --ignore-glob='tests/test_benchmarks*' \
        --ignore=tests/test_{project,examples,readme,accuracy,kernels,torture,threads,layers_torch}.py
    env -C "$copy" "$python" -m coverage report --skip-covered --show-missing
    gcovr() { "$python" -m gcovr --filter csrc/ --exclude csrc/probes/ --merge-mode-functions merge-use-line-0 "$@"; }
    (cd "$root" && gcovr --json "$builds/c.json" "$builds/coverage")
    (cd "$copy" && gcovr --json "$builds/python.json" build)
    (cd "$root" && gcovr --add-tracefile "$builds/c.json" --add-tracefile "$builds/python.json" --txt -)
}

# ---- all of it ---------------------------------------------------------------------------------------------

install_tools
if [ "$mode" = coverage ]; then
    coverage
    exit
fi
forbidden_pages
sanitized gcc address,undefined
threads
arm64
if [ "$mode" = full ]; then
    memcheck
    sanitized clang address
    python_environment
    python_sanitized
    python_suite
fi
printf '\n%-58s %12s %8s %8s\n' "$mode" checks reports seconds
cat "$table"
printf '%-58s %12s %8s %8s\n' "All together, with compiling" \
    "$(awk '$(NF - 2) ~ /^[0-9]+$/ { sum += $(NF - 2) } END { print sum }' "$table")" 0 "$SECONDS"
