"""From a configuration to finished folders: find the jobs, prepare them, and make one video after the other."""

import functools
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from concat_id.config.loading import COMMAND_LINE, load_config
from concat_id.config.schema import BACKBONES, Config, sampling_part
from concat_id.config.yaml_files import run_configuration
from concat_id.distributed import choose_device, local_rank, own_share, rank, wait_if_failed, warn_of_emulation
from concat_id.errors import UserError, printable, report, tell, warn
from concat_id.face.photos import PhotoComparer
from concat_id.face.reference import PreparedReference, choose_folders
from concat_id.face.verdict import GOOD, POOR
from concat_id.files.locks import InUseError
from concat_id.files.paths import check_writable, resolve_path
from concat_id.models.backbones import weight_digests
from concat_id.sampling.jobs import Job, claimed, finished_folders, make_job, read_prompt_file, save_info, save_references, save_sample
from concat_id.sampling.memory import memory_checked
from concat_id.sampling.pipeline import VideoPipeline, make_pipeline
from concat_id.sampling.sharing import Sharing, way_of_sharing
from concat_id.sampling.takes import Judge, begin, rank_takes, save_takes

PATIENCE = 60  # seconds for the first process to end
Watch = Callable[[int, int, Tensor], None]
"""What is told of every step: steps done of how many, and the estimate of the clean latents (1, T, C, H, W)."""
Candidates = Sequence[tuple[Path, PreparedReference]]
"""Photos of one person, prepared."""


@dataclass
class Prepared:
    """A job with everything the model needs; `people` are the photos that are taken of each."""

    job: Job
    fingerprint: str
    people: list[Candidates]
    again: Path | None = None  # the finished folder that is to be made again
    prompt_embeds: Any = None  # (1, L, D); of systems beside Concat-ID, what their pipeline makes of the prompt


def generate(config: Config, judge: Judge | None = None) -> int:
    """Make the videos of a configuration, and let `judge` rank the takes of each; returns the exit code, 1 if any line failed."""
    device = choose_device(config.args.device)
    try:
        way = way_of_sharing(config)
    except UserError:
        if rank():
            time.sleep(PATIENCE)  # the first process says so, and torchrun ends this one
        raise
    sharing = Sharing(way, device) if way else None
    pipeline = make_pipeline(config, device, Path(config.args.output_dir) / ".prompt_embeddings", sharing)
    if sharing and not sharing.is_first:
        pipeline.follow()
        wait_if_failed(False)
        return 0
    try:
        code = _generate(config, pipeline, judge)
    finally:
        if sharing:
            sharing.end()
    wait_if_failed(code != 0)
    return code


def _generate(config: Config, pipeline: VideoPipeline, judge: Judge | None) -> int:
    jobs, problems = find_jobs(config)
    share = jobs if pipeline.sharing else own_share(jobs)
    settings = result_settings(config)
    prepared, unprepared = prepare_jobs(share, pipeline, settings, judge)
    embed_prompts(prepared, pipeline)
    made, failures = make_videos(prepared, pipeline, settings)
    rankable = [job for job in share if job.source not in unprepared]
    rankings, unranked = rank_all(rankable, settings, Path(config.args.output_dir), judge) if judge else ([], [])
    for line in [*map(printable, made), *rankings]:
        print(line, flush=True)
    return report(*problems, *unprepared.values(), *failures, *unranked)


def find_jobs(config: Config) -> tuple[list[Job], list[str]]:
    """The job of the command line's --prompt, or else those of `args.input_file`, and what is wrong with the other lines.

    Of several processes the first alone is told what is wrong.
    """
    args, max_refs = config.args, config.model.max_people
    if args.prompt and config.origins.source("args.input_file") == COMMAND_LINE:
        raise UserError("command line: found --prompt and --input_file, expected one of them; leave the other out")
    if args.prompt:
        jobs, problems = [make_job(0, args.prompt, args.image, "--prompt", max_refs)], []
    elif args.input_file:
        jobs, problems = read_prompt_file(Path(args.input_file), max_refs)
    else:
        raise UserError("args.input_file: missing, expected a prompt file; set it, or give --prompt and --image")
    scales = config.model.sampler.ref_guidance_scale
    fitting = [job for job in jobs if len(scales) in (1, len(job.people))]
    if rank():
        return fitting, []
    problems += [
        f"{job.source}: found {len(job.people)} people, expected {len(scales)}, as many as ref_guidance_scale has values; give one for all"
        for job in jobs if len(scales) not in (1, len(job.people))
    ]  # fmt: skip
    warn_of_the_unknown(fitting, config)
    return fitting, problems


def warn_of_the_unknown(jobs: Sequence[Job], config: Config) -> list[str]:
    """Say what the model has not been trained for, though it can be tried; returns what is said."""
    model, args = config.model, config.args
    crowded, notes = [job for job in jobs if len(job.people) > model.trained_refs], []
    if crowded:
        known = "one person" if model.trained_refs == 1 else f"{model.trained_refs} people"
        found = f"{crowded[0].source}: {len(crowded[0].people)} people"
        notes.append(f"{found}, but the weights were trained with {known}; likeness will suffer")
    run = run_configuration(resolve_path(args.load)) if args.load and model.kind in BACKBONES else None
    clips = config.data
    with suppress(UserError):  # a record that cannot be read
        clips = load_config([run]).data if run else clips
    (height, width), size = clips.video_size, args.sampling_image_size
    if clips is not config.data and (clips.video_size, clips.fps) != (size, args.sampling_fps):
        trained = f"{run.parent}: trained on clips of {height}x{width} at {clips.fps} frames a second"
        notes.append(f"{trained}, but this video is {size[0]}x{size[1]} at {args.sampling_fps}; it may look worse")
    elif size[0] > height or size[1] > width:
        notes.append(f"{size[0]}x{size[1]} pixels go beyond the {height}x{width} that the model is made for; it may look worse")
    warn(*notes)
    return notes


def result_settings(config: Config) -> dict[str, Any]:
    """Everything but prompt and images that a result depends on: weights by content, face models by folder, not --memory or --device.

    Raises `UserError` for weights that are not there, before anything takes long.
    """
    digests = weight_digests(config)
    args, model, faces = config.args, sampling_part(config.model), choose_folders(config.model.faces)
    scales = config.model.sampler.ref_guidance_scale
    model["sampler"]["ref_guidance_scale"] = scales[0] if len(set(scales)) == 1 else list(scales)
    model["faces"] = {"detector": faces.detector.name, "parser": faces.parser.name if faces.parser else "none"}
    if recognizer := getattr(config.model.faces, "recognizer", None):
        model["faces"]["recognizer"] = Path(recognizer).name
    changing = {"photos": "all"} if args.photos == "all" else {}
    changing |= {name: value for name in ("cache", "cache_threshold", "quantize") if (value := getattr(args, name)) is not None}
    changing |= {"attention_kernel": "sage"} if args.attention_kernel == "sage" else {}
    return changing | {
        "weights": digests,
        "seed": args.seed,
        "samples": args.batch_size,
        "size": list(args.sampling_image_size),
        "latent_frames": args.sampling_num_frames,
        "fps": args.sampling_fps if args.sampling_num_frames > 1 else config.model.fps,  # of a portrait it changes nothing
        "dtype": args.dtype_name,
        "model": model,
    }


def unfinished_jobs(
    share: Sequence[Job], settings: dict[str, Any], output_dir: Path, overwrite: bool
) -> tuple[list[tuple[Job, str, Path | None]], dict[str, str]]:
    """The jobs to be made, each with its fingerprint and its finished folder to be made again, and by source what is wrong with the others.

    `share` is this process's own: what is finished may change while others start, so it has no say in who makes what.
    """
    pending, problems, finished = [], {}, finished_folders(output_dir)
    for job in share:
        try:
            fingerprint = job.fingerprint(settings)
        except UserError as error:
            problems[job.source] = f"{job.source}: {error}"
            continue
        if overwrite or fingerprint not in finished:
            pending.append((job, fingerprint, finished.get(fingerprint)))
    skipped = len(share) - len(pending) - len(problems)
    if skipped:
        print(f"{skipped} of {len(share)} are finished already; --overwrite makes them again")
    return pending, problems


def prepare_jobs(
    share: Sequence[Job], pipeline: VideoPipeline, settings: dict[str, Any], judge: Judge | None = None
) -> tuple[list[Prepared], dict[str, str]]:
    """Leave finished jobs out of this process's share, and prepare the others' references; returns what failed as messages, by source.

    What `judge` could not rank fails before sampling takes long.
    """
    args, device = pipeline.config.args, pipeline.device
    pending, problems = unfinished_jobs(share, settings, Path(args.output_dir), args.overwrite)
    if not pending:
        return [], problems
    check_writable(Path(args.output_dir))
    warn_of_emulation(device, args.dtype_name)
    prepare = functools.lru_cache(64)(pipeline.photo_preparer())  # many lines name the same photos
    prepared, told, comparer = [], set(), PhotoComparer(device)
    for job, fingerprint, again in pending:
        try:
            candidates = [[(photo, prepare(photo)) for photo in photos] for photos in job.people]
            verdicts = {photo: reference.verdict for person in candidates for photo, reference in person}
            for photo in sorted(verdicts.keys() - told):
                (tell if verdicts[photo].level == GOOD else warn)(f"{photo}: {verdicts[photo]}")
            told |= verdicts.keys()
            people = _choose(job.source, candidates, comparer, pipeline.config)
            if judge:
                _require_faces(judge, [person[0][0] for person in people])
            prepared.append(Prepared(job, fingerprint, people, again))
        except UserError as error:
            problems[job.source] = f"{job.source}: {error}"
    return prepared, problems


def _choose(source: str, candidates: Sequence[Candidates], comparer: PhotoComparer, config: Config) -> list[Candidates]:
    """Take the best photo of every person, but no stranger's, or every one. Raises `UserError` for photos that the options refuse."""
    chosen, every, is_strict = [], config.args.photos == "all", config.args.strict_photos
    for number, person in enumerate(candidates, 1):
        compared = comparer.compare([reference for _, reference in person])
        for line in compared.lines([photo for photo, _ in person]) if compared else ():
            if is_strict:
                raise UserError(f"{line} (--strict_photos)")
            warn(f"{source}: {line}")
        outvoted = compared.outvoted if compared else set()
        best = max((each for index, each in enumerate(person) if index not in outvoted), key=lambda each: each[1].verdict.worth)
        if len(person) > 1 and not every:
            tell(f"{source}: of person {number}, {best[0]} is taken")
        chosen.append(person if every else [best])
    taken = [candidate for person in chosen for candidate in person]
    poor = [f"{photo}: {reference.verdict}" for photo, reference in taken if reference.verdict.level == POOR]
    if poor and is_strict:
        raise UserError(f"{poor[0]}; expected a photo that is usable (--strict_photos)")
    if len(taken) > (most := config.model.max_people):
        raise UserError(f"found {len(taken)} photos, the model takes at most {most}; remove some, or --photos best")
    return chosen


def _require_faces(judge: Judge, photos: Sequence[Path]) -> None:
    try:
        judge.require_face(photos)
    except UserError as error:
        raise UserError(f"{error} (--best_of)") from error


def embed_prompts(prepared: Sequence[Prepared], pipeline: VideoPipeline) -> list[str]:
    """Embed all prompts at once, so that the text encoder is gone before sampling starts; returns what is said of them."""
    if not prepared:
        return []
    with memory_checked():
        notes = [f"{item.job.source}: {note}" for item in prepared for note in pipeline.notes_on(item.job.prompt)]
        warn(*notes)
        embeddings = pipeline.encode_prompts([item.job.prompt for item in prepared])
    for item, embedding in zip(prepared, embeddings, strict=True):
        item.prompt_embeds = embedding
    return notes


def make_videos(
    prepared: Sequence[Prepared], pipeline: VideoPipeline, settings: dict[str, Any], watch: Watch = lambda done, of, estimate: None
) -> tuple[list[Path], list[str]]:
    """Make one video after the other under one progress bar; a failing job does not stop the others.

    `watch` is told of every step. Returns the folders made, and what failed as messages.
    """
    if not prepared:
        return [], []
    with memory_checked():
        pipeline.load()
    made, problems, args = [], [], pipeline.config.args
    steps = args.batch_size * pipeline.config.model.sampler.num_inference_steps
    with tqdm(total=len(prepared) * steps, unit="step", position=local_rank(), dynamic_ncols=True) as bar:
        for number, item in enumerate(prepared, 1):
            bar.set_description(f"video {number}/{len(prepared)}")
            try:
                with memory_checked(), claimed(item.job, item.fingerprint, Path(args.output_dir), item.again) as folder:
                    if folder:  # else another process has just made it
                        _fill(folder, item, pipeline, settings, bar, watch)
                        made.append(folder)
            except InUseError as error:
                warn(f"{item.job.source}: {error.owner} is making this video; it is left to that")
            except UserError as error:
                problems.append(f"{item.job.source}: {error}")
            bar.update(number * steps - bar.n)  # whatever was left out
    return made, problems


def rank_all(share: Sequence[Job], settings: dict[str, Any], output_dir: Path, judge: Judge) -> tuple[list[str], list[str]]:
    """Rank the takes of all finished jobs; returns a line for each, and what is wrong with the others."""
    finished, lines, problems = finished_folders(output_dir), [], []
    for job in share:
        try:
            if folder := finished.get(job.fingerprint(settings)):
                lines.append(rank_takes(folder, judge))
        except UserError as error:
            problems.append(f"{job.source}: the takes cannot be ranked: {error}")
    return lines, problems


def _fill(folder: Path, item: Prepared, pipeline: VideoPipeline, settings: dict[str, Any], bar: tqdm, watch: Watch) -> None:
    job, args = item.job, pipeline.config.args
    references = [reference for person in item.people for _, reference in person]
    prepared = save_references(folder, references)  # a full disk refuses them, and a finished result stays one
    made, files = begin(folder, item.fingerprint, item.again is not None)
    bar.update(len(made) * pipeline.config.model.sampler.num_inference_steps)
    images = [reference.image for reference in references]
    people = pipeline.encode_people(references)
    scales = pipeline.config.model.sampler.ref_guidance_scale
    scales = scales if len(scales) == 1 else [scales[number] for number, person in enumerate(item.people) for _ in person]

    def look(step: int, estimate: Tensor) -> None:
        watch(bar.n, bar.total, estimate)

    for index in range(len(made), args.batch_size):
        begun, seed = time.perf_counter(), args.seed + index
        latents = pipeline.sample(item.prompt_embeds, people, seed, lambda step: bar.update(), look, scales)
        sampled = time.perf_counter()
        bar.set_postfix_str("decoding")
        frames, suffix = pipeline.decode(latents), f"_{index + 1}" if index else ""
        files += save_sample(folder, job.prompt, frames, images, args.sampling_fps, suffix)
        bar.set_postfix_str("")
        steps = {"computed_steps": sorted(pipeline.step_cache.computed)} if pipeline.step_cache else {}
        made.append(steps | {"seed": seed, "sampling_s": round(sampled - begun, 2), "decoding_s": round(time.perf_counter() - sampled, 2)})
        save_takes(folder, item.fingerprint, made, files)
    told = [
        {"image": str(photo), "person": number, "detector": reference.detector, "parser": reference.parser,
         "notes": reference.verdict.notes, "verdict": reference.verdict.record()}
        for number, person in enumerate(item.people, 1) for photo, reference in person
    ]  # fmt: skip
    details = {"prompt": job.prompt, "load": args.load, "references": told, "settings": settings}
    details |= {"run": pipeline.placed(), "samples": made}
    save_info(folder, item.fingerprint, prepared + files, **details)
