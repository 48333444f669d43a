"""What a look at a sink found, before anything is written to it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must be right: what was looked at, whether it is right, and what was found, in words."""

    what: str
    right: bool
    found: str
