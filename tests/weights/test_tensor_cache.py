"""Tensors on disk: found again, told apart, and never believed when damaged."""

import pytest
import torch

from concat_id.weights.tensor_cache import TensorCache


@pytest.fixture
def cache(tmp_path) -> TensorCache:
    return TensorCache(tmp_path / "cache", {"weights": "abc", "dtype": "bfloat16"})


def tensors(value: float = 1.0) -> tuple[torch.Tensor, ...]:
    return torch.full((2, 3), value, dtype=torch.bfloat16), torch.arange(4.0).view(2, 2).T


def test_what_is_written_is_found_again(cache):
    cache.write({"clip": "a", "at": 0.5}, *tensors())
    found = cache.read({"at": 0.5, "clip": "a"})  # the order of a key's parts does not matter
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, tensors(), strict=True))


def test_key_and_identity_tell_tensors_apart(cache):
    cache.write("a", *tensors())
    assert cache.read("b") is None
    assert TensorCache(cache.folder, {"weights": "abd", "dtype": "bfloat16"}).read("a") is None


DAMAGES = [lambda data: data[:-3], lambda data: b"", lambda data: data[:-5] + b"\x07" + data[-4:], lambda data: b"x" * 99,
           lambda data: data.replace(b"[2,3]", b"[3,2]")]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_count_as_absent(cache, damage):
    cache.write("a", *tensors())
    cache.path("a").write_bytes(damage(cache.path("a").read_bytes()))
    assert cache.read("a") is None
    cache.write("a", *tensors(2.0))
    assert torch.equal(cache.read("a")[0], tensors(2.0)[0])


def test_a_folder_that_cannot_be_written_costs_one_warning(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    cache = TensorCache(tmp_path / "file" / "cache", "identity")
    for key in "ab":
        cache.write(key, *tensors())
    assert capsys.readouterr().err.count("not cached") == 1
