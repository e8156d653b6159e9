#!/usr/bin/env python3
"""How well fp8 would serve the attack: signs of the image gradient, loss reached and accuracy under PGD, beside bf16 and f32.

Usage: fp8-agreement.py WEIGHTS.safetensors --data FOLDER [--samples 1000] [--batch 125] [--steps 10] [--epsilon 8/255]
       [--step-size 2/255] [--seed 0] [--threads 1] [--json FILE] [--markdown FILE] [--check]
(needs torch, numpy and safetensors; a CPU is enough: 1,000 images at width 16 take a few minutes)

The network of the attack, BatchNorm in eval mode and folded, forward and backward written out by hand, so that every operand of
every product is rounded as a kernel would round it; products and sums are f32. The formats:

  f32      nothing is rounded
  bf16     as the kernels of kernels/conv do it: folded weights, stored activations, stored gradients; the image as hi + lo parts
  e4m3 / e5m2   as bf16, and the operands of the 19 convolutions behind the stem rounded once more, to fp8; activations and the
           residual stream stay in bf16 in memory. Scales are the exact largest magnitude, of a tensor ("tensor") or, for weights,
           of each channel that the product does not sum over ("channel"): the best that any scheme of scaling could know.
           "image": the logit gradient is first divided by its largest magnitude in each image, which no sign can see.

All formats start from the same points and attack the same images. On the first step, and on the last at the f32 attack's
images, the signs are compared: with f32, with bf16, and weighted by |gradient| (1 = the whole first-order ascent of f32).
The adversarial images of each format are judged by the f32 network. --check first holds the hand-written passes against
autograd through ResNet18 in f64 (exit code 1 if they differ).
"""

import argparse
import dataclasses
import datetime
import json
import math
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parent))
from resnet18 import ResNet18  # noqa: E402


def bf16(t):
    return t.to(torch.bfloat16).to(t.dtype)


def fp8(t, dtype, kept=None):
    """Rounded to `dtype`, scaled by the largest magnitude of the tensor or of each slice along dimension `kept`."""
    over = [d for d in range(t.dim()) if d != kept]
    largest = t.abs().amax(over, keepdim=True).clamp_min(1e-30)
    limit = torch.finfo(dtype).max
    scale = limit / largest
    return (t * scale).clamp(-limit, limit).to(dtype).to(t.dtype) / scale


E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


@dataclasses.dataclass(frozen=True)
class Format:
    name: str
    stored: bool = True  # activations and gradients in memory: bf16, or exact
    forward: torch.dtype | None = None  # of operands, where fp8
    backward: torch.dtype | None = None
    weights_of_channels: bool = False
    image_scaled: bool = False

    def store(self, t):
        return bf16(t) if self.stored else t

    def pixels(self, t, backward=False):
        dtype = self.backward if backward else self.forward
        return t if dtype is None else fp8(t, dtype)

    def weights(self, w, backward=False):
        """`w` is K, C, 3, 3; forward sums over C, the input gradient over K. Weights are e4m3 in both directions."""
        w = self.store(w)
        if (self.backward if backward else self.forward) is None:
            return w
        return fp8(w, E4M3, (1 if backward else 0) if self.weights_of_channels else None)


FORMATS = [
    Format("f32", stored=False),
    Format("bf16"),
    Format("e4m3, e5m2 gradients; tensor", forward=E4M3, backward=E5M2),
    Format("e4m3, e4m3 gradients; tensor", forward=E4M3, backward=E4M3),
    Format("e4m3, e4m3 gradients; channel, image", True, E4M3, E4M3, True, True),
    Format("e4m3 forward, bf16 gradients; channel", True, E4M3, None, True, False),
    Format("bf16 forward, e4m3 gradients; channel, image", True, None, E4M3, True, True),
]


@dataclasses.dataclass
class Conv:
    weight: torch.Tensor
    bias: torch.Tensor
    stride: int

    @property
    def padding(self):
        return self.weight.shape[-1] // 2


def folded(state, conv, norm, stride, dtype):
    value = {key: state[f"{norm}.{key}"].to(dtype) for key in ("weight", "bias", "running_mean", "running_var")}
    scale = value["weight"] / (value["running_var"] + 1e-5).sqrt()
    return Conv(
        state[f"{conv}.weight"].to(dtype) * scale[:, None, None, None],
        value["bias"] - value["running_mean"] * scale,
        stride,
    )


class Network:
    """ResNet-18 with folded BatchNorm; `loss_gradient` is what one attack step computes."""

    def __init__(self, state, dtype=torch.float32):
        self.stem = folded(state, "conv1", "bn1", 1, dtype)
        self.blocks = []
        for stage in range(1, 5):
            for block in range(2):
                at = f"layer{stage}.{block}"
                stride = 2 if stage > 1 and block == 0 else 1
                first = folded(state, f"{at}.conv1", f"{at}.bn1", stride, dtype)
                second = folded(state, f"{at}.conv2", f"{at}.bn2", 1, dtype)
                shortcut = None
                if f"{at}.shortcut.0.weight" in state:
                    shortcut = folded(state, f"{at}.shortcut.0", f"{at}.shortcut.1", stride, dtype)
                self.blocks.append((first, second, shortcut))
        self.linear = state["linear.weight"].to(dtype), state["linear.bias"].to(dtype)
        self.rounded = {}

    def weights(self, format, conv, backward):
        key = (format.name, id(conv), backward)
        if key not in self.rounded:
            weights = format.store(conv.weight) if conv is self.stem else format.weights(conv.weight, backward)
            self.rounded[key] = weights
        return self.rounded[key]

    def forward(self, format, x):
        """Logits, and the masks of the 17 activations."""

        def product(conv, pixels):
            return F.conv2d(pixels, self.weights(format, conv, False), conv.bias, conv.stride, conv.padding)

        masks = []

        def activation(sums):
            stored = format.store(sums.relu())
            masks.append(sums > 0)
            return stored

        # hi + lo: what is left of an image after two bf16 parts.
        image = bf16(x) + bf16(x - bf16(x)) if format.stored else x
        a = activation(product(self.stem, image))
        for first, second, shortcut in self.blocks:
            operand = format.pixels(a)
            residual = a if shortcut is None else format.store(product(shortcut, operand))
            inner = activation(product(first, operand))
            a = activation(product(second, format.pixels(inner)) + residual)
        weight, bias = self.linear
        return a.mean((2, 3)) @ weight.T + bias, masks

    def input_gradient(self, format, logit_gradient, masks):
        """Gradient with respect to the image, f32 as the attack's last kernel has it."""

        def product(conv, pixels, to):
            extra = to[-1] + 2 * conv.padding - (pixels.shape[-1] - 1) * conv.stride - conv.weight.shape[-1]
            weights = self.weights(format, conv, True)
            return F.conv_transpose2d(pixels, weights, None, conv.stride, conv.padding, output_padding=extra)

        masks = list(masks)
        last = masks.pop()
        area = last.shape[-1] ** 2
        g = format.store((logit_gradient @ self.linear[0])[:, :, None, None] / area * last)
        for first, second, shortcut in reversed(self.blocks):
            operand = format.pixels(g, True)
            inner, outer = masks.pop(), masks.pop()
            through = format.store(product(second, operand, inner.shape) * inner)
            residual = g if shortcut is None else format.store(product(shortcut, operand, outer.shape))
            g = format.store((product(first, format.pixels(through, True), outer.shape) + residual) * outer)
        return product(self.stem, g, g.shape)

    def loss_gradient(self, format, x, y):
        logits, masks = self.forward(format, x)
        dz = logits.softmax(1) - F.one_hot(y, logits.shape[1]).to(logits.dtype)
        if format.image_scaled:
            dz = dz / dz.abs().amax(1, keepdim=True).clamp_min(1e-30)
        return self.input_gradient(format, dz, masks)


def attack(network, format, x, start, y, args, watch=None):
    """PGD; `watch(step, images, gradient)` sees each step before it is taken."""
    epsilon, step_size = float(args.epsilon), float(args.step_size)
    moved = start
    for step in range(args.steps):
        gradient = network.loss_gradient(format, moved, y)
        if watch:
            watch(step, moved, gradient)
        moved = moved + step_size * gradient.sign()
        moved = torch.min(torch.max(moved, x - epsilon), x + epsilon).clamp(0, 1)
    return moved


class Agreement:
    """Sums over batches of one comparison of gradients."""

    def __init__(self):
        self.total = self.same = self.same_bf16 = self.zeros = 0
        self.kept, self.images = 0.0, 0

    def add(self, gradient, f32, bf16_gradient):
        sign = gradient.sign()
        self.total += gradient.numel()
        self.zeros += int((sign == 0).sum())
        self.same += int((sign == f32.sign()).sum())
        self.same_bf16 += int((sign == bf16_gradient.sign()).sum())
        # An image at a time: those with large gradients shall not speak for the others.
        norms = f32.abs().flatten(1).sum(1).clamp_min(1e-30)
        self.kept += float(((f32 * sign).flatten(1).sum(1) / norms).sum())
        self.images += len(f32)

    def row(self):
        return {
            "sign_f32": self.same / self.total,
            "sign_bf16": self.same_bf16 / self.total,
            "zeros": self.zeros / self.total,
            "ascent_kept": self.kept / self.images,
        }


def check(state, x, y):
    """The largest relative distance of the hand-written passes from autograd, both in f64, batches of statistics folded."""
    model = ResNet18(state["conv1.weight"].shape[0], state["linear.weight"].shape[0])
    model.load_state_dict(state, strict=False)
    model = model.double().eval()
    x = x.double().requires_grad_()
    logits = model(x)
    # The sum: a gradient of its own for every image.
    (wanted,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), x)
    network, exact = Network(state, torch.float64), FORMATS[0]
    distance = lambda a, b: float((a - b).norm() / b.norm())
    met = network.forward(exact, x.detach())[0], network.loss_gradient(exact, x.detach(), y)
    return max(distance(met[0], logits.detach()), distance(met[1], wanted))


def test_images(folder, count):
    file = next(Path(folder).rglob("test_batch.bin"))
    records = np.fromfile(file, np.uint8).reshape(-1, 3073)[:count]
    if len(records) < count:
        sys.exit(f"{file}: {len(records)} images, --samples {count}")
    images = records[:, 1:].reshape(-1, 3, 32, 32).astype(np.float32) / np.float32(255)
    return torch.from_numpy(images), torch.from_numpy(records[:, 0].astype(np.int64))


def markdown(rows):
    lines = [
        "| format | first step: sign = f32 | = bf16 | ascent kept | last step: sign = f32 | = bf16 | ascent kept "
        "| PGD loss | robust accuracy (f32) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    percent = lambda share: f"{100 * share:.2f} %"
    for row in rows:
        cells = [row["format"]]
        for step in ("first", "last"):
            at = row[step]
            cells += [percent(at["sign_f32"]), percent(at["sign_bf16"]), f"{at['ascent_kept']:.4f}"]
        accuracy = f"{100 * row['robust']:.1f} % ± {100 * row['robust_error']:.1f}"
        lines.append("| " + " | ".join(cells + [f"{row['loss']:.4f}", accuracy]) + " |")
    return "\n".join(lines) + "\n"


def summary(args, state, seen, losses, right, clean, cpu_seconds):
    """Everything that is written, of the images done so far."""
    rows = []
    exact_loss, exact_right = torch.cat(losses["f32"]), torch.cat(right["f32"])
    samples = len(exact_loss)
    for format in FORMATS:
        loss, robust = torch.cat(losses[format.name]), torch.cat(right[format.name])
        # Paired with the f32 attack: the error of the difference is far below that of either.
        difference, share = loss - exact_loss, float(robust.float().mean())
        rows.append(
            {
                "format": format.name,
                "first": seen[format.name]["first"].row(),
                "last": seen[format.name]["last"].row(),
                "loss": float(loss.mean()),
                "loss_minus_f32": float(difference.mean()),
                "loss_minus_f32_error": float(difference.std() / math.sqrt(len(difference))),
                "robust": share,
                "robust_error": math.sqrt(share * (1 - share) / len(robust)),
                "images_only_this_breaks": int((exact_right & ~robust).sum()),
                "images_only_f32_breaks": int((~exact_right & robust).sum()),
            }
        )
    return {
        "date": datetime.date.today().isoformat(),
        "weights": Path(args.weights).name,
        "settings": {name: str(getattr(args, name)) for name in ("batch", "steps", "epsilon", "step_size", "seed")},
        "torch": torch.__version__,
        "width": state["conv1.weight"].shape[0],
        "samples": samples,
        "clean": clean / samples,
        "cpu_seconds": cpu_seconds,
        "rows": rows,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("--data", required=True)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=125)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--epsilon", type=Fraction, default=Fraction(8, 255))
    parser.add_argument("--step-size", type=Fraction, default=Fraction(2, 255))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json")
    parser.add_argument("--markdown")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if args.steps < 2:
        parser.error(f"--steps {args.steps}: expected at least 2, a first and a last one")
    torch.set_num_threads(args.threads)
    begin = time.process_time()

    state = {name: value.float() for name, value in load_file(args.weights).items()}
    images, labels = test_images(args.data, args.samples)
    if args.check:
        distance = check(state, images[:8], labels[:8])
        print(f"hand-written passes against autograd, f64: {distance:.2e}, wanted at most 1e-10")
        if not distance <= 1e-10:
            sys.exit(1)

    network, f32 = Network(state), FORMATS[0]
    generator = torch.Generator().manual_seed(args.seed)
    seen = {format.name: {"first": Agreement(), "last": Agreement()} for format in FORMATS}
    losses = {format.name: [] for format in FORMATS}
    right = {format.name: [] for format in FORMATS}
    clean = 0
    for x, y in zip(images.split(args.batch), labels.split(args.batch)):
        noise = (2 * torch.rand(x.shape, generator=generator) - 1) * float(args.epsilon)
        start = (x + noise).clamp(0, 1)
        clean += int((network.forward(f32, x)[0].argmax(1) == y).sum())
        points = {}

        def watch(step, at, gradient):
            if step in (0, args.steps - 1):
                points["first" if step == 0 else "last"] = at, gradient

        for format in FORMATS:
            moved = attack(network, format, x, start, y, args, watch if format is f32 else None)
            logits = network.forward(f32, moved)[0]
            losses[format.name].append(F.cross_entropy(logits, y, reduction="none"))
            right[format.name].append(logits.argmax(1) == y)
        for step, (at, exact) in points.items():
            gradients = {format.name: network.loss_gradient(format, at, y) for format in FORMATS}
            for name, gradient in gradients.items():
                seen[name][step].add(gradient, exact, gradients["bf16"])
        document = summary(args, state, seen, losses, right, clean, time.process_time() - begin)
        # Behind each batch, so that a run that is broken off keeps what it has.
        if args.json:
            Path(args.json).write_text(json.dumps(document, indent=1) + "\n")
        if args.markdown:
            Path(args.markdown).write_text(markdown(document["rows"]))
        print(f"{document['samples']}/{args.samples} images, {document['cpu_seconds']:.0f} CPU seconds", file=sys.stderr, flush=True)

    print(f"clean accuracy {100 * document['clean']:.1f} %, {document['cpu_seconds']:.0f} CPU seconds")
    print(markdown(document["rows"]), end="")


if __name__ == "__main__":
    main()
