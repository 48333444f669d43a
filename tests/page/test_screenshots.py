"""The documents show the status page, in pictures that are there, small, and of the promised widths."""

from __future__ import annotations

import re
import struct
import zlib
from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ops.png import repacked
from tests.rigs.chromium import watched_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
BYTES_MAX = 200_000


@pytest.mark.parametrize(("name", "width"), [("status-desktop.png", 1280), ("status-phone.png", 390)])
def test_the_readme_shows_a_screenshot_of_this_width(name: str, width: int) -> None:
    assert f"docs/images/{name}" in README
    picture = (ROOT / "docs" / "images" / name).read_bytes()
    assert len(picture) < BYTES_MAX
    assert struct.unpack_from(">I", picture, 16)[0] == width


def test_every_picture_in_the_folder_is_shown() -> None:
    shown = set(re.findall(r"docs/images/([\w.-]+)", README))
    assert {path.name for path in (ROOT / "docs" / "images").iterdir()} == shown


@pytest.mark.needs("chromium")
def test_a_repacked_picture_is_the_same_picture(chromium: Browser) -> None:
    with watched_page(chromium, width=160, height=60) as watched:
        watched.page.set_content("<h1>Points</h1>")
        picture = watched.page.screenshot()
        data = [f"data:image/png;base64,{b64encode(one).decode()}" for one in (picture, repacked(picture))]
        first, second = watched.page.evaluate(_PIXELS, data)
        assert len(set(first)) > 2
        assert first == second


def test_what_is_no_picture_of_a_page_is_refused() -> None:
    with pytest.raises(ValueError, match="not a PNG"):
        repacked(b"GIF89a")
    grey = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    head = struct.pack(">I", len(grey)) + b"IHDR" + grey + struct.pack(">I", zlib.crc32(b"IHDR" + grey))
    with pytest.raises(ValueError, match="colour type 0"):
        repacked(b"\x89PNG\r\n\x1a\n" + head)


_PIXELS = """(addresses) => Promise.all(addresses.map(async (address) => {
  const image = new Image();
  image.src = address;
  await image.decode();
  const canvas = new OffscreenCanvas(image.width, image.height).getContext("2d");
  canvas.drawImage(image, 0, 0);
  return [...canvas.getImageData(0, 0, image.width, image.height).data];
}))"""
