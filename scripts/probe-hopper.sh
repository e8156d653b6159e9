#!/usr/bin/env bash
# Compiles and runs scripts/probes/hopper.cu on a Hopper GPU: questions about wgmma and TMA, with predictions, a line of JSON each.
# Each question is a process of its own, and has ten seconds.
#
#   scripts/probe-hopper.sh                      # runs .carry/probe-hopper (scripts/pack-gpu.sh), else needs nvcc; no Rust
#   scripts/probe-hopper.sh --build PROGRAM      # needs nvcc (NVCC, or on the PATH) and no GPU
#   scripts/probe-hopper.sh --compile-only       # the same
set -euo pipefail
cd "$(dirname "$0")/.."

# build ARGUMENT...: nvcc with these arguments after its own.
build() {
    local nvcc
    nvcc=$(command -v "${NVCC:-nvcc}") || {
        echo "probe-hopper.sh: no ${NVCC:-nvcc}: name it in NVCC, or install it (scripts/install-nvcc.sh)" >&2
        exit 1
    }
    # The packages of scripts/install-nvcc.sh have their libraries in lib, where nvcc does not look. Whole programs need no device
    # linker, which writes its folders into them.
    "$nvcc" -std=c++17 -O3 -nodlink -Xptxas -warn-spills -I kernels "-L$(dirname "$(readlink -f "$nvcc")")/../lib" \
        -gencode=arch=compute_90a,code=sm_90a scripts/probes/hopper.cu "$@"
}

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
case "${1:-}" in
    --compile-only) build -c -o "$folder/hopper.o"; exit ;;
    --build) build -o "$2"; exit ;;
esac
program=.carry/probe-hopper
if [ ! -x "$program" ]; then
    program=$folder/hopper
    build -o "$program"
fi
failed=0
for question in $("$program" --list); do
    timeout -k 2 10 "$program" "$question" || { echo "probe-hopper.sh: no answer to $question, exit code $?" >&2; failed=1; }
done
exit $failed
