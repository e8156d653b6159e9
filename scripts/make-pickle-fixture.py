#!/usr/bin/env python3
"""Writes tests/fixtures/cifar-pickles.tar.gz: a few made-up images in the binary form of CIFAR-10 and CIFAR-100, and pickled.

    python scripts/make-pickle-fixture.py

Needs NumPy. Each set has SET.bin, its records as the official binary files hold them, and SET.VARIANT.pickle, the same images as
Python writes them: `python2` is the form of the official archives (protocol 2, texts and bytes alike), `pN` is Python 3 with
protocol N.
"""

import gzip
import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np

COUNT = 5
PATH = Path(__file__).parent.parent / "tests/fixtures/cifar-pickles.tar.gz"


class Python2(pickle._Pickler):
    """Texts and bytes as Python 2 wrote its str: SHORT_BINSTRING and BINSTRING."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, value):
        data = value.encode("latin1") if isinstance(value, str) else value
        short = len(data) < 256
        self.write((b"U" + bytes([len(data)]) if short else b"T" + struct.pack("<i", len(data))) + data)
        self.memoize(value)

    dispatch[str] = save_string
    dispatch[bytes] = save_string


def python2(value):
    file = io.BytesIO()
    Python2(file, protocol=2).dump(value)
    # NumPy 2 renamed its module; the official files have the old name.
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def files(name, coarse, fine):
    """The files of a set with these label lists (coarse is None for CIFAR-10)."""
    # Smooth and different in every channel and image, so that a transposed or shifted read shows and the file stays small.
    image = np.arange(COUNT)[:, None, None, None] * 37
    channel = np.arange(3)[None, :, None, None] * 80
    row, column = np.arange(32)[None, None, :, None] * 5, np.arange(32)[None, None, None, :]
    data = (image + channel + row + column).astype(np.uint8).reshape(COUNT, 3072)
    labels = [fine] if coarse is None else [coarse, fine]
    records = [bytes(record) + pixels.tobytes() for record, pixels in zip(zip(*labels), data)]
    yield f"{name}.bin", b"".join(records)
    keys = ["labels"] if coarse is None else ["coarse_labels", "fine_labels"]
    value = dict(zip(keys, labels))
    value |= {"batch_label": "made up", "data": data, "filenames": [f"made_up_s_{i:06}.png" for i in range(COUNT)]}
    yield f"{name}.python2.pickle", python2(value)
    in_bytes = {key.encode(): item for key, item in value.items()}
    for protocol in (2, 3, 4, 5):
        yield f"{name}.p{protocol}.pickle", pickle.dumps(value, protocol=protocol)
        yield f"{name}.p{protocol}-bytes.pickle", pickle.dumps(in_bytes, protocol=protocol)
    # What must be refused: Fortran order, and numbers of two bytes.
    for variant, wrong in (("fortran", np.asfortranarray(data)), ("wide", data.astype(np.uint16))):
        yield f"{name}.refused-{variant}.pickle", pickle.dumps(value | {"data": wrong}, protocol=2)


def main():
    PATH.parent.mkdir(exist_ok=True)
    with gzip.GzipFile(PATH, "wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as archive:
        sets = [("cifar10", None, [3, 9, 0, 1, 7]), ("cifar100", [4, 19, 0, 7, 11], [99, 0, 42, 7, 63])]
        for name, data in (file for made in sets for file in files(*made)):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    print(f"{PATH}: {PATH.stat().st_size} bytes")


if __name__ == "__main__":
    main()
