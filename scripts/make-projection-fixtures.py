#!/usr/bin/env python3
"""Writes tests/fixtures/projections.safetensors: the shortest ways to hyperplanes inside of the unit box, by linear programming.

Usage: python3 scripts/make-projection-fixtures.py          needs numpy, scipy and safetensors; CPU only, takes some seconds

FAB moves an image t to the hyperplane w . (t + d) = w . t - excess by the d of least maximum norm that keeps t + d in [0, 1].
As a linear programme in (d, L): minimise L with -L <= d <= L, -t <= d <= 1 - t, w . d = -excess. Where the box does not reach
the hyperplane, a second programme minimises the gap |w . d + excess|. No sorting, no breakpoints: nothing is shared with the
implementations. Inputs are f32, the programmes are solved in f64.

For the sizes S in 24 and 3072 (a whole image) the tensors are named "S.name": `points` t and `weights` w (cases x S), `excess`,
`lengths` L (NaN where out of reach) and `gaps` (0 where in reach), one a case.
"""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from scipy.optimize import linprog

SEED = 20261121
CASES = {24: 40, 3072: 2}


def case(number, size, random):
    """A point, a hyperplane's normal, and how far beyond it the point is, of a kind that changes with the number."""
    t, w = random.random(size), random.normal(size=size)
    if number % 4 == 1:
        w = w * 10.0 ** random.uniform(-4, 0, size)
    if number % 4 == 2:
        t = np.round(t)  # on the walls
    if number % 4 == 3:
        w = w * (random.random(size) < 0.5)
    t, w = t.astype(np.float32), w.astype(np.float32)
    sign = 1.0 if number % 2 == 0 else -1.0
    reach = np.sum(np.abs(w.astype(float)) * np.where(sign * w > 0, t, 1.0 - t.astype(float)))
    share = [0.01, 0.2, 0.6, 0.95, 1.4][number % 5]
    return t, w, np.float32(sign * share * reach)


def solve(t, w, excess):
    """Length of the shortest way, or the gap that is left."""
    t, w, excess = t.astype(float), w.astype(float), float(excess)
    size = len(t)
    eye, ones = np.eye(size), np.ones((size, 1))
    box = [(-t[i], 1.0 - t[i]) for i in range(size)]
    norm = np.block([[eye, -ones], [-eye, -ones]])
    objective = np.append(np.zeros(size), 1.0)
    tight = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    plane = np.append(w, 0.0)[None, :]
    way = linprog(objective, norm, np.zeros(2 * size), plane, [-excess], box + [(0, None)], options=tight)
    if way.status == 0:
        return way.fun, 0.0
    assert way.status == 2, way.message
    gap = np.array([np.append(w, -1.0), np.append(-w, -1.0)])
    nearest = linprog(objective, gap, [-excess, excess], bounds=box + [(0, None)], options=tight)
    assert nearest.status == 0, nearest.message
    return np.nan, nearest.fun


def main():
    random = np.random.default_rng(SEED)
    tensors = {}
    for size, count in CASES.items():
        cases = [case(number, size, random) for number in range(count)]
        answers = [solve(*each) for each in cases]
        tensors[f"{size}.points"] = np.stack([t for t, _, _ in cases])
        tensors[f"{size}.weights"] = np.stack([w for _, w, _ in cases])
        tensors[f"{size}.excess"] = np.array([excess for _, _, excess in cases], np.float32)
        tensors[f"{size}.lengths"] = np.array([length for length, _ in answers], np.float32)
        tensors[f"{size}.gaps"] = np.array([gap for _, gap in answers], np.float32)
        print(f"{size}: {np.isnan(tensors[f'{size}.lengths']).sum()} of {count} out of reach")
    path = Path(__file__).resolve().parent.parent / "tests/fixtures/projections.safetensors"
    save_file(tensors, path, {"script": "scripts/make-projection-fixtures.py"})
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
