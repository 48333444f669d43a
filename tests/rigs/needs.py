"""What tests need besides Python, and what becomes of a test when it is missing.

On a user's machine such a test is skipped and says why. With CI=true a missing need is a failure: there it
means that `.ci/run` forgot to install something.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.rigs.processes import find_program

SKIP_PREFIX = "needs "


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() == "true"


def _programs(*names: str) -> Callable[[], str]:
    def missing() -> str:
        return ", ".join(name for name in names if find_program(name) is None)

    return missing


def _chromium_missing() -> str:
    if importlib.util.find_spec("playwright") is None:
        return "the Python package playwright"
    return _programs("chromium")()


def _strace_missing() -> str:
    if missing := _programs("strace")():
        return missing
    tried = subprocess.run(
        ["strace", "-f", "-qq", "-e", "trace=none", "true"], capture_output=True, text=True, check=False
    )
    return "" if tried.returncode == 0 else f"permission to trace ({tried.stderr.strip()})"


def _loop_missing() -> str:
    if not sys.platform.startswith("linux"):
        return "Linux"
    if os.geteuid() != 0:
        return "root, to mount an image"
    if missing := _programs("losetup", "mkfs.ext4", "mount", "umount")():
        return missing
    tried = subprocess.run(["losetup", "-f"], capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"a free loop device ({tried.stderr.strip()})"


def _package_index_missing() -> str:
    """The one-file program is put together from wheels, which an index gives out."""
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "index", "versions", "hatchling"],
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if asked.returncode == 0 else "a package index that pip can reach"


# Each gives what is missing, or an empty text.
NEEDS: dict[str, Callable[[], str]] = {
    "victoria-metrics": _programs("victoria-metrics"),
    "influxdb": _programs("influxd", "nginx"),
    "strace": _strace_missing,
    "loop": _loop_missing,
    "cc": _programs("cc"),
    "curl": _programs("curl"),
    "jq": _programs("jq"),
    "npm": _programs("node", "npm"),
    "openssl": _programs("openssl"),
    "promtool": _programs("promtool"),
    "systemd-analyze": _programs("systemd-analyze"),
    "package-index": _package_index_missing,
    "chromium": _chromium_missing,
}


@functools.cache
def missing(need: str) -> str:
    """What is missing for a need of the table above; an empty text when nothing is."""
    return NEEDS[need]()


def require(need: str) -> None:
    """Skips the test that asks when `need` is not met; tests/conftest.py turns that into a failure in CI."""
    if lacking := missing(need):
        pytest.skip(f"{SKIP_PREFIX}{need}: missing {lacking}")
