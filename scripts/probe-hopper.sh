#!/usr/bin/env bash
# Compiles and runs scripts/probes/hopper.cu on a Hopper GPU: questions about wgmma, with predictions, as JSON.
#
#   scripts/probe-hopper.sh [FILE.json]          # needs nvcc (NVCC, or on the PATH); no Rust
#   scripts/probe-hopper.sh --compile-only       # needs no GPU
set -euo pipefail
cd "$(dirname "$0")/.."
program=$(mktemp -d)
trap 'rm -rf "$program"' EXIT
compile=("${NVCC:-nvcc}" -std=c++17 -O3 -Xptxas -warn-spills -I kernels -gencode=arch=compute_90a,code=sm_90a
    scripts/probes/hopper.cu)
if [ "${1:-}" = --compile-only ]; then
    "${compile[@]}" -c -o "$program/hopper.o"
    exit
fi
"${compile[@]}" -o "$program/hopper"
if [ $# -gt 0 ]; then
    "$program/hopper" > "$program/probes.json"
    cp "$program/probes.json" "$1"
    cat "$1"
else
    "$program/hopper"
fi
