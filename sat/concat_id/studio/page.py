"""The page itself, made with Gradio: a form, what becomes of it, and what has been made."""

import html
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from concat_id.errors import UserError, counted
from concat_id.files.paths import PROJECT_ROOT
from concat_id.studio.choices import LONGEST_PROMPT, MOST_PEOPLE, MOST_TAKES, RANGES, SEEDS, Model, default_model, example_prompts
from concat_id.studio.gallery import MOST, Result, read_result, result_folders, served
from concat_id.studio.photos import PhotoReader, marked, sentence, side_by_side
from concat_id.studio.worker import VideoRequest, Worker

CONSENT = "Use photos of people who have agreed to it, and say of the result that it is generated. Photos stay on this machine."
CSS = """
.gradio-container {width: 100%; max-width: 1200px !important; margin: auto; overflow: clip !important}
.gradio-container {--button-cancel-background-fill: #b91c1c; --button-cancel-background-fill-hover: #991b1b}
body:not(.dark) .gradio-container {--color-accent: #c2410c}
#ask {position: sticky; bottom: 0; z-index: 50; padding: 8px 0; background: var(--body-background-fill)}
html {scroll-padding-bottom: 9rem}
@media (max-height: 600px) {#ask {position: static}}
.bar {height: 8px; border-radius: 4px; background: var(--border-color-primary)}
.bar > div {height: 8px; border-radius: 4px; background: var(--color-accent); forced-color-adjust: none}
.word {padding: 1px 8px; border-radius: 9px; color: white; font-size: 90%}
.good, .made {background: #15803d}
.usable {background: #b45309}
.poor, .unreadable, .stranger, .failed, .stopped {background: #b91c1c}
.facts, .facts tr, .facts th, .facts td {border: 0 !important; padding: 2px 14px 2px 0 !important; text-align: left; vertical-align: top}
.facts th {white-space: nowrap; font-weight: normal; opacity: .7}
.facts td {overflow-wrap: anywhere}
[id^=photo] td.download {display: none}
.report {width: 100%; height: 80vh; border: 0; background: white}
#make, #stop, #chosen label {min-width: 0; overflow-wrap: anywhere}
.gradio-container :is([type=range], [type=checkbox]):focus-visible {outline: 2px solid var(--color-accent) !important; outline-offset: 2px}
[id$=_video] .controls, footer {display: none !important}
@media (forced-colors: active) {[role=tab].selected, #ask button {border: 1px solid !important} [type=range] {appearance: auto !important}}
"""
# The buttons of Gradio's files and pictures are all called alike, and its player has no controls for the keyboard; both come anew.
NAME_PARTS = """() => new MutationObserver(() => {
  document.querySelectorAll("[id^=photo] button:is([aria-dropeffect], [title])").forEach(button => button.title = button.ariaLabel =
    (button.title.startsWith("Clear") ? "Clear photos of person " : "Photos of person ") + button.closest("[id^=photo]").id.slice(5))
  document.querySelectorAll(":is(#status, #report, #picked_table, [id^=verdict]) .prose").forEach(told => told.role = "status")
  document.querySelectorAll("#gallery button:has(img)").forEach(button => button.ariaLabel = button.querySelector("img").alt)
  document.querySelectorAll("video:not([controls])").forEach(video => {
    Object.assign(video, {controls: true, ariaLabel: "Result"})
    video.addEventListener("click", event => event.stopImmediatePropagation(), true)
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) video.loop = false; else video.autoplay = true
    if (video.closest("#picked_video")) video.focus()
  })
}).observe(document.body, {childList: true, subtree: true, attributeFilter: ["alt", "controls"]})"""
FOCUS_PROMPT = "() => setTimeout(() => document.querySelector('#prompt textarea').focus())"
GALLERY, EVALUATED = "Results, the newest first", "Results to compare, the newest first"
PRIVATE = {"api_visibility": "private"}  # what a page calls, nobody else
IDLE = "nothing of yours is being made"
SAVE = ["fullscreen", "download"]  # buttons of an image
SECONDS = 600  # that a report or the doctor may take


class Studio:
    """What the page's functions share: the models of this machine, the worker, and the photos' reader."""

    def __init__(self, models: dict[str, Model]):
        self.models, self.worker, self.reader = models, Worker(), PhotoReader()

    def make(self, session: gr.Request, model: str, prompt: str, *given: Any) -> Iterator[tuple]:
        """Make a video and say how far it is; yields status, preview, and the values of the result's components."""
        filled = [number for number, paths in enumerate(given[:MOST_PEOPLE]) if paths]
        photos, strengths = (tuple(given[start + number] for number in filled) for start in (0, MOST_PEOPLE))
        uploads, settings = [path for paths in photos for path in paths], given[2 * MOST_PEOPLE :]
        nothing, notes = (gr.skip(),) * len(shown(None)), []
        try:
            request = self.request(model, prompt, photos, strengths, *settings)
        except UserError as error:
            yield marked("failed", sentence(error, *uploads)), gr.skip(), *nothing
            return
        began, preview = time.monotonic(), gr.update(value=None, visible=False)
        yield bar("waiting for the model", 0), preview, *shown(None)
        for event in self.worker.make(request, session.session_hash):
            if event is None:
                continue
            if event.kind == "waiting":
                yield bar(f"waiting for {counted(video=event.value)}", 0), gr.skip(), *nothing
            elif event.kind == "step":
                done, of = event.value
                began = time.monotonic() if not done else began
                yield bar(f"step {done} of {of}, {time_left(began, done, of)}", done / of), gr.skip(), *nothing
            elif event.kind == "preview":
                yield gr.skip(), gr.update(value=Image.open(io.BytesIO(event.value)), visible=True), *nothing
            elif event.kind == "notes":
                notes = event.value
            elif event.kind == "made":
                told = "".join(f"<br>{sentence(note, *uploads)}" for note in notes)
                yield marked("made", told), preview, *shown(read_result(Path(event.value)))
            elif event.kind in ("failed", "stopped"):
                told = sentence(event.value, *uploads) if event.value else IDLE
                yield marked(event.kind, told), preview, *nothing

    def request(
        self, model: str, prompt: str, photos: tuple, strengths: tuple, seed: float | None, takes: float, *sizes: float
    ) -> VideoRequest:
        """Read the form. Raises `UserError` for what cannot be made."""
        if not photos:
            raise UserError("no photo yet; give one of each person, left to right")
        if not (prompt or "").strip():
            raise UserError("no prompt yet; say what the video shows")
        if len(prompt) > LONGEST_PROMPT:
            raise UserError(f"the prompt has {len(prompt):,} characters, at most {LONGEST_PROMPT:,} are read; shorten it")
        if seed is None or seed % 1 or not 0 <= seed < SEEDS:
            raise UserError(f"Seed: found {seed or 'nothing'}, expected a whole number from 0 to {SEEDS - 1}")
        named = dict(zip(("sampling_num_frames", "num_inference_steps", "guidance_scale"), sizes, strict=True))
        settings = {name: str(value) for name, value in named.items() if value is not None}
        settings |= {"seed": str(int(seed)), "ref_guidance_scale": list(strengths)}
        settings |= {"best_of": str(int(takes))} if takes > 1 else {}
        chosen = self.models[model]
        settings["output_dir"] = chosen.configs[chosen.task(len(photos))].args.output_dir
        request = VideoRequest(model, chosen.task(len(photos)), prompt, photos, settings)
        request.config()  # tells now what would be told later
        return request

    def stop(self, session: gr.Request) -> Any:
        """End what this page makes or waits for; `make` says so, as its own last word cannot be overtaken by a step's."""
        return gr.skip() if self.worker.stop(session.session_hash) else marked("stopped", IDLE)

    def folders(self) -> list[Path]:
        """Finished results of all models, the newest first."""
        return result_folders([folder for model in self.models.values() for folder in model.folders])

    def results(self) -> tuple[list[Result], str]:
        """The newest of them, and how many of how many these are, where some are left out."""
        folders = self.folders()
        told = f", {MOST} of {len(folders)}" if len(folders) > MOST else ""
        return [result for folder in folders[:MOST] if (result := read_result(folder))], told

    def posters(self) -> tuple[dict, list[str]]:
        """The results as a gallery shows them, but those of damaged videos, and their folders."""
        results, told = self.results()
        pictured = [(poster, result) for result in results if (poster := result.poster)]
        posters = [(poster, result.prompt[:80]) for poster, result in pictured]
        return gr.update(value=posters, label=GALLERY + told), [str(result.folder) for _, result in pictured]

    def pick(self, event: gr.SelectData, folders: list[str]) -> tuple:
        """The values of the result's components for the one that was clicked."""
        return shown(read_result(Path(folders[event.index])))

    def another_seed(self, folder: str | None, seed: float) -> float:
        """The seed after those of a result, or that of the form where there is none."""
        found = read_result(Path(folder)) if folder else None
        return found.next_seed if found else seed

    def again(self, folder: str | None, model: str) -> tuple:
        """Status, model, prompt, photos, seed, takes and `defaults` for an earlier result with other seeds, and the tab of the form.

        Crops stand in for photos, and `model` for one that is not offered.
        """
        found = read_result(Path(folder)) if folder else None
        if found is None:
            return (gr.skip(),) * (2 * MOST_PEOPLE + 10)
        photos: list = [[served(path) for path in crops] for crops in found.crops[:MOST_PEOPLE]]
        photos += [None] * (MOST_PEOPLE - len(photos))
        known = [name for name, each in self.models.items() if Path(str(found.info.get("load"))) in each.weights]
        told = [] if known else [f"the model of {found.name} is not offered here; {model} takes its place"]
        model = model if model in known or not known else known[0]
        chosen, was = self.models[model], found.info["settings"]
        args = chosen.configs[chosen.task(len(found.crops))].args
        sizes = {"size": list(args.sampling_image_size), "fps": args.sampling_fps}
        then, now = ("{}x{} at {}".format(*each["size"], each["fps"]) for each in (sizes | was, sizes))
        if then != now:
            told.append(f"it was {then} frames a second; this page makes {now}")
        examples, *sliders = self.defaults(model)
        for slider, value, (least, most) in zip(sliders, found.sizes, RANGES, strict=False):
            slider["value"] = min(max(value, least), slider.get("maximum", most))
        form = found.next_seed, min(len(found.info["samples"]), MOST_TAKES), examples, *sliders
        if any(slider["value"] != value for slider, value in zip(sliders, found.sizes, strict=False)):
            told.append("what lies beyond a slider is at its end")
        return html.escape("; ".join(told)), model, found.prompt, *photos, *form, gr.update(selected="create")

    def defaults(self, model: str) -> tuple:
        """What the form says for a model: its prompts, sizes, and how many people it takes."""
        chosen = self.models[model]
        config = next(iter(chosen.configs.values()))
        sampler, people = config.model.sampler, config.model.transformer.max_refs
        strengths = [gr.update(value=sampler.ref_guidance_scale[0], visible=number < people) for number in range(MOST_PEOPLE)]
        return (
            gr.update(samples=[[prompt] for prompt in example_prompts(chosen)]),
            gr.update(value=config.args.sampling_num_frames, maximum=config.model.max_latent_frames),
            gr.update(value=sampler.num_inference_steps),
            gr.update(value=sampler.guidance_scale),
            *strengths,
        )

    def choices(self) -> dict:
        """What can be evaluated."""
        results, told = self.results()
        named = [(f"{result.name}: {result.prompt[:70]} (seed {result.seed})", str(result.folder)) for result in results]
        return gr.update(choices=named, label=EVALUATED + told)

    def evaluate(self, names: list[str]) -> Iterator[str]:
        """The evaluation's report on the chosen results, in a frame that can do nothing."""
        known = set(map(str, self.folders()))
        chosen = [name for name in names or () if name in known]
        if not chosen:
            yield "choose one result or more"
            return
        yield "measuring; some seconds a video"
        with tempfile.TemporaryDirectory(dir=os.environ.get("GRADIO_TEMP_DIR")) as folder:
            told = run_script("evaluate_identity", "--videos", *chosen, "--output", folder)
            report = Path(folder) / "report.html"
            page = html.escape(report.read_text(encoding="utf-8")) if report.is_file() else None
        yield f'<iframe class="report" title="Report" sandbox srcdoc="{page}"></iframe>' if page else f"<pre>{html.escape(told)}</pre>"


def theme() -> gr.themes.Base:
    """Gradio's looks with the fonts of the browser's machine: nothing is fetched."""
    shades = {"": "*primary_700", "_hover": "*primary_800"}  # on which white can be read
    fills = {f"button_primary_background_fill{state}{dark}": shade for state, shade in shades.items() for dark in ("", "_dark")}
    return gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]).set(**fills)


def run_script(name: str, *arguments: str) -> str:
    """Run an entry script, and return what it says."""
    command = [sys.executable, str(PROJECT_ROOT / "sat" / f"{name}.py"), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL, check=False)
    except subprocess.TimeoutExpired:
        return f"{name} took more than {SECONDS} s"
    return done.stdout + done.stderr


def time_left(began: float, done: int, of: int) -> str:
    """Say how long the rest takes at the pace so far."""
    if not done:
        return "starting"
    seconds = (time.monotonic() - began) / done * (of - done)
    return f"about {int(seconds // 60)} min {int(seconds % 60):02d} s left"


def bar(told: str, share: float) -> str:
    """A sentence over a progress bar."""
    role = f'role="progressbar" aria-label="Progress" aria-valuenow="{100 * share:.0f}"'
    return f'{html.escape(told)}<div class="bar" {role}><div style="width: {100 * share:.0f}%"></div></div>'


def table(rows: list[tuple[str, str]]) -> str:
    """Rows of a name and a value."""
    cells = ((html.escape(name), html.escape(value)) for name, value in rows)
    return '<table class="facts">' + "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in cells) + "</table>"


def shown(result: Result | None) -> tuple:
    """Values of the result's components: the whole, video, portrait, sheet, references, table, and the result's folder."""
    if result is None:
        return gr.update(visible=False), *(gr.update(value=None, visible=False) for _ in range(3)), None, "", None
    files = served(result.file("video")), served(result.file("portrait")), served(result.file("takes") or result.file("sheet"))
    return (
        gr.update(visible=True),
        *(gr.update(value=file, visible=file is not None) for file in files),
        side_by_side([Image.open(path) for path in result.references]),
        table(result.table()),
        str(result.folder),
    )


def build_page(studio: Studio) -> gr.Blocks:
    """Lay the page out and connect it."""
    with gr.Blocks(title="Concat-ID Studio", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gr.Markdown("# Concat-ID Studio\nVideos in which people do what you write, from photos of their faces.")
        names = [(f"{model.title} ({name})", name) for name, model in studio.models.items()]
        model = gr.Dropdown(names, value=default_model(studio.models), label="Model", elem_id="model")
        with gr.Tabs() as tabs:
            with gr.Tab("Create", id="create"), gr.Row():
                with gr.Column(min_width=320):
                    form = _form()
                with gr.Column(min_width=320):
                    preview = gr.Image(label="On the way", interactive=False, buttons=[], elem_id="preview", height=240, visible=False)
                    result = _result("result")
            with gr.Tab("Gallery") as tab, gr.Row():
                with gr.Column(min_width=320):
                    gallery = gr.Gallery(
                        label=GALLERY, columns=2, object_fit="cover", height="auto", allow_preview=False, buttons=[],
                        elem_id="gallery",
                    )  # fmt: skip
                    folders = gr.State([])
                    tab.select(studio.posters, None, [gallery, folders], **PRIVATE)
                with gr.Column(min_width=320):
                    picked = _result("picked")
            with gr.Tab("Evaluate") as tab:
                _evaluation(studio, tab)
            with gr.Tab("Machine"):
                examine = gr.Button("Examine this machine", elem_id="examine")
                machine = gr.Code(label="python sat/doctor.py", language=None, wrap_lines=True, elem_id="machine", interactive=False)
                examine.click(lambda: run_script("doctor"), None, machine, concurrency_limit=1, **PRIVATE)

        sizes = _connect_form(studio, page, model, form)
        inputs = [model, form["prompt"], *form["files"], *form["strengths"], *form["settings"]]
        outputs = [form["status"], preview, *result["parts"]]
        made = {"fn": studio.make, "inputs": inputs, "outputs": outputs, "concurrency_limit": None, **PRIVATE}
        form["make"].click(**made)
        seeds = form["settings"][:2]
        result["again"].click(studio.another_seed, [result["parts"][-1], seeds[0]], seeds[0], **PRIVATE).then(**made)
        form["stop"].click(studio.stop, None, form["status"], queue=False, **PRIVATE)
        gallery.select(studio.pick, folders, picked["parts"], **PRIVATE)
        filled = [form["status"], model, form["prompt"], *form["files"], *seeds, *sizes, tabs]
        picked["again"].click(studio.again, [picked["parts"][-1], model], filled, **PRIVATE).then(None, js=FOCUS_PROMPT)
    return page


def _evaluation(studio: Studio, tab: gr.Tab) -> None:
    chosen = gr.CheckboxGroup(label=EVALUATED, elem_id="chosen")
    measure = gr.Button("Measure", variant="primary", elem_id="measure")
    report = gr.HTML(elem_id="report")
    tab.select(studio.choices, None, chosen, **PRIVATE)
    measure.click(studio.evaluate, chosen, report, concurrency_limit=1, **PRIVATE)


def _form() -> dict[str, Any]:
    files, views, verdicts = [], [], []
    with gr.Row():
        for number in range(1, MOST_PEOPLE + 1):
            with gr.Column(min_width=150):
                files.append(gr.File(label=f"Person {number}", file_count="multiple", elem_id=f"photo{number}", height=140))
                view = {"alt_text": f"Person {number}: crop, what the model sees", "show_label": False, "interactive": False, "buttons": []}
                views.append(gr.Image(**view, height=130, elem_id=f"view{number}", visible=False))
                verdicts.append(gr.HTML(elem_id=f"verdict{number}"))
    gr.Markdown(f"<small>People from left to right; of each the best photo (64 MB at most) is taken. {CONSENT}</small>")
    prompt = gr.Textbox(label="Prompt", lines=2, elem_id="prompt")
    examples = gr.Dataset(components=[prompt], samples=[[""]], label="Prompts that this model understands", samples_per_page=6)
    with gr.Accordion("More", open=False):
        with gr.Row():
            seed = gr.Number(42, label="Seed", elem_id="seed")
            takes = gr.Slider(1, MOST_TAKES, 1, step=1, label="Takes, ranked by likeness", elem_id="takes")
        frames = gr.Slider(*RANGES[0], 1, step=1, label="Latent frames: n make 4(n-1)+1 frames, 1 a portrait", elem_id="frames")
        steps = gr.Slider(*RANGES[1], 25, step=1, label="Denoising steps", elem_id="steps")
        guidance = gr.Slider(*RANGES[2], 6, step=0.5, label="Strength of the prompt", elem_id="guidance")
        with gr.Row():
            strengths = [
                gr.Slider(*limits, 1, step=0.1, label=f"Strength of person {number}", min_width=150)
                for number, limits in enumerate(RANGES[3:], 1)
            ]
        gr.Markdown("<small>Every strength of a person other than 1 takes one more pass a step; equal ones share it.</small>")
    with gr.Column(elem_id="ask"):
        with gr.Row():
            make = gr.Button("Generate", variant="primary", elem_id="make")
            stop = gr.Button("Stop", variant="stop", elem_id="stop")
        status = gr.HTML(elem_id="status")
    return {
        "files": files, "views": views, "verdicts": verdicts, "prompt": prompt, "examples": examples, "make": make, "stop": stop,
        "status": status, "strengths": strengths, "settings": [seed, takes, frames, steps, guidance],
    }  # fmt: skip


def _result(name: str) -> dict[str, Any]:
    with gr.Column(visible=False) as whole:
        video = gr.Video(label="Video", interactive=False, loop=True, elem_id=f"{name}_video")
        portrait = gr.Image(label="Portrait", alt_text="Portrait", interactive=False, buttons=SAVE, elem_id=f"{name}_portrait")
        sheet = gr.Image(label="Sheet", alt_text="Sheet", interactive=False, buttons=SAVE, elem_id=f"{name}_sheet")
        seen = {"label": "What the model saw", "alt_text": "What the model saw", "elem_id": f"{name}_references"}
        references = gr.Image(**seen, interactive=False, buttons=[], height=180)
        table = gr.HTML(elem_id=f"{name}_table")
        again = gr.Button("Again with another seed", elem_id=f"{name}_again")
    return {"parts": [whole, video, portrait, sheet, references, table, gr.State()], "again": again}


def _connect_form(studio: Studio, page: gr.Blocks, model: Any, form: dict[str, Any]) -> list[Any]:
    """Connect the form's parts with one another; returns those that a model has defaults for."""

    def look(paths: list[str] | None, name: str) -> tuple:
        image, verdict = studio.reader.look(paths, next(iter(studio.models[name].configs.values())))
        return gr.update(value=image, visible=image is not None), verdict

    for file, view, verdict in zip(form["files"], form["views"], form["verdicts"], strict=True):
        file.change(look, [file, model], [view, verdict], **PRIVATE)
    filled = [form["examples"], *form["settings"][2:], *form["strengths"]]
    for load in (page.load, model.input):
        load(studio.defaults, model, filled, **PRIVATE)
    form["examples"].click(lambda sample: sample[0], form["examples"], form["prompt"], **PRIVATE)
    return filled
