"""What a run found, as text for people and as JSON for programs."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ops.chaos.account import Account
from ops.chaos.faults import FAULTS


@dataclass(frozen=True, slots=True)
class Hit:
    """One strike: which fault, when in seconds since the load began, for how long, and what exactly."""

    fault: str
    at_s: float
    lasted_s: float
    detail: str


@dataclass(slots=True)
class Report:
    """Everything about one run. `problems` are what makes it fail."""

    seed: int
    seconds: float
    hits: list[Hit] = field(default_factory=list)
    not_struck: dict[str, str] = field(default_factory=dict)
    account: Account = field(default_factory=Account)
    answers: Counter[int] = field(default_factory=Counter)
    met: Counter[str] = field(default_factory=Counter)
    ends: list[dict[str, Any]] = field(default_factory=list)
    starts: int = 0
    drained_s: float | None = None
    status: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def green(self) -> bool:
        return not self.problems

    def conclude(self) -> None:
        """Turns what the account has against the server into problems."""
        for kind, count in sorted(self.account.wrong_counts.items()):
            shown = "; ".join(self.account.wrong[kind][:3])
            self.problems.append(f"{count} {kind}: {shown}")
        if self.account.acked == 0:
            self.problems.append("no point was answered 2xx, so this proves nothing")

    def write(self, folder: Path) -> None:
        """Leaves report.txt and report.json."""
        (folder / "report.txt").write_text(self.text())
        (folder / "report.json").write_text(json.dumps(self._plain(), indent=1) + "\n")

    def text(self) -> str:
        account = self.account
        drained = "not drained" if self.drained_s is None else f"drained in {self.drained_s:.1f} s"
        lines = [
            f"chaos: seed {self.seed}, {self.seconds:g} s",
            "",
            f"  {'fault':<14} {'times':>5}  at (s)",
            *self._table(),
            "",
            f"  {sum(self.answers.values())} requests: "
            + ", ".join(
                f"{count} × {status or 'no answer'}" for status, count in sorted(self.answers.items())
            ),
            "  writes that met the proxy's faults: "
            + (", ".join(f"{count} × {name}" for name, count in sorted(self.met.items())) or "none"),
            f"  the server was started {self.starts} times, and ended by itself or failed to start "
            f"{len(self.ends)} times; {drained}",
            f"  of {account.acked} points answered 2xx: {account.confirmed} confirmed, {account.waiting} waiting,"
            f" {account.parked} parked, {account.skipped} on sectors that could not be read",
            "",
            *(f"  PROBLEM: {problem}" for problem in self.problems),
            f"verdict: {'green' if self.green else 'RED'} (seed {self.seed})",
        ]
        return "\n".join(lines) + "\n"

    def _table(self) -> list[str]:
        rows = []
        for name in FAULTS:
            when = [f"{hit.at_s:.0f}" for hit in self.hits if hit.fault == name]
            if when:
                rows.append(f"  {name:<14} {len(when):>5}  {' '.join(when)}")
            elif name in self.not_struck:
                rows.append(f"  {name:<14} {0:>5}  not struck: {self.not_struck[name]}")
        return rows

    def _plain(self) -> dict[str, Any]:
        account = self.account
        return {
            "seed": self.seed,
            "seconds": self.seconds,
            "green": self.green,
            "problems": self.problems,
            "faults": [
                {"fault": hit.fault, "at_s": hit.at_s, "lasted_s": hit.lasted_s, "detail": hit.detail}
                for hit in self.hits
            ],
            "not_struck": self.not_struck,
            "answers": {str(status): count for status, count in sorted(self.answers.items())},
            "met": dict(self.met),
            "starts": self.starts,
            "ends": self.ends,
            "drained_s": self.drained_s,
            "points": {
                "acked": account.acked,
                "confirmed": account.confirmed,
                "waiting": account.waiting,
                "parked": account.parked,
                "skipped": account.skipped,
            },
            "requests": {"unclear": account.unclear_requests, "refused": account.refused_requests},
            "wrong": account.wrong,
            "status": self.status,
        }
