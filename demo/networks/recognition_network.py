"""A small face recogniser, and the ONNX file that insightface, and so `FaceRecognizer`, reads it from."""

from dataclasses import dataclass, field

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import Tensor, nn

from concat_id.face.detection import TEMPLATE_SIZE

SIDE = TEMPLATE_SIZE // 2  # of the faces it looks at; small ones show no more
WIDTHS = (32, 48, 96, 160, 256)
VECTOR = 192
OPSET, IR_VERSION = 21, 10


class Block(nn.Module):
    """Two convolutions beside a shortcut, at 1 / `stride` of the size."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        inner = F.relu(self.norm1(self.conv1(features)))
        return F.relu(self.norm2(self.conv2(inner)) + self.shortcut(features))


class RecognitionNetwork(nn.Module):
    """Upright faces (B, 3, 56, 56) in [-1, 1] -> vectors (B, 192) of length 1: a small residual network, 2.3 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, WIDTHS[0], 5, 2, 2, bias=False), nn.BatchNorm2d(WIDTHS[0])
        self.blocks = nn.ModuleList(Block(*WIDTHS[index : index + 2], stride=min(index, 1) + 1) for index in range(len(WIDTHS) - 1))
        self.project = nn.Linear(WIDTHS[-1] * 16, VECTOR)  # of 4x4 places

    def forward(self, faces: Tensor) -> Tensor:
        """Compute the vectors."""
        features = F.relu(self.norm(self.stem(faces)))
        for block in self.blocks:
            features = block(features)
        return F.normalize(self.project(features.flatten(1)).float(), dim=1)


def to_onnx(network: RecognitionNetwork, facts: dict[str, str]) -> onnx.ModelProto:
    """Write the network as insightface wants a recogniser: RGB faces (B, 3, 112, 112) in [-1, 1], which are halved first, to vectors.

    The norms' statistics become part of the kernels; the vectors are not of length 1. `facts` become the file's metadata.
    """
    graph = _Graph()
    features = graph.add("AveragePool", ["faces"], kernel_shape=[2, 2], strides=[2, 2])
    features = graph.add("Relu", [graph.convolve(features, network.stem, network.norm)])
    for block in network.blocks:
        inner = graph.add("Relu", [graph.convolve(features, block.conv1, block.norm1)])
        outer = graph.convolve(inner, block.conv2, block.norm2)
        features = graph.add("Relu", [graph.add("Add", [outer, graph.convolve(features, block.shortcut)])])
    weights = [graph.constant(tensor) for tensor in (network.project.weight, network.project.bias)]
    graph.add("Gemm", [graph.add("Flatten", [features]), *weights], output="vectors", transB=1)
    float32 = onnx.TensorProto.FLOAT
    ends = [
        helper.make_tensor_value_info("faces", float32, [None, 3, TEMPLATE_SIZE, TEMPLATE_SIZE]),
        helper.make_tensor_value_info("vectors", float32, [None, VECTOR]),
    ]
    whole = helper.make_graph(graph.nodes, "recogniser", ends[:1], ends[1:], graph.constants)
    model = helper.make_model(whole, producer_name="concat_id", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    helper.set_model_props(model, facts)
    onnx.checker.check_model(model)
    return model


@dataclass
class _Graph:
    """Nodes and constants so far, called by numbers."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def add(self, kind: str, inputs: list[str], output: str | None = None, **attributes) -> str:
        """Add a node; returns the name of its output."""
        name = output or f"node{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def constant(self, tensor: Tensor) -> str:
        """Add a constant; returns its name."""
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(tensor.detach().float().numpy()), name))
        return name

    def convolve(self, inputs: str, conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None) -> str:
        """Add a convolution, with what the norm after it does."""
        weight, bias = conv.weight.detach(), conv.bias
        if norm is not None:
            scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
            weight, bias = weight * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale
        constants = [self.constant(weight), self.constant(bias)]
        return self.add("Conv", [inputs, *constants], strides=list(conv.stride), pads=[*conv.padding, *conv.padding])
