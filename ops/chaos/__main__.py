"""The real server under real load against a real database, while faults strike; then an account of every point.

    python -m ops.chaos --seconds 300 --seed 7 --report DIR

The same seed strikes the same faults in the same order. The exit code is 0 when every acknowledged point is
confirmed, waiting or parked and nothing else is wrong; else 1. A C compiler and root (for disks in image files) are
needed for some faults; without them these are listed as not struck.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from ops.chaos.faults import FAULTS
from ops.chaos.run import Order, run
from tests.rigs.needs import missing
from tests.rigs.seeds import round_seed


def main() -> None:
    options = _options()
    if lacking := missing("victoria-metrics"):
        raise SystemExit(f"{lacking} is needed, and is not on the PATH")
    seed = options.seed if options.seed is not None else round_seed()
    folder = options.report or Path("report") / f"chaos-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    faults = tuple(options.faults.split(",")) if options.faults else ()
    for name in (name for names in faults for name in names.split("+")):
        if name not in FAULTS:
            raise SystemExit(f"there is no fault {name!r}; there are: {', '.join(FAULTS)}")
    # So that a run that is told to end takes its servers and its mounts with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    print(f"seed {seed}, {options.seconds:g} s, report and logs in {folder}", flush=True)
    report = run(
        Order(options.seconds, seed, faults), folder=folder, say=lambda line: print(line, flush=True)
    )
    report.write(folder)
    print("\n" + report.text(), end="")
    raise SystemExit(0 if report.green else 1)


def _options() -> argparse.Namespace:
    summary, _, _ = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(prog="python -m ops.chaos", description=summary)
    parser.add_argument(
        "--seconds", type=float, default=300, help="for how long faults strike (default: 300)"
    )
    parser.add_argument("--seed", type=int, help="decides everything; a new one by default, and printed")
    parser.add_argument(
        "--report", type=Path, help="folder for the report and logs (default: report/chaos-SEED)"
    )
    parser.add_argument(
        "--faults", default="", help="names, separated by commas; a+b strikes two at once (default: all)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
