#!/usr/bin/env python3
"""Checks that the peer on the GPU is asked for the same work as our engine: adversarial_step.py against formulas and our dumps.

Usage: check_step.py [--width 16] [--batch 8] [--dump METHOD=STEP.safetensors ... --weights WEIGHTS.safetensors] [--compiled]
(a CPU is enough)

In f64, for each method: logit gradients of the training loss and of the attack against the closed forms that our kernels
compute; the image gradient of the folded network against the module in eval mode; a train pass's parameter gradients against
the closed forms pushed through the module; the unit count of a forward pass against the operations of the modules. Then a whole
step under bf16 autocast must be sound, with --compiled also through torch.compile (the CPU's compiler). With --dump, gradients and
losses of the peer's train pass in f64 on the images of a `secateur dump --device cpu` with the same weights: f32, so a ReLU near
zero may pass in one and not in the other; 2e-2 is allowed where 5e-6 is met without such a one.
Prints each distance, norm of the difference over norm; exit code 1 if one is too large.
"""

import argparse
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from adversarial_step import METHODS, AdversarialStep, ascent, training_loss
from gpu_step import compiled
from work import forward_flops

failures = []


def report(what, distance, bound):
    good = distance <= bound
    print(f"{'ok     ' if good else 'DIFFERS'} {what}: {distance:.2e}, at most {bound:g}")
    if not good:
        failures.append(what)


def distance(a, b):
    return float((a - b).norm() / b.norm())


def closed_forms(method, beta, clean, adversarial, y):
    """Gradients of each sample's loss with respect to its logits of x' and x, as src/objective states them."""
    p, q = clean.softmax(1), adversarial.softmax(1)
    one_hot = F.one_hot(y, q.shape[1]).to(q.dtype)
    if method == "pgd-at":
        return q - one_hot, torch.zeros_like(p)
    log_ratio = p.log() - q.log()
    divergence = (p * log_ratio).sum(1, keepdim=True)
    towards_p = p * (log_ratio - divergence)
    if method == "trades":
        return beta * (q - p), p - one_hot + beta * towards_p
    k = (q - 2 * one_hot).argmax(1, keepdim=True)
    rival = torch.zeros_like(q).scatter(1, k, 1)
    q_k, p_y = q.gather(1, k), p.gather(1, y[:, None])
    w = 1.0000001 - p_y
    of_adversarial = q - one_hot + q_k / (1.0001 - q_k) * (rival - q) + beta * w * (q - p)
    return of_adversarial, beta * (w * towards_p - divergence * p_y * (one_hot - p))


def check_losses(method):
    generator = torch.Generator().manual_seed(3)
    beta = METHODS[method]["beta"]
    clean, adversarial = (2 * torch.randn(64, 10, dtype=torch.float64, generator=generator) for _ in range(2))
    y = torch.arange(64) % 10
    clean.requires_grad_(), adversarial.requires_grad_()
    loss = training_loss(method, beta, adversarial, clean, y)
    met = torch.autograd.grad(loss, (adversarial, clean), allow_unused=True)
    wanted = closed_forms(method, beta, clean.detach(), adversarial.detach(), y)
    report(f"{method}: dL/dz'", distance(met[0] * 64, wanted[0]), 1e-8)
    if method != "pgd-at":
        # The closed form leaves out MART's 1e-12 within the logarithm.
        report(f"{method}: dL/dz", distance(met[1] * 64, wanted[1]), 1e-8)
    q, divergence = adversarial.detach().softmax(1), method == "trades"
    target = clean.detach().softmax(1) if divergence else y
    (met,) = torch.autograd.grad(ascent(adversarial, target, divergence), adversarial)
    report(f"{method}: what the attack ascends", distance(met, q - (target if divergence else F.one_hot(y, 10))), 1e-12)


def check_network(method, args):
    step = AdversarialStep(method, args.width, args.batch, "cpu", autocast=False, dtype=torch.float64)
    # Running statistics that are not 0 and 1.
    for _ in range(3):
        with torch.no_grad():
            step.model(torch.rand_like(step.x))
    x_adv = step.attack()
    far = float((x_adv - step.x).abs().max())
    report(f"{method}: distance of x' from x over the radius, less 1", abs(far / METHODS[method]["epsilon"] - 1), 1e-9)

    step.model.eval()
    with torch.no_grad():
        folded = step.fold(step.pairs, step.model.linear, torch.float64)
        target = step.model(step.x).softmax(1) if method == "trades" else step.y
    at = x_adv.clone().requires_grad_()
    met = step.image_gradient(folded, at, target)
    (wanted,) = torch.autograd.grad(ascent(step.model(at), target, method == "trades"), at)
    report(f"{method}: image gradient, folded against eval mode", distance(met, wanted), 1e-10)

    step.model.train()
    step.train_pass(x_adv)
    met = {name: p.grad.clone() for name, p in step.model.named_parameters()}
    clean = step.model(step.x) if method != "pgd-at" else None
    adversarial = step.model(x_adv)
    step.model.zero_grad()
    of_adversarial, of_clean = closed_forms(
        method, METHODS[method]["beta"], adversarial.detach() if clean is None else clean.detach(), adversarial.detach(), step.y
    )
    adversarial.backward(of_adversarial / args.batch)
    if clean is not None:
        clean.backward(of_clean / args.batch)
    worst = max(distance(met[name], p.grad) for name, p in step.model.named_parameters())
    report(f"{method}: parameter gradients, worst of {len(met)}", worst, 1e-9)


def check_flops(width):
    counted = 0

    def count(module, inputs, output):
        nonlocal counted
        kernel = module.weight[0].numel()
        counted += 2 * kernel * output.numel()

    step = AdversarialStep("pgd-at", width, 1, "cpu", autocast=False)
    for module in step.model.eval().modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            module.register_forward_hook(count)
    step.model(step.x)
    report(f"operations of a forward pass at width {width}: {counted}", abs(forward_flops(width) / counted - 1), 0)


def check_whole_step(method, args, wrap, how):
    step = AdversarialStep(method, args.width, args.batch, "cpu", wrap)
    before = [p.detach().clone() for p in step.model.parameters()]
    for _ in range(2):
        step.run()
    wrong = step.sound()
    moved = all(bool((a != b).any()) for a, b in zip(before, step.model.parameters()))
    wrong = wrong or (None if moved else "a parameter did not move")
    print(f"{'DIFFERS' if wrong else 'ok     '} {method}: two whole steps, {how}: {wrong or f'loss {float(step.loss):.4f}'}")
    if wrong:
        failures.append(method)


def check_dump(method, path, weights):
    dump, state = load_file(path), load_file(weights)
    width, batch = state["conv1.weight"].shape[0], len(dump["y"])
    step = AdversarialStep(method, width, batch, "cpu", autocast=False, dtype=torch.float64)
    step.model.load_state_dict(state, strict=False)
    step.model.double()
    step.x, step.y = dump["x"].double(), dump["y"].long()
    loss = step.train_pass(dump["x_adv"].double())
    report(f"{method}: loss of {path}", abs(float(loss.detach()) / float(dump["loss"]) - 1), 1e-5)
    gradients = {name: p.grad for name, p in step.model.named_parameters()}
    apart = {name: distance(dump[f"grad.{name}"].double(), gradient) for name, gradient in gradients.items()}
    worst = max(apart, key=apart.get)
    report(f"{method}: gradients of {path}, worst {worst}", apart[worst], 2e-2)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dump", action="append", default=[], metavar="METHOD=FILE")
    parser.add_argument("--weights")
    parser.add_argument("--compiled", action="store_true")
    args = parser.parse_args()
    if args.dump and not args.weights:
        parser.error("--dump needs --weights")
    for width in {64, args.width}:
        check_flops(width)
    for method in METHODS:
        check_losses(method)
        check_network(method, args)
        check_whole_step(method, args, lambda function: function, "bf16 autocast")
        if args.compiled:
            check_whole_step(method, args, compiled, "compiled")
    for item in args.dump:
        method, path = item.split("=", 1)
        check_dump(method, path, args.weights)
    if failures:
        sys.exit(f"{len(failures)} differences: {', '.join(failures)}")


if __name__ == "__main__":
    main()
