#!/usr/bin/env python3
"""Asks a plain PyTorch ResNet-18 about the adversarial images that `secateur eval --dump` wrote.

Usage: check-adversarial.py WEIGHTS.safetensors ADV.safetensors [--eps 8/255 --data FOLDER]        (torch, numpy, safetensors; CPU)

Loads the weights with load_state_dict, predicts x_adv and compares with the predictions in the file, image by image. f32 sums in
another order may turn an image that lies on the boundary: how close to a tie such an image is, is printed. With --data, the
folder of CIFAR-10's binary files, the distance from the clean test images is checked as well. Exit code 1 where more than 0.5 % of the
images differ, or one lies outside of the ball or of [0, 1].
"""

import argparse
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parent))
from resnet18 import ResNet18  # noqa: E402


def clean_images(folder, count):
    file = next(Path(folder).rglob("test_batch.bin"))
    records = np.fromfile(file, np.uint8).reshape(-1, 3073)[:count]
    return torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).astype(np.float32) / np.float32(255))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("weights")
    parser.add_argument("adversarial")
    parser.add_argument("--eps", default="8/255")
    parser.add_argument("--data")
    args = parser.parse_args()

    weights = load_file(args.weights)
    model = ResNet18(weights["conv1.weight"].shape[0], weights["linear.weight"].shape[0])
    model.load_state_dict(weights, strict=False)
    model.eval()
    file = load_file(args.adversarial)
    x_adv, labels = file["x_adv"], file["labels"]
    with torch.no_grad():
        logits = torch.cat([model(part) for part in x_adv.split(100)])
    met, said = logits.argmax(1), file["adversarial_predictions"]

    fooled = lambda predictions: int((predictions != labels).sum())
    print(f"{len(labels)} images: PyTorch predicts {fooled(met)} wrong, secateur {fooled(said)}")
    top = logits.topk(2).values
    differ = (met != said).nonzero().flatten().tolist()
    for n in differ:
        print(f"image {n}: PyTorch says {int(met[n])} (margin {float(top[n, 0] - top[n, 1]):.1e}), secateur {int(said[n])}")
    low, high = float(x_adv.min()), float(x_adv.max())
    print(f"range {low:g} to {high:g}")
    bad = len(differ) > 0.005 * len(labels) or low < 0 or high > 1 or bool(x_adv.isnan().any())
    if args.data:
        far = float((x_adv - clean_images(args.data, len(labels))).abs().max())
        print(f"largest perturbation {255 * far:.6f}/255")
        bad = bad or far > float(Fraction(args.eps)) + 2.4e-7
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
