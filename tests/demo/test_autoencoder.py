"""demo/train_autoencoder.py: what it learns, what it leaves alone, and mistakes in one line."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import ROOT, assert_close
from entry import only_error
from in_process import call_main, load_script
from PIL import Image

import networks.autoencoder as autoencoder_module
from concat_id.config.cogvideox import AutoencoderConfig
from concat_id.config.loading import load_config
from concat_id.errors import UserError
from concat_id.models.autoencoder import VideoAutoencoder
from concat_id.video.writing import write_video
from networks.autoencoder import AutoencoderTrainer, AutoencoderTraining, decibels, difference, draw_motions, moved
from networks.building import build_autoencoder, fold_statistics
from networks.footage import Footage, to_video

SIZES = AutoencoderConfig(block_out_channels=(32, 32, 32), layers_per_block=1, latent_channels=4)


@pytest.fixture
def script(monkeypatch, capsys, tmp_path):
    """Call the script's main with options; returns (exit code, standard output, standard error)."""
    module = load_script(ROOT / "demo" / "train_autoencoder.py")
    sizes = {"block_out_channels": list(SIZES.block_out_channels), "layers_per_block": 1, "latent_channels": 4}
    model = {"autoencoder": sizes, "transformer": {"in_channels": 4, "out_channels": 4}}
    (tmp_path / "sizes.yaml").write_text(yaml.safe_dump({"model": model}))

    def call(*options):
        base = ["--base", ROOT / "configs" / "debug.yaml", tmp_path / "sizes.yaml"]
        return call_main(module, [*base, *options], monkeypatch, capsys)

    return call


def moving(index: int, frames: int = 9) -> np.ndarray:
    """Frames (F, 32, 64, 3) of a bar that moves over a colour."""
    colour = np.random.default_rng(index).integers(30, 180, 3)
    bar = (np.arange(64)[None] - 3 * np.arange(frames)[:, None] - 5 * index) % 64 < 16
    return np.broadcast_to(colour + 70 * bar[:, None, :, None], (frames, 32, 64, 3)).astype(np.uint8)


@pytest.fixture
def footage_list(tmp_path):
    entries = []
    for index in range(6):
        write_video(tmp_path / f"{index}.mp4", moving(index), 8)
        entries.append({"video_path": f"{index}.mp4", "caption": "a bar", "split": "test" if index == 5 else "train"})
    Image.fromarray(moving(7, 1)[0]).save(tmp_path / "7.png")
    entries.append({"image_path": "7.png", "split": "train"})
    (tmp_path / "clips.json").write_text(json.dumps(entries))
    return tmp_path / "clips.json"


def options(footage_list, *more) -> tuple:
    return ("--lists", footage_list, "--size", 32, 64, "--frames", 9, "--batch-size", 2, *more)


def level(said: str, name: str) -> float:
    """The decibels of clips that a line tells."""
    (line,) = (line for line in said.splitlines() if line.startswith(f"{name}: "))
    return float(line.split(", clips ")[1].split(" dB")[0])


def test_images_then_key_frames_then_the_decoder_alone(script, footage_list, tmp_path):
    first, second, sheet = tmp_path / "first.pt", tmp_path / "second.pt", tmp_path / "sheet.png"
    code, said, errors = script(*options(footage_list, "--output", first, "--images", 10, "--key-frames", 2, "--clips", 1))
    assert code == 0, errors
    learned = level(said, str(first))

    more = ("--load", first, "--images", 0, "--key-frames", 0, "--clips", 6, "--output", second, "--sheet", sheet)
    code, said, errors = script(*options(footage_list, *more))
    assert code == 0, errors
    assert level(said, str(first)) == pytest.approx(learned, abs=0.05), "the file holds what was measured"
    assert level(said, str(second)) > learned + 0.05
    assert Image.open(sheet).size == (8 * 64, 2 * 32)
    before, after = (torch.load(path, weights_only=True)["state_dict"] for path in (first, second))
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("encoder."))
    assert not all(torch.equal(before[name], after[name]) for name in before if name.startswith("decoder."))
    assert any(name.startswith("decoder.up.0.block.") for name in before), "the released names"
    assert all(tensor.dtype == torch.float16 for tensor in after.values())
    assert not list(tmp_path.glob("*.training"))


def test_a_stopped_run_goes_on(script, footage_list, tmp_path, monkeypatch):
    from networks.learner import Learner

    few = options(footage_list, "--images", 1, "--key-frames", 1, "--clips", 1)
    assert script(*few, "--output", tmp_path / "whole.pt")[0] == 0
    descend, taken = Learner._descend, []

    def stop_in_the_second_part(learner, loss):
        if len(taken) == 2:
            raise KeyboardInterrupt
        taken.append(1)
        descend(learner, loss)
        learner.save()

    with monkeypatch.context() as patched:
        patched.setattr(Learner, "_descend", stop_in_the_second_part)
        assert script(*few, "--output", tmp_path / "parts.pt")[0] == 130
    assert not (tmp_path / "parts.pt").exists()
    code, _, errors = script(*few, "--output", tmp_path / "parts.pt")
    assert code == 0, errors
    whole, parts = (torch.load(tmp_path / name, weights_only=True)["state_dict"] for name in ("whole.pt", "parts.pt"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_single_frames_teach_a_kernel_its_last_moment_alone(tmp_path):
    frames = [torch.from_numpy(moving(index)) for index in range(3)]
    training = AutoencoderTraining(images=8, clips=0, crop=(32, 64), batch_size=2)
    trainer = AutoencoderTrainer(SIZES, Footage(frames, frames), training, tmp_path / "v.pt", None)
    kernels = {name: weight for name, weight in trainer.network.named_parameters() if weight.dim() == 5 and weight.shape[2] == 3}
    before = {name: weight.clone() for name, weight in kernels.items()}
    losses = [trainer.image_loss(0, torch.Generator().manual_seed(5))[0]]
    trainer.train()
    losses.append(trainer.image_loss(0, torch.Generator().manual_seed(5))[0])
    assert losses[1] < 0.97 * losses[0]
    assert kernels and all((weight[:, :, :-1] == 0).all() for weight in kernels.values())
    assert all(not torch.equal(weight, before[name]) for name, weight in kernels.items())


def test_clips_teach_a_kernel_every_moment(tmp_path):
    """Of the encoder with key frames, of the decoder in its own part."""
    frames = [torch.from_numpy(moving(index)) for index in range(3)]
    for steps in ((0, 2), (2, 0)):
        training = AutoencoderTraining(images=1, key_frames=steps[0], clips=steps[1], crop=(32, 64), batch_size=2)
        trainer = AutoencoderTrainer(SIZES, Footage(frames, frames), training, tmp_path / f"{steps[0]}.pt", None)
        kernels = {name: weight for name, weight in trainer.network.named_parameters() if weight.dim() == 5 and weight.shape[2] == 3}
        trainer.train()
        learned = {name.split(".")[0] for name, weight in kernels.items() if weight[:, :, :-1].abs().max() > 0}
        assert learned == ({"encoder"} if steps[0] else {"decoder"})


def test_latents_of_clips_become_those_of_every_fourth_frame(tmp_path):
    torch.manual_seed(0)
    frames, autoencoder = [torch.from_numpy(moving(index)) for index in range(3)], build_autoencoder(SIZES)
    before = {name: weight.clone() for name, weight in autoencoder.autoencoder.state_dict().items()}
    video = to_video(torch.stack([clip[:9] for clip in frames]))
    alone = torch.cat([autoencoder.encode(video[:, :, [index]]) for index in (0, 4, 8)], dim=1)

    def errors() -> tuple[float, float]:
        clips = (autoencoder.encode(video) - alone).square().mean() / alone.var()
        return float(clips), float((autoencoder.encode(video[:, :, :1]) - alone[:, :1]).square().mean() / alone.var())

    first = errors()
    training = AutoencoderTraining(images=0, key_frames=60, clips=0, crop=(32, 64), batch_size=2)
    AutoencoderTrainer(SIZES, Footage(frames, frames), training, tmp_path / "v.pt", autoencoder).train()
    clips, single = errors()
    assert first[1] == 0 and clips < 0.5 * first[0] and single < 0.2, "clips are sharper, single frames much the same"
    after = autoencoder.autoencoder.state_dict()
    assert all(torch.equal(before[name], after[name]) == name.startswith("decoder.") for name in before)


def test_noise_on_latents_is_drawn_for_each_and_cannot_be_outgrown(tmp_path):
    """Its deviation is even below the largest one; latents ten times as large, which would drown it, cost more than it does."""
    torch.manual_seed(0)
    frames = [torch.from_numpy(moving(index)) for index in range(3)]
    autoencoder = build_autoencoder(SIZES)
    losses = {}
    for noise in (0.0, 0.8):
        training = AutoencoderTraining(images=1, clips=0, crop=(32, 64), batch_size=2, latent_noise=noise)
        trainer = AutoencoderTrainer(SIZES, Footage(frames, frames), training, tmp_path / "v.pt", autoencoder)
        disturbed = trainer._disturbed(torch.zeros(200, 4, 1, 8, 8), torch.Generator().manual_seed(1)).flatten(1).std(1)
        assert disturbed.max() == 0 if not noise else disturbed.min() < 0.1 and 0.7 < disturbed.max() < 0.9
        losses[noise] = [trainer.image_loss(0, torch.Generator().manual_seed(5))[0].item()]
    last = autoencoder.autoencoder.encoder.conv_out.conv
    with torch.no_grad():
        last.weight[:4], last.bias[:4] = 10 * last.weight[:4], 10 * last.bias[:4]
    assert trainer.image_loss(0, torch.Generator().manual_seed(5))[0] > losses[0.8][0] + 0.5 > losses[0.0][0] + 0.5


def test_folding_statistics_changes_latents_and_not_pixels():
    torch.manual_seed(0)
    autoencoder = build_autoencoder(SIZES)
    video = to_video(torch.from_numpy(moving(0)))[None]
    mean, std = autoencoder.encode_moments(video)
    decoded = autoencoder.decode(mean)
    shift, scale = torch.tensor([0.5, -1.0, 0.0, 2.0]), torch.tensor([2.0, 0.5, 1.0, 3.0])
    fold_statistics(autoencoder, torch.zeros(4), scale)
    assert_close(autoencoder.decode(mean / scale[:, None, None]), decoded)
    fold_statistics(autoencoder, shift, torch.ones(4))
    folded, folded_std = autoencoder.encode_moments(video)
    assert_close(folded, mean / scale[:, None, None] - shift[:, None, None])
    assert_close(folded_std, std / scale[:, None, None])


def test_folded_means_reach_what_sees_latents():
    """All but the zeros around an image, which stand for the mean afterwards."""
    torch.manual_seed(0)
    autoencoder = build_autoencoder(SIZES)
    first = autoencoder.autoencoder.decoder.conv_in
    latents, shift = torch.randn(1, 4, 3, 6, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, -1.0, 0.0, 2.0])
    features = first(latents)[0]
    fold_statistics(autoencoder, shift, torch.ones(4))
    assert_close(first(latents - shift.view(-1, 1, 1, 1))[0][..., 1:-1, 1:-1], features[..., 1:-1, 1:-1])


def test_pieces_of_clips_fit_the_decoder():
    frames = [torch.from_numpy(moving(0, length)) for length in (9, 13, 22)]
    trainer = AutoencoderTrainer(SIZES, Footage(frames), AutoencoderTraining(crop=(16, 24)), None, None)
    drawn = [trainer._draw(trainer.footage.clips, 17, torch.Generator().manual_seed(seed)) for seed in range(12)]
    assert {piece.shape for piece in drawn} == {(3, 9, 16, 24), (3, 17, 16, 24)}
    assert len({piece.sum().item() for piece in drawn}) > 8


def test_training_decodes_as_sampling_does():
    torch.manual_seed(0)
    autoencoder = build_autoencoder(SIZES)
    trainer = AutoencoderTrainer(SIZES, Footage(), AutoencoderTraining(), None, autoencoder)
    latents = torch.randn(1, 5, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    ours = torch.cat(list(trainer._decode(latents.transpose(1, 2))), dim=2)
    assert_close(ours, autoencoder.decode(latents), 0.05)  # bfloat16 against float32
    assert ours.requires_grad is False and ours.shape == (1, 3, 17, 16, 24)


def test_losses_compare_pixels_and_edges():
    video = to_video(torch.from_numpy(moving(0)))[None]
    assert difference(video, video, (1, 2)) == 0 and decibels(video, video) > 90
    assert decibels(video + 0.2, video) == pytest.approx(20, abs=0.01)
    assert difference(video + 0.2, video, (1,)) == pytest.approx(0.2, abs=1e-4), "edges are the same"
    swapped = video.flip(2)
    pixels_and_edges = sum(difference(one, other, (1,)) for one, other in zip(swapped.split(1, 2), video.split(1, 2), strict=True)) / 9
    assert difference(swapped, video, (1,)) > 1.05 * pixels_and_edges > 0, "movement counts"


def test_images_and_latents_move_alike():
    """A smooth image that is moved and then made eight times smaller is the small one moved; a share of 0 moves nothing."""
    rows, columns = torch.meshgrid(torch.linspace(0, 2, 64), torch.linspace(0, 3, 96), indexing="ij")
    image = torch.stack([rows.sin(), columns.cos(), (rows * columns).sin()])[None, :, None].expand(6, -1, -1, -1, -1)
    maps = draw_motions(6, 96 / 64, 1.0, torch.Generator().manual_seed(0))
    large, small = (F.avg_pool3d(side, (1, 8, 8)) for side in (moved(image, maps), image))
    inside = (large - moved(small, maps))[..., 2:-2, 2:-2].abs()
    assert inside.mean() < 0.02 < 0.1 < (large - small).abs().mean(), "the edges' rows apart"
    still = draw_motions(6, 96 / 64, 0.0, torch.Generator().manual_seed(0))
    torch.testing.assert_close(moved(image, still), image.contiguous(), atol=1e-5, rtol=0)


def test_turning_keeps_shapes():
    """Distances in pixels grow by the same factor along any direction."""
    for matrix in draw_motions(9, 1.5, 1.0, torch.Generator().manual_seed(1))[:, :, :2]:
        pixels = torch.diag(torch.tensor([1.5, 1.0])) @ matrix @ torch.diag(torch.tensor([1 / 1.5, 1.0]))
        lengths = pixels.norm(dim=0)
        assert lengths[0] == pytest.approx(lengths[1].item(), rel=1e-4) and 0.74 < lengths[0] < 1.41
        assert abs(pixels[:, 0] @ pixels[:, 1]) < 1e-5


def test_what_is_moved_is_compared_with_what_should_come_out(tmp_path, monkeypatch):
    """Mirrored latents are decoded, mirrored pixels are expected."""
    frames, seen = [torch.from_numpy(moving(index)) for index in range(2)], []
    mirror = torch.tensor([[-1.0, 0, 0], [0, 1, 0]])
    monkeypatch.setattr(autoencoder_module, "draw_motions", lambda count, aspect, share, _: mirror.expand(count if share else 0, 2, 3))
    monkeypatch.setattr(autoencoder_module, "difference", lambda decoded, video, _: seen.append((decoded, video)) or decoded.sum())
    for share in (0.0, 1.0):
        training = AutoencoderTraining(images=1, clips=0, crop=(32, 64), batch_size=2, equivariance=share)
        trainer = AutoencoderTrainer(SIZES, Footage(frames, frames), training, tmp_path / "v.pt", None)
        trainer.network = SimpleNamespace(
            encoder=lambda video: (torch.cat([F.avg_pool3d(video, (1, 4, 4)), torch.full((2, 3, 1, 8, 16), -30.0)], dim=1), None),
            decoder=lambda latents, conv_cache: (F.interpolate(latents, scale_factor=(1, 4, 4)), None),
        )
        trainer.image_loss(0, torch.Generator().manual_seed(5))
    (plain, video), (mirrored, expected) = seen
    torch.testing.assert_close(expected, video.flip(-1), atol=1e-4, rtol=0)
    assert (mirrored - plain.flip(-1)).abs().mean() < 0.01 < 0.05 < (mirrored - plain).abs().mean()


@pytest.mark.parametrize(
    "entries, expected",
    [
        ([{"caption": "a man"}], "entry 0: found no video_path"),
        ([{"video_path": "gone.mp4"}], "gone.mp4: no such file"),
        ([{"video_path": "7.png", "split": "train"}] * 2, "2 clips to learn from and 0 to measure on"),
        ([{"video_path": "clips.json", "split": "train"}] * 2, "clips.json"),
    ],
)
def test_bad_lists_are_told_in_one_line(script, footage_list, tmp_path, entries, expected):
    (tmp_path / "bad.json").write_text(json.dumps(entries))
    code, _, errors = script(*options(tmp_path / "bad.json", "--output", tmp_path / "v.pt"))
    assert expected in only_error(code, errors)


@pytest.mark.parametrize(
    "more, expected",
    [
        ((), "neither --output nor --load"),
        (("--output", "v.pt", "--frames", 13), "8k+1 frames"),
        (("--output", "v.pt", "--size", 30, 40), "multiples of 8"),
        (("--load", "gone.pt"), "gone.pt: found no such file"),
        (("--output", "v.pt", "--equivariance", 1.5), "--equivariance: found 1.5, expected a share of 0 to 1"),
        (("--output", "v.pt", "--equivariance", -1), "--equivariance: found -1"),
    ],
)
def test_bad_options_are_told_in_one_line(script, footage_list, more, expected):
    code, _, errors = script("--lists", footage_list, *more)
    assert expected in only_error(code, errors)


def test_a_list_without_clips_is_refused_where_clips_are_learned(script, footage_list, tmp_path):
    lone = [{"video_path": "7.png", "split": split} for split in ("train", "test")]
    (tmp_path / "lone.json").write_text(json.dumps(lone))
    for more in ((), ("--key-frames", 0), ("--clips", 0)):
        code, _, errors = script(*options(tmp_path / "lone.json", "--output", tmp_path / "v.pt", "--images", 1, *more))
        assert "found no clips to learn from" in only_error(code, errors)


def test_other_weights_or_images_are_another_run(tmp_path):
    """A run goes on with what it was begun with alone; its length says nothing about that."""
    frames = [torch.from_numpy(moving(index)) for index in range(3)]
    training = AutoencoderTraining(images=0, clips=1, crop=(32, 64))

    def begin(weights: int, footage: Footage) -> None:
        torch.manual_seed(weights)
        AutoencoderTrainer(SIZES, footage, training, tmp_path / "v.pt", build_autoencoder(SIZES)).train()

    begin(0, Footage(frames[:1], frames[1:]))
    begin(0, Footage(frames[:1], frames[1:]))
    for weights, footage in ((1, Footage(frames[:1], frames[1:])), (0, Footage(frames[2:], frames[:2]))):
        with pytest.raises(UserError, match="other settings or data"):
            begin(weights, footage)


def test_the_shipped_file_is_one_of_these():
    config = load_config([str(ROOT / "configs" / "mini.yaml")]).model
    assert VideoAutoencoder.from_config(config.autoencoder, config.scale_factor).autoencoder.config.latent_channels == 16
