"""Every weight file of a model: whole, missing, cut short, a pointer of Git LFS, or in the wrong place.

Headers are read, no tensors but those of ConsistentID's face models; where digests are asked for, every byte of what has a known one.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from concat_id.config.loading import load_config
from concat_id.config.neighbours import NEIGHBOURS, weight_paths
from concat_id.config.presets import FETCH_PARSER, PRESETS, files_of
from concat_id.config.schema import Config
from concat_id.doctor.digests import check_digest, known_digest
from concat_id.doctor.findings import NOTE, OK, PROBLEM, Finding, from_error
from concat_id.errors import UserError
from concat_id.face.detection import FaceDetector
from concat_id.face.onnx_files import check_onnx, onnx_files
from concat_id.face.recognition import load_arcface
from concat_id.files.paths import resolve_path, visible_files
from concat_id.weights.folders import STEMS, find_sat_checkpoint, weight_files
from concat_id.weights.loading import check_whole

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
UNFINISHED = ("*.incomplete", "*.part", "*.crdownload", "*.aria2", "._____temp/*")  # of Hugging Face, browsers, aria2, ModelScope
PEOPLE = {"single_identity": "one person", "two_identities": "two people"}
FIX = "python sat/doctor.py --fix"
MINI_AGAIN = "git checkout models/mini"


@dataclass(frozen=True)
class Part:
    """A part of a model: where its configuration looks for it, and what lists its files or refuses."""

    what: str
    path: str
    files: Callable[[Path], list[Path]]


def parts_of(config: Config) -> list[Part]:
    """Return the transformer, the text encoder and the autoencoder of a configuration."""
    if config.model.kind in NEIGHBOURS:
        parts = [Part(what, path, lambda path: weight_files(path, STEMS) if path.is_dir() else [path])
                 for what, path in weight_paths(config.model, config.args.load).items()]  # fmt: skip
        if config.model.kind == "consistentid":  # nothing stands in for these
            faces = config.model.faces
            parts += [Part("detector", faces.detector, _loaded_by(lambda path: FaceDetector(path, "cpu").file)),
                      Part("recogniser", faces.recognizer, _loaded_by(lambda path: load_arcface(str(path), "cpu").file)),
                      Part("parser", faces.parser, weight_files)]  # fmt: skip
        return parts
    from concat_id.models.text_encoder import TextEncoder, find_parts

    if config.model.kind == "wan":
        from concat_id.models.wan.text_encoder import WanTextEncoder
        from concat_id.models.wan.weights import wan_files

        transformer, kind = wan_files, WanTextEncoder
    else:
        transformer, kind = (lambda path: [find_sat_checkpoint(path)]), TextEncoder
    encoder, autoencoder = config.model.text_encoder.path, config.model.autoencoder.path
    others = ("text encoder", encoder, lambda path: find_parts(path, kind)[1]), ("autoencoder", autoencoder, lambda path: [path])
    return [Part(what, str(Path(path)), files) for what, path, files in (("transformer", config.args.load, transformer), *others)]


def examine_model(name: str, is_asked: bool, digests: bool = False) -> list[Finding]:
    """Look at a model's files: part by part if the model `is_asked` for, else in one line unless there is something to tell.

    What is absent is a problem only where it is asked for, and the second transformer not even there.
    """
    preset, parts = PRESETS[name], list(_parts_by_path(name).values())
    released, missing = preset.shipped or bool(preset.transformers), PROBLEM if is_asked else NOTE
    own = Finding(missing, "transformer", "no weights of this size are released", "--load FOLDER with your own")
    absent = [part for part in parts if not os.path.lexists(resolve_path(part.path)) and not _misplaced(part)]
    if len(absent) == len(parts):
        return [Finding(missing, name, "not on this machine", preset.fetch) if released else replace(own, what=name)]
    findings = [] if released else [own]
    another = any(part not in absent for part in parts if part.what.startswith("transformer"))
    for part in parts:
        mark = NOTE if another and part.what.startswith("transformer") else missing
        fetch = next((command for path, command in preset.fetch_parts.items() if part.path.startswith(path)), preset.fetch)
        findings += [Finding(mark, part.what, f"{part.path}: not here", fetch)] if part in absent else examine(part, digests)
    if is_asked:
        command = MINI_AGAIN if preset.shipped else preset.fetch
        damaged = any(finding.mark == PROBLEM and finding.advice != preset.fetch for finding in findings)
        return [*findings, *([Finding(NOTE, "to mend", "remove what is damaged and fetch it again", command)] if damaged else [])]
    size, count, known = (sum(finding.numbers.get(key, 0) for finding in findings) for key in ("bytes", "files", "known"))
    told = [replace(finding, what=f"{name}, {finding.what}") for finding in findings if finding.mark != OK]
    return told or [Finding(OK, name, f"whole, {_shown(size)}, {_told_digests(count, known, digests)}")]


def _parts_by_path(name: str) -> dict[str, Part]:
    """The parts of a model for all of its tasks; without a transformer if none is released."""
    preset, parts = PRESETS[name], {}
    for task in preset.inference:
        transformer, *others = parts_of(load_config(files_of(name, task), {"device": "cpu"}))
        if preset.shipped or preset.transformers:
            is_only = len(preset.inference) == 1 or transformer.path in parts
            parts[transformer.path] = transformer if is_only else replace(transformer, what=f"transformer, {PEOPLE[task]}")
        parts |= {part.what + part.path: part for part in others}
    return parts


def examine(part: Part, digests: bool = False) -> list[Finding]:
    """Look at the files of a part, where `digests` are asked for at every byte; one line for each that is damaged, or one for all."""
    path = resolve_path(part.path)
    if inner := _misplaced(part):
        return [Finding(PROBLEM, part.what, f"{part.path}: its files lie too deep, in {inner.name}/ inside of it", FIX)]
    findings, files = [], []
    try:
        files = part.files(path)
    except UserError as error:
        findings.append(from_error(part.what, error))
        files = [file for pattern in WEIGHTS for file in visible_files(path, pattern)]
    known = {file: digest for file in files if (digest := known_digest(file))}
    for file in files:
        try:
            check_onnx(file) if file.suffix == ".onnx" else check_whole(file)
            if digests and file in known:
                check_digest(file, known[file])
        except UserError as error:
            findings.append(from_error(part.what, error))
    if findings:
        return findings
    size = sum(file.stat().st_size for file in files)
    count = f"{len(files)} files of " if len(files) > 1 else ""
    told = f"{part.path}: whole, {count}{_shown(size)}, {_told_digests(len(files), len(known), digests)}"
    return [Finding(OK, part.what, told, numbers={"bytes": size, "files": len(files), "known": len(known)})]


def examine_faces(config: Config, digests: bool = False) -> Iterator[Finding]:
    """Look at the face detector, what stands in for it, and the face parser; each has a stand-in but the last detector."""
    faces = config.model.faces
    if config.model.kind == "consistentid":  # which looks for them among its weights
        return
    detector, fallback, parser = (str(Path(path)) for path in (faces.detector, faces.fallback_detector, faces.parser))
    detectors = [path for path in (detector, fallback) if os.path.lexists(resolve_path(path))]
    for path in detectors:
        yield from examine(Part("detector", path, _onnx_files), digests)
    if not detectors:
        yield Finding(PROBLEM, "detector", f"neither {detector} nor {fallback} is here", FIX)
    elif detector not in detectors:
        yield Finding(NOTE, "detector", f"{detector} is not here, YuNet takes its place", "put antelopev2's .onnx files there")
    if os.path.lexists(resolve_path(parser)):
        yield from examine(Part("parser", parser, weight_files), digests)
    elif config.model.kind != "consisid":  # which cuts faces out by a parser of its own
        fetch = MINI_AGAIN if parser.startswith("models/mini/") else FETCH_PARSER
        yield Finding(NOTE, "parser", f"{parser} is not here, an oval around the head takes its place", fetch)


def examine_downloads() -> list[Finding]:
    """Name the folders that downloads have left unfinished files in."""
    places = Counter(str(file.parent) for pattern in UNFINISHED for file in resolve_path("models").rglob(pattern))
    advice = "run the download again, or remove them"
    return [Finding(NOTE, "downloads", f"{place}: {count} unfinished", advice) for place, count in places.items()]


def inside_itself(path: Path) -> Path | None:
    """Return the folder of the same name that is all there is in a folder, as archives unpacked in place leave them."""
    names = [entry.name for entry in visible_files(path, "*") if entry.suffix != ".zip"]
    return path / path.name if names == [path.name] and os.path.isdir(path / path.name) else None


def _misplaced(part: Part) -> Path | None:
    path = resolve_path(part.path)
    return inside_itself(path) or inside_itself(path.parent)


def _onnx_files(folder: Path) -> list[Path]:
    if files := onnx_files(folder):
        return files
    raise UserError(f"{folder}: has no .onnx file; download it again or remove the folder")


def _loaded_by(load: Callable[[Path], Path]) -> Callable[[Path], list[Path]]:
    """Find the one file that is taken of a folder, whose damaged files are told first."""

    def find(folder: Path) -> list[Path]:
        for file in _onnx_files(folder):
            check_onnx(file)
        return [load(folder)]

    return find


def _told_digests(count: int, known: int, are_checked: bool) -> str:
    if not known:
        return "digest unknown"
    told = "equal to what was downloaded" if are_checked else "digest known"
    return told if known == count else f"{told} for {known} of {count} files, unknown for the others"


def _shown(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
