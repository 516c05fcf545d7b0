"""Models by name: their files, and which of their weights are missing."""

import re
from pathlib import Path

import pytest
from in_process import refused

from concat_id.config import presets
from concat_id.config.loading import load_config
from concat_id.config.neighbours import NEIGHBOURS, weight_paths
from concat_id.config.presets import PRESETS, choose, files_of

TEXT_ENCODER = ["config.json", "spiece.model", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """The folder of a project without weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(presets, "PROJECT_ROOT", tmp_path)
    monkeypatch.setattr(presets, "resolve_path", lambda path: tmp_path / path)
    return tmp_path


def add_5b(root: Path, kind: str = "single-identity") -> None:
    """Make everything CogVideoX-5B needs, as files without weights."""
    transformer = f"{kind}/latest", f"{kind}/1000/mp_rank_00_model_states.pt"
    for name in ("vae/3d-vae.pt", *transformer, *(f"t5-v1_1-xxl/{name}" for name in TEXT_ENCODER)):
        (root / "models" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "models" / name).write_text("1000\n" if name.endswith("latest") else "")


def names(paths: list[str]) -> list[str]:
    return [Path(path).name for path in paths]


@pytest.mark.parametrize("task", presets.TASKS)
def test_what_is_there_decides_where_no_model_is_named(root, task):
    assert names(choose(None, task)) == ["mini.yaml", f"mini_{task}.yaml"]
    add_5b(root, task.replace("_", "-"))
    assert names(choose(None, task)) == ["cogvideox_5b.yaml", f"inference_{task}.yaml"]
    assert names(choose(None, task, training=True)) == ["mini.yaml", f"mini_{task}.yaml"]
    assert choose(None, base=["a.yaml", "b.yaml"]) == ["a.yaml", "b.yaml"]


@pytest.mark.parametrize("absent", ["vae/3d-vae.pt", "single-identity/latest", "single-identity/1000/mp_rank_00_model_states.pt",
                                    *(f"t5-v1_1-xxl/{name}" for name in TEXT_ENCODER)])  # fmt: skip
@pytest.mark.parametrize("model", [None, "cogvideox_5b"])
def test_half_present_weights_are_an_error_that_names_what_is_missing(root, absent, model):
    add_5b(root)
    (root / "models" / absent).unlink()
    assert presets.FETCH in refused(f"lacks models/{absent} in", choose, model)


def test_absent_weights_are_one_line_for_every_model(root):
    for name in ("single-identity/latest", "vae/3d-vae.pt", "t5-v1_1-xxl/config.json", "t5-v1_1-xxl/*.safetensors"):
        refused(f"models/{name}", choose, "cogvideox_5b")
    for training in (False, True):
        refused("expected --load FOLDER", choose, "cogvideox_2b", training=training)
        for model, file in (("wan_1_3b", "first_stage.pt"), ("wan_adaln", "second_stage_adaln.pt")):
            message = refused(f"models/Concat-ID-Wan/{file}", choose, model, training=training)
            assert "google/umt5-xxl" in message and presets.FETCH_WAN in message
    refused("lacks models/vae/3d-vae.pt", choose, "cogvideox_2b", own_weights=True)
    assert names(choose("wan_mini", training=True)) == ["wan_mini.yaml", "wan_mini.yaml"]


def test_each_pattern_of_a_download_has_its_option():
    """hf takes what follows a pattern for the name of a file."""
    commands = [command for preset in PRESETS.values() for command in (preset.fetch, *preset.fetch_parts.values())]
    assert not [command for command in commands if re.search(r"--(in|ex)clude \S+ (?!--|&&|$)", command)]


def test_own_checkpoint_stands_in_for_the_released_one(root):
    add_5b(root)
    (root / "models/single-identity/latest").unlink()
    assert names(choose(None, own_weights=True)) == ["cogvideox_5b.yaml", "inference_single_identity.yaml"]
    assert names(choose("cogvideox_2b", training=True, own_weights=True)) == ["cogvideox_2b.yaml", "sft_single_identity.yaml"]


def test_names_and_tasks_that_are_not_there(root):
    refused("found '', expected one of mini", choose, "")
    refused("found 'cogvideox_7b', expected one of mini", choose, "cogvideox_7b")
    refused("no inference files for two_identities", choose, "wan_1_3b", "two_identities")
    refused("no training files for single_identity", choose, "wan_mini_adaln", training=True)
    refused("training files for single_identity; train it with sat/train_consistentid.py", choose, "consistentid", training=True)
    refused("found both", choose, "mini", base=["a.yaml"])


def test_paths_of_released_weights_are_those_of_the_files():
    for name, preset in PRESETS.items():
        for task in () if preset.shipped or preset.transformers is None else preset.inference:
            config = load_config(files_of(name, task))
            if name in NEIGHBOURS:
                named = weight_paths(config.model, config.args.load).values()
                wanted = {preset.transformers[task], *preset.others}
                assert all(any(str(Path(path)).startswith(part) for part in wanted) for path in named)
                continue
            named = {config.args.load, config.model.autoencoder.path, config.model.text_encoder.path}
            assert {str(Path(path)) for path in named} == {preset.transformers[task], *preset.others}
