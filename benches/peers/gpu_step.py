#!/usr/bin/env python3
"""PyTorch's PGD-AT, TRADES and MART training steps of ResNet-18 on a GPU, as fast as PyTorch makes them: the peer of `bench step`.

Usage: gpu_step.py [--method pgd-at,trades,mart] [--batch 128,512,1024] [--mode autotune|compile|graphs|eager[,...]]
       [--device cuda] [--width 64] [--seconds 1.0] [--samples 7] [--setup-seconds 120] [--budget SECONDS] [--json FILE]

bf16, channels_last, BatchNorm folded for the attack, clean forward pass computed once, fused SGD (adversarial_step.py). Modes:

  eager     PyTorch's own kernels, one launch after another
  graphs    the same kernels, the whole step (ten attack steps, train pass, optimizer) captured as one CUDA graph
  compile   torch.compile, convolutions by cuDNN's fastest, then the whole step captured as one CUDA graph
  autotune  the same with everything tried that torch.compile has for a convolution or product (max-autotune, its own graphs off)

Of several modes (--mode graphs,compile,autotune) each is measured for every batch before the next begins, and all are reported.
One alone that fails or takes longer than --setup-seconds falls back to the next simpler one; each line says which mode its number is of and why, and so does the JSON. Each sample is enough steps for --seconds / --samples,
timed with CUDA events; medians count. The ceilings are a bf16 product of 8192 x 8192 x 8192 and a copy of 1 GiB within the
device, on random data. A measurement whose step did something wrong (adversarial_step.py, `sound`) is not reported but an error.
--budget ends the run with what is measured by then; the rows left out are named. The JSON file is replaced after each row, and
its `finished` is false until the last. Exit code 1 if a method was tried at a batch
and measured in no mode. Images lie on the device: loading and augmentation are not in the figure.
"""

import argparse
import contextlib
import datetime
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from adversarial_step import METHODS, AdversarialStep
from work import UNITS, forward_flops

FALLBACK = ["autotune", "compile", "graphs", "eager"]
# Seconds of the budget with which a row is worth beginning.
ENOUGH = {"autotune": 60, "compile": 30, "graphs": 15, "eager": 5}
# Of torch.compile.
COMPILE_MODES = {"compile": "default", "autotune": "max-autotune-no-cudagraphs"}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default=",".join(METHODS))
    parser.add_argument("--batch", default="128,512,1024")
    parser.add_argument("--mode", default="autotune")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--samples", type=int, default=7)
    parser.add_argument("--setup-seconds", type=float, default=120)
    parser.add_argument("--budget", type=float, default=float("inf"))
    parser.add_argument("--json")
    args = parser.parse_args()
    args.methods = args.method.split(",")
    args.batches = [int(batch) for batch in args.batch.split(",")]
    args.modes = args.mode.split(",")
    unknown = [mode for mode in args.modes if mode not in FALLBACK]
    if unknown:
        parser.error(f"--mode {unknown[0]}: expected some of {', '.join(FALLBACK)}")
    unknown = [method for method in args.methods if method not in METHODS]
    if unknown:
        parser.error(f"--method {unknown[0]}: expected one of {', '.join(METHODS)}")
    return args


@contextlib.contextmanager
def limit(seconds, what):
    """Raises TimeoutError in the block once the time is up."""

    def expired(signum, frame):
        raise TimeoutError(f"{what} took longer than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, expired)
    # Again every 5 s: the first may be raised where Python ignores exceptions (a destructor, a weak reference's callback).
    signal.setitimer(signal.ITIMER_REAL, seconds, 5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Clock:
    """Seconds of `run` repeated: CUDA events on a GPU, the wall clock elsewhere."""

    def __init__(self, device):
        self.cuda = torch.device(device).type == "cuda"

    def synchronize(self):
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, run, repeats):
        if not self.cuda:
            begin = time.perf_counter()
            for _ in range(repeats):
                run()
            return time.perf_counter() - begin
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(repeats):
            run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000

    def samples(self, run, count, seconds):
        """Seconds of one run, `count` times; each the mean of as many runs as fill its part of `seconds`."""
        run()
        self.synchronize()
        repeats = max(1, round(seconds / count / max(self.seconds(run, 2) / 2, 1e-6)))
        return [self.seconds(run, repeats) / repeats for _ in range(count)]


def compiled(function, mode="autotune"):
    return torch.compile(function, mode=COMPILE_MODES[mode], dynamic=False)


def captured(step):
    """`step` as one CUDA graph; its replay. The warm-up, which compiles and tries algorithms, is on the stream of the capture:
    autograd goes on accumulating gradients on the stream where it first did."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step.run()
    torch.cuda.current_stream().wait_stream(side)
    # Gradients of the warm-up go back to the allocator; those of the capture live in the graph's pool.
    step.optimizer.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        step.run()
    return graph.replay


def prepare(mode, method, batch, args):
    """A step ready to be timed in `mode`, and what runs it."""
    cuda = torch.device(args.device).type == "cuda"
    if mode == "graphs" and not cuda:
        raise RuntimeError(f"no CUDA graphs on {args.device}")

    def wrap(function):
        return compiled(function, mode) if mode in COMPILE_MODES else function

    step = AdversarialStep(method, args.width, batch, args.device, wrap)
    if cuda and mode != "eager":
        return step, captured(step)
    for _ in range(2):
        step.run()
    return step, step.run


def measure(requested, method, batch, args, clock, setup_seconds):
    """A row: the first of the modes that works."""
    row = {"method": method, "batch": batch, "width": args.width, "requested": requested, "mode": None, "failed": {}}
    for mode in [requested] if len(args.modes) > 1 else FALLBACK[FALLBACK.index(requested) :]:
        begin = time.perf_counter()
        step = run = None
        try:
            with limit(setup_seconds, f"preparing {mode}"):
                step, run = prepare(mode, method, batch, args)
                run()
                wrong = step.sound()
            setup = time.perf_counter() - begin
            samples = clock.samples(run, args.samples, args.seconds)
            wrong = wrong or step.sound(gradients=False)
            if wrong:
                raise RuntimeError(wrong)
        except Exception as error:  # whatever a compiler or a capture may raise
            row["failed"][mode] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            del step, run
            torch.compiler.reset()
            if clock.cuda:
                # A capture that broke off may have left an error behind; if the device is lost, this raises and ends the run.
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
            continue
        seconds = statistics.median(samples)
        flops = UNITS[method] * forward_flops(args.width) * batch
        row |= {"mode": mode, "setup_seconds": setup, "samples": samples, "seconds": seconds, "loss": float(step.loss)}
        row |= {"images_per_second": batch / seconds, "flops": flops, "flops_per_second": flops / seconds}
        if clock.cuda:
            row["peak_bytes"] = torch.cuda.max_memory_allocated()
        break
    return row


def ceilings(device, clock):
    """Operations and bytes a second that the device reaches."""
    side, length = (8192, 1 << 30) if clock.cuda else (256, 1 << 26)
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    product = statistics.median(clock.samples(lambda: torch.mm(a, b, out=out), 7, 0.5))
    source = torch.randint(256, (length,), device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    copy = statistics.median(clock.samples(lambda: target.copy_(source), 7, 0.5))
    return {
        "flops": 2 * side**3 / product,
        "bytes": 2 * length / copy,
        "how": [f"bf16 product of {side} x {side} x {side}", f"copy of {length >> 20} MiB"],
    }


def driver():
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def main():
    args = arguments()
    begin = time.perf_counter()
    clock = Clock(args.device)
    if clock.cuda and not torch.cuda.is_available():
        sys.exit(f"--device {args.device}: PyTorch {torch.__version__} finds no GPU")
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    document = {
        "peer": "PyTorch",
        "command": sys.argv,
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if clock.cuda else f"{torch.get_num_threads()} CPU threads",
        "driver": driver(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "ceilings": ceilings(args.device, clock),
        "finished": False,
        "rows": [],
        "left_out": [],
    }
    write(args.json, document)
    top = document["ceilings"]
    print(f"device   {document['device']}, driver {document['driver']}, PyTorch {document['torch']}")
    print(f"ceilings {top['flops'] / 1e12:.1f} TFLOP/s ({top['how'][0]}), {top['bytes'] / 1e9:.0f} GB/s ({top['how'][1]})")
    for mode, batch, method in itertools.product(args.modes, args.batches, args.methods):
        name = f"{method} batch {batch} {mode}"
        left = args.budget - (time.perf_counter() - begin)
        if left < ENOUGH[mode]:
            document["left_out"].append(name)
            continue
        if clock.cuda:
            torch.cuda.reset_peak_memory_stats()
        row = measure(mode, method, batch, args, clock, min(args.setup_seconds, left))
        document["rows"].append(row)
        print(line(name, row, top), flush=True)
        write(args.json, document)
        if method == args.methods[-1]:
            torch.compiler.reset()
    for name in document["left_out"]:
        print(f"{name}: not measured, the budget of {args.budget:g} s was over")
    document["finished"] = True
    write(args.json, document)
    asked = {(row["method"], row["batch"]) for row in document["rows"]}
    sys.exit(not asked or asked != {(row["method"], row["batch"]) for row in document["rows"] if row["mode"]})


def write(path, document):
    """Replaces the file as a whole, so that a run that is killed leaves the rows so far."""
    if path:
        writing = Path(f"{path}.writing")
        writing.write_text(json.dumps(document, indent=1) + "\n")
        os.replace(writing, path)


def line(name, row, top):
    failed = "".join(f"; {mode} failed: {why}" for mode, why in row["failed"].items())
    if row["mode"] is None:
        return f"{name}: no measurement{failed}"
    share = row["flops_per_second"] / top["flops"]
    return (
        f"{name}: {row['images_per_second']:.0f} images/s, {row['flops_per_second'] / 1e12:.2f} TFLOP/s, "
        f"{100 * share:.1f} % of the ceiling, mode {row['mode']}, {row['setup_seconds']:.0f} s to prepare{failed}"
    )


if __name__ == "__main__":
    main()
