#!/usr/bin/env python3
"""Writes tests/fixtures/extra-{stored,deflated}.npz, as generated images are published, to check the reader against NumPy's own files.

Usage: python3 scripts/make-npz-fixture.py          needs numpy; takes a second

`image` is four images of 32 x 32 x 3 bytes, (37 i + 5 h + 3 w + 101 c) mod 256 for image i, row h, column w and channel c; `label` is
3, 1, 4, 1 as int64.
"""

import sys
from pathlib import Path

import numpy as np


def main():
    i, h, w, c = np.ogrid[:4, :32, :32, :3]
    image = ((37 * i + 5 * h + 3 * w + 101 * c) % 256).astype(np.uint8)
    label = np.array([3, 1, 4, 1])
    folder = Path(__file__).resolve().parent.parent / "tests/fixtures"
    np.savez(folder / "extra-stored.npz", image=image, label=label)
    np.savez_compressed(folder / "extra-deflated.npz", image=image, label=label)
    print(f"{folder}: numpy {np.__version__}", file=sys.stderr)


if __name__ == "__main__":
    main()
