"""FGIS, the likeness of the parts of a face; and three systems beside one another, one of which makes portraits."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT
from evaluation.clips import other_photographs, report_of, scene, write_clip
from evaluation.test_scores import ANNA, BEN, face_at, unit
from models.tiny_clip import tiny_clip, write_tokenizer
from PIL import Image
from tiny_faces import write_segformer

from concat_id.evaluation.fine_grained import FGIS, compare_parts, fine_grained_scores
from concat_id.evaluation.layouts import GeneratedVideo
from concat_id.evaluation.measuring import load_instruments, measure
from concat_id.face.tracking import Track


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A folder with a CLIP and a face parser of random weights, large enough that images differ to them."""
    folder = tmp_path_factory.mktemp("weights")
    for name in ("clip", "parser"):
        (folder / name).mkdir()
    model = tiny_clip(write_tokenizer(folder / "clip"), positions=77)
    with torch.no_grad():
        model.vision_model.embeddings.patch_embedding.weight.mul_(50)
    model.save_pretrained(folder / "clip")
    write_segformer(folder / "parser")
    return folder


def test_the_same_image_scores_1_and_another_person_less(weights, face_folder, recognizer_folder, tmp_path, portraits):
    tools = load_instruments("cpu", detector=str(face_folder), recognizer=str(recognizer_folder), clip=str(weights / "clip"),
                             viclip="no", parser=str(weights / "parser"), num_frames=4, threshold=None)  # fmt: skip
    for name in ("astronaut", "actor"):
        portraits[name].save(tmp_path / f"{name}.png")
    own, other = (measure(GeneratedVideo("", tmp_path / "astronaut.png", (tmp_path / f"{name}.png",), ""), tools)["scores"]
                  for name in ("astronaut", "actor"))  # fmt: skip
    shown = [name for name in FGIS if own[name] is not None]
    assert len(shown) >= 3 and all(own[name] == pytest.approx(1, abs=1e-5) for name in shown) and other["fgis"] < 0.999
    assert tools.identity["parser"] != tools.identity["clip"]


def test_parts_that_one_side_lacks_are_left_out():
    assert compare_parts({"face": unit(1, 0), "ears": unit(1, 0)}, {"face": unit(3, 4), "nose": unit(1, 0)}) == {
        "fgis": pytest.approx(0.6), "fgis_face": pytest.approx(0.6)}  # fmt: skip
    assert compare_parts({"ears": unit(1, 0)}, {"face": unit(1, 0)}) == compare_parts({}, {}) == {}


class Whole:
    """Stands in for the encoder: a face at the left shows its skin as Anna's vector, one further right has a nose as well."""

    def encode(self, image, face):
        return {"face": ANNA} if face.box[0] < 100 else {"face": BEN, "nose": BEN}


def test_each_person_is_compared_with_the_face_taken_for_them_and_all_count_alike():
    people = [Track({0: face_at(0, ANNA), 1: face_at(0, ANNA)}), Track({1: face_at(200, BEN)}), Track()]
    references = [{"face": ANNA}, {"face": ANNA, "nose": BEN}, {"face": BEN}]
    scores = fine_grained_scores(np.zeros((2, 8, 8, 3), np.uint8), references, people, Whole())
    cosine = float(ANNA @ BEN)
    assert scores["fgis"] == pytest.approx((1 + (cosine + 1) / 2) / 2) and scores["fgis_face"] == pytest.approx((1 + cosine) / 2)
    assert scores["fgis_nose"] == pytest.approx(1) and scores["fgis_ears"] is None and set(scores) == set(FGIS)


@pytest.fixture
def systems(call, tiny_model, faces, photo, tmp_path, portraits):
    """Folders of three systems for one prompt and photo: the tiny model's, faces as a video, and two portraits."""
    base = "--base", ROOT / "configs" / "debug.yaml", tiny_model, faces
    assert call("sample_video", *base, "--output", tmp_path / "out", "--prompt", "a woman smiles", "--image", photo).code == 0
    (made,) = (tmp_path / "out").glob("0*")
    for kind in ("consisid", "consistentid"):
        folder = shutil.copytree(made, tmp_path / kind / made.name)
        (folder / "video.mp4").unlink()
        info = json.loads((folder / "info.json").read_text())
        info["settings"]["model"]["kind"] = kind
        if kind == "consisid":
            write_clip(folder / "video.mp4", [scene(image) for image in other_photographs(portraits["astronaut"])])
        else:
            info["files"] = ["portrait.png", "portrait_2.png"]
            portraits["astronaut"].save(folder / "portrait.png")
            Image.new("RGB", (96, 64)).save(folder / "portrait_2.png")
        (folder / "info.json").write_text(json.dumps(info))
    return [tmp_path / name for name in ("out", "consisid", "consistentid")]


def test_videos_and_portraits_of_three_systems_side_by_side(evaluate, systems, weights, tmp_path):
    code, out, told = evaluate("--videos", *systems, "--clip", weights / "clip", "--parser", weights / "parser")
    report = report_of(tmp_path)
    titles, means = zip(*((run["title"], run["summary"]) for run in report["runs"]), strict=True)
    assert code == 0 and titles == ("out (Concat-ID)", "consisid (ConsisID)", "consistentid (ConsistentID)")
    moving = {"temporal_consistency", "motion_amplitude", "clip_consistency", "flicker"}
    assert moving <= means[1].keys() and not moving & means[2].keys() and means[2]["similarity"]["n"] == 2
    assert means[1]["fgis"]["mean"] < 1 and means[2]["fgis"]["n"] == 1, "one portrait shows nobody"
    one, two = (comparison["second_minus_first"] for comparison in report["comparisons"])
    assert one["similarity"]["n"] == two["similarity"]["n"] == 1 and two["similarity"]["mean"] > 0.8 and "motion_amplitude" not in two
    assert "consistentid (ConsistentID): 2 images, 0 problems" in out
    assert told.count("a single image; motion") == 1 and "portrait.png and 1 more: a single image" in told
    assert "portrait_2.png: found no face in the image, which scores 0" in told
    page = (tmp_path / "report" / "report.html").read_text()
    assert "consistentid (ConsistentID)<small>2 images</small>" in page and "image, 260×260" in page
    assert len(re.findall("<svg class=\"chart\"", page)) == 2 and page.count("<article") == 4
    with open(tmp_path / "report" / "report.csv", newline="") as file:
        assert [bool(row["motion_amplitude"]) for row in csv.DictReader(file)] == [True, True, False, False]
