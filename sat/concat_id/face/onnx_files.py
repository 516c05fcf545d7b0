"""The ONNX files of a folder of face models: found, and looked at before anything runs them."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from concat_id.errors import UserError, one_line, reason_of
from concat_id.files import require_file, visible_files

LARGEST = 2 * 2**30  # bytes; protobuf reads no more
REPEATING = ("Loop", "Scan")
PLAIN_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}


def onnx_files(folder: Path, smallest_first: bool = False) -> list[Path]:
    """List the models of a folder, in order of their names, or of their sizes; what is no file counts as empty."""
    files = visible_files(folder, "*.onnx")
    return sorted(files, key=lambda file: os.path.getsize(file) if os.path.isfile(file) else 0) if smallest_first else files


def check_onnx(file: Path) -> None:
    """Raise `UserError` for a file that is no network of plain operators: one that loops, calls others' code or reads others' files."""
    import onnx  # takes a second

    require_file(file, "an ONNX model", "download it again")
    if file.stat().st_size > LARGEST:
        raise UserError(f"{file}: found {file.stat().st_size:,} bytes, expected a face model; download it again")
    try:
        model = onnx.load(file, load_external_data=False)
    except Exception as error:  # protobuf's own classes
        raise UserError(f"{file}: found no ONNX model ({one_line(reason_of(error, 100))}); download it again") from error
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
