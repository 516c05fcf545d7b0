"""A face parser and a face recogniser with random weights, in the released folders' files."""

import json

import numpy as np
import onnx
import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The keys of the released folder's file, written by an older transformers.
PROCESSOR = {
    "do_normalize": True, "do_reduce_labels": False, "do_rescale": True, "do_resize": True, "image_mean": MEAN, "image_std": STD,
    "image_processor_type": "SegformerFeatureExtractor", "resample": 2, "rescale_factor": 1 / 255, "size": {"height": 512, "width": 512},
}  # fmt: skip


def write_segformer(folder, num_labels=19):
    torch.manual_seed(0)
    sizes = {"depths": [1] * 4, "hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 16}
    model = SegformerForSemanticSegmentation(SegformerConfig(num_labels=num_labels, **sizes)).eval()
    with torch.no_grad():
        model.decode_head.classifier.weight.mul_(50)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return model


def write_arcface(folder):
    """A recogniser with ArcFace's interface and random weights: means of blocks of 8 pixels, and a matrix."""
    folder.mkdir()
    matrix = onnx.numpy_helper.from_array(np.random.default_rng(0).standard_normal((588, 512), dtype=np.float32), "matrix")
    nodes = [onnx.helper.make_node("AveragePool", ["x"], ["means"], kernel_shape=[8, 8], strides=[8, 8]),
             onnx.helper.make_node("Flatten", ["means"], ["flat"]), onnx.helper.make_node("MatMul", ["flat", "matrix"], ["y"])]  # fmt: skip
    inputs, outputs = ([onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)]
                       for name, shape in (("x", ["n", 3, 112, 112]), ("y", ["n", 512])))  # fmt: skip
    graph = onnx.helper.make_graph(nodes, "arcface", inputs, outputs, [matrix])
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), folder / "w600k_r50.onnx")
    return folder
