"""Makes the screenshots of the status page: `python -m ops.screenshots [--seconds 600]`, or `make screenshots`.

A real node takes a swelling load and delivers it to a real InfluxDB, which refuses some points for good and
is then stopped. The desktop's picture is taken while the database is away, the phone's when it is back.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ops.png import repacked
from tests.rigs.chromium import Watched, running_chromium, watched_page
from tests.rigs.fleet import Plan, make_request
from tests.rigs.influxdb import InfluxDB
from tests.rigs.needs import missing
from tests.rigs.service import Service, to_influxdb

IMAGES = Path(__file__).parent.parent / "docs" / "images"
REQUESTS_PER_S = 20.0
POINTS = 1_000
OUTAGE_BEGINS = 0.62  # of the whole time


class Senders(threading.Thread):
    """Sends at a rate that swells and falls, until it is stopped."""

    def __init__(self, node: Service) -> None:
        super().__init__(daemon=True)
        self._node = node
        self._stopped = threading.Event()

    def run(self) -> None:
        plan = Plan("fleet", base_ns=time.time_ns() // 10**9 * 10**9, points=POINTS)
        began = time.monotonic()
        number = 0
        while not self._stopped.is_set():
            request = make_request(plan, 0, number)
            self._node.post(request.path, request.body, request.headers)
            number += 1
            # About six minutes a wave, with a smaller one on it, as a fleet's day would be.
            passed = time.monotonic() - began
            swell = 1 + 0.25 * math.sin(passed / 57) + 0.06 * math.sin(passed / 7)
            self._stopped.wait(1 / (REQUESTS_PER_S * swell))

    def stop(self) -> None:
        self._stopped.set()
        self.join(timeout=30)


@contextmanager
def sending(node: Service) -> Iterator[None]:
    """The load, for as long as the block lasts."""
    senders = Senders(node)
    senders.start()
    try:
        yield
    finally:
        senders.stop()


def refuse_some(node: Service) -> None:
    """Sends points that the database will never take: their field is a number there, and here a text."""
    text = {"Content-Type": "text/plain"}
    now_ns = time.time_ns()
    node.post("/metrics", f"disk,host=web-1 free=0.2 {now_ns}\n".encode(), text)
    time.sleep(2)
    lines = "".join(f'disk,host=web-{one} free="lots" {now_ns + one}\n' for one in range(2, 14))
    node.post("/metrics", lines.encode(), text)


def take(watched: Watched, sentence: str, path: Path, *, whole: bool, s_max: float) -> None:
    """Waits until the page says this, with a history of now, and writes the picture."""
    watched.page.wait_for_function(
        "(part) => document.querySelector('#verdict').textContent.includes(part)",
        arg=sentence,
        timeout=s_max * 1000,
    )
    with watched.page.expect_response("**/history.json"):
        pass
    watched.page.wait_for_selector("#plot-rate .line")
    assert watched.complaints == [], watched.complaints
    path.write_bytes(repacked(watched.page.screenshot(full_page=whole, animations="disabled")))
    print(f"{path.name}: {path.stat().st_size // 1024} KiB", file=sys.stderr)


def make_screenshots(seconds: float, root: Path) -> None:
    """Plays the whole scene and takes both pictures."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    (root / "influxdb").mkdir()
    with InfluxDB(root / "influxdb") as database:
        settings = to_influxdb(database.url, bucket=database.fresh_database(), flusher__retry_s_max=5)
        # The default limit is 50 GiB: a picture of a WAL that fills within minutes needs a smaller one.
        settings |= {
            "wal.wal_bytes_max": 1 << 30,
            "wal.keep_confirmed_s": 60,
            "wal.segment_bytes_max": 4 << 20,
        }
        with (
            Service(Path("data"), logs=root, settings=settings) as node,
            sending(node),
            running_chromium() as browser,
        ):
            refuse_some(node)
            time.sleep(seconds * OUTAGE_BEGINS)
            database.close_front()
            time.sleep(seconds * (1 - OUTAGE_BEGINS))
            with watched_page(browser, width=1280, height=900) as watched:
                watched.page.goto(f"{node.url}/")
                take(watched, "away since", IMAGES / "status-desktop.png", whole=True, s_max=30)
            database.open_front()
            with watched_page(browser, width=390, height=950, dark=True, touch=True) as watched:
                watched.page.goto(f"{node.url}/")
                take(watched, "delivery keeps up", IMAGES / "status-phone.png", whole=False, s_max=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=600.0, help="how long the node runs before the pictures"
    )
    arguments = parser.parse_args()
    lacking = [said for said in (missing("chromium"), missing("influxdb")) if said]
    if lacking:
        sys.exit(f"error: missing {', '.join(lacking)}")
    with tempfile.TemporaryDirectory(prefix="wal-ingest-") as root:
        make_screenshots(arguments.seconds, Path(root))


if __name__ == "__main__":
    main()
