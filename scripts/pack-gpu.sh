#!/usr/bin/env bash
# Builds what scripts/qualify-gpu.sh needs on a machine with a GPU but without Rust: the program and the test executables,
# with GPU code inside, stripped, in one archive in the ignored folder .carry/.
#
#   SECATEUR_CUDA_TARGETS=sm_90a scripts/pack-gpu.sh
set -euo pipefail
cd "$(dirname "$0")/.."
export SECATEUR_CUDA_TARGETS="${SECATEUR_CUDA_TARGETS:-sm_90a}"

rm -rf .carry
mkdir -p .carry/tests
cargo build --release
cp target/release/secateur .carry/
# Each line of the build's messages that names a test executable.
cargo test --release --no-run --message-format=json \
    | python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("profile", {}).get("test") and message.get("executable"):
        print(message["target"]["name"], message["executable"])' \
    | while read -r name executable; do
        case "$name" in
            conv_*|kernel_*|engine_*|hopper_runner|last_layer|methods_emulated|paired_losses) cp "$executable" ".carry/tests/$name" ;;
        esac
    done
strip .carry/secateur .carry/tests/*
tar -czf .carry/gpu.tar.gz -C .carry secateur tests
rm -r .carry/secateur .carry/tests
ls -lh .carry/gpu.tar.gz
