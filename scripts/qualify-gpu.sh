#!/usr/bin/env bash
# One command on a machine with a GPU, under ten minutes, no Rust needed there: is it right, and how fast is it.
#
#   scripts/pack-gpu.sh                 # where Rust is: fills .carry/
#   scripts/qualify-gpu.sh [OUT]        # where the GPU is; OUT is results/GPU-DATE unless given
#
# Stages, each with its log in OUT/logs and its own share of the time: every test that can use a device, on the device; the
# memory, race and initialisation checkers on one short training run; the probes of scripts/probe-hopper.sh; then, only if
# nothing was wrong, the benches of our kernels, of attacks with dependent launch and without, of steps with graphs and without,
# and of the PyTorch peer. A stage that fails or runs out of time does not keep the others from running. OUT/README.md is the
# summary (scripts/gpu-summary.py).
#
# Exit code: 0 every stage succeeded or lacked its tool here, 1 one did not (OUT/stages.tsv and the README say which), 2 nothing to
# run or OUT in use, 3 no GPU.
# QUALIFY_SECONDS (570) bounds the whole, QUALIFY_JOBS (8) the test executables that run at once.
# Checked by tests/qualify_gpu.rs, with stand-ins for the GPU.
set -uo pipefail
cd "$(dirname "$0")/.."
if [ ! -x .carry/secateur ] && [ -f .carry/gpu.tar.xz ]; then
    python3 -m tarfile -e .carry/gpu.tar.xz .carry || exit 2
fi
[ -x .carry/secateur ] || { echo "error: .carry/secateur is not there; run scripts/pack-gpu.sh where Rust is" >&2; exit 2; }
command -v nvidia-smi >/dev/null || { echo "error: no nvidia-smi: this machine has no GPU driver" >&2; exit 3; }

deadline=${QUALIFY_SECONDS:-570}
jobs=${QUALIFY_JOBS:-8}
name=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1 | tr ' A-Z' '-a-z')
[ -n "$name" ] || { echo "error: nvidia-smi names no GPU" >&2; exit 3; }
export out=${1:-results/$name-$(date +%Y-%m-%d)}
[ ! -e "$out/stages.tsv" ] || { echo "error: $out holds the results of an earlier run" >&2; exit 2; }
mkdir -p "$out/logs" || exit 2
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv > "$out/gpu.csv"
: > "$out/stages.tsv"

# stage NAME BUDGET COMMAND...: runs the command for at most BUDGET seconds and what is left of the whole, and writes down how it
# went: ok, failed, "time up" or "no time".
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

# One test executable; a line in tests.txt.
run_test() {
    local test log
    test=$(basename "$1")
    log="$out/logs/test-$test.log"
    if ! "$1" --nocapture > "$log" 2>&1; then
        echo "FAILED $test, see $log"
    elif ! grep -q '^test result: ok. [1-9]' "$log"; then
        echo "FAILED $test: it ran no test, see $log"
    else
        echo "ok $test: $(grep '^test result' "$log" | tail -n 1)"
    fi >> "$out/tests.txt"
}
# All of them, several at once: each is a process of its own with a context of its own. A test that is cut off has no line.
run_tests() {
    : > "$out/tests.txt"
    printf '%s\n' .carry/tests/* | xargs -P "$1" -I{} bash -c 'run_test "$1"' _ {}
    cat "$out/tests.txt"
    ! grep -q '^FAILED' "$out/tests.txt"
}
sanitize() {
    local run
    run=$(mktemp -d)
    trap 'rm -rf "$run"' EXIT
    compute-sanitizer --tool "$1" --error-exitcode 1 .carry/secateur train --recipe quick --device cuda --out "$run/run" \
        --set epochs=1 --set data.train_limit=100 --set data.validation=0 --set data.test_limit=20 --set attack.steps=2 \
        --set evaluation.every=0 --set evaluation.samples=20 --set evaluation.protocols="['clean']" \
        --set evaluation.best_by=clean
}
export -f run_test run_tests sanitize

# 1. Right? SECATEUR_TEST_DEVICE makes every test use the GPU, and only it.
export SECATEUR_TEST_DEVICE=cuda RUST_TEST_THREADS=2
stage tests 180 bash -c "run_tests $jobs"
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck initcheck; do
        stage "$tool" 75 bash -c "sanitize $tool" &
    done
    wait
else
    skipped sanitizer 'there is no compute-sanitizer'
fi

# 2. Questions to the hardware, which no kernel of ours takes part in.
if [ -x .carry/probe-hopper ] || command -v nvcc >/dev/null; then
    stage probes 45 scripts/probe-hopper.sh "$out/probes.json"
else
    skipped probes 'there is neither .carry/probe-hopper nor nvcc'
fi

# 3. Fast? Not before it is right; a checker that ran out of time has found nothing wrong, tests that did are not passed.
wrong=$(awk -F '\t' '$2 == "failed" && $1 != "probes" || $1 == "tests" && $2 != "ok" { print $1 }' "$out/stages.tsv")
if [ -z "$wrong" ]; then
    bench() { # NAME BUDGET ARGUMENTS...
        local bench=$1 budget=$2
        shift 2
        stage "$bench" "$budget" .carry/secateur bench "$@" --device cuda --json "$out/$bench.json"
    }
    bench_steps() { # BATCH
        for graphs in on off; do
            bench "step-$1-graphs-$graphs" 30 step --batch "$1" --graphs "$graphs" --samples 5 --timeout 6
        done
    }
    bench_steps 512
    bench kernels-512 50 kernels --batch 512 --timeout 8 --csv "$out/kernels-512.csv"
    bench_attacks() { # BATCH
        for dependent in on off; do
            bench "attack-$1-dependent-launch-$dependent" 20 attack --batch "$1" --dependent-launch "$dependent" \
                --samples 5 --timeout 4
        done
    }
    bench_attacks 512
    bench_attacks 128
    # The peer gets what is left but for the other batches; it stops by itself before it is stopped.
    peer=$((deadline - SECONDS - 100))
    peer=$((peer > 210 ? 210 : peer < 20 ? 20 : peer))
    stage peer "$peer" python3 benches/peers/gpu_step.py --mode best --batch 512,128,1024 --setup-seconds 100 \
        --budget "$((peer > 60 ? peer - 50 : peer / 2))" --json "$out/peer.json"
    bench_steps 128
    bench_steps 1024
else
    echo "Nothing is timed before it is right:" $wrong
fi

python3 scripts/gpu-summary.py "$out" || exit 1
! grep -qvP '\t(ok|skipped)\t' "$out/stages.tsv"
