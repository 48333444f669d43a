"""The seed of a round of a random proof: another one each time, and again the printed one when asked for."""

from __future__ import annotations

import os
from random import SystemRandom


def round_seed() -> int:
    """A fresh seed, or that of the environment's PROOF_SEED, to play a failed round again."""
    given = os.environ.get("PROOF_SEED")
    return int(given) if given else SystemRandom().getrandbits(32)
