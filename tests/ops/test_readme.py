"""ops/README.md tells of everything in ops/, and of nothing that is not there."""

from __future__ import annotations

import re
from pathlib import Path

from tests.ops.test_alerts import GROUPS

OPS = Path(__file__).parent.parent.parent / "ops"
PAGE = (OPS / "README.md").read_text()


def test_every_folder_of_ops_is_in_the_readme_and_every_link_leads_somewhere() -> None:
    linked = re.findall(r"\]\(([^)#]+)\)", PAGE)
    assert all(target.startswith("https://") or (OPS / target).exists() for target in linked)
    folders = {f"{path.name}/" for path in OPS.glob("[!_.]*") if path.is_dir() and any(path.glob("[!_.]*"))}
    assert folders <= set(linked)


def test_every_file_of_ours_that_a_command_names_is_there() -> None:
    named = set(re.findall(r"\bops/[\w./-]+\w", PAGE)) - {"ops/docker/.env"}
    assert len(named) >= 8
    assert [path for path in named if not (OPS.parent / path).exists()] == []


def test_every_alert_is_in_the_readme_beside_its_section_of_the_runbook() -> None:
    rows = dict(re.findall(r"^\| ([a-z-]+) \| (`WalIngest.*`) \|$", PAGE, re.MULTILINE))
    assert rows == {
        group["name"]: ", ".join(f"`{rule['alert']}`" for rule in group["rules"]) for group in GROUPS
    }
