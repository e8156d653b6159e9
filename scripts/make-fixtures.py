#!/usr/bin/env python3
"""Writes tests/fixtures/resnet18-width16.safetensors: what PyTorch computes, in f64, for the reference engine's tests.

Usage: make-fixtures.py [--search N]      (needs torch, numpy, safetensors)

A value that a ReLU sees within rounding of zero may fall on the other side in f32, and the gradients then differ by a
whole unit's share. So the seed is one whose closest such value is far from zero; --search N looks for it.

Weights, images and labels are not stored: tests/engine/reference_pytorch.rs draws the same ones from Philox. Of a tensor with
more than FULL elements every STRIDE-th is stored, and the norm of the whole.
"""

import pathlib
import sys

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file
from torch import nn

# Also where another script loads this file by its path.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from resnet18 import ResNet18  # noqa: E402

SEED = 116
WIDTH, CLASSES, BATCH = 16, 10, 4
FULL, STRIDE = 5000, 7
SMOOTHING = 0.1
STEPS, RATE, MOMENTUM, DECAY, AVERAGE = 3, 0.02, 0.9, 5e-4, 0.75


closest = [np.inf]


def watch(module, inputs):
    """A hook before each ReLU: how near its inputs come to zero."""
    closest[0] = min(closest[0], inputs[0].detach().abs().min().item())


def philox(counter, key):
    """Philox4x32-10 on arrays of counters; the mirror of src/philox.rs."""
    low = np.uint64(0xFFFFFFFF)
    c = [np.asarray(word, np.uint64) for word in np.broadcast_arrays(*counter)]
    k = list(key)
    for step in range(10):
        if step:
            k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
        even, odd = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        shift = np.uint64(32)
        c = [(odd >> shift) ^ c[1] ^ np.uint64(k[0]), odd & low, (even >> shift) ^ c[3] ^ np.uint64(k[1]), even & low]
    return np.stack(c, -1).reshape(-1).astype(np.uint32)


def uniform(purpose, sample, count):
    """`count` numbers on [-1, 1), exact in f32."""
    words = philox((np.arange(-(-count // 4)), sample, 0, purpose << 24), (SEED & 0xFFFFFFFF, SEED >> 32))[:count]
    return (words >> 8).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)


def initial(name, shape, position):
    """Random values of a sensible size for every tensor, batch norm's included."""
    u = uniform(4, position, int(np.prod(shape))).reshape(shape)
    if name.endswith("running_var"):
        return np.float32(1) + np.float32(0.5) * u
    if len(shape) == 1:
        return (np.float32(1) if ".weight" in name else np.float32(0)) + np.float32(0.25) * u
    return np.float32(np.sqrt(3.0 / np.prod(shape[1:]))) * u


def compute():
    """All tensors of the fixture, and the distance from zero of the closest value before a ReLU."""
    closest[0] = np.inf
    stored = {}

    def put(name, tensor):
        values = tensor.detach().double().contiguous().flatten().numpy()
        if values.size > FULL:
            stored[f"{name}.norm"] = np.array([np.sqrt(np.sum(values**2))], np.float32)
            values = values[::STRIDE]
        stored[name] = values.astype(np.float32)

    model = ResNet18(WIDTH, CLASSES).double()
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_pre_hook(watch)
    names = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    state = {n: torch.from_numpy(initial(n, tuple(model.state_dict()[n].shape), i)).double() for i, n in enumerate(names)}
    model.load_state_dict(state, strict=False)
    # NHWC in our tests, NCHW here; 0.5 + 0.5 u lies in [0, 1).
    pixels = [np.float32(0.5) + np.float32(0.5) * uniform(5, n, 3072).reshape(32, 32, 3) for n in range(BATCH)]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).double().contiguous()
    labels = torch.tensor([(3 * n + 1) % CLASSES for n in range(BATCH)])

    model.eval()
    for tag, smoothing in (("eval", 0.0), ("eval-smoothed", SMOOTHING)):
        x = images.clone().requires_grad_()
        logits = model(x)
        losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
        losses.mean().backward()
        put(f"{tag}.logits", logits)
        put(f"{tag}.losses", losses)
        put(f"{tag}.input_gradient", x.grad.permute(0, 2, 3, 1))

    model.train()
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=MOMENTUM, weight_decay=DECAY)
    average = None
    for step in range(STEPS):
        x = images.clone().requires_grad_()
        logits = model(x)
        optimizer.zero_grad()
        F.cross_entropy(logits, labels, label_smoothing=SMOOTHING).backward()
        if step == 0:
            put("train.logits", logits)
            put("train.input_gradient", x.grad.permute(0, 2, 3, 1))
            for name, parameter in model.named_parameters():
                put(f"train.gradient.{name}", parameter.grad)
            for name in names:
                if "running" in name:
                    put(f"train.statistics.{name}", model.state_dict()[name])
        optimizer.step()
        live = {name: model.state_dict()[name].clone() for name in names}
        if average is None:
            average = live
        else:
            average = {name: AVERAGE * average[name] + (1 - AVERAGE) * live[name] for name in names}
    for name in names:
        put(f"steps.live.{name}", model.state_dict()[name])
        put(f"steps.average.{name}", average[name])
    for name, parameter in model.named_parameters():
        put(f"steps.momentum.{name}", optimizer.state[parameter]["momentum_buffer"])

    return stored, closest[0]


def main():
    global SEED
    torch.use_deterministic_algorithms(True)
    if "--search" in sys.argv:
        margins = {}
        for SEED in range(int(sys.argv[sys.argv.index("--search") + 1])):
            margins[SEED] = compute()[1]
        for seed, margin in sorted(margins.items(), key=lambda item: -item[1])[:5]:
            print(f"seed {seed}: closest value before a ReLU {margin:.2e}")
        return
    out = pathlib.Path(__file__).resolve().parent.parent / "tests/fixtures/resnet18-width16.safetensors"
    stored, margin = compute()
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(stored, out, {"torch": torch.__version__, "seed": str(SEED)})
    print(f"{out.name}: {len(stored)} tensors, {out.stat().st_size} bytes; closest value before a ReLU {margin:.2e}")


if __name__ == "__main__":
    main()
