#!/usr/bin/env python3
"""Writes tests/fixtures/pursuit.safetensors: what scipy's nnls says of small nonnegative least-squares problems.

Usage: python3 scripts/make-pursuit-fixtures.py          needs numpy, scipy and safetensors; takes a second

A problem is min |A w - b|^2 + ridge |w|^2 over w >= 0, which nnls solves with sqrt(ridge) I below A and zeros below b. For
problem p the tensors (all f64) are named "p.name": `atoms` (n x m, one atom a row), `target` (m), `ridge` (1), the optimum
over all atoms `weights` (n) and `residual` (|A w - b| / |b|), and for each K in BUDGETS "p.K.weights" (n) and "p.K.residual":
a pursuit of at most K atoms, solved from scratch at each step, with the weights that nnls finds on its atoms.
"""

import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from scipy.optimize import nnls

SEED = 20261121
BUDGETS = (1, 3, 6)


def with_ridge(atoms, target, ridge):
    below = np.sqrt(ridge) * np.eye(len(atoms))
    return np.vstack([atoms.T, below]), np.concatenate([target, np.zeros(len(atoms))])


def pursuit(atoms, target, ridge, budget):
    """Lawson and Hanson's algorithm, ended at `budget` atoms: the weights, each solved by least squares anew."""
    matrix, right = with_ridge(atoms, target, ridge)
    weights = np.zeros(len(atoms))
    active = []
    while len(active) < budget:
        correlations = atoms @ (target - weights @ atoms)
        correlations[active] = -np.inf
        best = int(np.argmax(correlations))
        if correlations[best] <= 1e-10:
            break
        active.append(best)
        while True:
            wanted = np.linalg.lstsq(matrix[:, active], right, rcond=None)[0]
            if (wanted > 0).all():
                break
            now = weights[active]
            blocked = wanted <= 0
            share = np.min(now[blocked] / (now[blocked] - wanted[blocked]))
            weights[active] = now + share * (wanted - now)
            active = [atom for atom in active if weights[atom] > 1e-14]
            weights = np.where(np.isin(np.arange(len(atoms)), active), weights, 0)
        weights[:] = 0
        weights[active] = wanted
    on_active, _ = nnls(matrix[:, active], right)
    assert (on_active > 0).all() and np.allclose(on_active, weights[active], rtol=1e-8)
    weights[active] = on_active
    return weights


def problems(generator):
    """Atoms (n x m), target and ridge: without structure, and like gradients, which share a direction."""
    normal = generator.standard_normal
    for count, length, ridge in ((8, 12, 0.0), (20, 30, 0.0), (12, 30, 0.7), (30, 20, 0.5)):
        yield normal((count, length)), normal(length), ridge
    for count, length, ridge in ((20, 24, 0.0), (40, 50, 0.0), (40, 25, 2.0)):
        shared = np.abs(normal(length))
        atoms = shared + 0.4 * normal((count, length))
        yield atoms, atoms.sum(0) + 4 * normal(length), ridge


def main():
    generator = np.random.default_rng(SEED)
    tensors = {}
    for position, (atoms, target, ridge) in enumerate(problems(generator)):
        norm = np.linalg.norm(target)

        def put(name, weights):
            tensors[f"{name}.weights"] = weights
            tensors[f"{name}.residual"] = np.array([np.linalg.norm(weights @ atoms - target) / norm])

        tensors[f"{position}.atoms"] = np.ascontiguousarray(atoms)
        tensors[f"{position}.target"] = target
        tensors[f"{position}.ridge"] = np.array([ridge])
        put(str(position), nnls(*with_ridge(atoms, target, ridge))[0])
        for budget in BUDGETS:
            put(f"{position}.{budget}", pursuit(atoms, target, ridge, budget))
    path = Path(__file__).resolve().parent.parent / "tests/fixtures/pursuit.safetensors"
    save_file(tensors, path, metadata={"made_by": "scripts/make-pursuit-fixtures.py", "seed": str(SEED)})
    print(f"{path}: {len(tensors)} tensors", file=sys.stderr)


if __name__ == "__main__":
    main()
