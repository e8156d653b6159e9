"""A job: one command with a time limit, and what its exit means.

Results: ok, failed, findings (of a checker), time up, not run. A tool that is absent, refuses the machine or does not know an
option has not run: that is no failure of ours.
"""

import csv
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field

OK, FAILED, FINDINGS, TIME_UP, NOT_RUN, RUNNING = "ok", "failed", "findings", "time up", "not run", "running"

# What a checker exits with that found something.
FINDINGS_CODE = 86


@dataclass
class Job:
    """`output` is a file of the folder that the job writes; `about` says what it measures, for the summary; `rows` is false where
    its rows are too many to print. `needs` is a program on the PATH or a path."""

    name: str
    command: list
    limit: float
    env: dict = field(default_factory=dict)
    needs: str | None = None
    outcome: Callable | None = None
    output: str | None = None
    about: dict = field(default_factory=dict)
    rows: bool = True


def last_line(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it printed nothing"


def by_exit_code(code, text, output):
    """(result, why) of a command of ours."""
    if code == 0:
        return OK, ""
    unknown = re.search(r"unexpected argument '([^']*)'|SECATEUR_WGMMA=.*expected .*", text)
    if unknown:
        return NOT_RUN, f"this program knows no {unknown[1]}" if unknown[1] else unknown[0][:300]
    return FAILED, last_line(text)


def panics(text, most=2):
    """Where the tests of a log broke off and why, a line each."""
    lines = text.splitlines()
    found = [at for at, line in enumerate(lines) if " panicked at " in line]
    return [f"{lines[at]} {' '.join(lines[at + 1 : at + 2])}"[:400] for at in found[:most]]


def by_test_result(code, text, output):
    """Of a module of tests: no test at all is a failure too."""
    results = re.findall(r"^test result: .*", text, re.MULTILINE)
    if code == 0 and results and re.match(r"test result: ok\. [1-9]", results[-1]):
        return OK, results[-1].removeprefix("test result: ok. ")
    if code == 0:
        return FAILED, "it ran no test"
    result, why = by_exit_code(code, text, output)
    return result, why if result == NOT_RUN else "; ".join(panics(text)) or why


def failed_tests(text):
    """Names of the tests that the end of a log lists as failed; none where the executable did not come to its end."""
    return sorted(set(re.findall(r"^    ([\w:]+)$", text.partition("\nfailures:\n")[2], re.MULTILINE)))


def by_checker(code, text, output):
    """Of compute-sanitizer: it has looked at the program where it prints a summary."""
    said = [line.removeprefix("=========").strip() for line in text.splitlines() if line.startswith("=========")]
    said = [line for line in said if line and not line.startswith("COMPUTE-SANITIZER")]
    if not any("SUMMARY:" in line for line in said):
        return NOT_RUN, last_line(text)
    if code == FINDINGS_CODE:
        return FINDINGS, "; ".join(dict.fromkeys([*said[:2], *said[-1:]]))[:600]
    return (OK, said[-1]) if code == 0 else (FAILED, last_line(text))


def by_counters(code, text, output):
    """Of ncu: it has measured where its table has a row."""
    table = output.read_text(errors="replace") if output.exists() else ""
    if counter_rows(table):
        return OK, ""
    return NOT_RUN, last_line(table or text)


def counter_rows(table):
    """Rows of ncu's CSV as dictionaries from metric to text; its second line holds units."""
    lines = [line for line in table.splitlines() if line.startswith('"')]
    return [row for row in csv.DictReader(lines) if row.get("Kernel Name")]


def by_peer(code, text, output):
    """Of the PyTorch peer: without PyTorch, or without a GPU that it finds, it has not run."""
    if code and re.search(r"ModuleNotFoundError|finds no GPU", text):
        return NOT_RUN, last_line(text)
    return by_exit_code(code, text, output)


def by_probe(code, text, output):
    """Of one question to the hardware: it prints a row of JSON. Exit code 3: there is no Hopper."""
    row = probe_row(text)
    if code == 3:
        return NOT_RUN, last_line(text)
    if code or row is None:
        return FAILED, f"no answer: {last_line(text)}"
    return OK, f"{row['question']}: {row['measured']} {row['unit']}, predicted {row['predicted']}, {row['verdict']}"


def probe_row(text):
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                return json.loads(line)
            except ValueError:
                return None
    return None
