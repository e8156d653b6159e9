#!/usr/bin/env python3
"""Is it right on this GPU, and how fast is it? Two calls, the first of ten minutes at most. No Rust and no nvcc are needed here.

  scripts/pack-gpu.sh --data DIR              where Rust and CIFAR-10 are: fills .carry/
  scripts/qualify-gpu.py first                probes, tests of a training step, benches, the PyTorch peer, counters, checkers
  scripts/qualify-gpu.py second               trains on CIFAR-10 with what time is left
  scripts/qualify-gpu.py plan                 the first call by the minute
  scripts/qualify-gpu.py summary              prints the summary of a folder

The stages and their seconds are one table, scripts/qualify/stages.py. Rows are kept as they come: at any moment the archive
(--archive, a .tar.gz) holds all of them, its summary first, and the summary is next to it too. Nothing that fails, hangs or is
missing keeps the rest from running; where a test of a training step fails, the fewest kernels with which it passes are left out
from there on, and every row says so (scripts/qualify/switches.py).

Exit codes: 0 all ran or lacked its tool, 1 something failed, found something or ran out of its time, 2 nothing to run or the
folder is in use, 3 no GPU, 130 interrupted. On the emulated device (--device emulated:sm_90a) everything is tiny and nothing
of it a result. docs/gpu-session.md says more.
"""

import argparse
import glob
import os
import signal
import sys
import time
from pathlib import Path

from qualify import machine, session, stages, summary

SECONDS = {"first": 595, "second": 180}
# Characters of the summary that are printed: its headline and first tables.
PRINTED = 6000
# Folders of NVIDIA's tools, which need not be on the PATH.
NVIDIA = ["/usr/local/cuda/bin", "/opt/nvidia/nsight-compute/*"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("call", choices=["first", "second", "plan", "summary"])
    parser.add_argument("--folder", help="default runs/gpu/CALL; must hold no earlier session")
    parser.add_argument("--archive", help="default FOLDER.tar.gz")
    parser.add_argument("--seconds", type=float, help="of the whole call; default 595 for the first, 180 for the second, 20 times that "
                        "without a GPU")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", default="", help="names of stages, comma-separated; default all")
    args = parser.parse_args()
    default = args.call if args.call in SECONDS else "first"
    args.folder = Path(args.folder or f"runs/gpu/{default}").resolve()
    args.archive = Path(args.archive or f"{args.folder}.tar.gz").resolve()
    args.size = stages.FULL if args.device.startswith("cuda") else stages.TINY
    args.seconds = args.seconds or SECONDS.get(args.call, 0) * args.size.patience
    names = [stage.name for stage in stages.FIRST + stages.SECOND]
    unknown = [name for name in args.only.split(",") if name and name not in names]
    if unknown:
        parser.error(f"--only {unknown[0]}: expected some of {', '.join(names)}")
    return args


def interrupted(number, frame):
    raise session.Interrupted


def run(args):
    """The stages of a call; the exit code."""
    begin = time.monotonic()
    gpu = machine.gpu()
    if args.device.startswith("cuda") and not gpu:
        print("error: nvidia-smi names no GPU", file=sys.stderr)
        return 3
    if (args.folder / "jobs.json").exists():
        print(f"error: {args.folder} holds the results of an earlier session", file=sys.stderr)
        return 2
    machine.unpack()
    args.folder.mkdir(parents=True, exist_ok=True)
    left = args.seconds - (time.monotonic() - begin)
    here = session.Session(args.call, args.folder, args.archive, left, args.device, args.size, gpu)
    earlier = args.folder.parent / "first"
    if args.call == "second" and not here.switches and (earlier / "jobs.json").exists():
        here.inherit(earlier / "jobs.json")
    try:
        here.log_clocks()
        for stage in stages.FIRST if args.call == "first" else stages.SECOND:
            if not args.only or stage.name in args.only.split(","):
                here.run(stage)
                if stage.then:
                    stage.then(here)
    except session.Interrupted:
        here.close("interrupted")
        return 130
    finally:
        here.close()
        print(f"\n{(args.folder / 'README.md').read_text()[:PRINTED]}\n{args.archive}", flush=True)
    return here.exit_code()


def main():
    args = arguments()
    if args.call == "plan":
        print("\n".join(stages.plan()))
        return 0
    if args.call == "summary":
        print(summary.page(args.folder))
        return 0
    os.chdir(Path(__file__).resolve().parent.parent)
    os.environ["PATH"] = os.pathsep.join([os.environ["PATH"], *(folder for pattern in NVIDIA for folder in sorted(glob.glob(pattern)))])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, interrupted)
    return run(args)


if __name__ == "__main__":
    sys.exit(main())
