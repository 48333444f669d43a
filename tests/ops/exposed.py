"""What a real server's `GET /metrics` exposes, and what queries ask of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

# Of Prometheus itself, not of what it scrapes.
OF_PROMETHEUS = {"up", "ALERTS"}

_NAME = re.compile(r"\b(?:wal_ingest|process)_[a-z_0-9]+\b")
_SELECTOR = re.compile(r"\b([a-zA-Z_]\w*)\{([^}]*)\}")
_MATCHER = re.compile(r'(\w+)\s*(=~|!=|!~|=)\s*"((?:[^"\\]|\\.)*)"')
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? \S+$")

# Labels that Prometheus gives each target.
_OF_A_TARGET = {"instance", "job"}
# Labels with a fixed set of values, each of which is exposed from the start.
_FIXED = {"state", "result", "route"}


@dataclass
class Exposed:
    """The series of a scrape: for each name, its labels and the values that each of them has."""

    series: dict[str, dict[str, set[str]]] = field(default_factory=dict)

    def highest_bucket(self, histogram: str) -> float:
        """The highest finite bucket: no quantile can come out above it."""
        bounds = {float(bound) for bound in self.series[histogram + "_bucket"]["le"]}
        return max(bounds - {float("inf")})


def exposed_in(text: str) -> Exposed:
    """Reads Prometheus' text format."""
    exposed = Exposed()
    for line in text.splitlines():
        if found := _SAMPLE.match(line):
            labels = exposed.series.setdefault(found[1], {})
            for name, value in _LABEL.findall(found[2] or ""):
                labels.setdefault(name, set()).add(value)
    return exposed


def complaints(query: str, exposed: Exposed) -> Iterator[str]:
    """What a PromQL query asks for that no scrape has: names, labels, and values of labels whose values are fixed."""
    for name in _NAME.findall(query):
        if name not in exposed.series:
            yield f"{name} is not exposed"
    for name, matchers in _SELECTOR.findall(query):
        if name in OF_PROMETHEUS:
            continue
        known = exposed.series.get(name, {})
        for label, operator, value in _MATCHER.findall(matchers):
            if label not in _OF_A_TARGET and label not in known:
                yield f"{name} has no label {label}"
            elif label in _FIXED:
                wanted = value.split("|") if "~" in operator else [value]
                yield from (f"{name} has no {label} {one}" for one in wanted if one not in known[label])
