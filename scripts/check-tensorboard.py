#!/usr/bin/env python3
"""Reads the event file of a run with the real TensorBoard and compares it with the run's metrics.jsonl.

Usage: check-tensorboard.py RUN      exit code 1 where a scalar, a step or its count differs
       check-tensorboard.py --fixture   the bytes of two events, as TensorBoard's own classes write them: the known
                                        answers of the tests in src/train/tensorboard.rs
(needs tensorboard)
"""

import argparse
import io
import json
import pathlib
import sys

import numpy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter

GROUPS = ("train", "validation", "seconds", "subset")


class Buffer(io.BytesIO):
    """Keeps what the writer closes."""


def fixture():
    loss = Event(wall_time=1_700_000_000.25, step=300)
    for tag, value in (("train/loss", 2.25), ("learning_rate", 0.1)):
        loss.summary.value.add(tag=tag, simple_value=value)
    first = Event(wall_time=1.5, file_version="brain.Event:2")
    first.source_metadata.writer = "secateur"
    for event in (first, loss):
        file = Buffer()
        RecordWriter(file).write(event.SerializeToString())
        print(file.getvalue().hex())


def tag(field):
    for group in GROUPS:
        if field.startswith(group + "_"):
            return f"{group}/{field[len(group) + 1:]}"
    return field


def check(run):
    # TensorBoard's own loader, told to keep every point.
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    wanted = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        for field, value in row.items():
            if field != "epoch" and isinstance(value, (int, float)) and not isinstance(value, bool):
                wanted.setdefault(tag(field), []).append((row["epoch"], float(numpy.float32(value))))
    met = {name: [(point.step, point.value) for point in events.Scalars(name)] for name in events.Tags()["scalars"]}
    times = [point.wall_time for point in events.Scalars("train/loss")] if "train/loss" in met else []
    wrong = [name for name in sorted(set(wanted) | set(met)) if wanted.get(name) != met.get(name)]
    for name in wrong:
        print(f"{name}: TensorBoard has {met.get(name)}, metrics.jsonl {wanted.get(name)}")
    if times != sorted(times):
        wrong.append("wall times")
        print(f"wall times do not ascend: {times}")
    if not wrong:
        points = sum(map(len, met.values()))
        print(f"{run}: {len(met)} scalars, {points} points, as in metrics.jsonl")
    return not wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=pathlib.Path)
    parser.add_argument("--fixture", action="store_true")
    arguments = parser.parse_args()
    if arguments.fixture:
        fixture()
    elif arguments.run is None:
        parser.error("expected the folder of a run, or --fixture")
    else:
        sys.exit(0 if check(arguments.run) else 1)


if __name__ == "__main__":
    main()
