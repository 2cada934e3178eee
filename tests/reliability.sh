#!/usr/bin/env bash
# The C core under every tool that can catch it, on Debian or Ubuntu, x86-64:  tests/reliability.sh [quick|full]
# quick takes some three minutes on two cores, full less than twenty. Prints a table: checks run, reports found, seconds.
set -euo pipefail
cd "$(dirname "$0")/c"

mode=${1:-quick}
case $mode in quick) ;; full) ;; *) echo "usage: reliability.sh [quick|full]"; exit 2 ;; esac
builds=../../build/reliability
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
    [ ${#missing[@]} = 0 ] && return
    echo "to be installed for: ${missing[*]}"
    local sudo
    sudo=$([ "$(id -u)" = 0 ] || echo sudo)
    $sudo apt-get update -qq
    $sudo apt-get install -qq -y --no-install-recommends gcc libc6-dev make clang libomp-dev valgrind qemu-user \
        gcc-aarch64-linux-gnu libc6-dev-arm64-cross
}

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
    checks=$(sed -n 's/^checks \([0-9]*\) failed [0-9]*$/\1/p' "$log")
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

forbidden_pages() {
    build plain FLAGS=-O3
    notices "Forbidden pages" over "$program"
    notices "Forbidden pages" under "$program"
    run "Every combination, small shapes" "$program" light "$(by_mode 10 1)"
    run "More than one block" "$program" heavy "$(by_mode 50 4)"
    run "Extreme numbers" "$program" extremes
    run "Failing allocations" "$program" allocations
    run "2^31 elements, through mirrored pages" "$program" large
    [ "$mode" = quick ] || run "2^31 elements, in place" "$program" large-in-place
    local cpu
    for cpu in qemu64 Nehalem; do
        run "As on another processor: $cpu" qemu-x86_64 -cpu "$cpu" "$program" light "$(by_mode 200 20)"
    done
}

address_and_undefined() { # address_and_undefined CC
    build "address-$1" CC="$1" ISAS="$(by_mode "v3 baseline" "v4 v3 v2 baseline")" \
        FLAGS="-O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined"
    local error
    for error in heap leak undefined; do notices "Address, undefined, $1" "$error" "$program"; done
    run "Address, undefined, $1: small shapes" "$program" light "$(by_mode 100 10)"
    run "Address, undefined, $1: more than one block" "$program" heavy "$(by_mode 500 50)"
    run "Address, undefined, $1: extreme numbers" "$program" extremes
    run "Address, undefined, $1: failing allocations" "$program" allocations
}

# Archer asks for ignore_noninstrumented_modules: the OpenMP runtime's own code is not compiled for ThreadSanitizer, and
# archer stands for what it synchronizes. Nothing of this project is left out.
threads() {
    build thread CC=clang FLAGS="-O1 -g1 -fsanitize=thread" ISAS="$(by_mode "v3 baseline" "v4 v3 v2 baseline")"
    local -x OMP_TOOL_LIBRARIES TSAN_OPTIONS="ignore_noninstrumented_modules=1 exitcode=66"
    OMP_TOOL_LIBRARIES=$(archer)
    notices "Thread" race "$program"
    run "Thread: small shapes" "$program" light "$(by_mode 200 40)"
    run "Thread: more than one block" "$program" heavy "$(by_mode 500 100)"
}

memcheck() { # without OpenMP, whose threads' own memory valgrind takes for lost
    build serial FLAGS="-O2 -g1" OPENMP= ISAS="v3 baseline"
    local tool=(valgrind -q --error-exitcode=9 --leak-check=full --num-callers=8 "$program")
    local error
    for error in heap leak uninitialised; do notices "Valgrind" "$error" "${tool[@]}"; done
    run "Valgrind: small shapes" "${tool[@]}" light "$(by_mode 200 20)"
    run "Valgrind: more than one block" "${tool[@]}" heavy "$(by_mode 2000 200)"
}

arm64() {
    build arm64 CC=aarch64-linux-gnu-gcc FLAGS=-O2 ISAS="neon baseline"
    local tool=(qemu-aarch64 -L /usr/aarch64-linux-gnu "$program")
    notices "arm64" over "${tool[@]}"
    run "arm64: small shapes" "${tool[@]}" light "$(by_mode 200 20)"
    run "arm64: more than one block" "${tool[@]}" heavy "$(by_mode 1000 100)"
    [ "$mode" = quick ] || run "arm64: extreme numbers" "${tool[@]}" extremes
}

install_tools
forbidden_pages
address_and_undefined gcc
[ "$mode" = quick ] || address_and_undefined clang
threads
memcheck
arm64
printf '\n%-58s %12s %8s %8s\n' "$mode" checks reports seconds
cat "$table"
printf '%-58s %12s %8s %8s\n' "All together, with compiling" \
    "$(awk '$(NF - 2) ~ /^[0-9]+$/ { sum += $(NF - 2) } END { print sum }' "$table")" 0 "$SECONDS"
