#!/usr/bin/env python3
"""Compares a file of `secateur dump` with PyTorch: the same weights, the same adversarial images, one training step.

Usage: compare-dump.py STEP.safetensors WEIGHTS.safetensors [--objective cross-entropy|trades|mart] [--beta B]
       [--label-smoothing S] [--awp GAMMA] [--epsilon 8/255] [--tolerance T]
(needs torch and safetensors)

cross-entropy is the loss of every objective but TRADES and MART. For those two the loss is that of the papers, its gradient
autograd's; beta is the factor on the divergence (6 and 5 unless given). MART takes no label smoothing. --awp is
objective.awp (its warm-up 0): all of the step but logits_eval is at the perturbed weights.

PyTorch computes in f64. Of each tensor it prints the largest difference and the norm of the difference over the norm of
the tensor, then says whether every such ratio is within the tolerance (exit code 1 if not). Bounds to expect: 2e-4 for
the CPU engine (f32); for the kernels see compare-bf16.py.

A ReLU whose input is within rounding of zero may pass in f32 and not in f64: then the gradients in front of it differ by
more than rounding, at single elements.
"""

import argparse
import copy
import fractions
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from objectives import mart_losses, trades_losses
from resnet18 import ResNet18


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step")
    parser.add_argument("weights")
    parser.add_argument("--objective", choices=["cross-entropy", "trades", "mart"], default="cross-entropy")
    parser.add_argument("--beta", type=float)
    parser.add_argument("--label-smoothing", type=float, default=0.0)
    parser.add_argument("--awp", type=float, default=0.0)
    parser.add_argument("--epsilon", type=fractions.Fraction, default=fractions.Fraction(8, 255))
    parser.add_argument("--tolerance", type=float, default=2e-4)
    return parser.parse_args()


def train_pass(model, x, x_adv, y, args):
    """Logits and losses of the objective, by their names in a dump."""
    if args.objective == "cross-entropy":
        logits = model(x_adv)
        losses = F.cross_entropy(logits, y, reduction="none", label_smoothing=args.label_smoothing)
        return {"logits": logits, "losses": losses}
    losses, usual = {"trades": (trades_losses, 6.0), "mart": (mart_losses, 5.0)}[args.objective]
    clean, logits = model(x), model(x_adv)
    beta = usual if args.beta is None else args.beta
    smoothing = {"smoothing": args.label_smoothing} if args.objective == "trades" else {}
    return {"logits_clean": clean, "logits": logits, "losses": losses(clean, logits, y, beta, **smoothing)}


def perturb(model, gamma, losses_of):
    """Moves each tensor of two dimensions or more up its gradient, gamma times its norm far (Wu et al. 2020)."""
    climber = copy.deepcopy(model)  # the first pass moves its running statistics
    losses_of(climber).mean().backward()
    with torch.no_grad():
        for weights, climbing in zip(model.parameters(), climber.parameters()):
            if weights.dim() > 1:
                weights += gamma * weights.norm() / climbing.grad.norm() * climbing.grad


def pytorch_step(weights, x, x_adv, y, args):
    """The tensors of a dump, by its names, computed in f64."""
    classes, features = weights["linear.weight"].shape
    model = ResNet18(features // 8, classes)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing), (missing, unexpected)
    model = model.double()
    model.eval()
    with torch.no_grad():
        logits_eval = model(x_adv)
    model.train()
    if args.awp:
        perturb(model, args.awp, lambda other: train_pass(other, x, x_adv, y, args)["losses"])
    step = {"logits_eval": logits_eval, **train_pass(model, x, x_adv, y, args)}
    loss = step["losses"].mean()
    step["loss"] = loss.reshape(1)
    loss.backward()
    for name, parameter in model.named_parameters():
        step[f"grad.{name}"] = parameter.grad
    for name, buffer in model.named_buffers():
        if "running" in name:
            step[f"after.{name}"] = buffer
    return {name: tensor.detach() for name, tensor in step.items()}


def main():
    args = arguments()
    dump = {name: tensor.double() for name, tensor in load_file(args.step).items()}
    x, x_adv, y = dump.pop("x"), dump.pop("x_adv"), dump.pop("y").long()

    distance = (x_adv - x).abs().max().item()
    print(f"images {tuple(x.shape)}; x_adv within {distance * 255:.4f}/255 of x, in [{x_adv.min():g}, {x_adv.max():g}]")
    good = distance <= float(args.epsilon) + 2.4e-7 and 0 <= x_adv.min() and x_adv.max() <= 1

    expected = pytorch_step(load_file(args.weights), x, x_adv, y, args)
    if dump.keys() != expected.keys():
        print(f"other tensors than expected: {sorted(dump.keys() ^ expected.keys())}")
        sys.exit(1)
    print(f"{'tensor':32} {'largest difference':>18} {'relative':>10}")
    worst = (0.0, "")
    for name in sorted(expected):
        difference = dump[name] - expected[name]
        relative = (difference.norm() / expected[name].norm()).item()
        # A comparison that NaN cannot pass.
        if not relative <= worst[0]:
            worst = (relative, name)
        print(f"{name:32} {difference.abs().max().item():18.3e} {relative:10.3e}")
    good = good and worst[0] <= args.tolerance
    print(f"worst: {worst[1]}, relative {worst[0]:.3e}; tolerance {args.tolerance:g}: {'agrees' if good else 'DIFFERS'}")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
