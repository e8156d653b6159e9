#!/usr/bin/env bash
# Compiles and runs scripts/probes/hopper.cu on a Hopper GPU: questions about wgmma and TMA, with predictions, as JSON.
#
#   scripts/probe-hopper.sh [FILE.json]          # needs nvcc (NVCC, or on the PATH); no Rust
#   scripts/probe-hopper.sh --compile-only       # needs no GPU
set -euo pipefail
cd "$(dirname "$0")/.."
program=$(mktemp -d)
trap 'rm -rf "$program"' EXIT
nvcc=$(command -v "${NVCC:-nvcc}") || {
    echo "probe-hopper.sh: no ${NVCC:-nvcc}: name it in NVCC, or install it (scripts/install-nvcc.sh)" >&2
    exit 1
}
# The packages of scripts/install-nvcc.sh have their libraries in lib, where nvcc does not look.
libraries=$(dirname "$(readlink -f "$nvcc")")/../lib
compile=("$nvcc" -std=c++17 -O3 -Xptxas -warn-spills -I kernels "-L$libraries" -gencode=arch=compute_90a,code=sm_90a
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
