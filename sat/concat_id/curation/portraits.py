"""Photographs to ConsistentID's training data: square photos, the classes of their pixels, ArcFace vectors, and the list of all."""

import json
import os
from collections.abc import Mapping, Sequence
from colorsys import hsv_to_rgb
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from concat_id.config.neighbours import BUFFALO
from concat_id.curation.preparing import FaceModelNames, load_faces
from concat_id.curation.source_videos import Captions
from concat_id.data.clips import file_state
from concat_id.distributed import choose_device
from concat_id.errors import UserError, one_line, reason_of
from concat_id.face.recognition import FaceRecognizer, load_arcface
from concat_id.face.reference import FaceModels
from concat_id.files.formats import is_image, media_in
from concat_id.files.json_files import recall_json, write_json
from concat_id.files.paths import (
    are_whole,
    file_digest,
    kind_of,
    refuse_to_overwrite,
    remove_partial_files,
    resolve_path,
    safe_name,
    text_digest,
    written_whole,
)
from concat_id.video.face_parts import PARSED_SIZE, RELEASED_CLASSES, part_masks, squeezed, to_released
from concat_id.video.transforms import load_image
from concat_id.video.writing import write_image
from concat_id.weights.loading import content_digest, writing

VERSION = 2  # raise it when the same photo would give other files
LIST = "JSON_all.json"
PHOTO, COLOURS, MASK, IDENTITY, RECORD = (  # of a photo's id, as in ConsistentID's README
    *("resize_IMG/{}_resize.png", "parsing_color_IMG/{}_color.png", "parsing_mask_IMG/{}_mask.png"),
    *("all_faceID/{}_faceid.bin", "JSON/{}.json"),
)
KEYS = ("origin_IMG", "resize_IMG", "parsing_color_IMG", "parsing_mask_IMG", "vqa_llva", "id_embed_file_resize",
        "vqa_llva_more_face_detail")  # fmt: skip
RECOGNIZER, RECOGNIZER_FILE = "models/antelopev2", "w600k_r50"  # what stands in for buffalo_l, and buffalo_l's own file
# Far hues for neighbouring classes, black for the background.
PALETTE = np.uint8([(0, 0, 0)] + [np.rint(255 * np.array(hsv_to_rgb(7 * number / 18 % 1, 1 - number % 2 / 3, 1)))
                                  for number in range(len(RELEASED_CLASSES) - 1)])  # fmt: skip
OPACITY = 0.6  # of the colours over the photo


def load_portrait_tools(models: FaceModelNames, with_vectors: bool) -> tuple[FaceModels, FaceRecognizer | None]:
    """Load the models; in `notices` also say that vectors are other than released weights know.

    Raises `UserError` where there is no parser, and for a recogniser whose vectors have other than ArcFace's 512 numbers.
    """
    faces = load_faces(models, needs_parser=True)
    if not with_vectors:
        return faces, None
    usual = BUFFALO if os.path.isdir(resolve_path(BUFFALO)) else RECOGNIZER
    found = load_arcface(models.recognizer or usual, choose_device(models.device), ", or leave vectors out with --without_vectors")
    if found.file.stem != RECOGNIZER_FILE:
        told = f"{found.name} makes the vectors; released ConsistentID weights know those of buffalo_l's {RECOGNIZER_FILE} alone"
        faces.notices.append(told)
    return faces, found


def find_photos(paths: Sequence[Path]) -> tuple[dict[str, Path], list[str]]:
    """Collect photos from files, and from folders and those in them, by their ids; also return what cannot be used, a line each.

    What an earlier run has made is no photo, unless its folder is named.
    """
    photos, problems, seen, made = {}, [], set(), {Path(image).parent.name for image in (PHOTO, COLOURS, MASK)}
    for argument in paths:
        is_folder = kind_of(argument) == "a folder"
        try:
            images = media_in(argument, is_image, deep=True) if is_folder else [argument]
        except OSError as error:
            problems.append(f"{argument}: cannot be read ({reason_of(error)}); check its permissions")
            continue
        found = [path for path in images if not is_folder or path.parent == argument or path.parent.name not in made]
        if not found:
            problems.append(f"{argument}: found no photo in this folder, expected JPEG, PNG or the like")
        for path in (path for path in found if os.path.abspath(path) not in seen):
            name = safe_name(str(path.relative_to(argument if is_folder else argument.parent).with_suffix("")), 100)
            if (kind := kind_of(path)) != "a file":
                problems.append(f"--photos: found {kind}, {str(path)!r}, expected a photo or a folder; check the path")
            elif name in photos:
                problems.append(f"{path}: is called {name} as {photos[name]} is, which is used; rename one of them")
            else:
                photos[name] = path
        seen.update(map(os.path.abspath, found))
    return photos, problems


class PortraitPreparation:
    """Prepares photos under `output`; a later run takes over what is whole and has not changed."""

    def __init__(self, output: Path, faces: FaceModels, recognizer: FaceRecognizer | None):
        self.output, self.faces, self.recognizer = output, faces, recognizer
        digests = [file_digest(model.file) for model in filter(None, (faces.detector, recognizer))]
        self._models = [VERSION, *digests, content_digest(faces.parser.folder)]
        for file in (PHOTO, COLOURS, MASK, IDENTITY, RECORD):
            remove_partial_files((output / file).parent)

    def prepare(self, name: str, path: Path, captions: Captions, face_captions: Captions) -> dict[str, str]:
        """Write the files of a photo, or take them over; return its entry.

        Raises `UserError` for a photo that cannot be read or shows no face, and where there is no caption.
        """
        texts = {"vqa_llva": captions.of(path), "vqa_llva_more_face_detail": face_captions.of(path)}
        file = self.output / RECORD.format(name)
        fingerprint = text_digest(json.dumps([self._models, str(path.absolute()), file_state(path)]))
        known = recall_json(file) or {}
        made, sizes = known, known.get("files")
        if known.get("fingerprint") != fingerprint or not isinstance(sizes, dict) or not are_whole(self.output, sizes):
            files = self._make(name, path)
            sizes = {written: (self.output / written).stat().st_size for written in files.values()}
            made = {"origin_IMG": str(path.absolute()), **files}
        entry = {key: (made | texts)[key] for key in KEYS if key in made | texts}
        if (record := entry | {"fingerprint": fingerprint, "files": sizes}) != known:
            write_json(file, record)
        return entry

    def _make(self, name: str, path: Path) -> dict[str, str]:
        """Return the files of a photo by the keys of its entry; print a note if there is something odd about it."""
        found = self.faces.detector.search(load_image(path))
        if (face := found.largest) is None:
            raise UserError(f"{path}: found no face, expected one; leave the photo out, or take another")
        side = min(found.photo.size)  # training knows squares alone: squeezed as a whole, a face would be stretched
        left, top = np.clip((face.box[:2] + face.box[2:] - side) / 2, 0, np.array(found.photo.size) - side).astype(int).tolist()
        photo = squeezed(found.photo.crop((left, top, left + side, top + side)))
        labels = self.faces.parser.parse(photo, face.shifted(-left, -top).keypoints * (PARSED_SIZE / side))
        if "face" not in part_masks(labels):
            raise UserError(f"{path}: {self.faces.parser.name} found no part of a face in it; leave the photo out, or take a closer one")
        classes = to_released(labels)
        files = {"resize_IMG": PHOTO, "parsing_color_IMG": COLOURS, "parsing_mask_IMG": MASK}
        images = photo, Image.blend(photo, Image.fromarray(PALETTE[classes]), OPACITY), Image.fromarray(classes)
        for file, image in zip(files.values(), images, strict=True):
            write_image(self.output / file.format(name), image)
        if self.recognizer:
            files["id_embed_file_resize"] = IDENTITY
            vector = torch.from_numpy(self.recognizer.embed(found.photo, face))[None]  # with its aspect ratio, as at inference
            with written_whole(self.output / IDENTITY.format(name)) as temporary, writing():
                torch.save(vector, temporary)
        several = f"found {len(found.faces)} faces; the largest one is the person's" if len(found.faces) > 1 else None
        if notes := list(filter(None, (found.note, several))):
            tqdm.write(one_line(f"{path}: {'; '.join(notes)}"))
        return {key: file.format(name) for key, file in files.items()}


def prepare_portraits(preparation: PortraitPreparation, photos: Mapping[str, Path], captions: Captions,
                      face_captions: Captions) -> tuple[Path, list[dict[str, str]], list[str]]:  # fmt: skip
    """Prepare photos and list them; return the list's file, its entries, and what is wrong with the other photos, a line each.

    Without any entry, the list of an earlier run stays. Raises `UserError` where a photo is what one of these files would be.
    """
    images = (preparation.output / image.format(name) for name in photos for image in (PHOTO, COLOURS, MASK))
    refuse_to_overwrite(photos.values(), images)
    entries, problems = [], []
    with tqdm(photos.items(), unit="photo", dynamic_ncols=True) as progress:
        for name, path in progress:
            progress.set_description(one_line(path.name[:30]))
            try:
                entries.append(preparation.prepare(name, path, captions, face_captions))
            except UserError as error:
                problems.append(str(error))
    captions.warn_of_unused()
    face_captions.warn_of_unused()
    file = preparation.output / LIST
    if entries:
        write_json(file, entries)
        others = set((file.parent / RECORD).parent.glob("[!.]*.json")) - {file.parent / RECORD.format(name) for name in photos}
        if others:
            print(one_line(f"{file}: {len(others)} more prepared photos are not listed; name all photos in one command, or remove them"))
    return file, entries, problems
