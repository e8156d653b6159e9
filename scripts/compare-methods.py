#!/usr/bin/env python3
"""Trains every method on the same images for the same epochs, evaluates all alike, writes one table.

Usage: compare-methods.py DATA OUT [--device cpu] [--images 2000] [--epochs 5] ... (needs a release build)

DATA is a folder of the CIFAR-10 binary files. Runs go to OUT/NAME; one that is whole is not repeated, so the script can
be interrupted and started again. The table goes to OUT/README.md. All methods share network, seed, images, batch, optimizer
and learning rate; they differ by objective and attack alone. Seconds are of training only: CPU seconds of the process, which
other jobs on the machine hardly change, beside the wall clock, which they do.
"""

import argparse
import datetime
import json
import pathlib
import platform
import resource
import subprocess
import time

MULTI_STEP = ["attack.steps={steps}", "attack.step_size={step_size}"]
BULLET = ["accelerate.method=bullet-train"]
METHODS = {
    "standard": ["objective.method=standard"],
    "standard-bullet": ["objective.method=standard", *BULLET],
    "pgd-at": ["objective.method=pgd-at", *MULTI_STEP],
    "pgd-at-bullet": ["objective.method=pgd-at", *MULTI_STEP, *BULLET],
    "trades": ["objective.method=trades", *MULTI_STEP],
    "trades-bullet": ["objective.method=trades", *MULTI_STEP, *BULLET],
    "mart": ["objective.method=mart", *MULTI_STEP],
    "mart-bullet": ["objective.method=mart", *MULTI_STEP, *BULLET],
    "fgsm-rs": ["objective.method=fgsm-rs"],
    "fgsm-rs-bullet": ["objective.method=fgsm-rs", *BULLET],
    "n-fgsm": ["objective.method=n-fgsm"],
    "n-fgsm-bullet": ["objective.method=n-fgsm", *BULLET],
    "free": ["objective.method=free", "objective.replays={replays}"],
    "free-bullet": ["objective.method=free", "objective.replays={replays}", *BULLET],
}
RECIPE = """# Made by scripts/compare-methods.py; the method comes by --set.
epochs = {epochs}
batch = {batch}
[data]
set = "cifar10"
train_limit = {images}
[model]
width = {width}
[attack]
epsilon = "8/255"
[optimizer]
learning_rate = {learning_rate}
[schedule]
kind = "one-cycle"
[evaluation]
every = 0
samples = 1
protocols = ["clean"]
[checkpoint]
every = 0
"""


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--binary", default="target/release/secateur")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--step-size", default="4/255")
    parser.add_argument("--replays", type=int, default=4)
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    return parser.parse_args()


def timed(command):
    """Runs a command; its wall and CPU seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.monotonic()
    subprocess.run(command, check=True)
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    return time.monotonic() - begin, cpu


def train_and_evaluate(args, recipe, name):
    """One row of the table; kept beside the run, so that it is made once."""
    folder = args.out / name
    row_file = folder / "row.json"
    if row_file.exists():
        return json.loads(row_file.read_text())
    values = {"steps": args.steps, "step_size": args.step_size, "replays": args.replays}
    sets = [word for item in METHODS[name] for word in ("--set", item.format(**values))]
    common = [args.binary, "train", "--data", str(args.data), "--device", args.device]
    wall, cpu = timed([*common, "--recipe", str(recipe), *sets, "--out", str(folder)])
    result = folder / "eval.json"
    subprocess.run(
        [args.binary, "eval", "--weights", str(folder / "last.safetensors"), "--data", str(args.data)]
        + ["--protocol", "clean,pgd20", "--samples", str(args.test_images), "--device", args.device]
        + ["--out", str(result)],
        check=True,
    )
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    mean = lambda key: sum(epoch[key] or 0.0 for epoch in epochs) / len(epochs)
    attack, train = mean("seconds_attack"), mean("seconds_train")
    accuracy = {row["protocol"]: row["accuracy"] for row in json.loads(result.read_text())["results"]}
    row = {
        "method": name,
        "loss": [epochs[0]["train_loss"], epochs[-1]["train_loss"]],
        "clean": accuracy["clean"],
        "pgd20": accuracy["pgd20"],
        "steps": mean("attack_steps_per_sample"),
        "groups": [mean(f"{group}_share") for group in ("outlier", "boundary", "robust")],
        "co_detected": any(epoch["co_detected"] for epoch in epochs),
        "cpu_seconds": cpu,
        "wall_seconds": wall,
        "attack_share": attack / (attack + train),
    }
    row_file.write_text(json.dumps(row, indent=2) + "\n")
    return row


def table(args, rows):
    lines = [
        "| method | clean | PGD-20 | CPU s | x standard | wall s | attack steps an image | loss, first to last epoch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    standard = next((row["cpu_seconds"] for row in rows if row["method"] == "standard"), None)
    for row in rows:
        times = f"{row['cpu_seconds'] / standard:.1f}" if standard else ""
        first, last = row["loss"]
        lines.append(
            f"| {row['method']} | {100 * row['clean']:.1f} % | {100 * row['pgd20']:.1f} % | {row['cpu_seconds']:.0f} "
            f"| {times} | {row['wall_seconds']:.0f} | {row['steps']:.2f} | {first:.3f} to {last:.3f} |"
        )
    lines += ["", "BulletTrain, shares of the images over the run (mean of the epochs):", ""]
    lines += ["| method | not attacked | full attack | short attack | CPU s saved |", "|---|---|---|---|---|"]
    by_name = {row["method"]: row for row in rows}
    for name, row in by_name.items():
        base = by_name.get(name.removesuffix("-bullet"))
        if name.endswith("-bullet") and base:
            shares = " | ".join(f"{100 * share:.0f} %" for share in row["groups"])
            saved = 1 - row["cpu_seconds"] / base["cpu_seconds"]
            lines.append(f"| {name} | {shares} | {100 * saved:.0f} % |")
    return lines


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    recipe = args.out / "recipe.toml"
    recipe.write_text(RECIPE.format(**vars(args)))
    rows = []
    for name in args.methods:
        rows.append(train_and_evaluate(args, recipe, name))
        options = ("device", "width", "images", "epochs", "batch", "learning_rate", "steps", "step_size", "replays")
        flags = " ".join(f"--{option.replace('_', '-')} {getattr(args, option)}" for option in options)
        text = [
            "# Every method, equal epochs, real CIFAR-10",
            "",
            f"`scripts/compare-methods.py DATA OUT {flags}`",
            "",
            f"{datetime.date.today()}, {processor()}, device {args.device}: ResNet-18 of width {args.width}, the first {args.images} "
            f"training images, {args.epochs} epochs; clean and PGD-20 (eps 8/255, step 2/255) accuracy of the last epoch's weights "
            f"on the first {args.test_images} test images. Chance is 10 %. One seed.",
            "",
            *table(args, rows),
            "",
        ]
        (args.out / "README.md").write_text("\n".join(text))


if __name__ == "__main__":
    main()
