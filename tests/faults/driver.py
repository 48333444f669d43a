"""Runs a life again and again, each time with the next file operation failing, until one comes through untouched.

`python -m tests.faults.driver LIBRARY DIRECTORY LIFE MODE STEP FIRST` with the library preloaded (LD_PRELOAD); prints
one JSON object. STEP 1 and FIRST 1 strike every operation. With LIBRARY alone it reads lines of JSON, each an array of
the other arguments, and prints an object for each.
Each life is led in a process of its own, forked from this one, and looked at by another: whatever the fault does to
the process, it does not do to the judge.
"""

from __future__ import annotations

import ctypes
import errno
import json
import logging
import os
import pickle
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.scenario import LIVES, MUTANTS, Journal, check
from tests.model.inline import first_of_ours
from tests.rigs.small_letters import small_letters

# A life takes a tenth of a second; one that hangs is ended by its own alarm.
LIFE_S_MAX = 30

CREATE, OPEN, WRITE, SYNC, TRUNCATE, ALLOCATE, RENAME, UNLINK, MKDIR, READ = (1 << bit for bit in range(10))
CHANGES = CREATE | OPEN | WRITE | SYNC | TRUNCATE | ALLOCATE | RENAME | UNLINK | MKDIR
TAKES_SPACE = CREATE | WRITE | SYNC | TRUNCATE | ALLOCATE | RENAME | MKDIR


@dataclass(frozen=True, slots=True)
class Mode:
    """Which operations are struck, with what, once or from then on."""

    kinds: int
    error: int
    from_then_on: bool = False
    half: bool = False


MODES = {
    "EIO once": Mode(CHANGES, errno.EIO),
    "EIO from then on": Mode(CHANGES, errno.EIO, from_then_on=True),
    "ENOSPC once": Mode(TAKES_SPACE, errno.ENOSPC),
    "ENOSPC from then on": Mode(TAKES_SPACE, errno.ENOSPC, from_then_on=True),
    "short write once": Mode(WRITE, errno.EIO, half=True),
    "short write, then ENOSPC": Mode(WRITE, errno.ENOSPC, from_then_on=True, half=True),
    "EIO on a read once": Mode(READ, errno.EIO),
    "EIO on reads from then on": Mode(READ, errno.EIO, from_then_on=True),
}


@dataclass(slots=True)
class Report:
    """Lives that were struck; by which operation, by how they ended; and everything that did not hold."""

    struck: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    endings: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Life:
    """What one life told: its journal, how it ended (`untyped`: by an error that is not ours), what was struck.

    `counted` is how many operations there were to strike, `seen` the kinds of all there were, struck or not.
    """

    journal: Journal
    ended: str
    untyped: str
    struck: str
    counted: int
    seen: int


class Faults:
    """The preloaded library."""

    def __init__(self, library: str) -> None:
        self._library = ctypes.CDLL(library)
        self._library.fault_arm.argtypes = [
            ctypes.c_char_p, ctypes.c_uint, ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_int,
        ]  # fmt: skip
        self._library.fault_counted.restype = ctypes.c_long
        self._library.fault_struck_name.restype = ctypes.c_char_p
        self._library.fault_struck_path.restype = ctypes.c_char_p

    def arm(self, directory: Path, mode: Mode, number: int) -> None:
        self._library.fault_arm(
            os.fsencode(directory), mode.kinds, number, mode.error, mode.from_then_on, mode.half
        )

    def unnoticed(self, act: Callable[[], None]) -> None:
        """Runs something without faults and without counting."""
        self._library.fault_pause(1)
        act()
        self._library.fault_pause(0)

    def disarm(self) -> None:
        self._library.fault_pause(1)

    @property
    def seen(self) -> int:
        seen: int = self._library.fault_seen()
        return seen

    @property
    def counted(self) -> int:
        counted: int = self._library.fault_counted()
        return counted

    @property
    def struck(self) -> str:
        """The operation that was struck and its file's name, without numbers; empty when none was."""
        name, path = self._library.fault_struck_name().decode(), self._library.fault_struck_path().decode()
        if not name:
            return ""
        file = "".join("#" if letter.isdigit() else letter for letter in Path(path).name)
        return f"{name} {file}"


def in_a_process(act: Callable[[], Any]) -> tuple[str, Any]:
    """What a function gives, run in a fork; or how that process ended when it gave nothing."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            signal.alarm(LIFE_S_MAX)
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(act(), pipe)
        except BaseException:
            # Whatever it was, also SystemExit: nothing may leave this block, for below it is the parent's own program.
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return "", pickle.loads(told)
    return ("it hung" if code == -signal.SIGALRM else f"its exit code was {code}"), None


def lead(faults: Faults, data_dir: Path, life: str, mode: Mode, number: int) -> Life:
    """Leads one life under a fault."""
    journal, ended, untyped = Journal(), "went on", ""
    faults.arm(data_dir, mode, number)
    try:
        (LIVES | MUTANTS)[life](data_dir, journal, faults.unnoticed)
    except BaseException as exc:
        # All of them: what a struck operation comes out as, in a group or not, is what is judged here.
        ours = first_of_ours(exc)
        ended = type(ours).__name__ if ours else type(exc).__name__
        untyped = "" if ours else "".join(traceback.format_exception(exc))
    faults.disarm()
    return Life(journal, ended, untyped, faults.struck, faults.counted, faults.seen)


def main(library: str, directory: Path, life: str, mode_name: str, step: int, first: int) -> dict[str, Any]:
    """The report: how many operations there are, how many were struck, how lives ended, and what went wrong."""
    with small_letters(loose=2, block=3, run=6, file_bytes=600):
        return _strike(Faults(library), directory, life, MODES[mode_name], step, first)


def _strike(faults: Faults, directory: Path, life: str, mode: Mode, step: int, first: int) -> dict[str, Any]:
    logging.disable(logging.CRITICAL)
    data_dir, report = directory / "data", Report()
    untouched = _case(faults, data_dir, life, mode, 0, report)
    assert untouched is not None, report.wrong
    # Faults change what follows, so the end is where nothing was struck, not where an untouched life ends. The bound
    # is for lives that never say.
    for number in range(first, 3 * untouched.counted, step):
        led = _case(faults, data_dir, life, mode, number, report)
        if led is not None and not led.struck:
            break
        report.struck += 1
        if led is not None:
            report.kinds[led.struck] = report.kinds.get(led.struck, 0) + 1
            report.endings[led.ended] = report.endings.get(led.ended, 0) + 1
    return {"operations": untouched.counted, "seen": untouched.seen, **asdict(report)}


def _case(faults: Faults, data_dir: Path, life: str, mode: Mode, number: int, report: Report) -> Life | None:
    """Leads one life and looks at what it left; None when its process did not come to tell."""
    shutil.rmtree(data_dir, ignore_errors=True)
    trouble, told = in_a_process(lambda: lead(faults, data_dir, life, mode, number))
    led: Life | None = told
    where = f"operation {number} ({led.struck if led else 'not told'})"
    if led is None:
        report.wrong.append(f"{where}: the process did not end in order: {trouble}")
        return None
    if led.untyped:
        report.wrong.append(f"{where}: an error that is not ours: {led.untyped[-1500:]}")
    # A sealed segment that cannot even be opened is one that the disk cannot read, too.
    unreadable = mode.kinds == READ or led.struck.startswith("open")
    trouble, found = in_a_process(lambda: check(data_dir, led.journal, unreadable=unreadable))
    report.wrong += [f"{where}: {what}" for what in found or ()]
    if found is None:
        report.wrong.append(f"{where}: the directory cannot be opened and checked: {trouble}")
    return led


if __name__ == "__main__":
    _library, *_asked = sys.argv[1:]
    for _directory, _life, _mode, _step, _first in [_asked] if _asked else map(json.loads, sys.stdin):
        print(json.dumps(main(_library, Path(_directory), _life, _mode, int(_step), int(_first))), flush=True)
