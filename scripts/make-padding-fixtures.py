#!/usr/bin/env python3
"""Writes tests/fixtures/padding.safetensors: one image, and what padding by four makes of it, to check random crops against.

Usage: python3 scripts/make-padding-fixtures.py          needs torch, numpy and safetensors; takes a second

`image` (3 x 32 x 32 bytes) is noise; `zero` and `reflect` (3 x 40 x 40) are the two paddings. The reflected one is numpy's,
which robust_overfitting and Bag of Tricks use, and must be PyTorch's too.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

SEED = 20261130


def main():
    image = torch.randint(256, (3, 32, 32), generator=torch.Generator().manual_seed(SEED), dtype=torch.uint8)
    borders = [(0, 0), (4, 4), (4, 4)]
    reflect = torch.from_numpy(np.pad(image.numpy(), borders, mode="reflect"))
    assert torch.equal(reflect, F.pad(image.float()[None], (4,) * 4, mode="reflect")[0].byte())
    tensors = {"image": image, "zero": F.pad(image, (4,) * 4), "reflect": reflect}
    path = Path(__file__).resolve().parent.parent / "tests/fixtures/padding.safetensors"
    save_file(tensors, path, metadata={"made_by": "scripts/make-padding-fixtures.py", "seed": str(SEED)})
    print(f"{path}: PyTorch {torch.__version__}, numpy {np.__version__}", file=sys.stderr)


if __name__ == "__main__":
    main()
