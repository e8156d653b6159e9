#!/usr/bin/env bash
# Builds what scripts/qualify-gpu.sh needs on a machine with a GPU but without Rust and nvcc: the program, every test executable
# that uses a device, with GPU code inside, and the probes of scripts/probe-hopper.sh where nvcc is, stripped, in one archive in the
# ignored folder .carry/: with the working tree at most 64 MiB.
#
#   SECATEUR_CUDA_TARGETS=sm_90a scripts/pack-gpu.sh
#
# The executables hold mostly the same code: a compressor that looks back over all of them (xz with a dictionary of 256 MiB) needs
# a fraction of the space of one that does not. Python unpacks it, so that machine needs no xz.
set -euo pipefail
cd "$(dirname "$0")/.."
export SECATEUR_CUDA_TARGETS="${SECATEUR_CUDA_TARGETS:-sm_90a}"
tree=$(git ls-files -z --cached --others --exclude-standard | xargs -0 du -cb --apparent-size \
    | awk '$2 == "total" { sum += $1 } END { print sum + 0 }')
limit=$(((64 << 20) - tree))

rm -rf .carry
mkdir -p .carry/tests
# The tests that open a device say so in their source.
tests=$(grep -lE '\b(cuda_engine|on_every_driver|(conv_)?drivers|hoppers)\(' tests/*.rs | xargs -n 1 basename -s .rs)
# Each line of the build's messages that names an executable.
# shellcheck disable=SC2086
cargo test --release --no-run --message-format=json $(printf -- '--test %s ' $tests) \
    | python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("reason") == "compiler-artifact" and message.get("executable"):
        kind = "test" if message["profile"]["test"] else "program"
        print(kind, message["target"]["name"], message["executable"])' \
    | while read -r kind name executable; do
        case "$kind $name" in
            "program secateur") cp "$executable" .carry/secateur ;;
            test*) cp "$executable" ".carry/tests/$name" ;;
        esac
    done
missing=$(for name in $tests; do [ -x ".carry/tests/$name" ] || echo "$name"; done)
[ -x .carry/secateur ] && [ -z "$missing" ] || { echo "error: the build made no executable of secateur or $missing" >&2; exit 1; }
packed="secateur tests"
if nvcc=$(command -v "${NVCC:-nvcc}" || command -v "$PWD/.cuda/packages/nvidia/cu13/bin/nvcc"); then
    NVCC=$nvcc scripts/probe-hopper.sh --build .carry/probe-hopper
    strip .carry/probe-hopper
    packed="$packed probe-hopper"
fi
strip .carry/secateur .carry/tests/*
# shellcheck disable=SC2086
tar -cf - -C .carry $packed | xz -T1 --lzma2=preset=6,dict=256MiB > .carry/gpu.tar.xz
rm -rf .carry/secateur .carry/tests .carry/probe-hopper
bytes=$(stat -c %s .carry/gpu.tar.xz)
echo ".carry/gpu.tar.xz: $packed, with $(wc -w <<< "$tests") test executables, $((bytes >> 20)) MiB"
if [ "$bytes" -gt "$limit" ]; then
    echo "error: .carry/gpu.tar.xz has $bytes bytes, at most $limit travel; fewer targets than $SECATEUR_CUDA_TARGETS make it smaller" >&2
    exit 1
fi
