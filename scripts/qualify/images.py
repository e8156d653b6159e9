"""Images of CIFAR-10 for the trip: as many as fit into so many bytes, in a file that unpacks to the official binary layout.

Planes are stored as differences (red and blue from green, each pixel from its neighbours), which xz makes a quarter smaller than the
pixels themselves. The unpacked files have their official sizes; behind the images there are zeros, which `data.train_limit` and
`data.test_limit` keep out. Needs numpy.
"""

import json
import lzma
import os
import sys
from pathlib import Path

import numpy as np

RECORD, RECORDS = 1 + 3 * 32 * 32, 10_000
TRAIN_FILES, TEST_FILE = [f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch.bin"
# One test image for so many training images.
TEST_SHARE = 10
CHUNK = 1000


def differences(records):
    """The records with every plane as differences, modulo 256."""
    records = records.copy()
    planes = records[:, 1:].reshape(-1, 3, 32, 32)
    planes[:, ::2] -= planes[:, 1:2]
    planes[..., 1:] -= planes[..., :-1].copy()
    planes[..., 1:, :] -= planes[..., :-1, :].copy()
    return records


def pixels(records):
    """What `differences` came from."""
    records = records.copy()
    planes = records[:, 1:].reshape(-1, 3, 32, 32)
    planes[:] = planes.cumsum(axis=2, dtype=np.uint8).cumsum(axis=3, dtype=np.uint8)
    planes[:, ::2] += planes[:, 1:2]
    return records


def folder_of(data):
    """The folder of the files, in `data` or a folder in it."""
    for folder in (Path(data), Path(data) / "cifar-10-batches-bin"):
        if (folder / TEST_FILE).is_file():
            return folder
    raise SystemExit(f"error: {data}: no {TEST_FILE} in it or in its cifar-10-batches-bin")


def pack(data, file, most):
    """Writes the first images of the training and the test files; returns how many of each."""
    folder = folder_of(data)
    train = np.concatenate([np.fromfile(folder / name, np.uint8).reshape(-1, RECORD) for name in TRAIN_FILES])
    test = np.fromfile(folder / TEST_FILE, np.uint8).reshape(-1, RECORD)

    def packed(train_images):
        """The whole file, of so many training images."""
        test_images = min(len(test), train_images // TEST_SHARE)
        counts = {"train": train_images, "test": test_images}
        records = np.concatenate([train[:train_images], test[:test_images]])
        payload = lzma.compress(differences(records).tobytes(), preset=6)
        return counts, json.dumps(counts).encode() + b"\n" + payload

    # The size of a sample says how many images fit; a little less is taken until they do.
    sample = len(packed(CHUNK)[1]) / (CHUNK + CHUNK // TEST_SHARE)
    images = min(len(train), int(0.98 * most / sample / (1 + 1 / TEST_SHARE)) // CHUNK * CHUNK)
    while images > 0:
        counts, content = packed(images)
        if len(content) <= most:
            Path(file).write_bytes(content)
            return counts
        images -= CHUNK
    raise SystemExit(f"error: {most} bytes are too few for {CHUNK} images of {data}")


def unpack(file, out):
    """Writes the official files of these images into the folder `out`; returns how many there are."""
    head, payload = Path(file).read_bytes().split(b"\n", 1)
    counts = json.loads(head)
    records = pixels(np.frombuffer(lzma.decompress(payload), np.uint8).reshape(-1, RECORD))
    train, test = records[: counts["train"]], records[counts["train"] :]
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for at, name in enumerate(TRAIN_FILES):
        train[at * RECORDS : (at + 1) * RECORDS].tofile(out / name)
    test.tofile(out / TEST_FILE)
    for name in [*TRAIN_FILES, TEST_FILE]:
        os.truncate(out / name, RECORDS * RECORD)
    (out / "counts.json").write_text(head.decode())
    return counts


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["pack", data, file, most]:
            print(json.dumps(pack(data, file, int(most))))
        case ["unpack", file, out]:
            print(json.dumps(unpack(file, out)))
        case _:
            sys.exit("usage: images.py pack DATA FILE BYTES | images.py unpack FILE FOLDER")
