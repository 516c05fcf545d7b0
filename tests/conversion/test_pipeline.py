"""What diffusers' pipelines can do works with references, too, and gives the same."""

import json
import shutil

import pytest
import torch
from conftest import assert_close
from conversion_wan.conftest import wan  # noqa: F401 - a fixture
from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline, DiffusionPipeline, FirstBlockCacheConfig
from diffusers_pipelines import check_batches, check_needs_no_checkout, check_oldest, check_pixels, check_upload, check_wrong_calls

from concat_id.sampling.diffusers_cogvideox import ConcatIDPipeline


def test_a_folder_needs_no_checkout(rotary, tmp_path):
    check_needs_no_checkout(rotary.folder, tmp_path, num_frames=5, num_inference_steps=1)


def test_folders_of_both_models_in_one_process(rotary, wan, tmp_path):  # noqa: F811
    """diffusers runs their files in one module; each pipeline saves its own and can be loaded again."""

    def load(folder):
        return DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(folder), trust_remote_code=True)

    pipes = []
    for number, original in enumerate([rotary.folder, wan.folders["adaln"]] * 2):
        folder = shutil.copytree(original, tmp_path / str(number))
        for file in folder.rglob("*.py"):
            file.write_text(f"{file.read_text()}# {number}\n")
        pipes.append(load(folder))
    pipes[1].transformer.enable_cache(FirstBlockCacheConfig())
    for number, pipe in enumerate(pipes):
        folder, saved = tmp_path / str(number), tmp_path / f"saved{number}"
        pipe.save_pretrained(saved)
        files = {file.relative_to(folder): file.read_text() for file in folder.rglob("*.py")}
        assert files == {file.relative_to(saved): file.read_text() for file in saved.rglob("*.py")}
        before, after = (json.loads((path / "model_index.json").read_text()) for path in (folder, saved))
        assert before["transformer"] == after["transformer"] and before["scheduler"] == after["scheduler"]
        assert type(load(saved)).__name__ == type(pipe).__name__


@pytest.fixture(scope="module")
def plain(rotary, latents_of):
    """Latents of the pipeline as loaded."""
    return latents_of(rotary.pipeline())


@pytest.fixture(scope="module")
def frames(rotary, latents_of):
    """Its pixels."""
    return latents_of(rotary.pipeline(), output_type="pt")


def test_sequential_offload_gives_the_same(rotary, latents_of, plain, frames, weights_leave):
    """Weights live on the meta device but while their layer runs, as on a GPU; ours and accelerate's hooks get along."""
    pipe = rotary.pipeline()
    pipe.enable_sequential_cpu_offload(device="cpu")
    places = [parameter.device.type for part in (pipe.transformer, pipe.vae, pipe.text_encoder) for parameter in part.parameters()]
    assert set(places) == {"meta"}
    assert torch.equal(latents_of(pipe), plain)
    assert torch.equal(latents_of(pipe, output_type="pt"), frames)  # a second time
    assert {parameter.device.type for parameter in pipe.transformer.parameters()} == {"meta"}


def test_model_offload_gives_the_same(rotary, latents_of, plain):
    """accelerate moves whole models in and out in the order of model_cpu_offload_seq; each is asked for, references' VAE included."""
    pipe, moved = rotary.pipeline(), []
    pipe.enable_model_cpu_offload(device="cpu")
    for name in ("text_encoder", "vae", "transformer"):
        hook = getattr(pipe, name)._hf_hook
        hook.pre_forward = lambda *args, _hook=hook, _name=name, **options: (
            moved.append(_name) or type(_hook).pre_forward(_hook, *args, **options)
        )
    assert torch.equal(latents_of(pipe), plain)
    assert moved == ["text_encoder", "vae", "transformer", "transformer"]


def test_a_compiled_transformer_gives_the_same(rotary, latents_of, plain):
    """Graphs are captured and run; generating machine code from them, which needs a compiler, is PyTorch's affair."""
    pipe, graphs = rotary.pipeline(), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    pipe.transformer = torch.compile(pipe.transformer, backend=backend)
    assert_close(latents_of(pipe), plain, 2e-5)
    assert sum(len(graph.graph.nodes) for graph in graphs) > 100


def test_tiling_and_slicing_of_the_vae(rotary, latents_of, plain, frames, image):
    pipe = rotary.pipeline()
    pipe.vae.enable_slicing()
    pipe.vae.enable_tiling()  # tiles larger than the video
    assert torch.equal(latents_of(pipe, output_type="pt"), frames)
    pipe.vae.enable_tiling(tile_sample_min_height=48, tile_sample_min_width=80)
    tiled = latents_of(pipe)  # references, too, are encoded in tiles
    refs = pipe.encode_references([image()], 1, (64, 96))
    assert torch.equal(pipe.encode_references(image(), 1, (64, 96)), refs), "an image stands for a list of one"
    pixels = pipe._pixels(image(), (64, 96))
    assert_close(refs, pipe.vae.tiled_encode(pixels).chunk(2, dim=1)[0].transpose(1, 2) * 0.7, 1e-6)
    assert tiled.shape == plain.shape and not torch.equal(tiled, plain)
    expected = (pipe.vae.tiled_decode(tiled.transpose(1, 2) / 0.7, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)
    assert_close(latents_of(pipe, output_type="pt"), expected.transpose(1, 2), 1e-5)


def test_callbacks_see_and_change_latents(rotary, latents_of, plain):
    seen = {}

    def keep(pipe, step, timestep, tensors):
        seen[step] = {name: tensor.clone() for name, tensor in tensors.items()}
        return {}

    names = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    found = latents_of(rotary.pipeline(), callback_on_step_end=keep, callback_on_step_end_tensor_inputs=names)
    assert torch.equal(found, plain) and torch.equal(seen[1]["latents"], plain)
    assert seen[0]["latents"].shape == (1, 3, 16, 8, 12)  # the video's alone, without references
    assert seen[0]["prompt_embeds"].shape == (2, 16, 32) and not seen[0]["negative_prompt_embeds"].any()

    def replace(pipe, step, timestep, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 1 else {}

    assert not latents_of(rotary.pipeline(), callback_on_step_end=replace).any()


def test_a_plain_pipeline_becomes_one_of_ours(rotary, latents_of, plain):
    theirs = CogVideoXPipeline.from_pretrained(rotary.folder)
    theirs.set_progress_bar_config(disable=True)
    ours = ConcatIDPipeline.from_pipe(theirs)
    assert ours.transformer is theirs.transformer and torch.equal(latents_of(ours), plain)


def test_an_empty_negative_prompt_is_one(rotary, latents_of, plain):
    found = latents_of(rotary.pipeline(), negative_prompt="")
    assert torch.equal(found, latents_of(rotary.pipeline(), negative_prompt=[""])) and not torch.equal(found, plain)


@pytest.mark.parametrize("negative", [None, "snow"])
def test_a_text_encoder_of_another_type(rotary, latents_of, negative):
    pipe = rotary.pipeline()
    plain = latents_of(pipe, negative_prompt=negative)
    pipe.text_encoder.bfloat16()
    assert_close(latents_of(pipe, negative_prompt=negative), plain, 0.1)


def test_batches_and_hooks_left_clean(rotary, image):
    pipe = rotary.pipeline()
    pipe.scheduler = CogVideoXDDIMScheduler.from_config(pipe.scheduler.config)
    check_batches(pipe, image, torch.randn(2, 3, 16, 8, 12, generator=torch.Generator().manual_seed(0)))
    assert pipe._num_refs == 0


def test_references_are_read_as_here(tmp_path):
    check_pixels(ConcatIDPipeline, tmp_path)


def test_wrong_calls_are_told(rotary, image):
    with pytest.raises(ValueError, match="^num_frames: found 6, expected 1 more than a multiple of 4$"):
        rotary.pipeline()("a man", reference_images=[image()], num_frames=6)
    check_wrong_calls(rotary.pipeline(), image)


def test_an_upload_holds_the_code(rotary, monkeypatch):
    check_upload(rotary.pipeline(), monkeypatch, "pipeline.py")


def test_an_old_diffusers_is_refused_in_one_line(monkeypatch):
    check_oldest(ConcatIDPipeline, "0.30.3", "0.31", monkeypatch)
