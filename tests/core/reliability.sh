#!/usr/bin/env bash
# Tests with sanitizers, valgrind, emulators, fuzzing. On Debian or Ubuntu, x86-64:
#     tests/core/reliability.sh [quick|full|coverage]
# quick: a sample of the cases, on the C core alone. full: more cases, valgrind, and the Python suite with sanitizers,
# fuzzing, forks and leak counts. Both print a table: checks run, reports found, seconds, seconds of processor time.
# coverage: the lines of C and Python that the C program and the Python suite reach together.
# A single step, a function of this script:  tests/core/reliability.sh full threads
set -euo pipefail
cd "$(dirname "$0")/c"

mode=${1:-quick}
case $mode in quick | full | coverage) ;; *) echo "usage: reliability.sh [quick|full|coverage] [STEP]"; exit 2 ;; esac
root=$(cd ../../.. && pwd)
builds=$root/build/reliability/$mode
step=${2:-}
log=$builds/log-$step     # output of the current command
table=$builds/table-$step # a row for each completed command
mkdir -p "$builds"
export OMP_WAIT_POLICY=passive # waiting threads must not spin: there are more threads than cores
export UBSAN_OPTIONS=print_stacktrace=1

by_mode() { if [ "$mode" = quick ]; then echo "$1"; else echo "$2"; fi; } # by_mode QUICK_VALUE OTHER_VALUE

install_tools() {
    local missing=()
    local tool
    for tool in gcc make clang valgrind qemu-x86_64 aarch64-linux-gnu-gcc; do
        command -v "$tool" >/dev/null || missing+=("$tool")
    done
    [ -n "$(archer)" ] || missing+=(libomp)
    if [ ${#missing[@]} != 0 ]; then
        echo "installing packages; missing: ${missing[*]}"
        as_root apt-get update -qq
        install gcc libc6-dev make clang libomp-dev valgrind qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross
    fi
    # On Debian, clang's sanitizers are in a separate package, named after clang's version.
    [ -e "$(clang -print-file-name=libclang_rt.tsan-x86_64.a)" ] ||
        install "libclang-rt-$(clang -dumpversion | cut -d. -f1)-dev"
}

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

install() { as_root apt-get install -qq -y --no-install-recommends "$@" >/dev/null; }

archer() { # path of libarcher, which reports OpenMP synchronization to ThreadSanitizer
    find /usr/lib/llvm-* -name libarcher.so 2>/dev/null | sort -V | tail -n 1
}

sets() { # x86 instruction sets of this machine; quick: no v2, which is slow to compile and run by the Python suite
    ! grep -q avx512dq /proc/cpuinfo || printf 'v4 '
    echo v3 "$(by_mode "" v2)" baseline
}

# ---- steps, rows -------------------------------------------------------------------------------------------

side_by_side() { # side_by_side STEP...: run two at a time in separate shells; start no more after a failure
    printf '%s\n' "$@" | xargs -P 2 -I{} bash "$root/tests/core/reliability.sh" "$mode" {} || exit 1
    tables+=("${@/#/$builds/table-}")
}

row() { printf '%-58s %12s %8s %8s %8s\n' "$@" | tee -a "$table"; }

timed() { # timed COMMAND...: writes to the log; sets $seconds and $processor (seconds of processor time)
    local started=$SECONDS status=0 TIMEFORMAT='%U %S'
    { time "$@" >"$log" 2>&1; } 2>"$log.time" || status=$?
    seconds=$((SECONDS - started))
    processor=$(tail -n 1 "$log.time" | awk '{ printf "%.0f", $1 + $2 }')
    return "$status"
}

run() { # run TITLE COMMAND...: adds a row to the table; exits at the first report
    local status=0 checks reports seconds processor
    timed "${@:2}" || status=$?
    checks=$(sed -nE 's/^checks ([0-9]+) failed [0-9]+$/\1/p; s/^(.* )?([0-9]+) passed.*/\2/p' "$log")
    reports=$(grep -cE '^FAILED|^CRASH|ERROR: |WARNING: ThreadSanitizer|runtime error' "$log" || true)
    grep -q 'not enough memory' "$log" && checks="no memory"
    row "$1" "${checks:-none}" "$reports" "$seconds" "$processor"
    if [ "$status" != 0 ] || [ "$reports" != 0 ] || [ -z "$checks" ]; then
        tail -n 60 "$log"
        exit 255
    fi
}

notices() { # notices TITLE ERROR COMMAND...: fails unless the tool reports an intentional error
    if { "${@:3}" planted "$2" >"$log" 2>&1; } 2>/dev/null; then # /dev/null: the shell's own messages about crashes
        echo "$1 does not notice: $2"
        exit 255
    fi
    row "$1 notices: $2" 1 1 0 0
}

compiled() { # compiled NAME COMMAND...
    local seconds processor
    timed "${@:2}" || { tail -n 60 "$log"; exit 255; }
    row "Compiling: $1" - - "$seconds" "$processor"
}

# ---- builds ------------------------------------------------------------------------------------------------

build() { # build NAME [MAKE VARIABLE=...]...: the C program; sets $program
    program=$builds/$1/reliability
    compiled "$1" make -s -j"$(nproc)" BUILD="$builds/$1" "${@:2}"
}

python_environment() { # python_environment MODULE...: sets $python; makes a venv if packages are missing
    python=${PYTHON:-python3}
    "$python" -c 'import sys, importlib, numpy, pytest, xdist, hypothesis, ml_dtypes, pytest_run_parallel, setuptools
assert setuptools.__version__ >= "77"
for name in sys.argv[1:]: importlib.import_module(name)' "$@" 2>/dev/null && return
    [ -d "$builds/venv" ] || "$python" -m venv "$builds/venv"
    python=$builds/venv/bin/python
    "$python" -m pip install -q "${root}[test]" "${@//_/-}"
}

# Several steps may need the same build: the first one builds, the others wait for the lock.
build_python() { # build_python NAME [VARIABLE=...]...: a copy of the sources, built in place; sets $copy
    copy=$builds/python-$1
    local lock
    exec {lock}>"$copy.lock"
    flock "$lock"
    if changed_since "$copy/built"; then
        rm -rf "$copy"
        mkdir "$copy"
        tar -C "$root" --exclude=./build --exclude=./.git --exclude='*.so' -c . | tar -C "$copy" -x
        compiled "python-$1" env -C "$copy" "${@:2}" "$python" setup.py -q build_ext --inplace
        touch "$copy/built"
    fi
    exec {lock}>&-
}

changed_since() { # changed_since FILE: true if FILE does not exist or a source is newer
    [ ! -e "$1" ] || [ -n "$(cd "$root" && find csrc inplace_abn tests setup.py -type f -newer "$1" ! -name '*.pyc')" ]
}

python_plain() { build_python plain INPLACE_ABN_ISAS="$(sets)"; }

# -fstrict-overflow: Python's flags may include -fwrapv, which would hide signed overflows from the sanitizer.
python_for_sanitizers() {
    build_python sanitized INPLACE_ABN_ISAS="$(sets)" \
        INPLACE_ABN_CFLAGS="-O1 -g1 -UNDEBUG -fstrict-overflow -fsanitize=address,undefined -fno-sanitize-recover=all"
}

# Object files of the kernels in the Python build, which the C program links as well: compiled once for both.
kernels_of() { find "$builds/python-$1/build" \( -name kernels.o -o -name activation_kernels.o \) -printf '%p '; } # kernels_of NAME

# ---- the C core, without Python ----------------------------------------------------------------------------

# Every array is next to inaccessible pages. quick: INPLACE_ABN_KERNELS may list kernels compiled by setup.py.
forbidden_pages() {
    local kernels=${INPLACE_ABN_KERNELS:-}
    if [ "$mode" = full ]; then
        python_plain
        kernels=$(kernels_of plain)
    fi
    build plain FLAGS=-O3 ISAS="$(sets)" KERNELS="$kernels"
    notices "Forbidden pages" over "$program"
    notices "Forbidden pages" under "$program"
    if [ "$mode" = full ]; then
        run "2^31 elements, through mirrored pages" "$program" large
        run "2^31 elements, in place" "$program" large-in-place
    fi
    run "Every combination, small shapes" "$program" light "$(by_mode 40 8)"
    run "More than one block" "$program" heavy "$(by_mode 200 40)"
    run "Extreme numbers" "$program" extremes "$(by_mode 11 1)"
    run "Failing allocations" "$program" allocations
    local cpu
    for cpu in qemu64 $(by_mode "" Nehalem); do
        run "Emulated processor: $cpu" qemu-x86_64 -cpu "$cpu" "$program" light "$(by_mode 400 100)"
    done
}

# Only gcc checks undefined behaviour: clang takes five times as long to compile the kernels with these checks.
sanitized() { # sanitized CC SANITIZERS SETS [KERNELS]
    build "sanitized-$1" CC="$1" ISAS="$3" KERNELS="${4:-}" \
        FLAGS="-O1 -fsanitize=$2 -fno-sanitize-recover=all"
    local error
    for error in heap leak; do notices "Sanitizers of $1" "$error" "$program"; done
    [ "$2" = address ] || notices "Sanitizers of $1" undefined "$program"
    run "Sanitizers of $1: small shapes" "$program" light "$(by_mode 100 20)"
    run "Sanitizers of $1: more than one block" "$program" heavy "$(by_mode 500 100)"
    [ "$mode" = full ] || return 0
    run "Sanitizers of $1: extreme numbers" "$program" extremes 7
    run "Sanitizers of $1: failing allocations" "$program" allocations
}

sanitized_by_gcc() {
    if [ "$mode" = full ]; then
        python_for_sanitizers
        sanitized gcc address,undefined "$(sets)" "$(kernels_of sanitized)"
    else
        sanitized gcc address,undefined baseline
    fi
}

sanitized_by_clang() { sanitized clang address "v3 baseline"; } # a second implementation of AddressSanitizer

# Archer requires ignore_noninstrumented_modules: the OpenMP runtime is not compiled for ThreadSanitizer, and archer
# reports its synchronization instead. All code of this project is instrumented.
threads() {
    build thread CC=clang FLAGS="-O1 -g1 -fsanitize=thread" ISAS="$(by_mode baseline "$(sets)")"
    local -x OMP_TOOL_LIBRARIES TSAN_OPTIONS="ignore_noninstrumented_modules=1 exitcode=66"
    OMP_TOOL_LIBRARIES=$(archer)
    notices "Thread" race "$program"
    run "Thread: small shapes" "$program" light "$(by_mode 200 40)"
    run "Thread: more than one block" "$program" heavy "$(by_mode 500 200)"
}

memcheck() { # without OpenMP: valgrind would report the memory of its threads as leaks
    build serial FLAGS="-O1 -g1" OPENMP= ISAS="v3 baseline"
    local tool=(valgrind -q --error-exitcode=9 --leak-check=full --num-callers=8 "$program")
    local error
    for error in heap leak uninitialised; do notices "Valgrind" "$error" "${tool[@]}"; done
    run "Valgrind: small shapes" "${tool[@]}" light 200
    run "Valgrind: more than one block" "${tool[@]}" heavy 2000
}

arm64() {
    build arm64 CC=aarch64-linux-gnu-gcc FLAGS=-O2 ISAS="neon baseline"
    local tool=(qemu-aarch64 -L /usr/aarch64-linux-gnu "$program")
    notices "arm64" over "${tool[@]}"
    run "arm64: small shapes" "${tool[@]}" light "$(by_mode 400 100)"
    run "arm64: more than one block" "${tool[@]}" heavy "$(by_mode 4000 1000)"
    run "arm64: extreme numbers" "${tool[@]}" extremes "$(by_mode 101 23)"
}

# ---- the Python suite --------------------------------------------------------------------------------------

pytest() { # pytest ARGUMENTS...: tests of $copy, with slow ones unless ARGUMENTS contain -m
    (cd "$copy" && PYTHONPATH=$copy "$python" -m pytest -q -p no:cacheprovider -m "" "$@")
}

# No leak detection: the interpreter keeps memory until it exits; test_hostile_leaks.py counts leaks. libstdc++ is
# preloaded with libasan, which needs it to intercept exceptions of NumPy's C++ code.
python_sanitized() {
    python_for_sanitizers
    local -x ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=debug
    local preload
    preload="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libstdc++.so)"
    local overrun="import ctypes; c = ctypes.CDLL(None); c.malloc.restype = ctypes.c_void_p
c.memset(ctypes.c_void_p(c.malloc(8)), 0, 9)"
    LD_PRELOAD=$preload notices "Python, sanitizers" heap "$python" -c "$overrun"
    LD_PRELOAD=$preload INPLACE_ABN_FUZZ=500 run "Python, sanitizers: hostile calls, contexts, fuzzing" \
        pytest -n 2 -m "not slow and not torch" -k "not float64" \
        tests/binding/test_{arguments,arguments_backward,context,context_object,accepted,nomemory,registry}.py \
        tests/binding/test_{hostile_arguments,hostile_context}.py tests/core/test_{fuzz,guarded,regressions}.py
}

python_suite() {
    python_plain
    run "Python: four threads run each test at once" pytest --parallel-threads=4 -m "not slow" \
        -k "not float64 and not bfloat16" tests/core/test_{forward,guarded,statistics}.py tests/binding/test_context.py
    run "Python: 10,000 calls of each function" pytest -n 2 tests/binding/test_hostile_leaks.py
    INPLACE_ABN_FORKS=100 run "Python: 100 rounds of forks, pools, copies" pytest tests/binding/test_processes.py
    run "Python: interpreter, interrupts, failing memory" pytest tests/binding/test_{interpreter,nomemory}.py \
        tests/core/test_threads.py
    run "Python: extreme numbers" pytest -n 2 tests/numerics/test_finite.py tests/numerics/test_crossing_zero.py tests/numerics/test_extremes.py
    run "Python: five gigabytes" pytest tests/core/test_large.py # not while the C program has its large arrays
    INPLACE_ABN_FUZZ=20000 run "Python: 20,000 fuzz examples" pytest -n 2 tests/core/test_fuzz.py
}

# ---- coverage ----------------------------------------------------------------------------------------------

covered="-O0 -g --coverage -fprofile-abs-path -fprofile-update=atomic"

# Kernels are compiled once per instruction set: a line counts as reached if it was in any of them.
coverage_of_c() {
    build coverage FLAGS="$covered" ISAS="$(sets)"
    run "Coverage, C program: small shapes" "$program" light 40
    run "Coverage, C program: more than one block" "$program" heavy 500
    run "Coverage, C program: extreme numbers" "$program" extremes 11
    run "Coverage, C program: failing allocations" "$program" allocations
}

# Kernels are compiled without coverage: the C program covers them.
python_for_coverage() { build_python coverage INPLACE_ABN_CFLAGS=-O1 INPLACE_ABN_CORE_CFLAGS="$covered"; }

# Left out: tests of other things than the package, and repetitions for other instruction sets and dtypes, which only
# select other kernels. Two halves instead of pytest-xdist: gcov writes its counts at exit, which xdist's workers skip.
half() { # half NAME PATTERN: PATTERN matches the first letters of the other half's tests
    copy=$builds/python-coverage
    local sweeps="test_forward.py or test_backward.py or test_statistics.py or test_residual.py or test_strategies.py"
    sweeps="$sweeps or test_smooth.py or test_prelu.py or test_elu.py or test_guarded.py or test_layouts.py"
    COVERAGE_FILE=$builds/lines run "Coverage, Python suite: $1 half" env -u OMP_WAIT_POLICY -C "$copy" PYTHONPATH="$copy" \
        "$python" -m coverage run --rcfile="$builds/coverage.ini" -m pytest -q -p no:cacheprovider \
        -m "not slow and not torch" -k "not ([v2 or -v2 or baseline or (($sweeps) and (float64 or float16)))" \
        --ignore-glob='tests/tools/test_benchmarks*' --ignore-glob='tests/binding/test_hostile_leaks*' \
        --ignore=tests/tools/test_{project,examples,readme}.py --ignore=tests/core/test_{reliability,kernels,threads}.py \
        --ignore=tests/numerics/test_accuracy.py --ignore=tests/binding/test_nomemory.py \
        --ignore-glob="tests/*/test_$2*"
}

first_half() { half first "[l-z]"; }

# Failing allocations also break coverage.py in their process, so these tests run separately.
second_half() {
    half second "[a-k]"
    run "Coverage, Python suite: failing memory" pytest tests/binding/test_nomemory.py
}

unreached() {
    copy=$builds/python-coverage
    "$python" -m gcovr --root "$root" --filter "$root/csrc/" --json "$builds/c.json" "$builds/coverage"
    "$python" -m gcovr --root "$copy" --filter "$copy/csrc/" --json "$builds/binding.json" "$copy/build"
    (cd "$copy" && "$python" -m coverage combine -q --data-file="$builds/lines" &&
        "$python" -m coverage json -q --data-file="$builds/lines" -o "$builds/python.json")
    "$python" "$root/tests/core/unreached.py" "$builds"/{c,binding,python}.json
}

# ---- all of it ---------------------------------------------------------------------------------------------

if [ -n "$step" ]; then
    : >"$table"
    case $mode in full) python_environment ;; coverage) python_environment gcovr coverage ;; esac
    "$step"
    exit
fi
install_tools
tables=()
case $mode in
quick) side_by_side forbidden_pages sanitized_by_gcc threads arm64 ;;
full)
    python_environment
    side_by_side python_suite forbidden_pages python_sanitized sanitized_by_gcc threads memcheck arm64 sanitized_by_clang
    ;;
coverage)
    python_environment gcovr coverage
    find "$builds" \( -name '*.gcda' -o -name 'lines*' \) -delete
    printf '[run]\nsource = inplace_abn\nparallel = true\npatch = subprocess\n' >"$builds/coverage.ini"
    echo 'disable_warnings = no-data-collected, module-not-imported' >>"$builds/coverage.ini" # in processes that do not import the package
    side_by_side python_for_coverage coverage_of_c
    side_by_side first_half second_half
    ;;
esac
printf '\n%-58s %12s %8s %8s %8s\n' "$mode" checks reports seconds processor
cat "${tables[@]}"
printf '%-58s %12s %8s %8s %8s\n' "All together" \
    "$(awk '$(NF - 3) ~ /^[0-9]+$/ { sum += $(NF - 3) } END { print sum }' "${tables[@]}")" 0 "$SECONDS" \
    "$(awk '{ sum += $NF } END { print sum }' "${tables[@]}")"
[ "$mode" != coverage ] || unreached
