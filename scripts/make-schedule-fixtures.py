#!/usr/bin/env python3
"""Writes tests/fixtures/schedules.json: the learning rate and the momentum that PyTorch's schedulers set before each step.

Usage: python3 scripts/make-schedule-fixtures.py          needs torch; CPU only, takes a second

Each case names the `[optimizer]` and `[schedule]` of a recipe, and runs the scheduler of torch.optim.lr_scheduler that the
recipe stands for. Codes that compute the rate by a function of their own (robust_overfitting, Bag of Tricks) run as a
LambdaLR of that function. Read by the tests of src/train/schedule.rs.
"""

import json
import sys
from pathlib import Path

import torch
from torch.optim import lr_scheduler

EPOCHS, STEPS = 6, 4
ALL = EPOCHS * STEPS
WARM = 2 * STEPS


def linear_warm_up(optimizer):
    return lr_scheduler.LinearLR(optimizer, start_factor=1 / WARM, total_iters=WARM - 1)


def chained(*schedulers):
    return lambda optimizer: lr_scheduler.ChainedScheduler([make(optimizer) for make in schedulers])


def multi_step(milestones):
    return lambda optimizer: lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)


def piecewise(optimizer):
    """The schedule of robust_overfitting, asked for epoch + (i + 1) / steps; drops at half and three quarters of the run."""

    def factor(step):
        share = (step // STEPS + (step % STEPS + 1) / STEPS) / EPOCHS
        return 1.0 if share < 0.5 else 0.1 if share < 0.75 else 0.01

    return lr_scheduler.LambdaLR(optimizer, factor)


def cosine(optimizer):
    return lr_scheduler.CosineAnnealingLR(optimizer, T_max=ALL, eta_min=0.001)


def cosine_after_warm_up(optimizer):
    after = lr_scheduler.CosineAnnealingLR(optimizer, T_max=ALL - WARM)
    return lr_scheduler.SequentialLR(optimizer, [linear_warm_up(optimizer), after], milestones=[WARM])


def cyclic(rise, **options):
    return lambda optimizer: lr_scheduler.CyclicLR(
        optimizer, base_lr=0.0, max_lr=0.2, step_size_up=rise * ALL, step_size_down=(1 - rise) * ALL, **options
    )


# Name, peak rate, [schedule] of the recipe, scheduler, whether it steps once an epoch only.
CASES = [
    ("constant with warm-up", 0.8, "kind = 'constant'\nwarmup_epochs = 2", linear_warm_up, False),
    ("MultiStepLR", 0.1, "kind = 'step'\ndrops = [3, 5]", multi_step([3, 5]), True),
    (
        "MultiStepLR with warm-up",
        0.8,
        "kind = 'step'\ndrops = [5]\nwarmup_epochs = 2",
        chained(linear_warm_up, multi_step([5 * STEPS])),
        False,
    ),
    ("robust_overfitting, piecewise", 0.1, "kind = 'step'\ndrops = [3, 4.5]\nposition = 'end'", piecewise, False),
    ("CosineAnnealingLR", 0.1, "kind = 'cosine'\nfloor = 0.01", cosine, False),
    (
        "CosineAnnealingLR, every epoch",
        0.1,
        "kind = 'cosine'\nupdate = 'epoch'",
        lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=EPOCHS),
        True,
    ),
    ("CosineAnnealingLR with warm-up", 0.8, "kind = 'cosine'\nwarmup_epochs = 2", cosine_after_warm_up, False),
    (
        "OneCycleLR",
        0.1,
        "kind = 'one-cycle'\nmomentum_range = [0.85, 0.95]",
        lambda optimizer: lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=ALL),
        False,
    ),
    (
        "OneCycleLR, every epoch",
        0.1,
        "kind = 'one-cycle'\nupdate = 'epoch'\nmomentum_range = [0.85, 0.95]",
        lambda optimizer: lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=EPOCHS),
        True,
    ),
    (
        "OneCycleLR, momentum fixed",
        0.1,
        "kind = 'one-cycle'\nrise = 0.4\ninitial_divisor = 10\nfinal_divisor = 100",
        lambda optimizer: lr_scheduler.OneCycleLR(
            optimizer, 0.1, total_steps=ALL, pct_start=0.4, div_factor=10, final_div_factor=100, cycle_momentum=False
        ),
        False,
    ),
    ("CyclicLR", 0.2, "kind = 'cyclic'\nmomentum_range = [0.8, 0.9]", cyclic(0.5), False),
    ("CyclicLR, early peak", 0.2, "kind = 'cyclic'\npeak_at = 0.25\nmomentum_range = [0.8, 0.9]", cyclic(0.25), False),
    ("CyclicLR, momentum fixed", 0.2, "kind = 'cyclic'", cyclic(0.5, cycle_momentum=False), False),
]


def run(name, peak, schedule, make, every_epoch):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak, momentum=0.9)
    scheduler = make(optimizer)
    rates, momenta = [], []
    for step in range(ALL):
        rates.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        # After the last step the run is over.
        if step + 1 < ALL and (not every_epoch or step % STEPS == STEPS - 1):
            scheduler.step()
    return {
        "name": name,
        "recipe": f"[optimizer]\nlearning_rate = {peak}\n[schedule]\n{schedule}",
        "epochs": EPOCHS,
        "steps_per_epoch": STEPS,
        "learning_rate": rates,
        "momentum": momenta,
    }


def main():
    path = Path(__file__).resolve().parent.parent / "tests/fixtures/schedules.json"
    cases = ",\n".join(json.dumps(run(*case)) for case in CASES)
    path.write_text(f"[\n{cases}\n]\n")
    print(f"{path}: {len(CASES)} schedules, PyTorch {torch.__version__}", file=sys.stderr)


if __name__ == "__main__":
    main()
