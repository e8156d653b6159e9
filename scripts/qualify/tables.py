"""Tables of the summary: steps, attacks, training, tests; each takes the results of a folder and returns Markdown, or nothing."""

import statistics
import sys
from pathlib import Path

from . import job, rows

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benches" / "peers"))
from work import ATTACK_UNITS, UNITS, forward_flops  # noqa: E402

EPOCH = 50_000


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
                "predicted": row["images"] / row["predicted"] if row.get("predicted") else None,
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


def predicted(row):
    return rows.number(row["predicted"]) if row["predicted"] else "-"


def headline(row):
    ours, peer = row["rate"], row["peer"]
    parts = [f"{rows.number(ours)} images/s (kernels: {row['kernels']})"] if ours else []
    parts += [f"PyTorch {rows.number(peer['images_per_second'])} ({peer['mode']})"] if peer else []
    return "; ".join(parts + ([f"{ours / peer['images_per_second']:.2f} x"] if ours and peer else []))


def steps(results):
    lines = []
    for row in step_rows(results):
        ours, peer = row["rate"], row["peer"]
        cells = [f"{row['method']}, batch {row['batch']}"]
        cells += [rows.number(ours), f"{row['flops'] / 1e12:.1f}", percent(results.share(row["flops"])),
                  f"{EPOCH / ours:.2f}", predicted(row), row["kernels"]] if ours else ["-"] * 6
        cells += [f"{rows.number(peer['images_per_second'])} ({peer['mode']})" if peer else "-"]
        cells += [percent(results.share(peer["flops_per_second"])) if peer else "-"]
        cells += [f"{ours / peer['images_per_second']:.2f} x" if ours and peer else "-"]
        lines.append(cells)
    heading = ["step", "ours, images/s", "TFLOP/s", "of ceiling", "s per 50k epoch", "predicted", "kernels", "PyTorch, images/s (mode)",
               "of ceiling", "ours / PyTorch"]
    notes = "".join(unfinished(record, document) for record, document in results.of("step") if document)
    return below(table(heading, lines), notes + "".join(row["unmet"] for row in rates(results, "step", UNITS)))


def below(text, notes):
    return f"{text}\n{notes}" if text and notes else text


def attacks(results):
    found = sorted((row for row in rates(results, "attack", ATTACK_UNITS) if not row["variant"]), key=order)
    lines = [[f"{row['method']}, batch {row['batch']}", rows.number(row["rate"]), f"{row['flops'] / 1e12:.1f}",
              percent(results.share(row["flops"])), predicted(row), row["kernels"]] for row in found]
    notes = "".join(unfinished(record, document) for record, document in results.of("attack") if document)
    return below(table(["attack", "images/s", "TFLOP/s", "of ceiling", "predicted", "kernels"], lines),
                 notes + "".join(row["unmet"] for row in found))


def variants(results):
    """Each option next to the row without it."""
    lines = []
    for kind, units in (("attack", ATTACK_UNITS), ("step", UNITS)):
        found = rates(results, kind, units)
        plain = {(row["method"], row["batch"]): row["rate"] for row in found if not row["variant"]}
        for row in filter(lambda row: row["variant"], found):
            base = plain.get((row["method"], row["batch"]))
            cells = [f"{kind} {row['method']}, batch {row['batch']}, {row['variant']}", rows.number(row["rate"])]
            cells += [rows.number(base), f"{row['rate'] / base:.3f}"] if base else ["-", "-"]
            lines.append([*cells, predicted(row), row["kernels"]])
    return table(["variant", "images/s", "as shipped", "ratio", "predicted", "kernels"], lines)


# ---- Tests and checkers ------------------------------------------------------------------------------------------------------


def tests(results):
    lines = []
    for stage, what in (("step-tests", "of a training step"), ("other-tests", "of the rest"), ("confirm", "once more"),
                        ("alone", "by themselves")):
        ran = [record for record in results.jobs if record["stage"] == stage and record["result"] != job.NOT_RUN]
        if ran:
            passed = sum(record["result"] == job.OK for record in ran)
            lines.append(f"* {what}: {passed} of {len(ran)} passed\n")
            lines += [f"  * {record['result']}: {record['job']}: `{record['why']}`\n" for record in ran
                      if record["result"] != job.OK]
    for record in results.jobs:
        if record["stage"] == "switches":
            lines.append(f"* {record['about']['test']} with SECATEUR_WGMMA={record['about']['switch']}: {record['result']}\n")
    return "".join(lines)


def checkers(results):
    return "".join(f"* {record['job']}: {record['result']}: `{record['why']}` ({record['kernels']} kernels)\n"
                   for record in results.jobs if record["stage"] == "checkers" and record["result"] != job.NOT_RUN)


# ---- Training, the rest ------------------------------------------------------------------------------------------------------


def training(results):
    parts = []
    for record in results.jobs:
        about = record["about"]
        if about.get("kind") != "training":
            continue
        epochs = rows.epochs(results.folder / record["output"])
        lines = [[str(epoch["epoch"]), f"{rows.seconds_of(epoch):.2f}", f"{epoch['seconds_attack']:.2f}",
                  f"{epoch['seconds_train']:.2f}", rows.number(epoch["images_per_second"]), percent(epoch["validation_clean"]),
                  percent(epoch["validation_robust"])] for epoch in epochs]
        shown = table(["epoch", "seconds", "attack", "train", "images/s", "validation clean", "PGD-10"], lines)
        said = f"{about['epochs']} epochs of {about['train']} images ({about['images']}), kernels: {record['kernels']}.\n"
        if epochs:
            said += f"{statistics.median(map(rows.seconds_of, epochs)):.2f} s an epoch (median).\n"
        test = (rows.document(results.folder / "run/result.json") or {}).get("test", [])
        accuracies = [[f"{row['weights']}, epoch {row['epoch']}, {row['protocol']}", percent(row["accuracy"]),
                   f"{row['correct']} of {row['total']}", f"{row['seconds']:.1f}"] for row in test]
        parts.append(f"{said}\n{shown}\n{table(['test images: weights', 'accuracy', 'correct', 'seconds'], accuracies)}")
    return "\n".join(parts)


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
