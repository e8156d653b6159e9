"""The tables of the summary; each takes the results of a folder and returns Markdown, or nothing."""

import re
import statistics
import sys
import time
from pathlib import Path

from . import job, rows

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benches" / "peers"))
from work import ATTACK_UNITS, UNITS, forward_flops  # noqa: E402

EPOCH = 50_000
KERNELS = 25  # of the longest list
STALLS = 3  # reasons


def table(heading, lines):
    """Markdown, the first column text and the others numbers."""
    shown = ["| " + " | ".join(heading) + " |", "|---|" + "---:|" * (len(heading) - 1)]
    return "\n".join(shown + ["| " + " | ".join(line) + " |" for line in lines]) + "\n" if lines else ""


def percent(share):
    return "-" if share is None else f"{100 * share:.1f} %"


def unfinished(record, document):
    return "" if document.get("finished", True) else f"{record['job']}.json is not finished: the rows are those so far.\n"


# ---- Steps and attacks -----------------------------------------------------------------------------------------------------


def rates(results, kind, units):
    """Every measured row of `bench KIND`, with its images and operations a second."""
    found = []
    for record, document in results.of(kind):
        for row in (document or {}).get("rows", []):
            method = row["name"].split("cifar10-")[-1]
            rate = row["images"] / row["median"]
            found.append({
                "method": method, "batch": document["batch"], "variant": record["about"]["variant"], "rate": rate,
                "flops": units[method] * forward_flops(document["width"]) * rate, "kernels": record["kernels"],
                "unmet": f"{record['job']}, {row['name']}: {row['unmet']}\n" if row.get("unmet") else "",
            })
    return found


def order(row):
    return list(UNITS).index(row["method"]), -row["batch"]


def step_rows(results):
    """Our steps and the peer's fastest at the same batch, where either is."""
    merged = {}
    for ours in rates(results, "step", UNITS):
        if not ours["variant"]:
            merged[ours["method"], ours["batch"]] = {**ours, "peer": None}
    for document in results.peers:
        for peer in filter(lambda row: row["mode"], document.get("rows", [])):
            key = peer["method"], peer["batch"]
            row = merged.setdefault(key, {"method": key[0], "batch": key[1], "rate": None, "peer": None})
            if row["peer"] is None or peer["images_per_second"] > row["peer"]["images_per_second"]:
                row["peer"] = peer
    return sorted(merged.values(), key=order)


def headline(row):
    ours, peer = row["rate"], row["peer"]
    parts = [f"{ours:.0f} images/s (kernels: {row['kernels']})"] if ours else []
    parts += [f"PyTorch {peer['images_per_second']:.0f} ({peer['mode']})"] if peer else []
    return "; ".join(parts + ([f"{ours / peer['images_per_second']:.2f} x"] if ours and peer else []))


def steps(results):
    lines = []
    for row in step_rows(results):
        ours, peer = row["rate"], row["peer"]
        cells = [f"{row['method']}, batch {row['batch']}"]
        cells += [f"{ours:.0f}", f"{row['flops'] / 1e12:.1f}", percent(results.share(row["flops"])),
                  f"{EPOCH / ours:.2f}", row["kernels"]] if ours else ["-"] * 5
        cells += [f"{peer['images_per_second']:.0f} ({peer['mode']})" if peer else "-"]
        cells += [percent(results.share(peer["flops_per_second"])) if peer else "-"]
        cells += [f"{ours / peer['images_per_second']:.2f} x" if ours and peer else "-"]
        lines.append(cells)
    heading = ["step", "ours, images/s", "TFLOP/s", "of ceiling", "s per 50k epoch", "kernels", "PyTorch, images/s (mode)",
               "of ceiling", "ours / PyTorch"]
    notes = "".join(unfinished(record, document) for record, document in results.of("step") if document)
    return below(table(heading, lines), notes + "".join(row["unmet"] for row in rates(results, "step", UNITS)))


def below(text, notes):
    return f"{text}\n{notes}" if text and notes else text


def attacks(results):
    found = sorted((row for row in rates(results, "attack", ATTACK_UNITS) if not row["variant"]), key=order)
    lines = [[f"{row['method']}, batch {row['batch']}", f"{row['rate']:.0f}", f"{row['flops'] / 1e12:.1f}",
              percent(results.share(row["flops"])), row["kernels"]] for row in found]
    notes = "".join(unfinished(record, document) for record, document in results.of("attack") if document)
    return below(table(["attack", "images/s", "TFLOP/s", "of ceiling", "kernels"], lines),
                 notes + "".join(row["unmet"] for row in found))


def variants(results):
    """Each option beside the row without it."""
    lines = []
    for kind, units in (("attack", ATTACK_UNITS), ("step", UNITS)):
        found = rates(results, kind, units)
        plain = {(row["method"], row["batch"]): row["rate"] for row in found if not row["variant"]}
        for row in filter(lambda row: row["variant"], found):
            base = plain.get((row["method"], row["batch"]))
            cells = [f"{kind} {row['method']}, batch {row['batch']}, {row['variant']}", f"{row['rate']:.0f}"]
            lines.append([*cells, f"{base:.0f}" if base else "-", f"{row['rate'] / base:.3f}" if base else "-", row["kernels"]])
    return table(["variant", "images/s", "as shipped", "ratio", "kernels"], lines)


# ---- Kernels ---------------------------------------------------------------------------------------------------------------


def kernels(results):
    for record, document in results.of("kernels"):
        if not document:
            continue
        flops, bytes_, _ = results.ceilings
        measured = document["kernels"] or by_shape(document)
        lines = []
        for kernel in sorted(measured, key=lambda kernel: -kernel["share"])[:KERNELS]:
            rate, moved = kernel["flops"] / kernel["seconds"], kernel["bytes"] / kernel["seconds"]
            lines.append([f"`{kernel['name']}`", str(kernel["calls"]), f"{1e6 * kernel['seconds']:.1f}", percent(kernel["share"]),
                          f"{rate / 1e12:.1f}", percent(rate / flops if flops else None), f"{moved / 1e9:.0f}",
                          percent(moved / bytes_ if bytes_ else None), record["kernels"]])
        heading = ["kernel", "calls", "us", "of the time", "TFLOP/s", "of ceiling", "GB/s", "of ceiling", "kernels"]
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


def ladder(results):
    """TFLOP/s of every layer by every kind of kernel, in the order of the file."""
    for record, document in results.of("ladder"):
        layers, kinds = {}, {}
        for row in (document or {}).get("rows", []):
            layer, kind = row["name"].split(", ", 1)
            layers.setdefault(layer, {})[kind] = f"{row['flops'] / row['median'] / 1e12:.0f}"
            kinds[kind] = None
        lines = [[layer, *(found.get(kind, "-") for kind in kinds)] for layer, found in layers.items()]
        if lines:
            return below(table([f"{document['batch']} images, TFLOP/s", *kinds], lines), unfinished(record, document))
    return ""


def counters(results):
    """ncu's counters of each kernel: how busy the tensor pipe is, what passes through L2, what warps wait for."""
    lines = []
    for record, _ in results.of("counters"):
        path = results.folder / record["output"]
        for row in job.counter_rows(path.read_text(errors="replace")) if path.exists() else []:
            lines.append([f"`{row['Kernel Name'][:60]}`", *(value(row, name) for name in SHOWN), stalls(row), record["kernels"]])
    return table(["kernel", *SHOWN.values(), "stalls", "kernels"], lines)


# Metric and heading; the units are ncu's.
SHOWN = {"gpu__time_duration.sum": "time", "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed": "tensor pipe, %",
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


# ---- Tests, checkers, probes -----------------------------------------------------------------------------------------------


def tests(results):
    lines = []
    for stage, what in (("step-tests", "of a training step"), ("other-tests", "of the rest"), ("confirm", "once more"),
                        ("alone", "by themselves")):
        ran = [record for record in results.jobs if record["stage"] == stage and record["result"] != job.NOT_RUN]
        if ran:
            passed = sum(record["result"] == job.OK for record in ran)
            lines.append(f"* {what}: {passed} of {len(ran)} passed\n")
            lines += [f"  * {record['result']}: {record['job']}: `{record['why']}`\n" for record in ran if record["result"] != job.OK]
    for record in results.jobs:
        if record["stage"] == "switches":
            lines.append(f"* {record['about']['test']} with SECATEUR_WGMMA={record['about']['switch']}: {record['result']}\n")
    return "".join(lines)


def checkers(results):
    return "".join(f"* {record['job']}: {record['result']}: `{record['why']}` ({record['kernels']} kernels)\n"
                   for record in results.jobs if record["stage"] == "checkers" and record["result"] != job.NOT_RUN)


def probes(results):
    lines = []
    for record in results.jobs:
        row = job.probe_row(results.log(record)) if record["job"].startswith("probe-") else None
        if row:
            lines.append([row["question"], str(row["predicted"]), str(row["measured"]), row["unit"], row["verdict"]])
        elif record["job"].startswith("probe-") and record["result"] in (job.FAILED, job.TIME_UP):
            lines.append([record["job"], "-", "-", "-", f"{record['result']}: {record['why']}"])
    return table(["question", "predicted", "measured", "unit", "verdict"], lines)


# ---- Training, clocks, the rest --------------------------------------------------------------------------------------------


def training(results):
    parts = []
    for record in results.jobs:
        about = record["about"]
        if about.get("kind") != "training":
            continue
        epochs = rows.epochs(results.folder / record["output"])
        lines = [[str(epoch["epoch"]), f"{rows.seconds_of(epoch):.2f}", f"{epoch['seconds_attack']:.2f}",
                  f"{epoch['seconds_train']:.2f}", f"{epoch['images_per_second']:.0f}", percent(epoch["validation_clean"]),
                  percent(epoch["validation_robust"])] for epoch in epochs]
        shown = table(["epoch", "seconds", "attack", "train", "images/s", "validation clean", "PGD-10"], lines)
        said = f"{about['epochs']} epochs of {about['train']} images ({about['images']}), kernels: {record['kernels']}.\n"
        if epochs:
            said += f"{statistics.median(map(rows.seconds_of, epochs)):.2f} s an epoch (median).\n"
        test = (rows.document(results.folder / "run/result.json") or {}).get("test", [])
        judged = [[f"{row['weights']}, epoch {row['epoch']}, {row['protocol']}", percent(row["accuracy"]),
                   f"{row['correct']} of {row['total']}", f"{row['seconds']:.1f}"] for row in test]
        parts.append(f"{said}\n{shown}\n{table(['test images: weights', 'accuracy', 'correct', 'seconds'], judged)}")
    return "\n".join(parts)


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


def failed_modes(results):
    lines = [f"* {row['method']}, batch {row['batch']}, {mode}: {why}\n" for document in results.peers
             for row in document.get("rows", []) for mode, why in row["failed"].items()]
    return "".join(lines + [f"* not measured for lack of time: {name}\n" for document in results.peers
                            for name in document.get("left_out", [])])


def not_run(results):
    return "".join(f"* {record['job']}: {record['why']}\n" for record in results.jobs
                   if record["result"] == job.NOT_RUN and record["stage"] != "switches")


def jobs(results):
    lines = [[record["job"], record["result"], f"{record['seconds']:.0f}", f"`{record['command']}`"] for record in results.jobs]
    return table(["job", "result", "seconds", "command"], lines)
