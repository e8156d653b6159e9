#!/bin/sh
# Puts NVIDIA's CUDA 13.0 compiler, from its packages on PyPI, into ./.cuda: no root, no GPU, no system change.
# build.rs finds it there. Run it again at any time: what is already in place is kept.
#
#   scripts/install-nvcc.sh           the compiler (about 300 MB)
#   scripts/install-nvcc.sh --tools   and the disassemblers, cuobjdump and nvdisasm
set -eu

cd "$(dirname "$0")/.."
target=.cuda
packages="nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88
    nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85"
case "${1-}" in
    "") ;;
    --tools) packages="$packages nvidia-cuda-cuobjdump==13.2.86 nvidia-cuda-nvdisasm==13.2.86" ;;
    *) echo "usage: scripts/install-nvcc.sh [--tools]" >&2; exit 2 ;;
esac

if [ "$(uname -s)" != Linux ]; then
    echo "install-nvcc.sh: NVIDIA publishes these packages for Linux only; elsewhere install the CUDA toolkit and set CUDA_HOME" >&2
    exit 2
fi
python=${PYTHON:-python3}
if ! "$python" -m pip --version >/dev/null 2>&1; then
    echo "install-nvcc.sh: '$python -m pip' does not run; install Python 3 with pip, or name one: PYTHON=/path/to/python3" >&2
    exit 2
fi

wanted=$(echo $packages)
stamp=$target/installed
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    echo "install-nvcc.sh: $target is up to date"
else
    mkdir -p "$target"
    # Unpacked beside the old one and moved into place whole, so that an interrupted run leaves no half compiler.
    rm -rf "$target/new"
    "$python" -m pip install --quiet --no-deps --no-compile --target "$target/new" $wanted
    rm -rf "$target/packages"
    mv "$target/new" "$target/packages"
    echo "$wanted" >"$stamp"
fi

# cargo looks for a compiler again only when a file of the build has changed.
touch build.rs
nvcc=$target/packages/nvidia/cu13/bin/nvcc
"$nvcc" --version | tail -n 2
echo "install-nvcc.sh: done. 'cargo build --release' now embeds GPU code;"
echo "  SECATEUR_CUDA_TARGETS=sm_90a,ptx chooses for which GPUs (default: sm_80,sm_86,sm_89,sm_90a,sm_120,ptx)."
