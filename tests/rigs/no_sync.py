"""The switch that takes every sync away from a process, from the outside: the program under test is the same."""

from __future__ import annotations

import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_name("no_sync.c")


def no_sync_environment(build_dir: Path) -> dict[str, str]:
    """Compiles the library into `build_dir`, and gives the environment that preloads it."""
    library = build_dir / "no_sync.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, _SOURCE, "-ldl"],
        check=True,
        timeout=60,
    )
    return {"LD_PRELOAD": str(library)}
