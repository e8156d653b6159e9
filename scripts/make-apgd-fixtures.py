#!/usr/bin/env python3
"""Writes tests/fixtures/apgd.safetensors: APGD step by step, and margin losses by autograd.

Usage: python3 scripts/make-apgd-fixtures.py          needs torch, numpy and safetensors; CPU only, takes a second

APGD is written out in f64 from the paper (Croce and Hein, ICML 2020) and the behaviour of its published code, with whole
tables of losses where ours keeps a few numbers an image. It attacks a network of one hidden layer, `z = B sin(A (x - 1/2)) + lead`,
whose loss is no concave function, so that steps overshoot, windows stall and points are taken back.

Images, A and B are drawn from Philox here and in the test. Stored for both losses, "ce" and "dlr", for each of the 101 calls:
`losses` (calls x images: at the point before the call, rounded to f32), `step_size`, `best_loss`,
`last_loss` (as they stand after the call), `increases` within the window, `broken`, and
`points` (calls x images x every STRIDE-th element) as the call leaves them. "margin.C" holds logits of C classes, with ties
and without, and losses and gradients of both margin losses in f64.
"""

import importlib.util
import pathlib

import numpy as np
import torch
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).resolve().parent
spec = importlib.util.spec_from_file_location("fixtures", HERE / "make-fixtures.py")
fixtures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fixtures)
fixtures.SEED = SEED = 20261121

IMAGES, HIDDEN, CLASSES, LENGTH = 6, 24, 10, 3072
EPSILON, ITERATIONS, RHO = 8 / 255, 100, 0.75
STRIDE = 97
# Purposes of src/philox.rs: generated images, initial weights, the start of APGD.
GENERATION, INITIALISATION, START = 5, 4, 10
STRENGTH = 0.05
# What the label's logit of each image is raised by.
LEADS = torch.tensor([1.0, 3.0, 5.0, 7.0, 9.0, 0.0], dtype=torch.float64)


def network():
    a = np.float32(STRENGTH) * fixtures.uniform(INITIALISATION, 0, HIDDEN * LENGTH).reshape(HIDDEN, LENGTH)
    b = fixtures.uniform(INITIALISATION, 1, CLASSES * HIDDEN).reshape(CLASSES, HIDDEN)
    a, b = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    return lambda x, lead: torch.sin((x - 0.5) @ a.T) @ b.T + lead


def cross_entropy(z, y, _):
    return torch.nn.functional.cross_entropy(z, y, reduction="none")


def ranked(z):
    """Classes by falling logit; among equals the highest index first: an ascending stable sort, read backwards."""
    return torch.sort(z, dim=1, stable=True).indices.flip(1)


def targeted_dlr(z, y, t):
    of = lambda classes: z.gather(1, classes[:, None]).squeeze(1)
    order = ranked(z)
    span = of(order[:, 0]) - 0.5 * (of(order[:, 2]) + of(order[:, 3])) + 1e-12
    return -(of(y) - of(t)) / span


def best_wrong(z, y, _):
    wrong = z.scatter(1, y[:, None], -torch.inf)
    # The lowest index among equals: the first maximum.
    return wrong.gather(1, wrong.argmax(1, keepdim=True)).squeeze(1) - z.gather(1, y[:, None]).squeeze(1)


def apgd(model, loss_of, x, y, t, start):
    clip = lambda moved: torch.minimum(torch.maximum(moved, x - EPSILON), x + EPSILON).clamp(0, 1)

    def look(point):
        point = point.clone().requires_grad_()
        z = model(point)
        loss = loss_of(z, y, t)
        gradient = torch.autograd.grad(loss.sum(), point)[0]
        # The decisions are taken on losses in f32, those that the test hands to the engine.
        return loss.detach().float().double(), gradient, z.argmax(1) != y

    count = len(x)
    table = torch.zeros(ITERATIONS, count, dtype=torch.float64)
    point, before = start.clone(), start.clone()
    loss, gradient, wrong = look(point)
    best, best_point, best_gradient, broken = loss.clone(), point.clone(), gradient.clone(), wrong.clone()
    best_at_check, halved = best.clone(), torch.ones(count, dtype=torch.bool)
    size = torch.full((count, 1), 2 * EPSILON, dtype=torch.float64)
    window, since, check_from = max(int(0.22 * ITERATIONS), 1), 0, 0
    rows = []

    def put(last, increases):
        rows.append((loss, size.flatten().clone(), best.clone(), last.clone(), increases, broken.clone(), point.clone()))

    zero = torch.zeros(count, dtype=torch.float64)
    for i in range(ITERATIONS):
        share = 0.75 if i > 0 else 1.0
        momentum = point - before
        before = point.clone()
        target = clip(point + size * gradient.sign())
        point = clip(point + share * (target - point) + (1 - share) * momentum)
        # The row after call i: what was known before this step, and the point that it leads to.
        rises = sum(((table[j] > table[j - 1]).double() for j in range(check_from, i)), zero)
        put(table[i - 1] if i > 0 else zero, rises)

        loss, gradient, wrong = look(point)
        broken |= wrong
        table[i] = loss
        better = loss > best
        best = torch.where(better, loss, best)
        best_point[better], best_gradient[better] = point[better], gradient[better]
        since += 1
        if since == window:
            # The first row is compared with row -1, the last one of the table, which is still zero.
            risen = sum((table[i - j] > table[i - j - 1]).double() for j in range(window))
            back = (risen <= RHO * window) | (~halved & (best_at_check >= best))
            best_at_check, halved = best.clone(), back
            size[back] /= 2
            point[back], gradient[back] = best_point[back], best_gradient[back]
            window, since, check_from = max(window - max(int(0.03 * ITERATIONS), 1), max(int(0.06 * ITERATIONS), 1)), 0, i + 1
    put(loss, zero)
    return [torch.stack(column) for column in zip(*rows)]


def margins(classes, stored):
    generator = torch.Generator().manual_seed(SEED + classes)
    z = torch.randn(24, classes, generator=generator) * torch.tensor([0.1, 1.0, 30.0]).repeat(8)[:, None]
    y = torch.randint(classes, (24,), generator=generator)
    y[::2] = z[::2].argmax(1)
    t = (y + 1 + torch.randint(classes - 1, (24,), generator=generator)) % classes
    # Ties: of the first two, of the third to fifth, of all.
    order = ranked(z)
    z[1, order[1, 1]] = z[1, order[1, 0]]
    for place in range(3, min(5, classes)):
        z[2, order[2, place]] = z[2, order[2, 2]]
        z[4, order[4, place]] = z[4, order[4, 1]]
    z[3] = 1.5
    prefix = f"margin.{classes}"
    stored[f"{prefix}.logits"] = z.numpy()
    stored[f"{prefix}.labels"], stored[f"{prefix}.targets"] = y.numpy(), t.numpy()
    for name, loss_of in (("best_wrong", best_wrong), ("targeted_dlr", targeted_dlr)):
        exact = z.double().requires_grad_()
        loss = loss_of(exact, y, t)
        stored[f"{prefix}.{name}.losses"] = loss.detach().numpy()
        stored[f"{prefix}.{name}.gradient"] = torch.autograd.grad(loss.sum(), exact)[0].numpy()
    order = ranked(z)
    wrong = torch.stack([row[row != label] for row, label in zip(order, y)])
    stored[f"{prefix}.wrong"] = wrong.numpy()


def main():
    network_of = network()
    draw = lambda n: 0.5 + 0.5 * fixtures.uniform(GENERATION, n, LENGTH).astype(np.float64)
    x = torch.tensor(np.stack([draw(n) for n in range(IMAGES)]))
    noise = np.stack([fixtures.uniform(START, n, LENGTH).astype(np.float64) for n in range(IMAGES)])
    noise /= np.abs(noise).max(1, keepdims=True)
    start = (x + EPSILON * torch.tensor(noise)).clamp(0, 1)
    order = ranked(network_of(x, 0))
    y, t = order[:, 0].clone(), order[:, 1].clone()
    # The last image is wrong from its start.
    y[-1] = order[-1, 3]
    lead = LEADS[:, None] * torch.nn.functional.one_hot(y, CLASSES)
    model = lambda x: network_of(x, lead)

    stored = {"labels": y.numpy(), "targets": t.numpy()}
    for name, loss_of in (("ce", cross_entropy), ("dlr", targeted_dlr)):
        losses, size, best, last, increases, broken, points = apgd(model, loss_of, x, y, t, start)
        print(name, "halvings", torch.log2(2 * EPSILON / size[-1]).tolist(), "broken", broken[-1].tolist())
        print("  best", best[-1].tolist(), "first broken", [int(broken[:, n].int().argmax()) for n in range(IMAGES)])
        for key, values in (("losses", losses), ("step_size", size), ("best_loss", best), ("last_loss", last), ("increases", increases), ("broken", broken)):
            stored[f"{name}.{key}"] = values.double().numpy()
        stored[f"{name}.points"] = points[:, :, ::STRIDE].numpy()
    for classes in (4, 10, 100):
        margins(classes, stored)
    out = HERE.parent / "tests/fixtures/apgd.safetensors"
    save_file({name: np.ascontiguousarray(values, np.float32) for name, values in stored.items()}, out)
    print(f"{out.name}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
