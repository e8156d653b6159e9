#!/usr/bin/env python3
"""Writes tests/fixtures/losses.safetensors: what PyTorch's autograd says of the paired losses, to check ours against.

Usage: python3 scripts/make-loss-fixtures.py          needs torch and safetensors; CPU only, takes a second

The formulas are those of the published codes of TRADES (Zhang et al., 2019), MART (Wang et al., 2020) and the sample score
of BulletTrain (Hua et al., 2021), as one would write them in PyTorch, for one sample instead of the mean. Logits are f32;
everything after them is computed in f64 and rounded to f32 once, so the file holds the truth and not PyTorch's own f32
errors.

For C in 10 and 100 classes the tensors are named "C.name": logits `clean` and `adversarial` (rows x C), `labels`,
`weights`, and for each of the losses `trades`, `smoothed_trades`, `mart`, `divergence` its `.losses` (rows), `.clean_gradient` and
`.adversarial_gradient` (rows x C), the gradients with the sample's weight and SCALE (`divergence` has no weights and only
the adversarial gradient); `signed_deviation` (rows).
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

SEED = 20261121
DIVERGENCE = {"trades": 6.0, "mart": 5.0}
SMOOTHING = 0.1
SCALE = 0.125


def trades(clean, adversarial, labels, smoothing=0.0):
    divergence = F.kl_div(F.log_softmax(adversarial, 1), F.softmax(clean, 1), reduction="none").sum(1)
    cross_entropy = F.cross_entropy(clean, labels, reduction="none", label_smoothing=smoothing)
    return cross_entropy + DIVERGENCE["trades"] * divergence


def smoothed_trades(clean, adversarial, labels):
    return trades(clean, adversarial, labels, SMOOTHING)


def mart(clean, adversarial, labels):
    q, p = F.softmax(adversarial, 1), F.softmax(clean, 1)
    top_two = torch.argsort(q, dim=1)[:, -2:]
    wrong = torch.where(top_two[:, -1] == labels, top_two[:, -2], top_two[:, -1])
    boosted = F.cross_entropy(adversarial, labels, reduction="none")
    boosted = boosted + F.nll_loss(torch.log(1.0001 - q + 1e-12), wrong, reduction="none")
    true_probability = torch.gather(p, 1, labels[:, None]).squeeze(1)
    divergence = F.kl_div(torch.log(q + 1e-12), p, reduction="none").sum(1)
    return boosted + DIVERGENCE["mart"] * divergence * (1.0000001 - true_probability)


def divergence(clean, adversarial, _labels):
    return F.kl_div(F.log_softmax(adversarial, 1), F.softmax(clean, 1), reduction="none").sum(1)


def signed_deviation(logits, labels):
    p = F.softmax(logits, 1)
    return torch.where(p.argmax(1) == labels, 1.0, -1.0) * p.std(1)


def rows(classes, generator):
    """Six kinds of samples, four of each."""
    normal = lambda: torch.randn(4, classes, generator=generator)
    labels = torch.randint(classes, (24,), generator=generator)
    one_hot = F.one_hot(labels, classes).float().reshape(6, 4, classes)
    near = 3 * normal()
    pairs = [
        (normal(), normal()),  # an untrained network
        (4 * normal(), 4 * normal()),
        (near, near + 0.1 * normal()),  # the start of an attack
        (8 * one_hot[3] + normal(), 4 * normal()),  # the attack succeeded
        (20 * one_hot[4] + normal(), 20 * one_hot[4].roll(1, 1) + normal()),  # sure, and surely wrong
        (50 * normal().sign() + normal(), 50 * normal().sign() + normal()),  # logits around +-50
    ]
    return torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs]), labels


def main():
    generator = torch.Generator().manual_seed(SEED)
    tensors = {}
    for classes in (10, 100):
        clean, adversarial, labels = rows(classes, generator)
        weights = torch.rand(len(labels), generator=generator) * 2
        put = lambda name, tensor: tensors.update({f"{classes}.{name}": tensor.detach().float().contiguous()})
        put("clean", clean)
        put("adversarial", adversarial)
        put("weights", weights)
        tensors[f"{classes}.labels"] = labels.int()
        put("signed_deviation", signed_deviation(clean.double(), labels))
        for loss in (trades, smoothed_trades, mart, divergence):
            z = clean.double().requires_grad_()
            moved = adversarial.double().requires_grad_()
            losses = loss(z, moved, labels)
            factors = torch.ones_like(losses) if loss is divergence else weights.double()
            (SCALE * factors * losses).sum().backward()
            put(f"{loss.__name__}.losses", losses)
            put(f"{loss.__name__}.adversarial_gradient", moved.grad)
            if loss is not divergence:
                put(f"{loss.__name__}.clean_gradient", z.grad)
    path = Path(__file__).resolve().parent.parent / "tests/fixtures/losses.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path, metadata={"made_by": "scripts/make-loss-fixtures.py", "seed": str(SEED)})
    print(f"{path}: {len(tensors)} tensors, PyTorch {torch.__version__}", file=sys.stderr)


if __name__ == "__main__":
    main()
