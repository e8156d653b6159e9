#!/usr/bin/env python3
"""The CPU engine next to PyTorch on one CPU: training steps and attack steps of ResNet-18, in f32 and bf16, in one run.

Usage: PYTHON benches/peers/cpu_step.py [--widths 64,16] [--batch 64] [--rounds 7] [--threads N] [--compile] [--out FILE.json]

All take turns, step by step, so that a slow moment of the machine hits all; medians are compared, of wall time
and of CPU time (which other work on the machine disturbs less; Linux only). PyTorch is in f32 and in bf16 (autocast),
each in channels-last and in contiguous memory, and with --compile through torch.compile as well; ours is compared with the fastest of
its own numbers, and in bf16 with the fastest of all. A step is train-mode forward, loss,
backward and SGD with momentum; an attack step is eval-mode forward, loss, input gradient, sign and projection, with
PyTorch's parameters not requiring gradients. A whole step of PGD-AT, TRADES or MART has ten attack steps and the train passes, in
PyTorch as adversarial_step.py has it: BatchNorm folded once a step, TRADES' target computed once. "Published" peers do the work of the
authors' codes, which do neither; ours is compared with the fastest of them apart.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--widths", default="64,16")
parser.add_argument("--batch", type=int, default=64)
parser.add_argument("--rounds", type=int, default=7)
parser.add_argument("--threads", type=int, default=os.cpu_count())
parser.add_argument("--compile", action="store_true")
parser.add_argument("--out")
args = parser.parse_args()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
from adversarial_step import METHODS, AdversarialStep, PublishedStep  # noqa: E402
from resnet18 import ResNet18  # noqa: E402


# Seconds before each turn: PyTorch's threads spin for a while after theirs.
PAUSE = 0.2
# Seconds of a turn at least.
TURN = 0.3
# Every number format, layout and pass is a variant of one module.
torch._dynamo.config.recompile_limit = 64


def build():
    """Path of our bench executable."""
    command = ["cargo", "build", "--release", "--bench", "cpu_step", "--message-format=json"]
    lines = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    messages = [json.loads(line) for line in lines]
    return [m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "cpu_step"][-1]


class Ours:
    def __init__(self, executable, width, device, recipe="cifar10-pgd-at"):
        env = dict(os.environ, RAYON_NUM_THREADS=str(args.threads))
        command = [executable, str(width), str(args.batch), device, recipe]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env)
        self.about = json.loads(self.process.stdout.readline())

    def run(self, what):
        before = self.cpu_seconds()
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline()) | {"cpu_seconds": self.cpu_seconds() - before}

    def cpu_seconds(self):
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class PyTorch:
    def __init__(self, width, numbers, layout):
        layout = {"contiguous": torch.contiguous_format}.get(layout, torch.channels_last)
        self.bf16 = numbers == "bf16"
        torch.manual_seed(1)
        self.model = ResNet18(width, 10).to(memory_format=layout)
        self.images = torch.rand(args.batch, 3, 32, 32).contiguous(memory_format=layout)
        self.labels = torch.arange(args.batch) % 10
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
        self.forward = self.model

    def compiled(self):
        self.forward = torch.compile(self.model)
        return self

    def loss(self, images):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            logits = self.forward(images)
        return F.cross_entropy(logits.float(), self.labels)

    def run(self, what):
        start, cpu = time.perf_counter(), time.process_time()
        if what == "step":
            self.model.train().requires_grad_(True)
            self.optimizer.zero_grad()
            self.loss(self.images).backward()
            self.optimizer.step()
        else:
            self.model.eval().requires_grad_(False)
            x = self.images.clone().requires_grad_()
            self.loss(x).backward()
            with torch.no_grad():
                moved = x + 2 / 255 * x.grad.sign()
                torch.min(torch.max(moved, self.images - 8 / 255), self.images + 8 / 255).clamp_(0, 1)
        return time.perf_counter() - start, time.process_time() - cpu


class WholeStep:
    def __init__(self, step, method, width, numbers, mode):
        wrap = torch.compile if mode == "compiled" else lambda f: f
        self.step = step(method, width, args.batch, "cpu", wrap, autocast=numbers == "bf16")

    def run(self, _):
        start, cpu = time.perf_counter(), time.process_time()
        self.step.run()
        return time.perf_counter() - start, time.process_time() - cpu


def cpu_name():
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def turn(run):
    """The last of as many runs as fill a turn: the others brought threads and caches back to this work."""
    time.sleep(PAUSE)
    begin = time.perf_counter()
    while True:
        result = run()
        if time.perf_counter() - begin >= TURN:
            return result


def compare(width, what, ours, peers):
    """Rows of one kind of step: each of ours with the fastest peer."""
    seconds = {name: [] for name in (*ours, *peers)}
    parts, peak_bytes = {name: [] for name in ours}, {}
    for round in range(args.rounds + 1):
        times = {}
        for name, engine in ours.items():
            answer = turn(lambda: engine.run(what if what in ("step", "attack") else "whole"))
            times[name] = (answer["seconds"], answer["cpu_seconds"])
            peak_bytes[name] = answer["peak_bytes_per_image"]
            if round:  # the first is warm-up
                parts[name].append(answer["parts"])
        for name, peer in peers.items():
            times[name] = turn(lambda: peer.run(what))
        if round:
            for name, value in times.items():
                seconds[name].append(value)
    wall = {name: statistics.median(wall for wall, _ in values) for name, values in seconds.items()}
    cpu = {name: statistics.median(cpu for _, cpu in values) for name, values in seconds.items()}
    for name, engine in ours.items():
        # In bf16 the fastest peer may be one in f32.
        rivals = [peer for peer in peers if name == "bf16" or peer.startswith("f32")]
        published = [peer for peer in rivals if "published" in peer]
        rivals = [peer for peer in rivals if peer not in published]
        best = min(rivals, key=wall.get)
        part = {key: statistics.median(p[key] for p in parts[name]) for key in parts[name][0]}
        row = {"width": width, "batch": args.batch, "what": what, "numbers": name, "pytorch": best}
        row |= {"seconds": {key: seconds[key] for key in (name, *rivals, *published)}, "medians": wall, "cpu_medians": cpu}
        row |= {"parts": part, "ratio": wall[best] / wall[name]}
        row["cpu_ratio"] = min(cpu[rival] for rival in rivals) / cpu[name]
        row["peak_bytes_per_image"] = peak_bytes[name]
        rate = f", {row['peak_bytes_per_image'] / 1e6:.2f} MB an image"
        if published:
            fastest = min(published, key=wall.get)
            row |= {"published": fastest, "published_ratio": wall[fastest] / wall[name]}
            row["published_cpu_ratio"] = min(cpu[peer] for peer in published) / cpu[name]
            rate += f", {row['published_ratio']:.2f} x {fastest} ({row['published_cpu_ratio']:.2f} by CPU time)"
        if "backward" in part:
            gflop, peak = engine.about["gflop"], engine.about["peak_gflop_per_s"]
            work = {"forward": gflop, "backward": gflop * (2 if what == "step" else 1)}
            row["gflop_per_s"] = {key: work[key] / part[key] for key in work}
            row["share_of_peak"] = sum(work.values()) / sum(part[key] for key in work) / peak
            each = ", ".join(f"{key} {value:.0f}" for key, value in row["gflop_per_s"].items())
            rate += f" ({each} GFLOP/s, {100 * row['share_of_peak']:.0f} % of {peak:.0f})"
        print(
            f"width {width} {what} {name}: ours {args.batch / wall[name]:.1f} images/s{rate}, PyTorch {best} "
            f"{args.batch / wall[best]:.1f} images/s: ours is {row['ratio']:.2f} x PyTorch, "
            f"{row['cpu_ratio']:.2f} x by CPU time",
            flush=True,
        )
        yield row


def main():
    torch.set_num_threads(args.threads)
    executable = build()
    rows = []
    modes = ["eager", "compiled"] if args.compile else ["eager"]
    for width in map(int, args.widths.split(",")):
        devices = {"f32": "cpu", "bf16": "cpu:bf16"}
        ours = {numbers: Ours(executable, width, device) for numbers, device in devices.items()}
        peers = {
            f"{numbers} {layout}": PyTorch(width, numbers, layout)
            for numbers in devices
            for layout in ("contiguous", "channels_last")
        }
        if args.compile:
            peers |= {f"{n} compiled": PyTorch(width, n, "channels_last").compiled() for n in devices}
        for what in ("step", "attack"):
            rows += compare(width, what, ours, peers)
        device = ours["f32"].about["device"]
        for engine in ours.values():
            engine.close()
        for method in METHODS:
            recipe = f"cifar10-{method}"
            ours = {numbers: Ours(executable, width, device, recipe) for numbers, device in devices.items()}
            steps = {"": AdversarialStep, "published ": PublishedStep}
            peers = {
                f"{n} {kind}{mode}": WholeStep(step, method, width, n, mode)
                for n in devices
                for kind, step in steps.items()
                for mode in modes
            }
            rows += compare(width, method, ours, peers)
            for engine in ours.values():
                engine.close()
    about = {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_name(),
        "threads": args.threads,
        "torch": torch.__version__,
        "load": os.getloadavg(),
        "device": device,
    }
    if args.out:
        pathlib.Path(args.out).write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
