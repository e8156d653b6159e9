#!/usr/bin/env bash
# Looks at the machine code of the wgmma kernels, those with `_wgmma` in their symbol: each must multiply on the tensor cores by
# wgmma (HGMMA) and load by the tensor memory accelerator (UTMALDG), and must keep nothing in local memory (LDL, STL). Every
# kernel must wait for the launches before it (ACQBULK): all are launched so that they may start early.
# One line a wgmma kernel; exit code 1 where one fails, 2 where nothing can be looked at.
#
#   scripts/check-sass.sh              the sm_90a cubins of the newest release build
#   scripts/check-sass.sh FILE...      cubins, or what cuobjdump -sass printed
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)

cuobjdump=$(command -v "${CUDA_HOME:+$CUDA_HOME/bin/}cuobjdump" || true)
tools=$root/.cuda/packages/nvidia/cu13/bin
if [ -z "$cuobjdump" ] && [ -x "$tools/cuobjdump" ]; then
    cuobjdump=$tools/cuobjdump
    PATH=$tools:$PATH # It calls nvdisasm.
fi

if [ $# = 0 ]; then
    folder=$(ls -td "${CARGO_TARGET_DIR:-$root/target}"/release/build/secateur-*/out/device 2>/dev/null | head -n 1 || true)
    shopt -s nullglob
    set -- ${folder:+"$folder"/*.sm_90a.cubin}
    if [ $# = 0 ]; then
        echo 'check-sass.sh: no sm_90a cubins under target/release: run scripts/install-nvcc.sh, then cargo build --release' >&2
        exit 2
    fi
fi

for file in "$@"; do
    if [ "$(head -c 4 "$file")" = $'\x7fELF' ]; then
        [ -n "$cuobjdump" ] || { echo 'check-sass.sh: no cuobjdump: run scripts/install-nvcc.sh --tools' >&2; exit 2; }
        "$cuobjdump" -sass "$file"
    else
        cat "$file"
    fi
done | awk '
    function report() {
        if (kernel != "" && !acqbulk) {
            printf "%s: FAILED, no ACQBULK\n", kernel
            failed = 1
        }
        if (kernel !~ /_wgmma/) return
        seen += 1
        fault = ""
        if (!hgmma) fault = fault ", no HGMMA"
        if (!utmaldg) fault = fault ", no UTMALDG"
        if (ldl + stl) fault = fault ", local memory"
        printf "%s: %d HGMMA, %d UTMALDG, %d LDL, %d STL: %s\n", kernel, hgmma, utmaldg, ldl, stl, fault ? "FAILED" fault : "ok"
        if (fault) failed = 1
    }
    /Function : / { report(); kernel = $NF; hgmma = utmaldg = ldl = stl = acqbulk = 0; next }
    /[ \t]HGMMA[. ]/ { hgmma += 1 }
    /[ \t]UTMALDG[. ]/ { utmaldg += 1 }
    /[ \t]ACQBULK[. ;]/ { acqbulk += 1 }
    /[ \t]LDL[. ]/ { ldl += 1 }
    /[ \t]STL[. ]/ { stl += 1 }
    END {
        report()
        if (!seen) print "no kernel has _wgmma in its symbol"
        exit failed
    }'
