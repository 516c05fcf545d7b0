"""The page in a real browser, and what it must not need."""

import html.parser
import re
import shutil
import subprocess

import numpy as np
import pytest
from evaluation.clips import other_photographs, scene, write_clip
from PIL import Image

from concat_id.evaluation.measuring import COLOURS

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.fixture
def page(evaluate, tmp_path, portraits):
    """The report of two runs with a prompt that is code."""
    prompt = 'a <script>document.title="taken"</script> & "two" people'
    frames = {
        "first": [scene(photo, portraits["actor"]) for photo in other_photographs(portraits["astronaut"])[:3]],
        "second": [scene(portraits["astronaut"]), scene(None), scene(portraits["actor"])],
    }
    for run, scenes in frames.items():
        for number, name in enumerate(("astronaut", "actor"), 1):
            (tmp_path / run).mkdir(exist_ok=True)
            portraits[name].save(tmp_path / run / f"pair_{number}.png")
        write_clip(tmp_path / run / "pair.mp4", scenes)
        (tmp_path / run / "pair.txt").write_text(prompt)
    (tmp_path / "second" / "broken.mp4").write_bytes(b"no video")
    portraits["actor"].save(tmp_path / "second" / "broken.png")
    code, _ = evaluate("--videos", tmp_path / "first", tmp_path / "second")
    assert code == 1
    return tmp_path / "report" / "report.html"


class Balance(html.parser.HTMLParser):
    """Collects what is left open, and attributes that fetch something."""

    VOID = {"meta", "img", "br", "line", "rect", "circle", "path"}

    def __init__(self):
        super().__init__()
        self.open, self.sources = [], []

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_page_is_complete_and_needs_nothing(page):
    text = page.read_text()
    parser = Balance()
    parser.feed(text)
    assert parser.open == [] and len(parser.sources) == 2 + 2 * 3, "references once, frames of both runs"
    assert all(source.startswith("data:image/jpeg;base64,") for source in parser.sources)
    assert not re.search(r"url\(|@import|<script", text)
    assert "&lt;script&gt;" in text and text.count("<article") == 2 and text.count('class="curve"') == 4
    assert "SFace similarity" in text and "ArcFace" not in text and "second minus first" in text


@pytest.mark.skipif(BROWSER is None, reason="found no browser; `apt-get install chromium` makes this test run")
def test_page_in_a_browser(page, tmp_path):
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
               "--enable-logging=stderr", "--window-size=1100,4200", f"--screenshot={tmp_path / 'shot.png'}", page.as_uri()]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert shown.returncode == 0, shown.stderr[-2000:]
    assert "CONSOLE" not in shown.stderr and "ERR_" not in shown.stderr
    assert "<title>Concat-ID evaluation: first, second</title>" in shown.stdout, "a prompt is text, not code"
    pixels = np.asarray(Image.open(tmp_path / "shot.png").convert("RGB")).astype(int)
    for name in COLOURS[:2]:
        colour = [int(name[start : start + 2], 16) for start in (1, 3, 5)]
        assert (np.abs(pixels - colour).max(axis=2) < 12).sum() > 200, "the frames and curves of both people are drawn"
