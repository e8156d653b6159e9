"""One adversarial training step of ResNet-18 in PyTorch, in pieces that torch.compile and CUDA graphs can take.

PGD-AT, TRADES and MART as the recipes cifar10-{pgd-at,trades,mart} state them. The attack's network is ResNet-18 in eval mode
with BatchNorm folded into bf16 weights once a step; TRADES's target is computed once. The train pass is the module itself in
train mode under autocast, one pass on x' and, for TRADES and MART, one on x. `PublishedStep` is the same step as the authors' codes
have it, with what they compute more than once.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "scripts"))
from objectives import mart_losses, trades_losses  # noqa: E402
from resnet18 import ResNet18  # noqa: E402

# The recipes: radius, step, start, rate, decay.
METHODS = {
    "pgd-at": dict(epsilon=8 / 255, step_size=2 / 255, start="uniform", rate=0.1, decay=5e-4, beta=None),
    "trades": dict(epsilon=0.031, step_size=0.007, start="normal", rate=0.1, decay=2e-4, beta=6.0),
    "mart": dict(epsilon=0.031, step_size=0.007, start="normal", rate=0.01, decay=3.5e-3, beta=5.0),
}
ATTACK_STEPS = 10


def convolutions(model):
    """Every convolution with its BatchNorm: stem, then block by block first, second and, where there is one, shortcut."""
    pairs = [(model.conv1, model.bn1)]
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in stage:
            pairs += [(block.conv1, block.bn1), (block.conv2, block.bn2)]
            pairs += [tuple(block.shortcut)] if len(block.shortcut) else []
    return pairs


def fold(pairs, linear, dtype):
    """Weights and biases of the network in eval mode, BatchNorm folded in; a flat list of tensors."""
    folded = []
    for conv, norm in pairs:
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        weight = (conv.weight * scale[:, None, None, None]).to(dtype)
        bias = norm.bias - norm.running_mean * scale
        folded += [weight.contiguous(memory_format=torch.channels_last), bias.to(dtype)]
    return folded + [linear.weight.to(dtype), linear.bias.to(dtype)]


def folded_forward(folded, x):
    """Logits, in the format of `x`, of the network that `fold` made."""
    at = iter(range(0, len(folded), 2))

    def conv(x, stride):
        n = next(at)
        weight, bias = folded[n], folded[n + 1]
        return F.conv2d(x, weight, bias, stride, weight.shape[-1] // 2)

    a = F.relu(conv(x.to(folded[0].dtype), 1))
    for stage in range(4):
        for block in range(2):
            stride = 2 if stage > 0 and block == 0 else 1
            inner = conv(F.relu(conv(a, stride)), 1)
            a = F.relu(inner + (conv(a, stride) if stride == 2 else a))
    weight, bias = folded[-2:]
    return F.linear(F.avg_pool2d(a, 4).flatten(1), weight, bias).to(x.dtype)


def ascent(logits, target, divergence):
    """What the attack ascends, summed over the batch: KL(target || q) with the target fixed, or cross-entropy."""
    if divergence:
        return F.kl_div(logits.log_softmax(1), target, reduction="sum")
    return F.cross_entropy(logits, target, reduction="sum")


def sign_step(x_adv, gradient, x, step_size, epsilon):
    moved = x_adv + step_size * gradient.sign()
    return torch.min(torch.max(moved, x - epsilon), x + epsilon).clamp(0, 1)


def training_loss(method, beta, logits, clean, y):
    """Mean over the batch; `clean` are the logits of x, for TRADES and MART."""
    if method == "pgd-at":
        return F.cross_entropy(logits, y)
    losses = trades_losses if method == "trades" else mart_losses
    return losses(clean, logits, y, beta).mean()


class AdversarialStep:
    """Buffers, network and optimizer of one method at one batch size; `run()` is one whole training step.

    `wrap` is put around the functions that compute: the identity, or torch.compile. With `autocast` off everything is in the
    format of `dtype`.
    """

    def __init__(self, method, width, batch, device, wrap=lambda f: f, autocast=True, dtype=torch.float32, seed=1):
        self.method, self.recipe = method, METHODS[method]
        torch.manual_seed(seed)
        self.model = ResNet18(width).to(device, dtype, memory_format=torch.channels_last).train()
        images = torch.rand(batch, 3, 32, 32, dtype=dtype)
        self.x = images.to(device).contiguous(memory_format=torch.channels_last)
        self.y = (torch.arange(batch) % 10).to(device)
        self.x_adv = self.x.clone()
        self.loss = torch.zeros((), device=device, dtype=dtype)
        self.autocast = torch.autocast(self.x.device.type, torch.bfloat16, enabled=autocast, cache_enabled=False)
        self.folded_dtype = torch.bfloat16 if autocast else dtype
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), self.recipe["rate"], momentum=0.9, weight_decay=self.recipe["decay"], fused=True
        )
        self.pairs = convolutions(self.model)
        self.fold, self.folded_forward, self.train_forward = wrap(fold), wrap(folded_forward), wrap(self.model)
        self.ascent, self.sign_step, self.training_loss = wrap(ascent), wrap(sign_step), wrap(training_loss)

    def attack(self):
        recipe, x = self.recipe, self.x
        with torch.no_grad():
            folded = self.fold(self.pairs, self.model.linear, self.folded_dtype)
            divergence = self.method == "trades"
            target = self.folded_forward(folded, x).softmax(1) if divergence else self.y
            if recipe["start"] == "uniform":
                x_adv = x + (2 * torch.rand_like(x) - 1) * recipe["epsilon"]
                x_adv = x_adv.clamp(0, 1)
            else:
                x_adv = x + 0.001 * torch.randn_like(x)
        for _ in range(ATTACK_STEPS):
            x_adv = x_adv.detach().requires_grad_()
            gradient = self.image_gradient(folded, x_adv, target)
            with torch.no_grad():
                x_adv = self.sign_step(x_adv, gradient, x, recipe["step_size"], recipe["epsilon"])
        return x_adv.detach()

    def image_gradient(self, folded, x_adv, target):
        loss = self.ascent(self.folded_forward(folded, x_adv), target, self.method == "trades")
        return torch.autograd.grad(loss, x_adv)[0]

    def train_pass(self, x_adv):
        """The loss, with the gradients of all parameters in their `grad`."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast:
            clean = self.train_forward(self.x) if self.method != "pgd-at" else None
            logits = self.train_forward(x_adv)
        logits = logits.to(self.x.dtype)
        clean = None if clean is None else clean.to(self.x.dtype)
        loss = self.training_loss(self.method, self.recipe["beta"], logits, clean, self.y)
        loss.backward()
        return loss

    def run(self):
        x_adv = self.attack()
        loss = self.train_pass(x_adv)
        self.optimizer.step()
        self.x_adv.copy_(x_adv)
        self.loss.copy_(loss.detach())

    def sound(self, gradients=True):
        """None, or what is wrong with the last step's results; the attack's gradients only of a network near its start."""
        distance = float((self.x_adv - self.x).abs().max())
        if not torch.isfinite(self.loss):
            return f"the loss is {float(self.loss)}"
        if not all(torch.isfinite(p).all() for p in self.model.parameters()):
            return "a weight is not finite"
        if not 0.9 * self.recipe["epsilon"] <= distance <= self.recipe["epsilon"] + 1e-6:
            return f"x' is {distance:.6f} from x, expected nearly {self.recipe['epsilon']:.6f}"
        if not 0 <= float(self.x_adv.min()) <= float(self.x_adv.max()) <= 1:
            return "x' leaves [0, 1]"
        cosine = self.gradient_cosine() if gradients else 1
        # bf16 beside f32 in a network at its random start: 0.9 and more (results/emulated-agreement).
        if not cosine >= 0.8:
            return f"the attack's gradient and f32's have a cosine of {cosine:.3f}, expected at least 0.8"
        return None

    def gradient_cosine(self, images=64):
        """Between the image gradients of this step's functions and of the plain ones in f32, cross-entropy, mean over images."""
        gradients = []
        for folding, forward, loss, dtype in (
            (self.fold, self.folded_forward, self.ascent, self.folded_dtype),
            (fold, folded_forward, ascent, torch.float32),
        ):
            with torch.no_grad():
                folded = folding(self.pairs, self.model.linear, dtype)
            x = self.x_adv.clone() if dtype == self.folded_dtype else self.x_adv[:images].float()
            x.requires_grad_()
            gradients.append(torch.autograd.grad(loss(forward(folded, x), self.y[: len(x)], False), x)[0][:images])
        return float(F.cosine_similarity(*(g.float().flatten(1) for g in gradients)).mean())


class PublishedStep(AdversarialStep):
    """The same step with the work of the published codes: every attack step through the module in eval mode, TRADES with the
    target computed again in each and x passed twice through the train pass, PGD-AT with the gradients of all weights in each
    attack step (robust_overfitting calls backward())."""

    def attack(self):
        recipe, x = self.recipe, self.x
        self.model.eval()
        if recipe["start"] == "uniform":
            x_adv = (x + (2 * torch.rand_like(x) - 1) * recipe["epsilon"]).clamp(0, 1)
        else:
            x_adv = x + 0.001 * torch.randn_like(x)
        for _ in range(ATTACK_STEPS):
            x_adv = x_adv.detach().requires_grad_()
            with self.autocast:
                logits = self.train_forward(x_adv)
                target = self.train_forward(x).float().softmax(1) if self.method == "trades" else self.y
            loss = self.ascent(logits.float(), target, self.method == "trades")
            if self.method == "pgd-at":
                loss.backward()
                gradient = x_adv.grad
            else:
                gradient = torch.autograd.grad(loss, x_adv)[0]
            with torch.no_grad():
                x_adv = self.sign_step(x_adv, gradient, x, recipe["step_size"], recipe["epsilon"])
        self.model.train()
        return x_adv.detach()

    def train_pass(self, x_adv):
        if self.method != "trades":
            return super().train_pass(x_adv)
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast:
            clean, logits, again = (self.train_forward(images) for images in (self.x, x_adv, self.x))
        robust = F.kl_div(logits.float().log_softmax(1), again.float().softmax(1), reduction="batchmean")
        loss = F.cross_entropy(clean.float(), self.y) + self.recipe["beta"] * robust
        loss.backward()
        return loss
