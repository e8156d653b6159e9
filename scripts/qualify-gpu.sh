#!/usr/bin/env bash
# One command on a machine with a GPU, no Rust needed there: every kernel test on the device, the memory checker on a short
# list, and the first figure of images/s. Writes one folder under results/.
#
#   scripts/pack-gpu.sh                 # where Rust is: fills .carry/
#   scripts/qualify-gpu.sh [OUT]        # where the GPU is
set -uo pipefail
cd "$(dirname "$0")/.."
[ -f .carry/gpu.tar.gz ] && tar -xzf .carry/gpu.tar.gz -C .carry
[ -x .carry/secateur ] || { echo "error: .carry/secateur is not there; run scripts/pack-gpu.sh where Rust is" >&2; exit 2; }
command -v nvidia-smi >/dev/null || { echo "error: no nvidia-smi: this machine has no GPU driver" >&2; exit 3; }

name=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1 | tr ' A-Z' '-a-z')
out=${1:-results/$name-$(date +%Y-%m-%d)}
mkdir -p "$out"
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv > "$out/gpu.csv"
failed=0

# 1. Correctness. Kernel tests use every driver they find, the host runner and this GPU; tests of the whole engine the one
# that is named.
export SECATEUR_TEST_DEVICE=cuda
for test in .carry/tests/*; do
    log="$out/$(basename "$test").log"
    if timeout 300 "$test" --nocapture > "$log" 2>&1; then
        echo "ok      $(basename "$test")"
    else
        echo "FAILED  $(basename "$test"), see $log"
        failed=1
    fi
done | tee "$out/tests.txt"
grep -q FAILED "$out/tests.txt" && failed=1

# 2. The memory checker and the race checker, on one training step.
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck initcheck; do
        run=$(mktemp -d)
        timeout 240 compute-sanitizer --tool "$tool" --error-exitcode 1 .carry/secateur train --recipe quick --device cuda \
            --out "$run/run" --set epochs=1 --set data.train_limit=300 --set data.validation=50 --set evaluation.samples=50 \
            > "$out/sanitizer-$tool.log" 2>&1
        echo "$tool: exit $?" | tee -a "$out/sanitizer.txt"
        rm -rf "$run"
    done
    grep -qv 'exit 0' "$out/sanitizer.txt" && failed=1
fi

# 3. Images/s of PGD-10 adversarial training at width 64, generated images, after a warm-up epoch.
if [ "$failed" = 0 ]; then
    run=$(mktemp -d)
    .carry/secateur train --recipe cifar10-pgd-at --device cuda --out "$run/run" --set data.set=generated \
        --set data.train_limit=20000 --set data.validation=0 --set epochs=3 --set schedule.drops=[2] --set batch=512 \
        --set evaluation.every=0 --set evaluation.samples=1000 | tee "$out/train-width64.log"
    cp "$run"/run/{metrics.jsonl,environment.json,recipe.toml} "$out/"
    rm -rf "$run"
else
    echo 'Something failed: nothing is timed before it is right.'
fi
exit "$failed"
