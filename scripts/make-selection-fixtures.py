#!/usr/bin/env python3
"""Writes tests/fixtures/selection.safetensors: InfoBatch's expected gradient and GLISTER's choice, from plain numpy.

Usage: python3 scripts/make-selection-fixtures.py          needs numpy and safetensors; takes some seconds

InfoBatch (Qin et al., ICLR 2024; the rules of NUS-HPC-AI-Lab/InfoBatch): of N samples with losses and gradients, those below
the mean loss stay with probability int((1 - r) n) / n and weigh 1 / (1 - r); a minibatch takes the plain mean of weight times
gradient. "info.losses" (N), "info.gradients" (N x D), and for each r "info.R.kept" (1: samples of an epoch) and
"info.R.epoch" (D): the expectation of the sum over an epoch's minibatches of those means times the batch, which is what an
epoch of SGD walks. It is written down in closed form and confirmed here by draws.

GLISTER (Killamsetty et al., AAAI 2021) in its published configuration for CIFAR (decile-team/cords): gradients of the
logits alone, steps of the held-out logits along the sum of the picked gradients with eta the learning rate, the best of a
random pool of int(N / k ln 100) at each pick ("stochastic"), or the k / r best in each of r rounds ("rounds"). For the losses
"ce" and "trades": logits of candidates and held-out images, one table a term (TRADES: clean, adversarial), their classes,
the candidates' logit gradients, and the places chosen, ascending. Pools are drawn by Philox as in src/prune/glister.rs:
a partial Fisher-Yates shuffle of the open places, its words keyed by the number of the pick. Everything is f64 but the stored
logits and gradients, which are rounded to f32 first.
"""

import math
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

SEED = 20261130
BETA = 6.0
# GLISTER: candidates, held-out images, classes, picks, rounds, eta. Purpose::Selection of src/philox.rs, and DRAWS of the test.
CANDIDATES, HELD_OUT, CLASSES, PICKS, ROUNDS, ETA = 60, 24, 10, 18, 6, 0.1
PURPOSE, DRAW_SEED = 7, 5
# The least relative distance of two gains between which a choice falls: far above what f32 rounds.
CLEAR = 1e-4


def philox(counter, key):
    """Philox4x32-10 on plain integers."""
    counter, key = list(counter), list(key)
    for step in range(10):
        if step:
            key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
        even, odd = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = [(odd >> 32) ^ counter[1] ^ key[0], odd % 2**32, (even >> 32) ^ counter[3] ^ key[1], even % 2**32]
    return counter


def softmax(z):
    powers = np.exp(z - z.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def loss(logits, hot):
    """Of each image: cross-entropy of the one term, or TRADES of both."""
    p = softmax(logits[0])
    value = -np.log((p * hot).sum(1))
    if len(logits) == 2:
        q = softmax(logits[1])
        value = value + BETA * (p * (np.log(p) - np.log(q))).sum(1)
    return value


def gradients(logits, hot):
    """The derivatives of `loss` by each term's logits."""
    p = softmax(logits[0])
    if len(logits) == 1:
        return [p - hot]
    q = softmax(logits[1])
    ratio = np.log(p) - np.log(q)
    divergence = (p * ratio).sum(1, keepdims=True)
    return [p - hot + BETA * p * (ratio - divergence), BETA * (q - p)]


def check_gradients(logits, hot):
    for term, gradient in enumerate(gradients(logits, hot)):
        for column in range(CLASSES):
            moved = [[table.copy() for table in logits] for _ in range(2)]
            moved[0][term][:, column] -= 1e-5
            moved[1][term][:, column] += 1e-5
            slope = (loss(moved[1], hot) - loss(moved[0], hot)) / 2e-5
            assert np.abs(slope - gradient[:, column]).max() < 1e-7


def pool_of(open_places, size, pick):
    places = list(open_places)
    words = []
    for front in range(size):
        if front % 4 == 0:
            words = philox([front // 4, pick, 0, PURPOSE << 24], [DRAW_SEED, 0])
        other = front + ((words[front % 4] * (len(places) - front)) >> 32)
        places[front], places[other] = places[other], places[front]
    return places[:size]


def clear(gains, taken):
    """Whether the `taken` largest stand out from the rest."""
    order = np.sort(gains)[::-1]
    return taken == len(order) or order[taken - 1] - order[taken] > CLEAR * abs(order[taken - 1])


def glister(candidates, held_out, hot, stochastic):
    """The places chosen, ascending; None where a decision was close."""
    # The bias has one gradient, whatever logits it moves.
    atoms = sum(candidates)
    total = np.zeros(CLASSES)
    chosen = []
    pool = int(CANDIDATES / PICKS * math.log(100))
    while len(chosen) < PICKS:
        target = sum(gradients([table - ETA * total for table in held_out], hot)).mean(0)
        places = [place for place in range(CANDIDATES) if place not in chosen]
        take = 1 if stochastic else PICKS // ROUNDS
        if stochastic:
            places = pool_of(places, min(pool, len(places)), len(chosen))
        gains = atoms[places] @ target
        if not clear(gains, take):
            return None
        best = [places[at] for at in np.argsort(-gains)[:take]]
        chosen += best
        total = total + atoms[best].sum(0)
    return sorted(chosen)


def glister_fixture(tensors, generator):
    for name, terms in (("ce", 1), ("trades", 2)):
        while True:
            draw = lambda count: [generator.normal(0, 1.5, (count, CLASSES)).astype(np.float32) for _ in range(terms)]
            logits, held_out = draw(CANDIDATES), draw(HELD_OUT)
            labels, classes = generator.integers(CLASSES, size=CANDIDATES), generator.integers(CLASSES, size=HELD_OUT)
            wide = lambda tables: [table.astype(np.float64) for table in tables]
            hot = np.eye(CLASSES)
            check_gradients(wide(held_out), hot[classes])
            atoms = [table.astype(np.float32) for table in gradients(wide(logits), hot[labels])]
            found = [glister(wide(atoms), wide(held_out), hot[classes], stochastic) for stochastic in (True, False)]
            if None not in found:
                break
        for term in range(terms):
            tensors[f"{name}.gradients.{term}"] = atoms[term]
            tensors[f"{name}.held_out.{term}"] = held_out[term]
        tensors[f"{name}.labels"] = labels
        tensors[f"{name}.held_out.labels"] = classes
        tensors[f"{name}.stochastic"], tensors[f"{name}.rounds"] = map(np.array, found)


def info_batch_fixture(tensors, generator):
    count, length = 80, 6
    losses = np.exp(generator.normal(size=count)).astype(np.float32)
    gradients = generator.normal(0.5, 1.0, (count, length))
    easy = losses < losses.astype(np.float64).mean()
    tensors["info.losses"], tensors["info.gradients"] = losses, gradients
    for share in (0.3, 0.5, 0.8):
        keep = 1 - share
        kept = int(keep * easy.sum())
        expected = gradients[~easy].sum(0) + kept / easy.sum() / keep * gradients[easy].sum(0)
        met = np.zeros(length)
        draws = 20_000
        for _ in range(draws):
            drawn = generator.choice(np.where(easy)[0], kept, replace=False)
            met += (gradients[~easy].sum(0) + gradients[drawn].sum(0) / keep) / draws
        assert np.linalg.norm(met - expected) < 0.01 * np.linalg.norm(expected)
        tensors[f"info.{share}.kept"] = np.array([(~easy).sum() + kept])
        tensors[f"info.{share}.epoch"] = expected


def main():
    generator = np.random.default_rng(SEED)
    tensors = {}
    info_batch_fixture(tensors, generator)
    glister_fixture(tensors, generator)
    path = Path(__file__).resolve().parent.parent / "tests/fixtures/selection.safetensors"
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path,
              metadata={"made_by": "scripts/make-selection-fixtures.py", "seed": str(SEED)})
    print(f"{path}: {len(tensors)} tensors", file=sys.stderr)


if __name__ == "__main__":
    main()
