"""The archive: everything of a folder in one file, the summary first, replaced as a whole."""

import gzip
import io
import os
import tarfile
from pathlib import Path

# Of a log that is longer, its beginning and its end.
LOG_HEAD, LOG_TAIL = 8 << 10, 56 << 10


def shortened(content):
    if len(content) <= LOG_HEAD + LOG_TAIL:
        return content
    left_out = len(content) - LOG_HEAD - LOG_TAIL
    return content[:LOG_HEAD] + f"\n... {left_out} bytes left out ...\n".encode() + content[-LOG_TAIL:]


def write_whole(path, content):
    """Under another name first, so that a reader, or a kill, finds the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    writing = path.with_name(path.name + ".writing")
    writing.write_bytes(content)
    os.replace(writing, path)


def write(folder, archive, first):
    """Packs `folder` into `archive` as a folder of the same name, the file called `first` before the others."""
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in KEPT)
    files.sort(key=lambda path: path != folder / first)
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=4) as stream, tarfile.open(fileobj=stream, mode="w") as tar:
        for path in files:
            content = path.read_bytes()
            if path.suffix == ".log":
                content = shortened(content)
            member = tarfile.TarInfo(f"{folder.name}/{path.relative_to(folder)}")
            member.size, member.mtime = len(content), int(path.stat().st_mtime)
            tar.addfile(member, io.BytesIO(content))
    write_whole(archive, packed.getvalue())


# Not weights, not checkpoints: they are too large to come back.
KEPT = {".md", ".json", ".jsonl", ".csv", ".txt", ".log", ".toml", ".html"}
