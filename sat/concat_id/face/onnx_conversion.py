"""Graph surgery that makes OpenCV Zoo's quantised face models readable for onnxruntime and insightface."""

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

INPUT_SIZE = 640
STRIDES = (8, 16, 32)
IR_VERSION = 10  # the one that belongs to opset 21


def fold_quantised_weights(model: ModelProto) -> ModelProto:
    """Replace block-quantised int8 weights by the float32 values they stand for; the function stays the same.

    Every DequantizeLinear of blocks and every Reshape whose inputs are all constants is computed now.
    Source: ONNX operator DequantizeLinear, version 21; onnxruntime knows it without blocks.
    """
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        is_constant = all(name in constants for name in node.input)
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        if node.op_type == "DequantizeLinear" and is_constant and attributes.get("block_size"):
            quantised, scale, *zero_point = (constants[name].astype(np.float32) for name in node.input)
            axis = attributes.get("axis", 1) % quantised.ndim
            per_value = np.arange(quantised.shape[axis]) // attributes["block_size"]
            scale, shift = (values.take(per_value, axis) for values in (scale, *zero_point, np.zeros_like(scale))[:2])
            constants[node.output[0]] = (quantised - shift) * scale
        elif node.op_type == "Reshape" and is_constant:
            constants[node.output[0]] = constants[node.input[0]].reshape(constants[node.input[1]])
        else:
            nodes.append(node)
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        model.graph.name,
        [value for value in model.graph.input if value.name in used and value.name not in constants],
        list(model.graph.output),
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items() if name in used],
    )
    return _checked_model(graph, model)


def wrap_yunet_as_scrfd(model: ModelProto) -> ModelProto:
    """Give YuNet the input and the nine outputs of an SCRFD detector with key points.

    SCRFD is fed RGB as (pixel - 127.5) / 128, YuNet BGR from 0 to 255. SCRFD has two anchors for each cell of the strides
    8, 16 and 32; the second ones get the score 0. Raises `ValueError` if the model is not a YuNet of 640x640.
    """
    outputs = [value.name for value in model.graph.output]
    missing = {f"{kind}_{stride}" for kind in ("cls", "obj", "bbox", "kps") for stride in STRIDES} - set(outputs)
    if missing or len(model.graph.input) != 1:
        raise ValueError(f"not a YuNet detector: no outputs {sorted(missing)}")
    constants = {
        "std": np.array([128], np.float32),
        "mean": np.array([127.5], np.float32),
        "bgr": np.array([2, 1, 0]),
        "half": np.array([0.5], np.float32),
        "halves": np.array([2, 2]),
        "score_shape": np.array([1, -1, 1]),
        "box_shape": np.array([1, -1, 4]),
        "points_shape": np.array([1, -1, 10]),
    }
    nodes = [
        helper.make_node("Mul", ["rgb", "std"], ["rgb_scaled"]),
        helper.make_node("Add", ["rgb_scaled", "mean"], ["rgb_pixels"]),
        helper.make_node("Gather", ["rgb_pixels", "bgr"], [model.graph.input[0].name], axis=1),
        *model.graph.node,
    ]
    for stride in STRIDES:
        constants[f"no_score_{stride}"] = np.zeros((1, (INPUT_SIZE // stride) ** 2, 1), np.float32)
        nodes += _scrfd_outputs(stride)
    graph = helper.make_graph(
        nodes,
        "yunet_as_scrfd",
        [helper.make_tensor_value_info("rgb", TensorProto.FLOAT, [1, 3, INPUT_SIZE, INPUT_SIZE])],
        [
            helper.make_tensor_value_info(f"{kind}_{stride}", TensorProto.FLOAT, [1, 2 * (INPUT_SIZE // stride) ** 2, width])
            for kind, width in (("score", 1), ("distances", 4), ("points", 10))
            for stride in STRIDES
        ],
        [*model.graph.initializer, *(numpy_helper.from_array(array, name) for name, array in constants.items())],
    )
    return _checked_model(graph, model)


def _scrfd_outputs(stride: int) -> list[NodeProto]:
    """Turn YuNet's outputs of one stride into SCRFD's, all in units of the stride and relative to the cell's corner.

    score = sqrt(class * objectness). YuNet's box is (centre, log of size), SCRFD's the distances to left, top, right, bottom:
    size / 2 - centre and size / 2 + centre. Key points are the same in both. Source: YuNet's post-processing in OpenCV's FaceDetectorYN.
    """

    def node(operator: str, inputs: list[str], output: str, **attributes) -> NodeProto:
        names = [name if name in {"half", "halves", "score_shape", "box_shape", "points_shape"} else f"{name}_{stride}" for name in inputs]
        return helper.make_node(operator, names, [f"{name}_{stride}" for name in output.split()], **attributes)

    return [
        node("Mul", ["cls", "obj"], "confidence"),
        node("Sqrt", ["confidence"], "root"),
        node("Concat", ["root", "no_score"], "root_twice", axis=2),
        node("Reshape", ["root_twice", "score_shape"], "score"),
        node("Split", ["bbox", "halves"], "centre log_size", axis=2),
        node("Exp", ["log_size"], "box_size"),
        node("Mul", ["box_size", "half"], "half_size"),
        node("Sub", ["half_size", "centre"], "left_top"),
        node("Add", ["half_size", "centre"], "right_bottom"),
        node("Concat", ["left_top", "right_bottom", "left_top", "right_bottom"], "box_twice", axis=2),
        node("Reshape", ["box_twice", "box_shape"], "distances"),
        node("Concat", ["kps", "kps"], "kps_twice", axis=2),
        node("Reshape", ["kps_twice", "points_shape"], "points"),
    ]


def _checked_model(graph: onnx.GraphProto, source: ModelProto) -> ModelProto:
    model = helper.make_model(graph, producer_name="concat_id", opset_imports=list(source.opset_import), ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return model
