"""What a session on a GPU runs: two tables of stages, in order, each with its share of the time; and the jobs of each.

The first call (FIRST) fits into ten minutes, the most telling first; the second (SECOND) trains with what is left.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import job, rows, switches
from .job import Job
from .switches import STEP_TESTS

PROGRAM, ABLATION, PROBES, TESTS = ".carry/secateur", ".carry/ablation", ".carry/probe-hopper", Path(".carry/tests")
IMAGES, DATA = ".carry/images.xz", ".carry/data"
METHODS = "cifar10-pgd-at,cifar10-trades,cifar10-mart"


@dataclass(frozen=True)
class Size:
    """How large everything is. `patience` multiplies every time limit; `at_once` jobs at most run at a time."""

    width: int
    large: int
    small: int
    sampling: tuple
    set: tuple
    peer: tuple
    # Training, test and held-out images at most, and how they are evaluated.
    images: tuple
    training: tuple
    patience: float = 1.0
    at_once: int = 8


FULL = Size(64, 512, 128, ("--samples", "5"), (), ("--device", "cuda", "--mode", "graphs,compile"),
            (50_000, 10_000, 1000), ("evaluation.protocols=['clean','pgd20']",))
# Of the emulated device and the CPU: nothing of it is a result, all of it runs. Of two images the gradient of the peer's TRADES vanishes.
TINY = Size(16, 8, 4, ("--samples", "1"), ("--set", "attack.steps=1"),
            ("--device", "cpu", "--mode", "eager", "--width", "16", "--seconds", "0.1", "--samples", "1"),
            (24, 8, 4), ("evaluation.samples=4", "evaluation.protocols=['clean']", "evaluation.best_by=clean"),
            patience=20.0, at_once=2)


@dataclass(frozen=True)
class Stage:
    """`jobs` makes the stage's jobs once it begins, `then` draws conclusions. A conditional stage has jobs only after a failure;
    its seconds are those of the stages after it."""

    name: str
    seconds: float
    at_once: int
    jobs: Callable
    then: Callable | None = None
    conditional: bool = False


# ---- Questions to the hardware ---------------------------------------------------------------------------------------------


# As `probe-hopper --list` prints them: taps, rates, boxes.
PROBE_IDS = [f"a{i}" for i in range(8)] + [f"b{i}" for i in range(5)] + [f"c{i}" for i in range(10)]


def probes(kinds):
    """Questions of these kinds, each in a process of its own."""
    ids = [name for name in PROBE_IDS if name[0] in kinds]

    def jobs(session):
        return [Job(f"probe-{name}", [PROBES, name], 4, needs=PROBES, outcome=job.by_probe) for name in ids]

    return jobs


# ---- Tests -----------------------------------------------------------------------------------------------------------------


def packed_tests():
    """Modules of tests that open a device, and the executable of each."""
    listed = TESTS / "modules.txt"
    lines = listed.read_text().splitlines() if listed.is_file() else []
    return {module: TESTS / executable for executable, module in map(str.split, lines)}


def test_job(name, module, limit, only=(), **rest):
    """A module of tests, or only some tests of it, in a process of its own: a hang costs no other."""
    executable = packed_tests().get(module, TESTS / module)
    chosen = ["--exact", *only] if only else [f"{module}::"]
    return Job(name, [executable, *chosen, "--nocapture"], limit, needs=str(executable), outcome=job.by_test_result, **rest)


def step_tests(session):
    return [test_job(module, module, 30) for module in STEP_TESTS]


def other_tests(session):
    return [test_job(module, module, 40) for module in sorted(packed_tests()) if module not in STEP_TESTS]


def each_alone(session):
    """What a module lists as failed, in a process each: after an illegal access every later call of a process fails. A training
    step's tests run with the kernels with which they failed, not with what is left out since."""
    jobs = []
    for record in session.records("step-tests") + session.records("other-tests"):
        env = {"SECATEUR_WGMMA": os.environ.get("SECATEUR_WGMMA", "")} if record["stage"] == "step-tests" else {}
        if record["result"] == job.FAILED:
            module = record["job"]
            for test in job.failed_tests(session.log(module).read_text(errors="replace")):
                name = f"alone-{module}-{test.removeprefix(f'{module}::').replace('::', '-')}"
                jobs.append(test_job(name, module, 15, [test], env=env))
    return jobs


# ---- Benches ---------------------------------------------------------------------------------------------------------------


def bench(session, kind, limit, seconds, batch, *options, variant="", recipe="cifar10-pgd-at"):
    size = session.size
    name = "-".join([kind, str(batch), *variant.split()])
    of_kind = [ABLATION] if kind == "ablation" else [PROGRAM, "bench", kind, "--recipe", recipe, *size.set]
    command = [*of_kind, "--width", size.width, "--batch", batch, *options, "--device", session.device, *size.sampling,
               "--timeout", seconds if size.patience == 1 else 0, "--json", session.folder / f"{name}.json"]
    return Job(name, command, limit, needs=command[0], output=f"{name}.json", rows=kind != "kernels",
               about={"kind": kind, "batch": batch, "variant": variant})


def attacks(session):
    return [bench(session, "attack", 12.5, 2.5, batch, recipe=METHODS) for batch in (session.size.large, session.size.small)]


def steps(session):
    return [bench(session, "step", 20, 4, batch, recipe=METHODS) for batch in (session.size.large, session.size.small)]


# What the large batch is measured with and without; a program that does not know an option has not run it.
VARIANTS = [
    ("first stage 128", ("--first-stage", 128), ["attack"]),
    ("first stage 256", ("--first-stage", 256), ["attack"]),
    ("first stage 512", ("--first-stage", 512), ["attack"]),
    ("dependent launch off", ("--dependent-launch", "off"), ["attack", "step"]),
    ("graphs off", ("--graphs", "off"), ["step"]),
    ("prefetch off", ("--prefetch-maps", "off"), ["attack", "step"]),
    ("carve-out off", ("--carve-out", "off"), ["attack", "step"]),
]


def variants(session):
    return [bench(session, kind, 10, 2.5, session.size.large, *options, variant=variant)
            for variant, options, kinds in VARIANTS for kind in kinds]


def kernels(session):
    return [bench(session, "kernels", 22, 8, session.size.large),
            bench(session, "ablation", 23, 0.3, session.size.large, "--filter", r"layer1\.0\.conv1|layer[2-4]\.0\.conv2")]


def peer(methods, name, seconds):
    def jobs(session):
        size = session.size
        command = ["python3", "benches/peers/gpu_step.py", *size.peer, "--method", methods, "--batch", f"{size.large},{size.small}",
                   "--setup-seconds", 60 * size.patience, "--budget", seconds * size.patience - 10,
                   "--json", session.folder / f"{name}.json"]
        return [Job(name, command, seconds, needs="python3", outcome=job.by_peer, output=f"{name}.json", about={"kind": "peer"})]

    return jobs


# ---- NVIDIA's tools --------------------------------------------------------------------------------------------------------

# One of each kind that a step spends its time in.
COUNTED = ["conv_forward.*_wgmma_128x256", "conv_forward.*_wgmma_resident", "conv_input_gradient_wgmma_128x256",
           "conv_weight_gradient_wgmma"]
# With the stall reasons of WarpStateStats: time, tensor pipe, bytes of L2 and of memory.
METRICS = ["gpu__time_duration.sum", "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed", "lts__t_bytes.sum",
           "dram__bytes.sum", "sm__cycles_elapsed.max"]


def profiled(session, batch):
    """A short run that launches every kernel of a step."""
    return [PROGRAM, "profile", "--recipe", "cifar10-pgd-at", "--width", session.size.width, "--batch", batch,
            "--set", "attack.steps=1", "--steps", 1, "--device", session.device]


def counted(session, name, kernel, what):
    """The second launch of a kernel. The clocks are left as they are."""
    command = ["ncu", "--clock-control", "none", "--csv", "--page", "raw", "--print-units", "base",
               "--log-file", session.folder / f"{name}.csv", "--kernel-name", f"regex:{kernel}", "--launch-skip", 1,
               "--launch-count", 1, *what, *profiled(session, session.size.large)]
    return Job(name, command, 20, needs="ncu", outcome=job.by_counters, output=f"{name}.csv", rows=False,
               about={"kind": "counters", "kernel": kernel})


def counters(session):
    what = ["--section", "WarpStateStats", "--metrics", ",".join(METRICS)]
    return [counted(session, f"counters-{at}", kernel, what) for at, kernel in enumerate(COUNTED)]


def counters_again(session):
    """Whole sections, where this ncu does not know one of the metrics."""
    refused = any("metric" in record["why"] for record in session.records("counters"))
    what = ["--section", "SpeedOfLight", "--section", "WarpStateStats", "--section", "ComputeWorkloadAnalysis"]
    return [counted(session, f"sections-{at}", kernel, what) for at, kernel in enumerate(COUNTED)] if refused else []


# The smallest batch at which width 64 launches the blocks 128x256 and 64x512.
CHECKED_BATCH = 128


def checkers(session):
    batch = CHECKED_BATCH if session.size is FULL else session.size.large
    return [Job(tool, ["compute-sanitizer", "--tool", tool, "--error-exitcode", job.FINDINGS_CODE, *profiled(session, batch)], 60,
                needs="compute-sanitizer", outcome=job.by_checker) for tool in ("memcheck", "racecheck")]


# ---- Training --------------------------------------------------------------------------------------------------------------


def images(session):
    return [Job("images", ["python3", "scripts/qualify/images.py", "unpack", IMAGES, DATA], 20, needs=IMAGES)]


def rate(session):
    return [bench(session, "step", 15, 3, session.size.large)]


# Of the time that training has, what the epochs themselves take; the rest is evaluation, start and checkpoints.
SHARE_OF_EPOCHS, EPOCHS_AT_LEAST, EPOCHS_AT_MOST = 0.6, 2, 30


def drops(epochs):
    """Epochs after which the recipe's learning rate falls: at three quarters and nine tenths of the epochs."""
    return sorted({max(1, epochs * 3 // 4), max(1, epochs * 9 // 10)})


def training(session):
    """An ordinary recipe in large batches, as many epochs as fit by the rate just measured."""
    size, counts = session.size, rows.document(f"{DATA}/counts.json")
    packed = counts or {"train": 20_000, "test": 2000}
    train, test, held_out = (min(most, there) for most, there in zip(size.images, (packed["train"], packed["test"], 1000)))
    measured = (rows.document(session.folder / f"step-{size.large}.json") or {}).get("rows", [])
    rate = measured[0]["images"] / measured[0]["median"] if measured else None
    seconds = session.left() - 10
    epochs = int(SHARE_OF_EPOCHS * seconds * rate / train) if rate else EPOCHS_AT_LEAST
    epochs = max(EPOCHS_AT_LEAST, min(EPOCHS_AT_MOST, epochs))
    keys = [f"batch={size.large}", f"model.width={size.width}", f"epochs={epochs}", f"data.train_limit={train}",
            f"data.test_limit={test}", f"data.validation={held_out}", f"schedule.drops={drops(epochs)}", "evaluation.every=1", *size.training]
    keys += [] if counts else ["data.set=generated"]
    command = [PROGRAM, "train", "--recipe", "cifar10-pgd-at", *(["--data", DATA] if counts else []), "--device", session.device,
               "--out", session.folder / "run", *size.set, *(word for key in keys for word in ("--set", key))]
    about = {"kind": "training", "images": "CIFAR-10" if counts else "generated", "train": train, "epochs": epochs}
    return [Job("train", command, 600, needs=PROGRAM, output="run/metrics.jsonl", about=about)]


# ---- The tables ------------------------------------------------------------------------------------------------------------

#     stage          seconds  at once  jobs                                                  after a failure alone
FIRST = [
    Stage("probes", 8, 6, probes("ac")),
    Stage("rates", 6, 1, probes("b")),
    Stage("step-tests", 60, 8, step_tests),
    Stage("switches", 45, 8, lambda session: switches.candidates(session, test_job, 30), switches.choose, conditional=True),
    Stage("confirm", 30, 8, lambda session: switches.confirm(session, test_job, 30), switches.confirmed, conditional=True),
    Stage("attack", 25, 1, attacks),
    Stage("steps", 40, 1, steps),
    Stage("peer", 105, 1, peer("pgd-at", "peer", 105)),
    Stage("variants", 75, 1, variants),
    Stage("kernels", 45, 1, kernels),
    Stage("counters", 35, 1, counters),
    Stage("counters-again", 20, 1, counters_again, conditional=True),
    Stage("other-tests", 55, 8, other_tests),
    Stage("alone", 30, 8, each_alone, conditional=True),
    Stage("checkers", 60, 2, checkers),
    Stage("peer-others", 70, 1, peer("trades,mart", "peer-others", 70)),
]
SECOND = [
    Stage("images", 15, 1, images),
    Stage("rate", 15, 1, rate),
    Stage("training", 600, 1, training),
]
# Seconds from the start of a machine until the first call begins, and of unpacking.
STARTED, UNPACKED = 105, 6


def plan():
    """The first call by the minute, from the start of a machine."""
    at, lines = STARTED + UNPACKED, [f"{STARTED // 60}:{STARTED % 60:02}  {UNPACKED:4} s  unpack"]
    for stage in FIRST:
        when = "  ---" if stage.conditional else f"{at // 60}:{at % 60:02}"
        lines.append(f"{when:5} {stage.seconds:4} s  {stage.name}{' (after a failure alone)' if stage.conditional else ''}")
        at += 0 if stage.conditional else stage.seconds
    return lines


def planned_seconds():
    return UNPACKED + sum(stage.seconds for stage in FIRST if not stage.conditional)
