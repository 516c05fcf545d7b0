"""Checkpoints that ask for more than they hold: refused in one line, at once and in little memory, without anything being run."""

import collections
import io
import pickle
import resource
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import Call, refused
from odd_input import result_or_line

from concat_id.weights.loading import load_tensors
from concat_id.weights.pickles import MAGIC

GIANT = 12 * 2**30
GIANT_BYTES = b"\x8a\x05" + GIANT.to_bytes(5, "little")  # the number in a pickle


def steps(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


def tuples(depth: int) -> bytes:
    """A tuple of two tuples of two tuples ...: a kilobyte, and 2 ** depth numbers to anyone who walks it."""
    return b")" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(depth))


def text(length: int) -> bytes:
    return b"X" + struct.pack("<I", length) + b"a" * length


def write(path, content: bytes, kind: str) -> None:
    """A checkpoint of either format whose pickle is `content`."""
    if kind == "old":
        path.write_bytes(MAGIC + pickle.dumps(1001, 2) + pickle.dumps({}, 2) + content + pickle.dumps([], 2))
        return
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3")
        archive.writestr("archive/data/0", bytes(64))


def tensor(size: bytes, stride: bytes = b"K\x01\x85", numbers: int = 16) -> bytes:
    """A tensor of a storage of `numbers`, of which there are 16."""
    storage = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpu" + b"\x8a\x06" + numbers.to_bytes(6, "little") + b"tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + size + stride + b"\x89ccollections\nOrderedDict\n)RtR"


HOSTILE = {
    "bytearray": pickle.dumps(Call(bytearray, GIANT), 2),
    "text of tuples": steps(b"c__builtin__\nstr\n", tuples(60), b"\x85R"),
    "a hash for ever": steps(b"}", tuples(60), b"K\x01s"),
    "numpy's empty": steps(b"cnumpy\nndarray\n", GIANT_BYTES, b"\x85R"),
    "objects": pickle.dumps(Call(np.empty(0).__reduce__()[0], np.ndarray, (0,), b"b", state=(1, (GIANT,), np.dtype("O"), False, [])), 2),
    "tensor beyond its storage": steps(tensor(b"M\xff\xff\x85")),
    "tensor of one number": steps(tensor(b"\x8a\x06" + (2**40).to_bytes(6, "little") + b"\x85", b"K\x00\x85")),
    "storage beyond its record": steps(tensor(b"K\x01\x85", numbers=2**40)),
    "a codec": steps(b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R"),
    "one text a thousand times": steps(text(2**20), b"q\x00](", b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R" * 1000, b"e"),
    "one dictionary a thousand times": steps(
        b"}(" + b"".join(b"J" + struct.pack("<i", i) + b"N" for i in range(20_000)) + b"uq\x00",
        b"](" + b"ctypes\nSimpleNamespace\n)Rh\x00b" * 1000 + b"e",
    ),
    "numbers of one hash": steps(b"}(" + b"".join(pickle.dumps(k * (2**61 - 1), 2)[2:-1] + b"N" for k in range(5, 20_000)) + b"u"),
    "five million steps": steps(b"N" * 5_000_000),
    "a long text that is not there": steps(b"X\xff\xff\xff\xff"),
    "no stack": steps(b"a"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["zip", "old"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused_before_anything_is_made(tmp_path, name, kind):
    path = tmp_path / "w.pt"
    write(path, HOSTILE[name], kind)
    before = resource.getrusage(resource.RUSAGE_SELF)
    assert len(refused(f"^{path}: found ", load_tensors, path)) < 400
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime - before.ru_utime < 10 and after.ru_maxrss - before.ru_maxrss < 300_000  # kilobytes


def packed(path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("archive/data.pkl", "w", force_zip64=True) as record:
            for _ in range(64):
                record.write(bytes(2**20))
        archive.writestr("archive/version", "3")


def twice(path) -> None:
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for content in ({"a": 1}, {"b": 1}):
            archive.writestr("archive/data.pkl", pickle.dumps(content, 2))


def claiming(path) -> None:
    """A record whose size in the archive's directory is 3 GiB."""
    write(path, pickle.dumps({}, 2), "zip")
    content = path.read_bytes()
    at = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 1)
    path.write_bytes(content[: at + 24] + struct.pack("<I", 3 * 2**30) + content[at + 28 :])


def tarred(path) -> None:
    """PyTorch's oldest format, under a name that looks like the next one's beginning."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    head = bytearray(path.read_bytes()[:512])
    head[: len(MAGIC)] = MAGIC
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    path.write_bytes(bytes(head) + bytes(1024))


@pytest.mark.parametrize("spoil, told", [(packed, "is compressed"), (twice, "2 records under 1 names"), (claiming, "claim"),
                                         (tarred, "tar archive")])  # fmt: skip
def test_archives_that_torch_does_not_write(tmp_path, spoil, told):
    spoil(tmp_path / "w.pt")
    refused(told, load_tensors, tmp_path / "w.pt")


VALUES = st.recursive(
    st.sampled_from([None, True, -(2**62), 2**200, 0.5, "\ud800", b"", b"\xff", {"a"}, torch.ones(2, 3).T, np.arange(3), np.float64(2)]),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner)
    | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=60, deadline=None, derandomize=True)
@given(value=st.dictionaries(st.text(max_size=3), VALUES, max_size=3), old=st.booleans())
def test_what_torch_saves_is_read(tmp_path_factory, value, old):
    path = tmp_path_factory.getbasetemp() / "generated.pt"
    torch.save(value, path, _use_new_zipfile_serialization=not old)
    assert repr(load_tensors(path)) == repr(value)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data(), old=st.booleans())
def test_damaged_bytes_end_in_a_line_or_a_value(tmp_path_factory, data, old):
    path = tmp_path_factory.getbasetemp() / "damaged.pt"
    torch.save({"module": collections.OrderedDict(w=torch.ones(3)), "n": np.float64(3), "b": b"xy", "s": {"a"}}, path,
               _use_new_zipfile_serialization=not old)  # fmt: skip
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    result_or_line(f"{path}: ", load_tensors, path)
