"""What the machine is, and what was packed for it."""

import csv
import subprocess
import sys
import tarfile
from pathlib import Path

CARRY = Path(".carry")


def query(fields):
    """The first GPU's values of nvidia-smi; an empty dictionary where it names none."""
    try:
        command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    first = next(csv.reader(said.splitlines(), skipinitialspace=True), [])
    return dict(zip(fields, first)) if len(first) == len(fields) else {}


def gpu():
    return query(["name", "driver_version", "memory.total", "clocks.max.sm"])


def unpack():
    """Unpacks the program and the tests where they are not yet; an error where there are none."""
    packed = CARRY / "gpu.tar.xz"
    if not (CARRY / "secateur").exists() and packed.exists():
        with tarfile.open(packed) as archive:
            archive.extractall(CARRY, filter="data")
    if not (CARRY / "secateur").exists():
        print(f"error: {CARRY}/secateur is not there; run scripts/pack-gpu.sh where Rust is", file=sys.stderr)
        sys.exit(2)
