#!/usr/bin/env bash
# One command on a machine with a GPU, under ten minutes, no Rust needed there: is it right, and how fast is it.
#
#   scripts/pack-gpu.sh                 # where Rust is: fills .carry/
#   scripts/qualify-gpu.sh [OUT]        # where the GPU is; OUT is results/GPU-DATE unless given
#
# Stages, each with its log in OUT/logs and its own share of the time, the most telling first:
#
#   tests      every test that can use a device, on the device. If one fails, all again without the kernels for Hopper alone
#              (SECATEUR_WGMMA=off)
#   checks     compute-sanitizer on a short training run; what it finds keeps our kernels from being timed. initcheck knows of bulk
#              copies only from CUDA 13.1 on, so it looks at the kernels without wgmma, and so does racecheck. A racecheck of all
#              kernels is reported and no more: it may not follow copies that a barrier in shared memory announces
#   benches    steps, kernels, the ladder of convolutions and attacks, and the PyTorch peer. Ours are timed with the kernels that
#              passed: all of them, else those without wgmma. Tests of what no training step uses (evaluation, selection) keep
#              nothing from being timed. Where neither passed, two benches run all the same, for whoever repairs it: their figures
#              are marked and in no table
#   alone      each test that failed, in a process by itself: behind an illegal access every later call of a process fails
#   probes     scripts/probe-hopper.sh; one of the checks
#
# A stage that fails, hangs or runs out of time does not keep the others from running. OUT/README.md is the summary
# (scripts/gpu-summary.py).
#
# Exit code: 0 every stage succeeded or lacked its tool here, 1 one did not (OUT/stages.tsv and the README say which), 2 nothing to
# run or OUT in use, 3 no GPU.
# QUALIFY_SECONDS (570) bounds the whole, QUALIFY_JOBS (8) the test executables that run at once, QUALIFY_TEST_SECONDS (90) each of
# them; QUALIFY_PARTS (tests,benches,checks) chooses: benches without tests takes it that they passed.
# Checked by tests/qualify_gpu.rs, with stand-ins for the GPU.
set -uo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/local/cuda/bin
if [ ! -x .carry/secateur ] && [ -f .carry/gpu.tar.xz ]; then
    python3 -m tarfile -e .carry/gpu.tar.xz .carry || exit 2
fi
[ -x .carry/secateur ] || { echo "error: .carry/secateur is not there; run scripts/pack-gpu.sh where Rust is" >&2; exit 2; }
command -v nvidia-smi >/dev/null || { echo "error: no nvidia-smi: this machine has no GPU driver" >&2; exit 3; }

deadline=${QUALIFY_SECONDS:-570}
parts=,${QUALIFY_PARTS:-tests,benches,checks},
export jobs=${QUALIFY_JOBS:-8} test_seconds=${QUALIFY_TEST_SECONDS:-90}
name=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1 | tr ' A-Z' '-a-z')
[ -n "$name" ] || { echo "error: nvidia-smi names no GPU" >&2; exit 3; }
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1)
export out=${1:-results/$name-$(date +%Y-%m-%d)}
[ ! -e "$out/stages.tsv" ] || { echo "error: $out holds the results of an earlier run" >&2; exit 2; }
mkdir -p "$out/logs" || exit 2
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv > "$out/gpu.csv"
: > "$out/stages.tsv"

# What a checker answers that found something.
export findings=86

# stage NAME BUDGET COMMAND...: runs the command for at most BUDGET seconds and what is left of the whole, and writes down how it
# went: ok, findings, failed, "time up" or "no time". What hangs on the GPU is killed with its whole group.
stage() {
    local stage=$1 budget=$2 begin=$SECONDS left=$((deadline - SECONDS)) status code
    shift 2
    if [ "$left" -lt 3 ]; then
        printf '%s\tno time\t0\t%s\n' "$stage" "$*" >> "$out/stages.tsv"
        echo "no time  $stage"
        return 1
    fi
    timeout -k 5 "$((budget < left ? budget : left))" "$@" > "$out/logs/$stage.log" 2>&1
    code=$?
    case $code in
        0) status=ok ;;
        "$findings") status=findings ;;
        124 | 137) status='time up' ;;
        *) status=failed ;;
    esac
    printf '%s\t%s\t%s\t%s\n' "$stage" "$status" "$((SECONDS - begin))" "$*" >> "$out/stages.tsv"
    printf '%-8s %s (%s s)\n' "$status" "$stage" "$((SECONDS - begin))"
    return "$code"
}

# skipped NAME WHY: a stage whose tool this machine lacks.
skipped() {
    printf '%s\tskipped\t0\t%s\n' "$1" "$2" >> "$out/stages.tsv"
    echo "skipped  $1: $2"
}

# run_test LIST EXECUTABLE: one test executable; a line in OUT/LIST.txt.
run_test() {
    local test log code
    test=$(basename "$2")
    log="$out/logs/$1-$test.log"
    timeout --foreground -k 2 "$test_seconds" "$2" --nocapture > "$log" 2>&1
    code=$?
    case $code in
        0) if grep -q '^test result: ok. [1-9]' "$log"; then
            echo "ok $test: $(grep '^test result' "$log" | tail -n 1)"
        else
            echo "FAILED $test: it ran no test, see $log"
        fi ;;
        124 | 137) echo "FAILED $test: it hung or took more than $test_seconds s, see $log" ;;
        *) echo "FAILED $test, see $log" ;;
    esac >> "$out/$1.txt"
}
# run_tests LIST: all of them, several at once; each is a process of its own with a context of its own. One that is cut off has no
# line.
run_tests() {
    : > "$out/$1.txt"
    printf '%s\n' .carry/tests/* | xargs -P "$jobs" -I{} bash -c 'run_test "$1" "$2"' _ "$1" {}
    cat "$out/$1.txt"
    ! grep -q '^FAILED' "$out/$1.txt"
}
# passed LIST: whether every executable passed whose kernels a training step launches.
passed() {
    local beside='apgd|attack_precision|fab|kernel_apgd|kernel_boundary|kernel_last_layer|kernel_margin|kernel_select|kernel_square'
    [ -f "$out/$1.txt" ] || return
    for test in .carry/tests/*; do
        test=$(basename "$test")
        grep -q "^ok $test:" "$out/$1.txt" || [[ $test =~ ^($beside|last_layer|square)$ ]] || return
    done
}
# run_alone EXECUTABLE TEST: a line in OUT/alone.txt.
run_alone() {
    local log
    log="$out/logs/alone-$(basename "$1")-${2//::/-}.log"
    if timeout --foreground -k 2 20 "$1" --exact "$2" --nocapture > "$log" 2>&1; then
        echo "ok $(basename "$1") $2"
    else
        echo "FAILED $(basename "$1") $2, see $log"
    fi >> "$out/alone.txt"
}
# The tests that no line of the first run calls ok, of executables that did not pass.
run_each_alone() {
    : > "$out/alone.txt"
    for executable in .carry/tests/*; do
        grep -q "^ok $(basename "$executable"):" "$out/tests.txt" && continue
        timeout --foreground 10 "$executable" --list --format terse 2>/dev/null | sed -n 's/: test$//p' \
            | grep -vxFf <(sed -nE 's/^test (.*) \.\.\. (ok|ignored)$/\1/p' "$out/logs/tests-$(basename "$executable").log") \
            | sed "s|^|$executable |"
    done | xargs -P "$jobs" -L 1 bash -c 'run_alone "$1" "$2"' _
    cat "$out/alone.txt"
    ! grep -q '^FAILED' "$out/alone.txt"
}
# sanitize TOOL
sanitize() {
    local run
    run=$(mktemp -d)
    trap 'rm -rf "$run"' EXIT
    compute-sanitizer --tool "$1" --error-exitcode "$findings" .carry/secateur train --recipe quick --device cuda \
        --out "$run/run" --set epochs=1 --set data.train_limit=100 --set data.validation=0 --set data.test_limit=20 \
        --set attack.steps=2 --set evaluation.every=0 --set evaluation.samples=20 --set evaluation.protocols="['clean']" \
        --set evaluation.best_by=clean
}
export -f run_test run_tests run_alone run_each_alone sanitize

# 1. Right? SECATEUR_TEST_DEVICE makes every test use the GPU, and only it.
export SECATEUR_TEST_DEVICE=cuda RUST_TEST_THREADS=2
alone=
# What our own benches run under.
with=(env ${SECATEUR_WGMMA:+"SECATEUR_WGMMA=$SECATEUR_WGMMA"})
right=yes
if [[ $parts == *,tests,* ]] && ! stage tests 180 bash -c 'run_tests tests'; then
    alone=yes
    if ! passed tests; then
        with=(env SECATEUR_WGMMA=off)
        stage tests-without-wgmma 120 "${with[@]}" bash -c 'run_tests tests-without-wgmma'
        passed tests-without-wgmma || right=
    fi
fi

if [[ $parts == *,checks,* ]]; then
    if command -v compute-sanitizer >/dev/null; then
        stage memcheck 75 "${with[@]}" bash -c 'sanitize memcheck' &
        for tool in racecheck initcheck; do
            stage "$tool" 75 env SECATEUR_WGMMA=off bash -c "sanitize $tool" &
        done
        [ "$capability ${with[*]}" != '9.0 env' ] || stage racecheck-wgmma 75 bash -c 'sanitize racecheck' &
        wait
        # One that ran out of time has found nothing wrong.
        ! grep -qP '^(memcheck|racecheck|initcheck)\t(findings|failed)' "$out/stages.tsv" || right=
    else
        skipped sanitizer 'there is no compute-sanitizer'
    fi
fi

# 2. Fast? Not before it is right.
bench() { # NAME BUDGET ARGUMENTS...
    local bench=$1 budget=$2
    shift 2
    stage "$bench" "$budget" "${with[@]}" .carry/secateur bench "$@" --device cuda --json "$out/$bench.json"
}
bench_step() { # BATCH on|off
    bench "step-$1-graphs-$2" 30 step --batch "$1" --graphs "$2" --samples 5 --timeout 6
}
bench_attacks() { # BATCH
    for dependent in on off; do
        bench "attack-$1-dependent-launch-$dependent" 20 attack --batch "$1" --dependent-launch "$dependent" --samples 5 --timeout 4
    done
}
each_alone() {
    [ -z "$alone" ] || stage alone 60 bash -c run_each_alone
}
if [[ $parts == *,benches,* ]]; then
    later=110 # seconds for what comes after the peer
    if [ -n "$right" ]; then
        bench_step 512 on
        bench_step 128 on
        bench kernels-512 50 kernels --batch 512 --timeout 8 --csv "$out/kernels-512.csv"
        if [ "$capability ${with[*]}" = '9.0 env' ]; then # it climbs to wgmma
            bench ladder-512 40 ladder --batch 512 --timeout 0.5
        fi
        later=220
    else
        echo "Nothing is timed before it is right: see $out/README.md, which says what is wrong"
        each_alone
        with=(env)
        bench unproven-step-512 30 step --batch 512 --samples 5 --timeout 6
        bench unproven-kernels-512 50 kernels --batch 512 --timeout 8
    fi
    # It needs none of our kernels, and stops by itself before it is stopped.
    peer=$((deadline - SECONDS - later))
    peer=$((peer > 210 ? 210 : peer < 75 ? 75 : peer))
    stage peer "$peer" python3 benches/peers/gpu_step.py --mode best --batch 512,128,1024 --setup-seconds 150 \
        --budget "$((peer - 25))" --json "$out/peer.json"
    if [ -n "$right" ]; then
        bench_attacks 512
        bench attack-512-first-stage-512 20 attack --batch 512 --first-stage 512 --samples 5 --timeout 4
        bench_step 512 off
        bench_step 1024 on
        bench_attacks 128
        bench_step 128 off
        bench_step 1024 off
        each_alone
    fi
else
    each_alone
fi

# 3. Questions to the hardware, which no kernel of ours takes part in.
if [[ $parts == *,checks,* ]]; then
    if [ -x .carry/probe-hopper ] || command -v nvcc >/dev/null; then
        stage probes 45 scripts/probe-hopper.sh "$out/probes.json"
    else
        skipped probes 'there is neither .carry/probe-hopper nor nvcc'
    fi
fi

python3 scripts/gpu-summary.py "$out" || exit 1
! grep -qvP '\t(ok|skipped)\t' "$out/stages.tsv"
