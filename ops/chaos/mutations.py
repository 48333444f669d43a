"""Deliberately broken builds, and whether chaos catches each: a table of mutation, evidence and seconds.

    python -m ops.chaos.mutations

Every mutation is run under the faults that should bring it to light, with one seed after the other until something is
found. The healthy build goes through the very same runs and must come out green. The exit code is 1 when a mutation
survives, or the healthy build is accused.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from ops.chaos.faults import FAULTS
from ops.chaos.mutant import MUTATIONS
from ops.chaos.report import Report
from ops.chaos.run import Order, run
from tests.rigs.needs import missing

_ROOT = Path(__file__).parent.parent.parent
_SECONDS = 6.0
_SEEDS_MAX = 5


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one mutation: `evidence` is the first problem found, empty when it survived."""

    name: str
    evidence: str
    took_s: float
    runs: int
    control: str


def order_for(name: str, seed: int) -> Order:
    """The run that should catch a mutation."""
    mutation = MUTATIONS[name]
    return Order(
        _SECONDS,
        seed,
        mutation.faults,
        idle_s=mutation.idle_s,
        command=(sys.executable, "-m", "ops.chaos.mutant", name),
        env={"PYTHONPATH": str(_ROOT)},
        keep_confirmed_s=0,
    )


def judge(name: str, folder: Path, *, control: bool = True) -> Verdict:
    """Runs a mutation until it is caught, and the healthy build once in the same way; logs go to `folder`."""
    began_s = time.monotonic()
    evidence, runs = "", 0
    while not evidence and runs < _SEEDS_MAX:
        runs += 1
        evidence = _run(order_for(name, runs), folder / name / f"seed-{runs}")
    took_s = time.monotonic() - began_s
    healthy = replace(order_for(name, runs), command=(sys.executable, "-m", "ops.chaos.mutant", "none"))
    accused = _run(healthy, folder / name / "healthy") if control else ""
    return Verdict(name, evidence, took_s, runs, accused)


def _run(order: Order, folder: Path) -> str:
    folder.mkdir(parents=True)
    report: Report = run(order, folder=folder)
    report.write(folder)
    # Loss is better evidence than whatever else there may be.
    return next((said for said in sorted(report.problems, key=lambda said: " lost" not in said)), "")


def _lacking(name: str) -> str:
    """What is missing here for the faults that should catch a mutation; empty when nothing is."""
    faults = {fault for names in MUTATIONS[name].faults for fault in names.split("+")}
    needs = ["victoria-metrics", *(FAULTS[fault].needs for fault in faults if FAULTS[fault].needs)]
    return ", ".join(lacking for lacking in map(missing, needs) if lacking)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.chaos.mutations", description=__doc__)
    parser.add_argument("names", nargs="*", default=[], help=f"among {', '.join(MUTATIONS)}; default: all")
    names = parser.parse_args().names or [name for name in MUTATIONS if name != "none"]
    bad = False
    with tempfile.TemporaryDirectory(prefix="wal-ingest-mutations-") as below:
        for name in names:
            if lacking := _lacking(name):
                print(f"{name}: not run: needs {lacking}")
                continue
            verdict = judge(name, Path(below))
            bad |= not verdict.evidence or bool(verdict.control)
            print(f"{name}: {MUTATIONS[name].what}")
            print(f"  under {', '.join(MUTATIONS[name].faults)}; {verdict.runs} runs, {verdict.took_s:.0f} s")
            print(f"  {'caught: ' + verdict.evidence[:160] if verdict.evidence else 'SURVIVED'}")
            print(f"  the healthy build: {verdict.control or 'green'}", flush=True)
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
