"""Choose and load the face models that a configuration names and a machine has."""

import os
from pathlib import Path
from typing import NamedTuple

import torch

from concat_id.config.cogvideox import FaceConfig
from concat_id.errors import UserError
from concat_id.face.detection import FaceDetector
from concat_id.face.onnx_files import COMMAND
from concat_id.face.parsing import EllipseParser, SegformerParser
from concat_id.face.reference import FaceParser
from concat_id.files.paths import resolve_path


class FaceFolders(NamedTuple):
    """Folders of the detector and of the parser (None: the oval), and one line for each that is not the configured one."""

    detector: Path
    parser: Path | None
    notices: list[str]


class FaceModels(NamedTuple):
    """Detector, parser, and one line for each that stands in for the configured one."""

    detector: FaceDetector
    parser: FaceParser
    notices: list[str]


def choose_folders(config: FaceConfig) -> FaceFolders:
    """Choose the configured folders, or what stands in where they are absent."""
    notices = []
    detector, parser = resolve_path(config.detector), resolve_path(config.parser)
    if not os.path.exists(detector):
        detector = _fallback_folder(detector, resolve_path(config.fallback_detector))
        notices.append(f"{config.detector}: not there; faces are found with the detector in {config.fallback_detector}")
    if not os.path.exists(parser):
        parser = None
        notices.append(f"{config.parser}: not there; faces are cut out with an oval, which keeps some background")
    return FaceFolders(detector, parser, notices)


def load_face_models(config: FaceConfig, device: torch.device | str) -> FaceModels:
    """Load the configured models, or what stands in where their folders are absent; incomplete folders are errors."""
    folders = choose_folders(config)
    parser = EllipseParser() if folders.parser is None else SegformerParser(folders.parser, device)
    return FaceModels(FaceDetector(folders.detector, device), parser, folders.notices)


def _fallback_folder(folder: Path, fallback: Path) -> Path:
    if not os.path.exists(fallback):
        raise UserError(f"{folder}: no face detector here nor in {fallback}; run `{COMMAND}`, or download the released models")
    return fallback
