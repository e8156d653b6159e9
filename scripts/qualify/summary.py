"""The summary of a session's folder: the headline, then tables of what was measured, then what did not run. Written anew at
every refresh, so it takes rows of jobs that still run, and leaves out files that are absent or cut short.

Rates of steps count the work as benches/peers/work.py does, for both sides alike. Percent of the ceiling are of the bf16 product
that PyTorch measured in the same call, or, before the peer got there, of our own probe's; the page says which.
"""

import datetime
from pathlib import Path

from . import hardware, job, rows, tables


class Results:
    """What a folder holds."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.session = rows.document(self.folder / "jobs.json") or {"call": "?", "device": "?", "gpu": {}, "jobs": []}
        self.jobs = self.session["jobs"]
        self.peers = [read for record, read in self.of("peer") if read]
        try:
            self.ceilings = self.find_ceilings()
        except (KeyError, IndexError, TypeError):
            self.ceilings = None, None, None

    def of(self, kind):
        """(record, document or None) of the jobs that measure this."""
        found = [record for record in self.jobs if record["about"].get("kind") == kind]
        return [(record, rows.document(self.folder / record["output"])) for record in found]

    def log(self, record):
        path = self.folder / "logs" / f"{record['job']}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def find_ceilings(self):
        """Operations and bytes a second, and where they are from."""
        for peer in self.peers:
            top = peer.get("ceilings")
            if top:
                return top["flops"], top["bytes"], f"PyTorch's {top['how'][0]} and {top['how'][1]}"
        for kind in ("attack", "step"):
            for _, document in self.of(kind):
                if document and document.get("ceiling_flops"):
                    return document["ceiling_flops"], document["ceiling_bytes"], "our own " + " and ".join(document["ceilings"])
        return None, None, None

    def share(self, flops_per_second):
        return flops_per_second / self.ceilings[0] if self.ceilings[0] else None


def title(results):
    gpu, device = results.session["gpu"], results.session["device"]
    measured = gpu and device.startswith("cuda")
    name = gpu["name"] if measured else f"device {device}"
    lines = [f"# {name}, {results.session['call']} call, {datetime.date.today().isoformat()}\n"]
    if measured:
        lines.append(f"Driver {gpu['driver_version']}, {gpu['memory.total']}, SM clock at most {gpu['clocks.max.sm']}. "
                     "Made by `scripts/qualify-gpu.py`; every number of this page is of this one call.\n")
    else:
        lines.append("**This is no GPU: sizes are tiny, and no number of this page is a result.**\n")
    return "\n".join(lines)


def headline(results):
    """One line a method: ours, PyTorch's, the ratio, at the largest batch that has both, or ours alone."""
    lines = []
    for row in tables.step_rows(results):
        if row["batch"] == max(other["batch"] for other in tables.step_rows(results) if other["method"] == row["method"]):
            lines.append(f"* **{row['method']}, batch {row['batch']}: {tables.headline(row)}**\n")
    return "".join(lines)


def conditions(results):
    """What the figures are subject to."""
    lines = []
    switches, unproven = results.session.get("switches"), results.session.get("unproven")
    if switches:
        lines.append(f"**Measured without these kernels, with which tests failed: `SECATEUR_WGMMA={switches}`.**\n")
    if unproven:
        lines.append(f"**Unproven: {', '.join(unproven)} did not pass with any choice of kernels.**\n")
    counts = {}
    for record in results.jobs:
        if record["stage"] != "switches":
            counts[record["result"]] = counts.get(record["result"], 0) + 1
    known = [name for name in (job.OK, job.FAILED, job.FINDINGS, job.TIME_UP, job.RUNNING, job.NOT_RUN) if name in counts]
    lines.append("Jobs: " + ", ".join(f"{counts[name]} {name}" for name in known) + ".\n")
    bad = [record for record in results.jobs if record["result"] in (job.FAILED, job.FINDINGS, job.TIME_UP)]
    lines += [f"* {record['result']}: {record['job']}{': ' + record['why'] if record['why'] else ''}\n" for record in bad
              if record["stage"] != "switches"]
    lines += [f"* cut off while it ran: {record['job']}\n" for record in results.jobs if record["result"] == job.RUNNING]
    flops, bytes_, source = results.ceilings
    if flops:
        lines.append(f"\nCeilings: {flops / 1e12:.4g} TFLOP/s, {bytes_ / 1e9:.4g} GB/s ({source}).\n")
    for peer in results.peers[:1]:
        lines.append(f"Peer: PyTorch {peer['torch']}, cuDNN {peer['cudnn']}.\n")
    return "".join(lines)


SECTIONS = [
    ("Training on images", tables.training),
    ("Training steps", tables.steps),
    ("Attack", tables.attacks),
    ("Variants", tables.variants),
    ("Tests", tables.tests),
    ("Checkers", tables.checkers),
    ("Counters", hardware.counters),
    ("Convolutions, variant by variant", hardware.ablation),
    ("Kernels", hardware.kernels),
    ("Questions to the hardware", hardware.probes),
    ("Clocks and power", hardware.clocks),
    ("PyTorch's modes that failed", tables.failed_modes),
    ("Not run", tables.not_run),
    ("Jobs", tables.jobs),
]


def guarded(section, results):
    """The section, or why there is none: rows that are not as expected must not end the session."""
    try:
        return section(results)
    except Exception as error:
        return f"This could not be made of the files of the session: {error!r}.\n"


def page(folder):
    results = Results(folder)
    parts = [guarded(part, results) for part in (title, headline, conditions)]
    for heading, section in SECTIONS:
        text = guarded(section, results)
        if text:
            parts.append(f"## {heading}\n\n{text}")
    return "\n".join(part for part in parts if part)
