"""Dockerfile and compose file: nothing here can build them, so what they say is checked piece by piece."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.rigs.service import Service
from wal_ingest.config import ENV_ALIASES, ENV_PREFIX, FIELDS

ROOT = Path(__file__).parent.parent.parent
DOCKER = ROOT / "ops/docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PORT = "8400"


def instructions(name: str) -> list[str]:
    """The arguments of every instruction of a kind, continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", DOCKERFILE)
    return re.findall(rf"^{name} (.+)$", joined, re.MULTILINE)


def copied() -> list[str]:
    """What the first stage takes from the repository."""
    [*lines] = (line for line in instructions("COPY") if not line.startswith("--from"))
    return [source.removeprefix("./") for line in lines for source in line.split()[:-1]]


def setting_of(variable: str) -> str:
    """The setting that a variable of the environment is for."""
    if variable in ENV_ALIASES:
        return ENV_ALIASES[variable]
    return variable.removeprefix(ENV_PREFIX).lower().replace("__", ".", 1)


def test_everything_that_the_image_copies_is_there_and_let_through() -> None:
    assert copied() == ["pyproject.toml", "README.md", "LICENSE", "wal_ingest"]
    let_through = re.findall(r"^!(\S+)$", (DOCKER / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    assert let_through == copied()
    assert all((ROOT / source).exists() for source in copied())


@pytest.mark.needs("package-index")
def test_the_package_can_be_built_from_what_the_image_copies(tmp_path: Path) -> None:
    context = tmp_path / "src"
    context.mkdir()
    for source in copied():
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, context / source, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, context)
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, context],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert built.returncode == 0, built.stderr
    assert len(list(tmp_path.glob("wal_ingest-*.whl"))) == 1


def test_the_image_runs_as_nobody_special_and_keeps_its_points_in_a_volume() -> None:
    assert instructions("USER") == ["wal-ingest"]
    assert instructions("VOLUME") == ["/data"]
    assert instructions("STOPSIGNAL") == ["SIGTERM"]


def test_the_variables_of_the_image_are_settings_and_its_ports_agree() -> None:
    [environment] = instructions("ENV")
    variables = dict(re.findall(r"(\S+?)=(\S+)", environment))
    ours = {name: value for name, value in variables.items() if name.startswith(ENV_PREFIX)}
    assert len(ours) == 3
    assert all(setting_of(name) in FIELDS for name in ours)
    assert ours["WAL_INGEST_SERVER__BIND"] == f"0.0.0.0:{PORT}"
    assert ours["WAL_INGEST_SERVER__DATA_DIR"] in instructions("VOLUME")
    assert instructions("EXPOSE") == [PORT]
    assert f"127.0.0.1:{PORT}/healthz" in DOCKERFILE


def test_the_health_check_says_yes_to_a_server_and_no_to_none(tmp_path: Path) -> None:
    [line] = instructions("HEALTHCHECK")
    python, *arguments = json.loads(line.partition("CMD ")[2])
    assert python == "python"
    with Service(tmp_path / "data", logs=tmp_path) as service:
        command = [sys.executable, *(each.replace(PORT, str(service.port)) for each in arguments)]
        assert subprocess.run(command, check=False, timeout=30).returncode == 0
        service.kill()
        assert subprocess.run(command, check=False, timeout=30, stderr=subprocess.DEVNULL).returncode == 1


def test_the_node_of_the_compose_file_is_built_from_here_and_given_real_settings() -> None:
    node = SERVICES["wal-ingest"]
    context = (DOCKER / node["build"]["context"]).resolve()
    assert context == ROOT
    assert (context / node["build"]["dockerfile"]).exists()
    assert all(setting_of(name) in FIELDS for name in node["environment"])
    assert node["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
    assert node["volumes"] == ["wal-ingest-data:/data"]
    assert float(node["stop_grace_period"].removesuffix("s")) > FIELDS["server.stop_s_max"].default


def test_every_container_comes_back_after_any_end_but_an_operators() -> None:
    """`on-failure` would leave a node down that was stopped in order by a restart of the machine."""
    assert {name: service["restart"] for name, service in SERVICES.items()} == dict.fromkeys(
        SERVICES, "unless-stopped"
    )


def test_the_parts_of_the_compose_file_know_each_other() -> None:
    node, database = SERVICES["wal-ingest"]["environment"], SERVICES["influxdb"]["environment"]
    assert node["INFLUXDB_URL"] == "http://influxdb:8086"
    for ours, theirs in (("ORG", "ORG"), ("BUCKET", "BUCKET"), ("TOKEN", "ADMIN_TOKEN")):
        assert node[f"INFLUXDB_{ours}"] == database[f"DOCKER_INFLUXDB_INIT_{theirs}"]
    scrape = yaml.safe_load((DOCKER / "prometheus.yml").read_text())
    [job] = scrape["scrape_configs"]
    assert job["job_name"] == "wal-ingest"
    assert job["static_configs"] == [{"targets": [f"wal-ingest:{PORT}"]}]
    mounts = dict(volume.split(":")[:2] for volume in SERVICES["prometheus"]["volumes"])
    assert mounts["../prometheus/alerts.yml"] == "/etc/prometheus/" + scrape["rule_files"][0]


def test_every_mount_of_the_compose_file_is_there() -> None:
    for name, service in SERVICES.items():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DOCKER / source).exists(), f"{name}: {source}"
            else:
                assert source in COMPOSE["volumes"], f"{name}: {source}"


def test_nothing_is_published_beyond_this_machine() -> None:
    for service in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_every_variable_that_the_compose_file_asks_for_is_in_the_example() -> None:
    asked = set(re.findall(r"\$\{(\w+)", (DOCKER / "compose.yaml").read_text()))
    given = set(re.findall(r"^(\w+)=", (DOCKER / "env.example").read_text(), re.MULTILINE))
    assert asked == given
