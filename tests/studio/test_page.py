"""The page in a real browser: what people do there, and what they drop on it by mistake or on purpose."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
from conftest import ROOT
from PIL import Image

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
PEOPLE = ROOT / "examples" / "people"
PROMPT = "a man in a green shirt and a woman in a red shirt speak"
PATIENCE = 90  # seconds


class Server:
    """sat/studio.py on a port of its own."""

    def __init__(self, output: Path, *options: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, str(ROOT / "sat" / "studio.py"), "--port", str(port), "--output", str(output), *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.address = f"http://127.0.0.1:{port}"
        said = []
        for line in self.process.stdout:
            if self.address in line:
                return
            said.append(line)
        raise AssertionError(f"no page: exit code {self.process.wait()}\n{''.join(said[-20:])}")

    def close(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=20)


class Page:
    """A browser that shows the page."""

    def __init__(self):
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "hide-scrollbars"):
            options.add_argument(f"--{argument}")
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))

    def resize(self, width: int, height: int = 1500) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 800}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def open(self, address: str) -> None:
        self.resize(1280)
        self.driver.get(address)
        self.text("#make", "Generate")

    def all(self, css: str) -> list:
        return self.driver.find_elements("css selector", css)

    def text(self, css: str, wanted: str = ".") -> str:
        """Wait until an element says what is wanted, and return all that it says."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            found = self.driver.execute_script("return [...document.querySelectorAll(arguments[0])].map(e => e.innerText)", css)
            if texts := [text for text in found if re.search(wanted, text)]:
                return texts[0]
            time.sleep(0.1)
        raise AssertionError(f"{css} says {found}, expected {wanted}")

    def click(self, css: str, text: str = "") -> None:
        """Wait for an element that says what is wanted, and click it."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            for element in self.all(css):
                if re.search(text, element.get_attribute("innerText") or ""):
                    self.driver.execute_script("arguments[0].click()", element)
                    return
            time.sleep(0.1)
        raise AssertionError(f"no {css} says {text}")

    def upload(self, person: int, path: Path) -> str:
        """Put a file into a slot, and return the verdict."""
        for button in self.all(f"#photo{person} button[title^='Clear']"):
            self.driver.execute_script("arguments[0].click()", button)
            self.text(f"#verdict{person}", "^$")
        self.all(f"#photo{person} input[type=file]")[0].send_keys(str(path))
        return self.text(f"#verdict{person}", "good|usable|poor|unreadable")

    def contrast(self, css: str) -> float:
        """How much brighter the words of an element are than what is behind them, or the other way round, as WCAG counts it."""
        colours = """let element = document.querySelector(arguments[0]), found = [getComputedStyle(element).color], fill
            do { fill = getComputedStyle(element).backgroundColor; element = element.parentElement } while (/, 0\\)/.test(fill))
            return [...found, fill].map(colour => colour.match(/\\d+/g).slice(0, 3))"""
        shares = [[int(value) / 255 for value in colour] for colour in self.driver.execute_script(colours, css)]
        linear = [[x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in colour] for colour in shares]
        dark, bright = sorted(0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05 for red, green, blue in linear)
        return bright / dark

    def write(self, css: str, text: str) -> None:
        field = self.all(css)[0]
        self.driver.execute_script("arguments[0].value = ''; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))", field)
        field.send_keys(text, "\t")

    def foreign_requests(self) -> list[str]:
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith(("http://127.0.0.1", "data:", "blob:"))]


@pytest.fixture(scope="module")
def page():
    if not (CHROMIUM and DRIVER):
        assert not os.environ.get("CI"), "chromium and chromium-driver: not installed, expected them for these tests"
        pytest.skip("needs Debian's chromium and chromium-driver")
    opened = Page()
    yield opened
    opened.driver.quit()


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("studio")


@pytest.fixture(scope="module")
def server(output):
    running = Server(output)
    yield running
    running.close()


@pytest.fixture(scope="module")
def again(output, tmp_path_factory):
    """The page started a second time, with a folder of its own for temporary files, where a proxy leads out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("http_proxy", "http://127.0.0.1:9")
        patch.delenv("no_proxy")
        patch.setenv("TMPDIR", str(folder := tmp_path_factory.mktemp("temporary")))
        running = Server(output)
    yield running, folder
    running.close()


def test_two_photos_become_a_video_that_plays_on_large_and_small_screens(page, server, output):
    page.open(server.address)
    assert "good" in page.upload(1, PEOPLE / "ben.png") and "good" in page.upload(2, PEOPLE / "anna.png")
    assert page.all("#view2 img")[0].get_attribute("alt") and page.all("#verdict2 [role=status]")[0].text == "good"
    page.click("#photo1 button[aria-label='Clear photos of person 1']")
    assert not page.all("button:is([aria-label^='common'], [title^='common'])")
    page.click("#photo1 button[aria-label='Photos of person 1']")
    page.click("#photo3 button[aria-label='Photos of person 3']")
    assert "good" in page.upload(1, PEOPLE / "ben.png")
    page.write("#prompt textarea", PROMPT)
    page.click("button", "More")
    page.write("#steps input[type=number]", "2")
    page.write("#takes input[type=number]", "2")
    page.click("#make")
    page.text("#status", "^made")
    page.text("#result_table", "SFace similarity")
    length = "const video = document.querySelector('#result_video video'); return video ? video.duration : 0"
    end = time.monotonic() + 20
    while not (duration := page.driver.execute_script(length)) and time.monotonic() < end:
        time.sleep(0.2)
    assert duration == pytest.approx(17 / 8, abs=0.01) and page.all("#result_video video[autoplay][loop][controls]")
    (folder,) = [path for path in output.iterdir() if not path.name.startswith(".")]
    info = json.loads((folder / "info.json").read_text())
    assert info["best"] in ("video.mp4", "video_2.mp4") and info["settings"]["model"]["sampler"]["num_inference_steps"] == 2
    for width in (1280, 390):
        page.resize(width)
        page.driver.save_screenshot(str(output / f"page_{width}.png"))
        assert page.driver.execute_script("return document.documentElement.scrollWidth") <= width
    page.click("#result_again")
    page.text("#result_table", r"seed\s+4[45]")
    assert page.all("#seed input")[0].get_attribute("value") == "44", "after 42 and 43"
    assert page.foreign_requests() == []


def test_stop_ends_the_process_and_the_next_video_is_made(page, server):
    page.open(server.address)
    page.upload(1, PEOPLE / "ben.png")
    page.write("#prompt textarea", "a man in a green shirt speaks")
    page.click("button", "More")
    page.write("#steps input[type=number]", "100")
    page.click("#make")
    page.text("#status [role=status]", "step [1-9]")
    assert int(page.all("#status [role=progressbar]")[0].get_attribute("aria-valuenow")) > 0
    page.resize(1280, 720)
    page.driver.execute_script("scrollTo(0, 0); document.querySelector('#frames input').scrollIntoView({block: 'nearest'})")  # as Tab does
    boxes = "return arguments[0].map(css => document.querySelector(css).getBoundingClientRect()).map(box => [box.top, box.bottom])"
    entered, asked, told = page.driver.execute_script(boxes, ["#frames input", "#make", "#status"])
    assert 0 <= entered[0] < entered[1] <= asked[0] < asked[1] <= told[0] < told[1] <= 720
    page.resize(640, 360)  # as a screen of 720 lines at 200 %
    assert page.driver.execute_script("return getComputedStyle(document.querySelector('#ask')).position") == "static"
    page.click("#stop")
    page.text("#status", "stopped")
    time.sleep(1)  # for a step's message that comes late
    assert page.all("#status")[0].text == "stopped nothing of yours is being made"
    page.write("#steps input[type=number]", "2")
    page.click("#make")
    page.text("#status", "^made")


def test_what_is_no_photo_or_no_prompt_has_a_sentence_and_the_server_lives_on(page, server, tmp_path):
    page.open(server.address)
    page.click("#make")
    page.text("#status", "no photo yet")
    made = {
        "paper.pdf": b"%PDF-1.7\n%", "nothing.jpg": b"", "film.mp4": b"\0\0\0\x18ftypmp42" + bytes(64), "<img src=x>.png": b"no image",
    }  # fmt: skip
    for name, content in made.items():
        (tmp_path / name).write_bytes(content)
        told = page.upload(3, tmp_path / name)
        assert "unreadable" in told and "image" in told and str(tmp_path) not in told and "gradio" not in told
    Image.linear_gradient("L").convert("RGB").resize((640, 480)).save(tmp_path / "wall.png")
    assert "found no face" in page.upload(3, tmp_path / "wall.png")
    Image.new("L", (12000, 9000)).save(tmp_path / "huge.png")
    assert "found no face" in page.upload(3, tmp_path / "huge.png")
    page.click("#make")
    page.text("#status", "no prompt yet")
    assert page.driver.execute_script("return document.querySelector('#prompt textarea').maxLength") == -1
    page.click("button", "More")
    page.write("#prompt textarea", "a man speaks")
    page.write("#seed input", "-1")
    page.click("#make")
    page.text("#status", "Seed: found -1, expected a whole number from 0 to 4294967295")
    for colours in ("light", "dark"):
        page.driver.execute_script("document.body.className = arguments[0]", colours)
        assert min(map(page.contrast, ("#make", "#stop", "button[role=tab].selected"))) > 4.5, colours
    assert requests.get(server.address, timeout=10).status_code == 200


def test_results_are_there_after_a_restart_and_can_be_made_again_and_measured(page, server, again):
    page.open(again[0].address)
    page.click("button[role=tab]", "Gallery")
    page.text("#gallery", "a man in a green shirt")
    less_motion = [{"name": "prefers-reduced-motion", "value": "reduce"}]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": less_motion})
    page.click("#gallery button[aria-label^='a man in a green']:has(img)")
    seed = int(re.search(r"seed\s+(\d+)", page.text("#picked_table [role=status]", "seed"))[1])
    page.text("#picked_video video:focus", "")
    (video,) = page.all("#picked_video video:not([autoplay], [loop])")
    for keys, paused in ((" ", False), (" \t", True)):
        video.send_keys(keys)
        assert video.get_property("paused") is paused
    page.click("#picked_again")
    page.text("#verdict1", "good|usable")
    assert page.driver.execute_script("return document.activeElement.closest('[id]').id") == "prompt"
    page.click("button", "More")
    assert page.driver.execute_script("return document.querySelector('#seed input').value") == str(seed + 1)
    assert page.driver.execute_script("return document.querySelector('#steps input').value") == "2"
    page.click("button[role=tab]", "Evaluate")
    page.text("#chosen", r"0000_a_man_in_a_green.*seed 42")
    page.resize(360)
    assert page.driver.execute_script("return document.querySelector('#chosen label').getBoundingClientRect().right") < 360
    page.click("#chosen input")
    page.click("#measure")
    end = time.monotonic() + PATIENCE
    while not page.all("#report [role=status] iframe") and time.monotonic() < end:
        time.sleep(0.2)
    assert "SFace similarity" in page.all("#report iframe[title]")[0].get_attribute("srcdoc")


def test_no_path_of_the_server_is_accepted_and_uploads_go_with_it(call, output, again):
    server, folder = again
    config = requests.get(f"{server.address}/config", timeout=10).json()
    assert not config.get("analytics_enabled") and not config.get("is_space")
    for path in ("/etc/passwd", str(ROOT / "README.md"), str(output)):
        assert requests.get(f"{server.address}/gradio_api/file={path}", timeout=10).status_code in (403, 404)
    for foreign in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Host": "[bad"},
                    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}):  # fmt: skip
        refused = requests.post(f"{server.address}/gradio_api/upload", files={"files": b"x"}, headers=foreign, timeout=10)
        assert refused.status_code == 403 and "--listen" in refused.text
    own = {"Host": f"localhost:{server.address.rpartition(':')[2]}"}
    assert requests.get(f"{server.address}/config", headers=own, timeout=10).status_code == 200
    look = next(each for each in config["dependencies"] if each["targets"][0][1] == "change" and len(each["inputs"]) == 2)
    data = [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, "mini"]
    body = {"data": data, "fn_index": look["id"], "session_hash": "abc"}
    requests.post(f"{server.address}/gradio_api/queue/join", json=body, timeout=10)
    stream = requests.get(f"{server.address}/gradio_api/queue/data", params={"session_hash": "abc"}, stream=True, timeout=30)
    for line in stream.iter_lines(decode_unicode=True):
        if "process_completed" in line:
            break
    assert json.loads(line.removeprefix("data:"))["success"] is False
    assert list(folder.glob("concat-id-studio-*"))
    test_options_that_cannot_be_are_refused(call, ["--port", server.address.rpartition(":")[2]], "is in use by another program, or")
    server.close()
    assert not list(folder.glob("concat-id-studio-*"))


@pytest.mark.parametrize("options, words", [
    (["--listen", "0.0.0.0"], "expected one, as others can open the page"),
    (["--port", "0"], "expected 1 to 65535"),
])  # fmt: skip
def test_options_that_cannot_be_are_refused(call, options, words):
    ended = call("studio", *options)
    assert ended.code == 2 and words in ended.err and "Traceback" not in ended.err
