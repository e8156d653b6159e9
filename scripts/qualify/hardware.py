"""Tables of the summary on the hardware: kernels, counters, probes, clocks; as those of tables.py."""

import re
import statistics
import time

from . import job
from .tables import below, percent, table, unfinished

KERNELS = 25  # of the longest list
STALLS = 3  # reasons


def kernels(results):
    for record, document in results.of("kernels"):
        if not document:
            continue
        flops, bytes_, _ = results.ceilings
        measured = document["kernels"] or by_shape(document)
        lines = []
        for kernel in sorted(measured, key=lambda kernel: -kernel["share"])[:KERNELS]:
            rate, moved = kernel["flops"] / kernel["seconds"], kernel["bytes"] / kernel["seconds"]
            lines.append([f"`{kernel['name']}`", str(kernel["calls"]), f"{1e6 * kernel['seconds']:.1f}",
                          predicted(document, kernel["name"]), percent(kernel["share"]), f"{rate / 1e12:.1f}",
                          percent(rate / flops if flops else None), f"{moved / 1e9:.0f}", percent(moved / bytes_ if bytes_ else None),
                          record["kernels"]])
        heading = ["kernel", "calls", "us", "predicted", "of the time", "TFLOP/s", "of ceiling", "GB/s", "of ceiling", "kernels"]
        more = len(measured) - len(lines)
        notes = f"{more} more are in {record['output']}.\n" if more > 0 else ""
        return below(table(heading, lines), notes + unfinished(record, document))
    return ""


def by_shape(document):
    """Rows of single shapes, where the bench did not come to its table of kernels."""
    warm = [row for row in document["rows"] if row["cache"] == "warm"]
    total = sum(row["calls"] * row["median"] for row in warm)
    return [{"name": row["name"], "calls": row["calls"], "seconds": row["median"], "flops": row["flops"], "bytes": row["bytes"],
             "share": row["calls"] * row["median"] / total} for row in warm]


def predicted(document, name):
    """Microseconds of a kernel or a single shape of one, the mean of its calls; only where every shape of it has a prediction."""
    of_it = [row for row in document["rows"] if name == row["name"] or name in row["name"].split()]
    if not of_it or not all(row.get("predicted") for row in of_it):
        return "-"
    seconds = sum(row["calls"] * row["predicted"] for row in of_it) / sum(row["calls"] for row in of_it)
    return f"{1e6 * seconds:.1f}"


def ablation(results):
    """TFLOP/s of every layer by every variant of the kernel, in the order of the file, and what was predicted."""
    for record, document in results.of("ablation"):
        layers, kinds = {}, {}
        for row in (document or {}).get("rows", []):
            layer, kind = row["name"].split(", ", 1)
            rates = [f"{row['flops'] / row[of] / 1e12:.0f}" for of in ("median", "predicted") if row.get(of)]
            layers.setdefault(layer, {})[kind] = rates[0] + "".join(f" ({rate})" for rate in rates[1:])
            kinds[kind] = None
        lines = [[layer, *(found.get(kind, "-") for kind in kinds)] for layer, found in layers.items()]
        if lines:
            return below(table([f"{document['batch']} images, TFLOP/s (predicted)", *kinds], lines), unfinished(record, document))
    return ""


def counters(results):
    """ncu's counters of each kernel: how busy the tensor pipe is, what passes through L2, what warps wait for."""
    lines = []
    for record, _ in results.of("counters"):
        path = results.folder / record["output"]
        for row in job.counter_rows(path.read_text(errors="replace")) if path.exists() else []:
            lines.append([f"`{row['Kernel Name'][:60]}`", *(value(row, name) for name in SHOWN), stalls(row), record["kernels"]])
    return table(["kernel", *SHOWN.values(), "stalls", "kernels"], lines)


# Metric and heading, in ncu's base units.
SHOWN = {"gpu__time_duration.sum": "ns", "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed": "tensor pipe, %",
         "lts__t_bytes.sum": "L2 bytes", "dram__bytes.sum": "memory bytes"}


def value(row, name):
    return row.get(name) or "-"


def stalls(row):
    """The reasons for which most warps wait: warps an issued instruction."""
    found = {}
    for name, text in row.items():
        reason = re.search(r"issue_stalled_(\w+?)(_per_|_not_issued|\.|$)", name or "")
        try:
            found[reason[1]] = max(found.get(reason[1], 0.0), float(text.replace(",", "")))
        except (TypeError, ValueError, AttributeError):
            continue
    most = sorted(found.items(), key=lambda item: -item[1])[:STALLS]
    return ", ".join(f"{reason} {warps:.2f}" for reason, warps in most) or "-"


def probes(results):
    lines = []
    for record in results.jobs:
        row = job.probe_row(results.log(record)) if record["job"].startswith("probe-") else None
        if row:
            lines.append([row["question"], str(row["predicted"]), str(row["measured"]), row["unit"], row["verdict"]])
        elif record["job"].startswith("probe-") and record["result"] in (job.FAILED, job.TIME_UP):
            lines.append([record["job"], "-", "-", "-", f"{record['result']}: {record['why']}"])
    return table(["question", "predicted", "measured", "unit", "verdict"], lines)


def clocks(results):
    """SM clock and power while each stage ran, from dmon's lines."""
    path = results.folder / "clocks.txt"
    found, columns = [], []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        words = line.lstrip("#").split()
        if line.startswith("#") and "pclk" in words:
            columns = words
        elif not line.startswith("#") and len(words) == len(columns):
            found.append(dict(zip(columns, words)))
    lines = []
    for stage in dict.fromkeys(record["stage"] for record in results.jobs if record["stage"] != "clocks"):
        ran = [record for record in results.jobs if record["stage"] == stage and record["seconds"] > 0]
        spans = [(local(record["begin"]), local(record["begin"] + record["seconds"])) for record in ran]
        during = [row for row in found if any(begin <= row.get("Time", "") <= end for begin, end in spans)]
        cells = []
        for column in ("pclk", "pwr"):
            values = [float(row[column]) for row in during if row.get(column, "-").replace(".", "").isdigit()]
            cells += [f"{statistics.median(values):.0f}", f"{min(values):.0f} to {max(values):.0f}"] if values else ["-", "-"]
        if any(cell != "-" for cell in cells):
            lines.append([stage, *cells])
    return table(["stage", "SM clock, MHz", "from, to", "power, W", "from, to"], lines)


def local(seconds):
    return time.strftime("%H:%M:%S", time.localtime(seconds))
