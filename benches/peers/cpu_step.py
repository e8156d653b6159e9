#!/usr/bin/env python3
"""The CPU engine beside PyTorch on one CPU: training steps and attack steps of ResNet-18, in f32 and bf16, in one run.

Usage: PYTHON benches/peers/cpu_step.py [--widths 64,16] [--batch 64] [--rounds 7] [--threads N] [--out FILE.json]

All take turns, step by step, so that a slow moment of the machine hits all; medians are compared, of wall time
and of CPU time (which other work on the machine disturbs less; Linux only). PyTorch is eager, in f32 and in bf16 (autocast),
each in channels-last and in contiguous memory; ours is set beside the fastest of its own numbers, and in bf16 beside the fastest
of all. torch.compile is not among them. A step is train-mode forward, loss,
backward and SGD with momentum; an attack step is eval-mode forward, loss, input gradient, sign and projection, with
PyTorch's parameters not requiring gradients.
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
parser.add_argument("--out")
args = parser.parse_args()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
from resnet18 import ResNet18  # noqa: E402


def build():
    """Path of our bench executable."""
    command = ["cargo", "build", "--release", "--bench", "cpu_step", "--message-format=json"]
    lines = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    messages = [json.loads(line) for line in lines]
    return [m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "cpu_step"][-1]


class Ours:
    def __init__(self, executable, width, device):
        env = dict(os.environ, RAYON_NUM_THREADS=str(args.threads))
        command = [executable, str(width), str(args.batch), device]
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
        layout = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}[layout]
        self.bf16 = numbers == "bf16"
        torch.manual_seed(1)
        self.model = ResNet18(width, 10).to(memory_format=layout)
        self.images = torch.rand(args.batch, 3, 32, 32).contiguous(memory_format=layout)
        self.labels = torch.arange(args.batch) % 10
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)

    def loss(self, images):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            logits = self.model(images)
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


def cpu_name():
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def main():
    torch.set_num_threads(args.threads)
    executable = build()
    rows = []
    for width in map(int, args.widths.split(",")):
        ours = {"f32": Ours(executable, width, "cpu"), "bf16": Ours(executable, width, "cpu:bf16")}
        peers = {
            f"{numbers} {layout}": PyTorch(width, numbers, layout)
            for numbers in ("f32", "bf16")
            for layout in ("contiguous", "channels_last")
        }
        for what in ("step", "attack"):
            seconds = {name: [] for name in (*ours, *peers)}
            parts = {name: [] for name in ours}
            for round in range(args.rounds + 1):
                times = {}
                for name, engine in ours.items():
                    answer = engine.run(what)
                    times[name] = (answer["seconds"], answer["cpu_seconds"])
                    if round:  # the first is warm-up
                        parts[name].append(answer["parts"])
                times |= {name: peer.run(what) for name, peer in peers.items()}
                if round:
                    for name, value in times.items():
                        seconds[name].append(value)
            wall = {name: statistics.median(wall for wall, _ in values) for name, values in seconds.items()}
            cpu = {name: statistics.median(cpu for _, cpu in values) for name, values in seconds.items()}
            for name, engine in ours.items():
                # In bf16 the fastest peer may be one in f32.
                rivals = [peer for peer in peers if name == "bf16" or peer.startswith("f32")]
                best = min(rivals, key=wall.get)
                part = {key: statistics.median(p[key] for p in parts[name]) for key in parts[name][0]}
                gflop = engine.about["gflop"]
                work = {"forward": gflop, "backward": gflop * (2 if what == "step" else 1)}
                rate = {key: work[key] / part[key] for key in work}
                row = {"width": width, "batch": args.batch, "what": what, "numbers": name, "pytorch": best}
                row |= {"seconds": {key: seconds[key] for key in (name, *rivals)}, "medians": wall, "cpu_medians": cpu}
                row |= {"parts": part, "gflop_per_s": rate, "ratio": wall[best] / wall[name]}
                row["cpu_ratio"] = min(cpu[rival] for rival in rivals) / cpu[name]
                rows.append(row)
                print(
                    f"width {width} {what} {name}: ours {args.batch / wall[name]:.1f} images/s "
                    f"(forward {rate['forward']:.0f}, backward {rate['backward']:.0f} GFLOP/s), PyTorch {best} "
                    f"{args.batch / wall[best]:.1f} images/s: ours is {row['ratio']:.2f} x PyTorch, "
                    f"{row['cpu_ratio']:.2f} x by CPU time",
                    flush=True,
                )
        device = ours["f32"].about["device"]
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
