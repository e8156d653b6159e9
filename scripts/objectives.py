"""The losses of TRADES and MART in PyTorch, as their papers state them, each sample's. Used by compare-dump.py and the peers of
benches/peers."""

import torch.nn.functional as F


def trades_losses(clean, adversarial, y, beta, smoothing=0.0):
    """Zhang et al. 2019: cross-entropy of the clean logits, its labels smoothed if wanted, and KL(p || q)."""
    divergence = F.kl_div(adversarial.log_softmax(1), clean.log_softmax(1), reduction="none", log_target=True).sum(1)
    return F.cross_entropy(clean, y, reduction="none", label_smoothing=smoothing) + beta * divergence


def mart_losses(clean, adversarial, y, beta):
    """Wang et al. 2020: boosted cross-entropy and the divergence weighted by the doubt about x."""
    p, q = clean.softmax(1), adversarial.softmax(1)
    rival = q.masked_fill(F.one_hot(y, q.shape[1]).bool(), -1.0).argmax(1)
    of = lambda probabilities, classes: probabilities.gather(1, classes[:, None])[:, 0]
    boosted = F.cross_entropy(adversarial, y, reduction="none") - (1.0001 - of(q, rival) + 1e-12).log()
    divergence = (p * (clean.log_softmax(1) - (q + 1e-12).log())).sum(1)
    return boosted + beta * divergence * (1.0000001 - of(p, y))
