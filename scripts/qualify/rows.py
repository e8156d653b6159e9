"""Rows of what benches, the peer and training write, one line each; a file that is absent or cut short has none."""

import json
from pathlib import Path


def document(path):
    """The JSON of a file; None where it is not whole."""
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return None


def epochs(path):
    """The rows of a metrics.jsonl; a last line that is cut short is left out."""
    found = []
    for line in Path(path).read_text().splitlines() if Path(path).exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def seconds_of(epoch):
    return sum(value for key, value in epoch.items() if key.startswith("seconds_"))


def lines(path):
    if Path(path).suffix == ".jsonl":
        return [epoch_line(epoch) for epoch in epochs(path)]
    read = document(path)
    return [peer_line(row) if "requested" in row else bench_line(row) for row in (read or {}).get("rows", [])]


def number(value):
    """Whole where it is large, else with three digits that count."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def bench_line(row):
    rate = f", {number(row['images'] / row['median'])} images/s" if row.get("images") else ""
    predicted = f", predicted {1e3 * row['predicted']:.4g} ms" if row.get("predicted") else ""
    unmet = f" ({row['unmet']})" if row.get("unmet") else ""
    return f"{row['name']}: {1e3 * row['median']:.4g} ms{rate}, {row['flops'] / row['median'] / 1e12:.4g} TFLOP/s{predicted}{unmet}"


def peer_line(row):
    name = f"{row['method']}, batch {row['batch']}, asked for as {row['requested']}"
    if row["mode"] is None:
        return f"{name}: no measurement: {'; '.join(row['failed'].values())[:200]}"
    return f"{name}: {number(row['images_per_second'])} images/s, {row['flops_per_second'] / 1e12:.4g} TFLOP/s, mode {row['mode']}"


def epoch_line(epoch):
    robust = epoch.get("validation_robust")
    shown = "" if robust is None else f", validation robust {100 * robust:.1f} %"
    return f"epoch {epoch['epoch']}: {seconds_of(epoch):.2f} s, {number(epoch['images_per_second'])} images/s{shown}"
