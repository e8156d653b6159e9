#!/usr/bin/env bash
# Builds what scripts/qualify-gpu.py needs on a machine with a GPU but without Rust and nvcc: the program, the bench of the convolution's
# variants, every test executable that uses a device, with GPU code inside, and the probes of scripts/probe-hopper.sh where nvcc
# is, stripped, in one archive in the ignored folder .carry/; and apart from it, as many images of CIFAR-10 as travel next to it.
#
#   SECATEUR_CUDA_TARGETS=sm_90a scripts/pack-gpu.sh [--data DIR]      # DIR: the official binary files, or a folder around them
#   scripts/pack-gpu.sh --modules       # lists the tests that travel, executable and module, and builds nothing
#
# The executables hold mostly the same code: a compressor that looks back over all of them (xz with a dictionary of 256 MiB) needs
# a fraction of the space of one that does not. Python unpacks it, so that machine needs no xz. Nothing in them names a folder of
# this machine: sources, registry and toolchain are renamed, and what is left over is an error. The build has a target folder of its
# own, target/pack, unless CARGO_TARGET_DIR names one. --data needs numpy.
set -euo pipefail
cd "$(dirname "$0")/.."
# The modules of tests that open a device say so in their source.
modules=$(grep -lE '\b(cuda_engine|on_every_driver|(conv_)?drivers|hoppers)\(' tests/*/*.rs \
    | sed -nE '/^tests.common/d; s|^tests/([^/]+)/([^/]+)\.rs$|\1 \2|p')
data=
case "${1:-} ${2:-}" in
    " ") ;;
    "--data "?*) data=$2 ;;
    "--modules ") echo "$modules"; exit ;;
    *) echo "usage: scripts/pack-gpu.sh [--data DIR | --modules]" >&2; exit 2 ;;
esac
most=20000000        # bytes of the program and the tests
most_images=50000000 # bytes of the images
tree=$(git ls-files -z --cached --others --exclude-standard | xargs -0 du -cb --apparent-size \
    | awk '$2 == "total" { sum += $1 } END { print sum + 0 }')
limit=$(((64 << 20) - tree)) # with the working tree 64 MiB travel

export SECATEUR_CUDA_TARGETS="${SECATEUR_CUDA_TARGETS:-sm_90a}" SECATEUR_CUDA_LINE_INFO=off
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target/pack}"
nvcc=$(command -v "${NVCC:-nvcc}" || command -v "$PWD/.cuda/packages/nvidia/cu13/bin/nvcc" || true)
cargo_home=${CARGO_HOME:-$HOME/.cargo} toolchain=$(rustc --print sysroot)
# The last of these that fits counts, so the longest come last.
flags=()
for rename in "$HOME=home" "$cargo_home=cargo" "$toolchain=rust" "$PWD=secateur" "$CARGO_TARGET_DIR=target"; do
    flags+=("--remap-path-prefix=$rename")
done
CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f'; echo "${flags[*]}")
export CARGO_ENCODED_RUSTFLAGS CXXFLAGS="${CXXFLAGS:-} -ffile-prefix-map=$PWD=secateur"

rm -rf .carry
mkdir -p .carry/tests
tests=$(cut -d ' ' -f 1 <<< "$modules" | sort -u)
# Each line of the build's messages that names an executable. Tests need the program; asked for by name it would be its unit tests.
# shellcheck disable=SC2086
cargo test --release --no-run --message-format=json --bench ablation $(printf -- '--test %s ' $tests) \
    | python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("reason") == "compiler-artifact" and message.get("executable"):
        print(message["target"]["kind"][0], message["target"]["name"], message["executable"])' \
    | while read -r kind name executable; do
        case "$kind $name" in
            "bin secateur" | "bench ablation") cp "$executable" ".carry/$name" ;;
            test*) cp "$executable" ".carry/tests/$name" ;;
        esac
    done
missing=$(
    .carry/secateur --version > /dev/null || echo secateur
    .carry/ablation --help > /dev/null || echo ablation
    while read -r name module; do
        ".carry/tests/$name" --list | grep "^$module::" > /dev/null || echo "$name $module"
    done <<< "$modules"
)
[ -z "$missing" ] || { echo "error: the build made no executable that is or has" $missing >&2; exit 1; }
packed="secateur ablation tests"
if [ -n "$nvcc" ]; then
    NVCC=$nvcc scripts/probe-hopper.sh --build .carry/probe-hopper
    packed="$packed probe-hopper"
fi
(cd .carry && find $packed -type f -exec strip {} +)
echo "$modules" > .carry/tests/modules.txt
for folder in "$PWD" "$HOME" "$cargo_home" "$toolchain" "$CARGO_TARGET_DIR" ${nvcc:+"$(dirname "$nvcc")"}; do
    if named=$(cd .carry && grep -rlaF "$folder" $packed); then
        echo "error: $folder is named in" $named >&2
        exit 1
    fi
done
# shellcheck disable=SC2086
tar -cf - -C .carry $packed | xz -T1 --lzma2=preset=6,dict=256MiB > .carry/gpu.tar.xz
rm -rf .carry/secateur .carry/ablation .carry/tests .carry/probe-hopper
bytes=$(stat -c %s .carry/gpu.tar.xz)
echo ".carry/gpu.tar.xz: $packed, with $(wc -w <<< "$tests") test executables, $bytes bytes"
if [ "$bytes" -gt "$most" ]; then
    echo "error: .carry/gpu.tar.xz has $bytes bytes, expected $most at most; fewer targets than $SECATEUR_CUDA_TARGETS make it smaller" >&2
    exit 1
fi
if [ -n "$data" ]; then
    left=$((limit - bytes - (1 << 20)))
    echo ".carry/images.xz: $(python3 scripts/qualify/images.py pack "$data" .carry/images.xz \
        $((left < most_images ? left : most_images))), $(stat -c %s .carry/images.xz) bytes"
fi
