"""A session on one machine: runs jobs within their time, keeps what they leave, and refreshes the summary and the archive while
they run, so that a kill at any moment loses a second of rows."""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from . import archive, job, rows, summary

# Seconds between two looks at what runs, and between two refreshes of the archive at least.
LOOK, REFRESH = 0.1, 1.0
# Seconds that a job has to end after it was asked to, and then to die.
TO_END, TO_DIE = 3.0, 5.0
# What is left of the whole with which no job is begun any more.
TOO_LITTLE = 3.0


class Interrupted(Exception):
    """Somebody asked this process to end."""


@dataclass
class Running:
    job: job.Job
    record: dict
    process: subprocess.Popen
    ends: float
    printed: int = 0
    terminated: bool = False


def die_with_parent():
    """Has the kernel kill this process when its parent dies (PR_SET_PDEATHSIG); Linux alone has it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def kill(process, number):
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


class Session:
    """`switches` are the kernels that SECATEUR_WGMMA leaves out from here on; `unproven` the step's tests that no switch mended."""

    def __init__(self, call, folder, archive_file, seconds, device, size, gpu):
        self.folder, self.archive = Path(folder), Path(archive_file)
        self.device, self.size = device, size
        self.deadline = time.monotonic() + seconds - TO_END
        self.switches, self.unproven = os.environ.get("SECATEUR_WGMMA", ""), []
        self.document = {"call": call, "device": device, "gpu": gpu, "seconds": seconds, "jobs": []}
        self.running, self.clocks = [], None
        self.refreshed, self.cost, self.seen = 0.0, 0.0, None

    def left(self):
        return self.deadline - time.monotonic()

    def records(self, stage):
        return [record for record in self.document["jobs"] if record["stage"] == stage]

    def inherit(self, document):
        """Leaves out what an earlier call left out."""
        earlier = rows.document(document) or {}
        self.switches, self.unproven = earlier.get("switches", ""), earlier.get("unproven", [])

    def exit_code(self):
        bad = (job.FAILED, job.FINDINGS, job.TIME_UP)
        return int(any(record["result"] in bad for record in self.document["jobs"] if record["stage"] != "switches"))

    def kernels(self):
        """What the figures are measured with."""
        left_out = f"without {self.switches}" if self.switches else "all"
        return left_out + (f"; unproven: {', '.join(self.unproven)} did not pass" if self.unproven else "")

    # ---- running ---------------------------------------------------------------------------------------------------------

    def run(self, stage):
        """Every job of a stage, `stage.at_once` at a time, within its seconds."""
        at_once = min(stage.at_once, self.size.at_once)
        ends = min(time.monotonic() + stage.seconds * self.size.patience, self.deadline)
        try:
            waiting = stage.jobs(self)
        except Exception as error:  # files that are not as expected must not end the session
            record = self.record(stage.name, job.Job(stage.name, [], 0))
            self.end(record, job.FAILED, f"its jobs could not be made of the files of the session: {error!r}")
            waiting = []
        while waiting or self.running:
            now = time.monotonic()
            while waiting and len(self.running) < at_once:
                self.start(stage.name, waiting.pop(0), ends)
            for running in list(self.running):
                self.look(running, now)
            self.refresh()
            time.sleep(LOOK)
        self.refresh(at_once=True)

    def start(self, stage, what, ends):
        """Starts a job, or writes down why it has not run."""
        record = self.record(stage, what)
        left = ends - time.monotonic()
        if what.needs and shutil.which(what.needs) is None and not Path(what.needs).exists():
            return self.end(record, job.NOT_RUN, f"there is no {what.needs}")
        if left < min(TOO_LITTLE, what.limit):
            return self.end(record, job.NOT_RUN, "no time was left")
        (self.folder / "logs").mkdir(exist_ok=True)
        with open(self.log(what.name), "wb") as log:
            try:
                process = subprocess.Popen(
                    [str(word) for word in what.command], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                    env={**os.environ, **self.environment(), **what.env}, process_group=0, preexec_fn=die_with_parent,
                )
            except OSError as error:
                return self.end(record, job.NOT_RUN, str(error))
        limit = min(what.limit * self.size.patience, left)
        self.running.append(Running(what, record, process, time.monotonic() + limit))

    def record(self, stage, what):
        """What is kept of a job."""
        record = {
            "stage": stage, "job": what.name, "result": job.RUNNING, "why": "", "seconds": 0.0, "begin": time.time(),
            "command": " ".join([*(f"{name}={value}" for name, value in what.env.items()), *map(str, what.command)]),
            "output": what.output, "about": what.about, "kernels": self.kernels(),
        }
        self.document["jobs"].append(record)
        return record

    def environment(self):
        """SECATEUR_TEST_DEVICE makes every test use this device, and only it."""
        leave_out = {"SECATEUR_WGMMA": self.switches} if self.switches else {}
        return {"SECATEUR_TEST_DEVICE": self.device, "RUST_TEST_THREADS": "2", **leave_out}

    def log(self, name):
        return self.folder / "logs" / f"{name}.log"

    def look(self, running, now):
        """Prints new rows; ends the job where it is over or its time is."""
        self.print_rows(running)
        code = running.process.poll()
        if code is None and now < running.ends:
            return
        if code is None:
            if not running.terminated:
                running.terminated = True
                kill(running.process, signal.SIGTERM)
            elif now >= running.ends + TO_END:
                kill(running.process, signal.SIGKILL)
            if now < running.ends + TO_END + TO_DIE:
                return
        kill(running.process, signal.SIGKILL)  # what it has left behind
        self.running.remove(running)
        record = running.record
        record["seconds"] = time.time() - record["begin"]
        text = self.log(record["job"]).read_text(errors="replace")
        if running.terminated:
            why = f"after {record['seconds']:.0f} s" + ("" if code is not None else ", and it did not die")
            return self.end(record, job.TIME_UP, why)
        outcome = running.job.outcome or job.by_exit_code
        output = self.folder / running.job.output if running.job.output else None
        try:
            result, why = outcome(code, text, output)
        except Exception as error:  # what a tool prints must not end the session
            result, why = job.FAILED, f"exit code {code}, and its output is not as expected: {error!r}"
        self.end(record, result, why)

    def end(self, record, result, why=""):
        record["result"], record["why"] = result, why
        print(f"{result:8} {record['job']} ({record['seconds']:.0f} s){': ' + why[:200] if why else ''}", flush=True)
        self.seen = None

    def print_rows(self, running):
        if not (running.job.output and running.job.rows):
            return
        try:
            lines = rows.lines(self.folder / running.job.output)
        except Exception:  # the summary says that they are not as expected
            return
        for line in lines[running.printed :]:
            print(f"    {line}", flush=True)
        running.printed = max(running.printed, len(lines))

    # ---- what is kept ----------------------------------------------------------------------------------------------------

    def state(self):
        """Changes with every file of the folder."""
        paths = sorted(self.folder.rglob("*"))
        return [(path, path.stat().st_mtime_ns) for path in paths if path.is_file() and path.name not in SUMMARIES]

    def refresh(self, at_once=False):
        """Writes the documents, the summary and the archive, where something is new; at most a third of the time goes to it."""
        now = time.monotonic()
        if not at_once and now - self.refreshed < max(REFRESH, 2 * self.cost):
            return
        with contextlib.suppress(FileNotFoundError):  # a job replaces its files as we look
            state = self.state()
            if not at_once and state == self.seen:
                return
            self.document |= {"switches": self.switches, "unproven": self.unproven}
            archive.write_whole(self.folder / "jobs.json", json.dumps(self.document, indent=1).encode())
            page = summary.page(self.folder)
            archive.write_whole(self.folder / "README.md", page.encode())
            archive.write_whole(self.archive.with_name(self.archive.name.removesuffix(".tar.gz") + ".md"), page.encode())
            archive.write(self.folder, self.archive, "README.md")
            self.seen = state
        self.refreshed = time.monotonic()
        self.cost = self.refreshed - now

    # ---- the background --------------------------------------------------------------------------------------------------

    def log_clocks(self):
        """Clocks and power, a line a second, until `close`."""
        record = {"stage": "clocks", "job": "clocks", "begin": time.time(), "seconds": 0.0, "about": {}, "kernels": "",
                  "output": "clocks.txt", "command": "nvidia-smi dmon -s pc -d 1 -o T"}
        self.document["jobs"].append(record)
        if shutil.which("nvidia-smi") is None:
            return self.end(record, job.NOT_RUN, "there is no nvidia-smi")
        record |= {"result": job.OK, "why": ""}
        with open(self.folder / "clocks.txt", "wb") as file:
            self.clocks = subprocess.Popen(record["command"].split(), stdin=subprocess.DEVNULL, stdout=file,
                                           stderr=subprocess.STDOUT, process_group=0, preexec_fn=die_with_parent)

    def close(self, why=""):
        """Ends everything that runs, and refreshes for the last time."""
        for running in self.running:
            kill(running.process, signal.SIGTERM)
        for running in self.running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.process.wait(TO_END)
            kill(running.process, signal.SIGKILL)
            running.record |= {"result": job.TIME_UP, "why": why, "seconds": time.time() - running.record["begin"]}
        self.running = []
        if self.clocks:
            kill(self.clocks, signal.SIGKILL)
            self.clocks.wait()
        self.refresh(at_once=True)


SUMMARIES = {"README.md", "jobs.json"}
