#!/usr/bin/env python3
"""Trains one method on all samples and on pruned ones at equal fraction, evaluates all alike, writes one table.

Usage: compare-pruning.py DATA OUT [--device cpu] [--images 5000] [--epochs 12] ... (needs a release build)

DATA is a folder of the CIFAR-10 binary files. Runs go to OUT/NAME; one that is whole is not repeated, so the script can be
interrupted and started again. The table goes to OUT/README.md. All rows share network, seed, images, batch, optimizer and
the shape of the learning rate; they differ by the selection of the samples, and "-bullet" rows by BulletTrain, alone.

Seconds are wall-clock seconds of the runs' own metrics: attack and train make the training seconds, select the selection
seconds, and a speed-up is the sum of the two of the row "full" over that of a row. Run it on a machine that does nothing
else. The CPU seconds of the whole process, which other jobs hardly change, stand beside them, with their own speed-up; they
count what no row needs too (reading the data, the validations), and of a run that was broken off its last session only. "By
passes" is the speed-up by the recipes' cost model, in passes through the network: no clock, so the same on every machine.
"""

import argparse
import datetime
import json
import pathlib
import platform
import resource
import subprocess

FRACTION = ["selection.fraction={fraction}"]
WARM = ["selection.warm_start={warm_start}"]
EVERY = ["selection.every={every}"]
BULLET = ["accelerate.method=bullet-train"]
SELECTIONS = {
    "full": [],
    "short": ["selection.method=short", *FRACTION],
    "random-online": ["selection.method=random-online", *FRACTION, *WARM],
    "loss-rank": ["selection.method=loss-rank", *FRACTION, *WARM],
    "info-batch": ["selection.method=info-batch"],
    "adv-grad-match": ["selection.method=adv-grad-match", *FRACTION, *WARM, *EVERY],
    "adv-glister": ["selection.method=adv-glister", *FRACTION, *WARM, *EVERY],
}
METHODS = {
    name + suffix: settings + bullet
    for suffix, bullet in (("", []), ("-bullet", BULLET))
    for name, settings in SELECTIONS.items()
}
# Passes through the network of a sample that is trained on, beside its attack: two train passes of three each, and the
# clean pass that TRADES attacks from and BulletTrain scores by. A candidate of a selection costs its attack, that clean
# pass and two more.
TRAIN, SCORE, SURVEY = 6, 1, 3
SURVEYED = ("adv-grad-match", "adv-glister")
RECIPE = """# Made by scripts/compare-pruning.py; the selection comes by --set.
epochs = {epochs}
batch = {batch}
seed = {seed}
[data]
set = "cifar10"
train_limit = {images}
validation = {validation}
[model]
width = {width}
[objective]
method = "{objective}"
[attack]
epsilon = "8/255"
step_size = "{step_size}"
steps = {steps}
[optimizer]
learning_rate = {learning_rate}
[schedule]
kind = "one-cycle"
[evaluation]
every = 0
samples = 1
protocols = ["clean"]
best_by = "pgd1"
[checkpoint]
every = 0
"""


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--binary", default="target/release/secateur")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--objective", default="trades", choices=["trades", "mart"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--images", type=int, default=5000, help="training images, the validation ones included")
    parser.add_argument("--validation", type=int, default=500, help="held out: Adv-GLISTER chooses by them")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--step-size", default="2/255")
    parser.add_argument("--fraction", type=float, default=0.3)
    parser.add_argument("--warm-start", type=float, default=0.5)
    parser.add_argument("--every", type=int, default=3, help="epochs between selections that attack the candidates")
    parser.add_argument("--test-images", type=int, default=2000)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    return parser.parse_args()


def cpu_seconds(command):
    """Runs a command; the CPU seconds of its process."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True)
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    return now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime


def passes(args, name, epochs):
    """Passes through the network that a run makes, by the cost model."""
    bullet = name.endswith("-bullet")
    score = SCORE if args.objective == "trades" or bullet else 0
    judge = SCORE if bullet else 0
    total = 0.0
    for epoch in epochs:
        attack = 2 * epoch["attack_steps_per_sample"] + score
        total += epoch["images"] * (attack + judge + TRAIN)
        if epoch["selected"] and name.removesuffix("-bullet") in SURVEYED:
            total += (args.images - args.validation) * (attack + judge + SURVEY - SCORE)
    return total


def train_and_evaluate(args, recipe, name):
    """One row of the table; kept beside the run, so that it is made once."""
    folder = args.out / name
    row_file = folder / "row.json"
    if row_file.exists():
        return json.loads(row_file.read_text())
    sets = [word for item in METHODS[name] for word in ("--set", item.format(**vars(args)))]
    common = [args.binary, "train", "--data", str(args.data), "--device", args.device]
    cpu = cpu_seconds([*common, "--recipe", str(recipe), *sets, "--out", str(folder), "--resume"])
    result = folder / "eval.json"
    subprocess.run(
        [args.binary, "eval", "--weights", str(folder / "last.safetensors"), "--data", str(args.data)]
        + ["--protocol", "clean,pgd20", "--samples", str(args.test_images), "--device", args.device]
        + ["--out", str(result)],
        check=True,
    )
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    total = lambda key: sum(epoch[key] or 0.0 for epoch in epochs)
    accuracy = {row["protocol"]: row["accuracy"] for row in json.loads(result.read_text())["results"]}
    row = {
        "method": name,
        "clean": accuracy["clean"],
        "pgd20": accuracy["pgd20"],
        "train_seconds": total("seconds_attack") + total("seconds_train"),
        "select_seconds": total("seconds_select"),
        "cpu_seconds": cpu,
        "passes": passes(args, name, epochs),
        "images": total("images"),
        "steps": sum(epoch["images"] * epoch["attack_steps_per_sample"] for epoch in epochs) / total("images"),
        "selections": sum(epoch["selected"] for epoch in epochs),
        "residual": next((epoch["residual"] for epoch in reversed(epochs) if epoch["residual"] is not None), None),
    }
    row_file.write_text(json.dumps(row, indent=2) + "\n")
    return row


def table(rows):
    lines = [
        "| method | clean | PGD-20 | train s | select s | speed-up | CPU s | speed-up by CPU s | by passes | share of the images "
        "| attack steps an image | selections | residual |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    full = next((row for row in rows if row["method"] == "full"), None)
    seconds = lambda row: row["train_seconds"] + row["select_seconds"]
    for row in rows:
        over = lambda of: f"{of(full) / of(row):.2f}x" if full else ""
        share = f"{100 * row['images'] / full['images']:.0f} %" if full else ""
        residual = "" if row["residual"] is None else f"{row['residual']:.3f}"
        lines.append(
            f"| {row['method']} | {100 * row['clean']:.1f} % | {100 * row['pgd20']:.1f} % | {row['train_seconds']:.0f} "
            f"| {row['select_seconds']:.0f} | {over(seconds)} | {row['cpu_seconds']:.0f} "
            f"| {over(lambda row: row['cpu_seconds'])} | {over(lambda row: row['passes'])} | {share} | {row['steps']:.2f} "
            f"| {row['selections']} | {residual} |"
        )
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
        options = ("device", "objective", "seed", "width", "images", "validation", "epochs", "batch", "learning_rate")
        options += ("steps", "step_size", "fraction", "warm_start", "every", "test_images")
        flags = " ".join(f"--{option.replace('_', '-')} {getattr(args, option)}" for option in options)
        text = [
            f"# {args.objective.upper()} on pruned data, real CIFAR-10",
            "",
            f"`scripts/compare-pruning.py DATA OUT {flags}`",
            "",
            f"{datetime.date.today()}, {processor()}, device {args.device}: ResNet-18 of width {args.width}, the first "
            f"{args.images} training images, {args.validation} of them held out, a schedule of {args.epochs} epochs; clean and "
            f"PGD-20 (eps 8/255, step 2/255) accuracy of the last epoch's weights on the first {args.test_images} test images. "
            f"Fraction {args.fraction}, warm start {args.warm_start}. Chance is 10 %. One seed: differences of a few points "
            "are noise.",
            "",
            *table(rows),
            "",
        ]
        (args.out / "README.md").write_text("\n".join(text))


if __name__ == "__main__":
    main()
