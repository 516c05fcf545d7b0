"""demo/train_autoencoder.py: what it learns, what it leaves alone, and mistakes in one line."""

import json

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_close
from entry import only_error
from in_process import call_main, load_script, refused
from PIL import Image

from concat_id.config.cogvideox import AutoencoderConfig
from concat_id.data.clips import Window
from concat_id.video.writing import write_video
from networks.autoencoder import AutoencoderTrainer, AutoencoderTraining
from networks.building import build_autoencoder, fold_statistics
from networks.footage import Footage, read_footage, to_video

SIZES = AutoencoderConfig(block_out_channels=(32, 32, 32), layers_per_block=1, latent_channels=4)


def moving(index: int, frames: int = 9) -> np.ndarray:
    """Frames (F, 32, 64, 3) of a bar that moves over a colour."""
    colour = np.random.default_rng(index).integers(30, 180, 3)
    bar = (np.arange(64)[None] - 3 * np.arange(frames)[:, None] - 5 * index) % 64 < 16
    return np.broadcast_to(colour + 70 * bar[:, None, :, None], (frames, 32, 64, 3)).astype(np.uint8)


@pytest.fixture
def frames():
    """Three clips."""
    return [torch.from_numpy(moving(index)) for index in range(3)]


@pytest.fixture
def begin(frames, tmp_path):
    """Make a trainer of small steps on the three clips: `begin(autoencoder, **settings)`."""

    def start(autoencoder=None, footage=None, output="v.pt", **settings) -> AutoencoderTrainer:
        training = AutoencoderTraining(**{"images": 0, "clips": 0, "crop": (32, 64), "batch_size": 2} | settings)
        return AutoencoderTrainer(SIZES, footage or Footage(frames, frames), training, tmp_path / output, autoencoder)

    return start


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


def test_the_script_trains_the_shipped_weights_and_measures(footage_list, tmp_path, monkeypatch, capsys):
    script, output = load_script(ROOT / "demo" / "train_autoencoder.py"), tmp_path / "v.pt"
    script.SIZE = (32, 64)
    options = ("--lists", footage_list, "--frames", 9, "--load", ROOT / "models" / "mini" / "vae" / "3d-vae.pt")
    more = ("--output", output, "--images", 0, "--key-frames", 1, "--clips", 1, "--learning-rate", 1e-3)
    ended = call_main(script, (*options, *more), monkeypatch, capsys)
    assert ended.code == 0 and ended.out.count("single frames") == 2, ended.err
    tensors = torch.load(output, weights_only=True)["state_dict"]
    assert any(name.startswith("decoder.up.0.block.") for name in tensors), "the released names"
    assert all(tensor.dtype == torch.float16 for tensor in tensors.values()) and not list(tmp_path.glob("*.training"))


def test_the_last_part_teaches_the_decoder_alone(begin):
    trainer = begin(images=10, key_frames=2, clips=1)
    trainer.train()
    learned, before = trainer.measure()["clips"], {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
    again = begin(trainer.autoencoder, output="second.pt", clips=6)
    again.train()
    assert again.measure()["clips"] > learned + 0.05
    same = {name.split(".")[0]: [] for name in before}
    for name, tensor in again.network.state_dict().items():
        same[name.split(".")[0]].append(torch.equal(before[name], tensor))
    assert all(same["encoder"]) and not all(same["decoder"])


def test_a_stopped_run_goes_on(begin, stopped_after):
    few = {"images": 1, "key_frames": 1, "clips": 1}
    whole = begin(output="whole.pt", **few)
    whole.train()
    with stopped_after(2):
        begin(output="parts.pt", **few).train()
    parts = begin(output="parts.pt", **few)
    parts.train()
    tensors = parts.network.state_dict()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in whole.network.state_dict().items())


def test_clips_teach_a_kernel_every_moment(begin):
    """Of the encoder with key frames, of the decoder in its own part."""
    for steps in ((0, 2), (2, 0)):
        trainer = begin(output=f"{steps[0]}.pt", images=1, key_frames=steps[0], clips=steps[1])
        kernels = {name: weight for name, weight in trainer.network.named_parameters() if weight.dim() == 5 and weight.shape[2] == 3}
        trainer.train()
        learned = {name.split(".")[0] for name, weight in kernels.items() if weight[:, :, :-1].abs().max() > 0}
        assert learned == ({"encoder"} if steps[0] else {"decoder"})


def test_latents_of_clips_become_those_of_every_fourth_frame(begin, frames):
    torch.manual_seed(0)
    autoencoder = build_autoencoder(SIZES)
    before = {name: weight.clone() for name, weight in autoencoder.autoencoder.state_dict().items()}
    video = to_video(torch.stack([clip[:9] for clip in frames]))
    alone = torch.cat([autoencoder.encode(video[:, :, [index]]) for index in (0, 4, 8)], dim=1)

    def errors() -> tuple[float, float]:
        clips = (autoencoder.encode(video) - alone).square().mean() / alone.var()
        return float(clips), float((autoencoder.encode(video[:, :, :1]) - alone[:, :1]).square().mean() / alone.var())

    first = errors()
    begin(autoencoder, key_frames=60).train()
    clips, single = errors()
    assert first[1] == 0 and clips < 0.5 * first[0] and single < 0.2, "clips are sharper, single frames much the same"
    after = autoencoder.autoencoder.state_dict()
    assert all(torch.equal(before[name], after[name]) == name.startswith("decoder.") for name in before)


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


def test_training_decodes_as_sampling_does():
    torch.manual_seed(0)
    autoencoder = build_autoencoder(SIZES)
    trainer = AutoencoderTrainer(SIZES, Footage(), AutoencoderTraining(), None, autoencoder)
    latents = torch.randn(1, 5, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    ours = torch.cat(list(trainer._decode(latents.transpose(1, 2))), dim=2)
    assert_close(ours, autoencoder.decode(latents), 0.05)  # bfloat16 against float32
    assert ours.requires_grad is False and ours.shape == (1, 3, 17, 16, 24)


@pytest.mark.parametrize("entries, expected", [
    ([{"caption": "a man"}], "entry 0: found no video_path"),
    ([{"video_path": "gone.mp4"}], "gone.mp4: no such file"),
    ([{"video_path": "7.png", "split": "train"}] * 2, "2 clips to learn from and 0 to measure on"),
    ({}, "found a dict, expected a list"),
])  # fmt: skip
def test_bad_lists_are_told(footage_list, tmp_path, entries, expected):
    (tmp_path / "bad.json").write_text(json.dumps(entries))
    refused(expected, read_footage, [tmp_path / "bad.json"], Window(8, 9, 0, (32, 64)), 10)


@pytest.mark.parametrize("more, expected", [
    ((), "neither --output nor --load"),
    (("--output", "v.pt", "--frames", 13), "--frames: found 13, expected 8k+1"),
    (("--load", "gone.pt"), "gone.pt: found no such file"),
])  # fmt: skip
def test_bad_options_are_told_in_one_line(footage_list, monkeypatch, capsys, more, expected):
    ended = call_main(load_script(ROOT / "demo" / "train_autoencoder.py"), ("--lists", footage_list, *more), monkeypatch, capsys)
    assert expected in only_error(ended.code, ended.err)


def test_clips_are_wanted_where_they_are_learned(begin, frames):
    for part in ("key_frames", "clips"):
        refused("found no clips to learn from", begin(footage=Footage([frames[0][:1]], frames), **{part: 1}).train)
