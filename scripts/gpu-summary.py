#!/usr/bin/env python3
"""The summary of a folder of scripts/qualify-gpu.sh: reads what the stages wrote there, writes README.md, prints its tables.

Usage: gpu-summary.py FOLDER    (no packages needed)

Rates of steps count the work as benches/peers/work.py does, for both sides alike. Percent of the ceiling are of the bf16 product
that PyTorch measured in the same run, or, where the peer did not get there, of our own probe's; the table says which. A file that
is absent or cut short is named and left out. Checked by tests/qualify_gpu.rs.
"""

import collections
import csv
import datetime
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benches" / "peers"))
from work import ATTACK_UNITS, UNITS, forward_flops  # noqa: E402

EPOCH = 50_000
KERNELS = 25  # of the longest list


def table(heading, rows):
    """Markdown, the first column text and the others numbers."""
    lines = ["| " + " | ".join(heading) + " |", "|---|" + "---:|" * (len(heading) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def percent(share):
    return "-" if share is None else f"{100 * share:.1f} %"


class Results:
    """The JSON files of a folder."""

    def __init__(self, folder):
        self.folder, self.notes = folder, []
        lines = (folder / "stages.tsv").read_text().splitlines()
        self.stages = [line.split("\t") for line in lines]
        self.peer = self.read("peer")
        self.ceilings = self.find_ceilings()

    def read(self, name):
        path = self.folder / f"{name}.json"
        if not path.exists():
            if any(stage[0] == name for stage in self.stages):
                self.notes.append(f"{path.name} was not written")
            return None
        try:
            return json.loads(path.read_text())
        except ValueError:
            self.notes.append(f"{path.name} is cut short")
            return None

    def find_ceilings(self):
        """Operations and bytes a second, and where they are from."""
        if self.peer:
            top = self.peer["ceilings"]
            return top["flops"], top["bytes"], f"PyTorch's {top['how'][0]} and {top['how'][1]}"
        for path in sorted(self.folder.glob("step-*.json")):
            document = self.read(path.stem)
            if document and document["ceiling_flops"]:
                return document["ceiling_flops"], document["ceiling_bytes"], "our own " + " and ".join(document["ceilings"])
        return None, None, None

    def share(self, flops_per_second):
        return flops_per_second / self.ceilings[0] if self.ceilings[0] else None

    def ours(self, kind, units):
        """Images/s and operations/s of every row of `bench KIND`, by (method, batch, what the stage's name ends in)."""
        rows = {}
        for name in [stage[0] for stage in self.stages if stage[0].startswith(f"{kind}-")]:
            document = self.read(name)
            for row in document["rows"] if document else []:
                method = row["name"].split("cifar10-")[-1]
                rate = row["images"] / row["median"]
                flops = units[method] * forward_flops(document["width"]) * rate
                rows[method, document["batch"], name.rsplit("-", 1)[-1]] = rate, flops
                if row["unmet"]:
                    self.notes.append(f"{name}, {row['name']}: {row['unmet']}")
        return rows


def step_table(results):
    """Our steps beside the peer's fastest at the same batch."""
    ours, peers = results.ours("step", UNITS), {}
    for row in results.peer["rows"] if results.peer else []:
        key = row["method"], row["batch"]
        if row["mode"] and row["images_per_second"] > peers.get(key, {"images_per_second": 0})["images_per_second"]:
            peers[key] = row
    keys = sorted({key[:2] for key in ours} | set(peers), key=lambda key: (list(UNITS).index(key[0]), key[1]))
    rows = []
    for method, batch in keys:
        on, off, peer = ours.get((method, batch, "on")), ours.get((method, batch, "off")), peers.get((method, batch))
        cells = [f"{method}, batch {batch}"]
        cells += [f"{on[0]:.0f}", f"{on[1] / 1e12:.1f}", percent(results.share(on[1])), f"{EPOCH / on[0]:.2f}"] if on else ["-"] * 4
        cells += [f"{off[0]:.0f}" if off else "-"]
        cells += [f"{peer['images_per_second']:.0f} ({peer['mode']})" if peer else "-"]
        cells += [percent(results.share(peer["flops_per_second"])) if peer else "-"]
        cells += [f"{on[0] / peer['images_per_second']:.2f} x" if on and peer else "-"]
        rows.append(cells)
    heading = ["step", "ours, images/s", "TFLOP/s", "of ceiling", "s per 50k epoch", "without graphs, images/s"]
    heading += ["PyTorch, images/s (mode)", "of ceiling", "ours / PyTorch"]
    return table(heading, rows) if rows else ""


def attack_table(results):
    ours, rows = results.ours("attack", ATTACK_UNITS), []
    for method, batch in sorted({key[:2] for key in ours}):
        on, off = ours.get((method, batch, "on")), ours.get((method, batch, "off"))
        cells = [f"{method}, batch {batch}"]
        cells += [f"{on[0]:.0f}", f"{on[1] / 1e12:.1f}", percent(results.share(on[1]))] if on else ["-"] * 3
        whole = ours.get((method, batch, str(batch)))
        rows.append(cells + [f"{rate[0]:.0f}" if rate else "-" for rate in (off, whole)])
    heading = ["attack, 10 steps", "images/s", "TFLOP/s", "of ceiling", "without dependent launch, images/s"]
    heading += ["first stage in one piece, images/s"]
    return table(heading, rows) if rows else ""


def kernel_table(results):
    names = [stage[0] for stage in results.stages if stage[0].startswith("kernels-")]
    document = results.read(names[0]) if names else None
    if not document or not document["kernels"]:
        return ""
    flops, bytes_, _ = results.ceilings
    rows = []
    for kernel in sorted(document["kernels"], key=lambda kernel: -kernel["share"])[:KERNELS]:
        rate, moved = kernel["flops"] / kernel["seconds"], kernel["bytes"] / kernel["seconds"]
        shares = [rate / flops if flops else None, moved / bytes_ if bytes_ else None]
        cells = [f"`{kernel['name']}`", str(kernel["calls"]), f"{1e6 * kernel['seconds']:.1f}", percent(kernel["share"])]
        cells += [f"{rate / 1e12:.1f}", percent(shares[0]), f"{moved / 1e9:.0f}", percent(shares[1])]
        rows.append(cells)
    heading = ["kernel", "calls", "us", "of the time", "TFLOP/s", "of ceiling", "GB/s", "of ceiling"]
    left = len(document["kernels"]) - len(rows)
    more = f"\n{left} kernels more are in {names[0]}.json.\n" if left > 0 else ""
    return table(heading, rows) + more


def ladder_table(results):
    """TFLOP/s of every layer on every rung, in the order of the file."""
    names = [stage[0] for stage in results.stages if stage[0].startswith("ladder-")]
    document = results.read(names[0]) if names else None
    if not document or not document["rows"]:
        return ""
    layers, rungs = {}, {}
    for row in document["rows"]:
        layer, rung = row["name"].split(", ", 1)
        layers.setdefault(layer, {})[rung] = f"{row['flops'] / row['median'] / 1e12:.0f}"
        rungs[rung] = None
    rows = [[layer, *(rates.get(rung, "-") for rung in rungs)] for layer, rates in layers.items()]
    return table([f"{document['batch']} images, TFLOP/s", *rungs], rows)


def probe_table(results):
    probes = results.read("probes")
    if not probes:
        return ""
    rows = [
        [row["question"], str(row["predicted"]), str(row["measured"]), row["unit"], row["verdict"]]
        for row in probes["rows"]
    ]
    return table(["question", "predicted", "measured", "unit", "verdict"], rows)


def panics(log):
    """Where the tests of a log broke off and why, each in one line; two are enough."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    found = [at for at, line in enumerate(lines) if " panicked at " in line]
    return [f"{lines[at]} {' '.join(lines[at + 1 : at + 2])}"[:400] for at in found[:2]]


def list_of_tests(results, name, what):
    """What a list of qualify-gpu.sh says of the executables, with the reasons of those that failed."""
    path = results.folder / f"{name}.txt"
    if not path.exists():
        return ""
    lines = [line.split(maxsplit=1) for line in path.read_text().splitlines()]
    failed = {}  # what to say, by the name that the log has
    ended = set()
    for verdict, said in lines:
        test = re.split(r"[:,] ", said)[0]
        stem = test.replace("::", "-").replace(" ", "-")
        ended.add(stem)
        if verdict == "FAILED":
            failed[stem] = f"FAILED {said}"
    for log in sorted(results.folder.glob(f"logs/{name}-*.log")):
        stem = log.stem.removeprefix(f"{name}-")
        if stem not in ended and not (name == "tests" and stem.startswith("without-wgmma")):
            failed[stem] = f"not finished: {stem}"
    text = f"{sum(verdict == 'ok' for verdict, _ in lines)} {what}, {len(failed)} did not.\n\n"
    for stem, said in failed.items():
        why = panics(results.folder / "logs" / f"{name}-{stem}.log")
        text += f"* {said}\n" + "".join(f"  * `{line}`\n" for line in why)
    return text + "\n" * bool(failed)


def test_lines(results):
    text = list_of_tests(results, "tests", "test executables passed on the device")
    text += list_of_tests(results, "tests-without-wgmma", "passed with SECATEUR_WGMMA=off, which leaves out the kernels for Hopper alone")
    text += list_of_tests(results, "alone", "of the tests that failed passed in a process by themselves")
    return text.rstrip("\n") + "\n" * bool(text)


def finding_lines(results):
    """What the checkers found, in their own first and last words."""
    text = ""
    for name in [stage[0] for stage in results.stages if stage[1] == "findings"]:
        log = (results.folder / "logs" / f"{name}.log").read_text(errors="replace").splitlines()
        said = [line.removeprefix("=========").strip() for line in log if line.startswith("=========")]
        said = [line for line in said if line and not line.startswith("COMPUTE-SANITIZER")]
        text += f"* {name}: `{'; '.join(dict.fromkeys([*said[:2], *said[-1:]]))[:600]}`\n"
    return text


def unproven_lines(results):
    text = ""
    for path in sorted(results.folder.glob("unproven-*.json")):
        document = results.read(path.stem)
        for row in document["rows"] if document and "step" in path.stem else []:
            text += f"* {row['name']}, batch {document['batch']}: {row['images'] / row['median']:.0f} images/s\n"
    return text and f"Tests failed or a checker found something, so this is no result; it says where the kernels stand, as unproven-kernels-512.json does.\n\n{text}"


def kernels_used(results):
    """Said where a bench went without the kernels for Hopper alone."""
    for stage in results.stages:
        if "SECATEUR_WGMMA=off" in stage[3] and " bench " in stage[3]:
            return "**Our figures are without the kernels for Hopper alone: with them, tests failed.**\n"
    return ""


def gpu(results):
    with open(results.folder / "gpu.csv") as file:
        rows = list(csv.reader(file, skipinitialspace=True))[:2]
    return dict(zip(*rows)) if len(rows) == 2 else {}


def readme(results):
    device = collections.defaultdict(lambda: "unknown", gpu(results))
    bad = [stage for stage in results.stages if stage[1] != "ok"]
    parts = [f"# {device['name']}, {datetime.date.today().isoformat()}\n"]
    parts.append(
        f"Driver {device['driver_version']}, {device['memory.total [MiB]']}, SM clock at most {device['clocks.max.sm [MHz]']}. "
        "Made by `scripts/qualify-gpu.sh`; every number of this page is of that one run.\n"
    )
    parts.append(
        "Every stage succeeded.\n" if not bad else "**Not every stage succeeded: "
        + ", ".join(f"{stage[0]} ({stage[1]})" for stage in bad) + ".**\n"
    )
    parts += [kernels_used(results)] if kernels_used(results) else []
    flops, bytes_, source = results.ceilings
    if flops:
        parts.append(f"Ceilings: {flops / 1e12:.0f} TFLOP/s, {bytes_ / 1e9:.0f} GB/s ({source}).\n")
    if results.peer:
        parts.append(f"Peer: PyTorch {results.peer['torch']}, cuDNN {results.peer['cudnn']}; its commands and modes in peer.json.\n")
    sections = [("Correctness", test_lines), ("What the checkers found", finding_lines), ("Unproven", unproven_lines)]
    sections += [("Training steps", step_table), ("Attack", attack_table)]
    sections += [("Convolutions, rung by rung", ladder_table), ("Kernels", kernel_table), ("Questions to the hardware", probe_table)]
    for title, section in sections:
        text = section(results)
        if text:
            parts += [f"## {title}\n", text]
    if results.peer:
        modes = [
            f"* {row['method']}, batch {row['batch']}, {mode} asked for as {row['requested']}: {why}\n"
            for row in results.peer["rows"]
            for mode, why in row["failed"].items()
        ]
        modes += [f"* not measured for lack of time: {name}\n" for name in results.peer["left_out"]]
        if modes:
            parts += ["PyTorch's modes that failed:\n", "".join(modes)]
    if results.notes:
        parts += ["Notes:\n", "".join(f"* {note}\n" for note in dict.fromkeys(results.notes))]
    parts += ["## Stages\n", table(["stage", "result", "seconds", "command"], [[*s[:3], f"`{s[3]}`"] for s in results.stages])]
    return "\n".join(parts)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    text = readme(Results(folder))
    (folder / "README.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
