#!/usr/bin/env python3
"""Sets the kernels' bf16 beside PyTorch's: how far each is from f32 on the same training step.

Usage: compare-bf16.py F32_STEP.safetensors BF16_STEP.safetensors WEIGHTS.safetensors   (needs torch and safetensors)

Both files are of `secateur dump` with the same weights, recipe and adversarial images: the first with --device cpu, the
second with --device emulated or cuda and --x-adv F32_STEP. PyTorch runs the same step under bf16 autocast on the CPU. For
every weight the norm of the difference from the f32 gradient over its norm is printed. In a network at its random start
these are large for anyone's bf16, since activations near zero change the side of their ReLU; so the check is relative:
the kernels may be at most 1.5 times as far from f32 as PyTorch (exit code 1 if not).
"""

import sys

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from resnet18 import ResNet18


def distance(tensor, reference):
    return ((tensor.double() - reference.double()).norm() / reference.double().norm()).item()


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    f32, bf16, weights = (load_file(path) for path in sys.argv[1:])
    assert torch.equal(f32["x_adv"], bf16["x_adv"]), "the two dumps have different adversarial images: use --x-adv"
    classes, features = weights["linear.weight"].shape
    model = ResNet18(features // 8, classes)
    model.load_state_dict(weights, strict=False)
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(f32["x_adv"]).float()
    F.cross_entropy(logits, f32["y"].long()).backward()

    print(f"{'distance from f32':34} {'kernels':>9} {'PyTorch bf16':>13}")
    rows = [("logits", distance(bf16["logits"], f32["logits"]), distance(logits, f32["logits"]))]
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            key = f"grad.{name}"
            rows.append((key, distance(bf16[key], f32[key]), distance(parameter.grad, f32[key])))
    for name, kernels, pytorch in rows:
        print(f"{name:34} {kernels:9.4f} {pytorch:13.4f}")
    worst = max(kernels / pytorch for _, kernels, pytorch in rows)
    print(f"the kernels are at most {worst:.2f} times as far from f32 as PyTorch's bf16")
    sys.exit(worst > 1.5)


if __name__ == "__main__":
    main()
