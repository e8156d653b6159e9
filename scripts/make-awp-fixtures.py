#!/usr/bin/env python3
"""Writes tests/fixtures/awp.safetensors: what PyTorch computes, in f64, of training steps with adversarial weight perturbation.

Usage: make-awp-fixtures.py      (needs torch, numpy, safetensors)

Network, weights and images are those of make-fixtures.py, but for BatchNorm's weights and biases, which keep nearly all that a ReLU sees
above zero: there is too much of it for a seed without a value within rounding of zero. The adversarial images are BATCH more images. Two steps of AT-AWP (smoothed cross-entropy) and of TRADES-AWP as their paper has them: a copy of the
network takes a step up the loss; each tensor of two dimensions or more of that step is scaled to gamma times the norm of the weights
and added to them; the optimizer steps by the gradient there; the same is taken off again, and the average blends what is left.

Stored is how far live weights, their average and the running statistics went from where they began. Of a tensor with more than FULL
elements every STRIDE-th is stored, and the norm of the whole.
"""

import copy
import importlib.util
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file
from torch import nn

HERE = pathlib.Path(__file__).resolve().parent
spec = importlib.util.spec_from_file_location("fixtures", HERE / "make-fixtures.py")
fixtures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fixtures)
from objectives import trades_losses  # noqa: E402
from resnet18 import ResNet18  # noqa: E402

fixtures.SEED = 116
BATCH, CLASSES = fixtures.BATCH, fixtures.CLASSES
FULL, STRIDE = 700, 61
GAMMA, BETA, SMOOTHING = 5e-3, 6.0, 0.1
STEPS, RATE, MOMENTUM, DECAY, AVERAGE = 2, 0.1, 0.9, 5e-4, 0.75
# Of the copy's step; its size does not matter.
PROXY_RATE = 0.01


def perturbation(model, loss_of):
    """What moves the weights of `model`: by name, the scaled step of a copy that climbs the loss."""
    proxy = copy.deepcopy(model)
    climber = torch.optim.SGD(proxy.parameters(), PROXY_RATE)
    climber.zero_grad()
    (-loss_of(proxy)).backward()
    climber.step()
    moved = {}
    for (name, there), here in zip(proxy.named_parameters(), model.parameters()):
        if here.dim() > 1:
            step = (there - here).detach()
            moved[name] = GAMMA * here.detach().norm() / (step.norm() + 1e-20) * step
    return moved


def shift(model, moved, sign):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in moved:
                parameter.add_(moved[name], alpha=sign)


def initial(name, shape, position):
    """Values of make-fixtures.py, moved for BatchNorm's weights (from about 1) and biases (from about 0)."""
    values = fixtures.initial(name, shape, position)
    if len(shape) > 1 or "running" in name or name.startswith("linear"):
        return values
    end, begin = (0.6, 1.0) if name.endswith(".weight") else (2.4, 0.0)
    return np.float32(end) + np.float32(0.8) * (values - np.float32(begin))


def images(first):
    pixels = [np.float32(0.5) + np.float32(0.5) * fixtures.uniform(5, first + n, 3072) for n in range(BATCH)]
    stacked = np.stack([of.reshape(32, 32, 3) for of in pixels])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).double().contiguous()


def compute():
    """All tensors of the fixture, and the distance from zero of the closest value before a ReLU."""
    fixtures.closest[0] = np.inf
    stored = {}

    def put(name, tensor):
        values = tensor.detach().double().contiguous().flatten().numpy()
        if values.size > FULL:
            stored[f"{name}.norm"] = np.array([np.sqrt(np.sum(values**2))], np.float32)
            values = values[::STRIDE]
        stored[name] = values.astype(np.float32)

    clean, adversarial = images(0), images(BATCH)
    labels = torch.tensor([(3 * n + 1) % CLASSES for n in range(BATCH)])

    def cross_entropy(model):
        return F.cross_entropy(model(adversarial), labels, label_smoothing=SMOOTHING)

    def trades(model):
        return trades_losses(model(clean), model(adversarial), labels, BETA).mean()

    for objective, loss_of in (("pgd-at", cross_entropy), ("trades", trades)):
        model = ResNet18(fixtures.WIDTH, CLASSES).double()
        for module in model.modules():
            if isinstance(module, nn.ReLU):
                module.register_forward_pre_hook(fixtures.watch)
        names = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
        shapes = {name: tuple(model.state_dict()[name].shape) for name in names}
        start = {n: torch.from_numpy(initial(n, shapes[n], i)).double() for i, n in enumerate(names)}
        model.load_state_dict(start, strict=False)
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=MOMENTUM, weight_decay=DECAY)
        average = None
        for _ in range(STEPS):
            moved = perturbation(model, loss_of)
            shift(model, moved, 1.0)
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
            shift(model, moved, -1.0)
            live = {name: model.state_dict()[name].clone() for name in names}
            average = average or live
            average = {name: AVERAGE * average[name] + (1 - AVERAGE) * live[name] for name in names}
        for name in names:
            put(f"{objective}.live.{name}", live[name] - start[name])
            put(f"{objective}.average.{name}", average[name] - start[name])
    return stored, fixtures.closest[0]


def main():
    torch.use_deterministic_algorithms(True)
    out = HERE.parent / "tests/fixtures/awp.safetensors"
    stored, margin = compute()
    save_file(stored, out, {"torch": torch.__version__, "seed": str(fixtures.SEED)})
    print(f"{out.name}: {len(stored)} tensors, {out.stat().st_size} bytes; closest value before a ReLU {margin:.2e}")


if __name__ == "__main__":
    main()
