"""When which fault strikes: decided by the seed alone. Pure.

A first round has every fault once, in a shuffled order. After it they are drawn, and every other time two strike
at once: one that lasts, and another one in the middle of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

# A first round of all faults fits into two minutes with this much for each.
_SLOT_S_MAX = 6.0
_SLOT_S_MIN = 2.0


@dataclass(frozen=True, slots=True)
class Strike:
    """Faults that strike together, the second while the first lasts; after `pause_s` and for `lasts_s`."""

    faults: tuple[str, ...]
    pause_s: float
    lasts_s: float
    first_round: bool


def schedule(
    alone: Sequence[str], *, pairs: Sequence[str] = (), seconds: float, seed: int
) -> Iterator[Strike]:
    """Strikes without end. `alone` has what a first round strikes, "a+b" for two at once; `pairs` come later on."""
    dice = Random(f"schedule/{seed}")
    slot_s = min(_SLOT_S_MAX, max(_SLOT_S_MIN, 0.8 * seconds / len(alone)))
    first_round = list(alone)
    dice.shuffle(first_round)
    for names in first_round:
        yield _strike(tuple(names.split("+")), slot_s, dice, first_round=True)
    while True:
        names = dice.choice(pairs if pairs and dice.random() < 0.5 else alone)
        yield _strike(tuple(names.split("+")), slot_s, dice, first_round=False)


def _strike(faults: tuple[str, ...], slot_s: float, dice: Random, *, first_round: bool) -> Strike:
    return Strike(faults, dice.uniform(0.05, 0.25) * slot_s, dice.uniform(0.25, 0.5) * slot_s, first_round)
