"""The demonstration model in minutes of one GPU: autoencoder, then stages I to III, by a clock; saved every two minutes."""

import time
from math import prod
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from concat_id.config.schema import Config
from concat_id.diffusion.denoiser import Condition, guided_denoiser
from concat_id.diffusion.guidance import guidance_scale
from concat_id.diffusion.samplers import SAMPLERS
from concat_id.distributed import is_cuda
from concat_id.files.paths import remove_partial_files, written_whole
from concat_id.models import backbones
from concat_id.models.autoencoder import VideoAutoencoder
from concat_id.models.operations import count_tokens, forward_operations
from concat_id.models.tensor_names import POSITIONS
from concat_id.training.objective import generator_of, recipe_of
from concat_id.video.transforms import to_frames
from concat_id.weights.loading import SAT_PREFIX, load_tensors
from networks.autoencoder import PIECE, AutoencoderTrainer, cut_pieces, to_video
from networks.building import matrices, write_autoencoder
from networks.clock import SHARES, Clock, Tally
from networks.learner import Descent
from networks.material import TOGETHER, Plan, Studio
from networks.pool import ENCODED, Pool, showing

STATE = "state.pt"
SHOWN = 8  # the first people, on whom samples are made and nothing is learned; fewer, in fewer steps, where a step has few tokens
PIECES_A_STEP = 256  # of the autoencoder
TOKENS_A_STEP = 150_000  # of the transformer
LEARNING_RATES = {1: 1e-3, 2: 2e-4, 3: 2e-4}
AVERAGE = 0.998
LOGIT_STD = 1.2  # of timesteps: more of the middle noise levels, where it is decided whom a face resembles
FEWEST = 8  # people that a part waits for, fewer where a step has few tokens


class Minutes:
    """One run in `folder`, gone on with if it was begun there: state.pt, model/, samples/, latents/.

    `scale` is that of batches, 1 for a GPU; `workers` processes draw; `save_every` is in seconds.
    """

    def __init__(self, config: Config, folder: Path, minutes: float, device: torch.device, scale: float, workers: int, save_every: float):
        self.config, self.folder, self.device = config, folder, device
        self.size = tuple(config.args.sampling_image_size)  # of one person; two have the model's largest size
        self.scale, self.workers, self.save_every = scale, workers, save_every
        remove_partial_files(folder)
        state = load_tensors(folder / STATE, mmap=False) if (folder / STATE).is_file() else {}
        self.clock, self.state = Clock(60 * minutes, state.get("spent", 0.0)), state
        self.tallies = {name: Tally(**tally) for name, tally in state.get("tallies", {}).items()}
        self.part, self.learner, self.network = state.get("part", "autoencoder"), None, None
        self.pixels, self.shown, self.waiting = [], [], []  # people: to learn from, to show, to be encoded
        self.saved = time.monotonic()
        self.vae = folder / "model" / "vae" / "3d-vae.pt"
        if self.part == "autoencoder" and self.vae.is_file():  # cut before the first save of stage I
            self.part, self.state = "stage 1", {}
        self.text_encoder = backbones.make_text_encoder(config, device, None)
        self.text_network = self.text_encoder.load()

    def run(self) -> None:
        """Do what is left."""
        if self.clock.progress("stage 3") >= 1:
            return
        frames = self.config.model.num_frames
        plans = [Plan(self.size, frames), Plan(self.config.model.largest_size, frames, images=3, portraits=1, people=2)]
        with Studio(plans, min(self.workers, SHOWN), 0) as first:
            wanted = {people: max(1, round(number * self.scale)) for people, number in ((1, SHOWN), (2, SHOWN // TOGETHER))}
            while any(len(showing(self.shown, people)) < number for people, number in wanted.items()):
                self.shown += [person for person in first.arrived(5.0) if person.number < SHOWN]
        pool = self._pool() if self.vae.is_file() else None
        numbers = [person.number for person in pool.people] if pool else []
        with Studio(plans, self.workers, 1 + max([SHOWN - 1, *numbers])) as self.studio:
            if self.part == "autoencoder":
                self._learn_autoencoder()
                pool = self._pool()
                pool.add(self.pixels)
                self.pixels, self.learner = [], None
            self.pool = pool
            for stage in range(max(1, list(SHARES).index(self.part)), 4):
                self._learn_stage(stage)

    def _learn_autoencoder(self) -> None:
        model = self.config.model
        trainer = self.learner = AutoencoderTrainer(model.autoencoder, model.transformer.time_compressed_rate, self.device)
        self._go_on(trainer)
        rng, count = np.random.default_rng(trainer.done), max(1, round(PIECES_A_STEP * self.scale))
        tally = self.tallies.setdefault("autoencoder", Tally(3 * conv_operations(trainer.autoencoder, PIECE)))
        self._await(lambda: self.pixels)
        torch.backends.cudnn.benchmark = True  # pieces have three sizes; what is encoded later has many
        while (progress := self.clock.progress("autoencoder")) < 1:
            self.pixels += self.studio.arrived()
            pieces = cut_pieces(lambda: self.pixels[rng.integers(len(self.pixels))].clips[0], count, progress, rng)
            start = time.monotonic()
            quality = trainer.step(to_video(torch.from_numpy(pieces).to(self.device)), progress)
            self._took(tally, start, pieces.size // (3 * prod(PIECE)), f"{float(quality):.1f} dB" if trainer.done % 20 == 0 else "")
        torch.backends.cudnn.benchmark = False
        chosen = [to_video(torch.from_numpy(person.clips[:1])).to(self.device) for person in self.pixels[:64]]
        write_autoencoder(self.vae, trainer.finish(chosen), torch.float16)

    def _learn_stage(self, stage: int) -> None:
        model, name = self.config.model, f"stage {stage}"
        self.network = network = self.network or self._new_network()
        if self.learner is not None:
            self.learner.keep_average()
        learner = self.learner = Descent(network, matrices(network), LEARNING_RATES[stage], AVERAGE)
        if self.part == name:
            self._go_on(learner)
        self.part = name
        self._await(lambda: showing(self.pool.people, 1))
        rng = np.random.default_rng([stage, learner.done])
        recipe = recipe_of(model)
        while (progress := self.clock.progress(name)) < 1:
            people, moving = showing(self.pool.people, 2) if learner.done % 8 >= 6 else [], learner.done % 2 == 1
            people = people or showing(self.pool.people, 1)
            number, frames = people[0].references.shape[1], model.max_latent_frames if moving else 1
            tokens = count_tokens(model, frames + number, self.size if number == 1 else model.largest_size)
            count = max(1, round(TOKENS_A_STEP * self.scale / tokens))
            kind = f"{'clips' if moving else 'images'}{' of two' if number == 2 else ''}"
            tally = self.tallies.setdefault(f"{name}, {kind}", Tally(3.0 * sum(forward_operations(model.transformer, tokens))))
            self.waiting += self.studio.arrived()
            if len(self.waiting) >= ENCODED * self.scale:
                self.pool.add(self.waiting)
                self.waiting = []
            start = time.monotonic()
            loss = self._loss(recipe, self.pool.batch(people, stage, moving, count, rng), generator_of(stage, learner.done))
            learner.descend(loss, progress)
            self._took(tally, start, count, f"loss {float(loss.detach()):.3f}" if learner.done % 20 < 2 else "")
        self._save()

    def _loss(self, recipe, batch: tuple[Tensor, Tensor, Tensor], generator: torch.Generator) -> Tensor:
        """The library's loss at logit-normal timesteps, conditions dropped as its training drops them."""
        model, (latents, texts, refs) = self.config.model, batch
        condition = recipe.drop(Condition(texts, refs), model.ref_image_dropout, model.text_dropout, generator)
        share = (torch.randperm(len(latents), generator=generator) + torch.rand(len(latents), generator=generator)) / len(latents)
        timestep = logit_normal(share.double(), model.schedule.num_timesteps).to(self.device)
        noise = torch.randn_like(latents, dtype=torch.float32)
        return recipe.loss(self._cast(self.network), recipe.schedule, latents.float(), noise, timestep, condition).mean()

    def _cast(self, network: nn.Module):
        dtype = next(network.parameters()).dtype
        return lambda latents, timestep, text, refs: network(latents.to(dtype), timestep, text.to(dtype), refs.to(dtype))

    def _new_network(self) -> nn.Module:
        """A transformer with fresh weights, in bfloat16 and with compiled blocks on a GPU."""
        network = backbones.new_transformer(self.config)
        backbones.initialize_weights(network, generator_of("weights"))
        network.to(self.device, torch.bfloat16 if is_cuda(self.device) else torch.float32)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name != POSITIONS)
        mixin = network.get_mixin("adaln_layer")
        self.plain, lengths = mixin.block, mixin.lengths
        if is_cuda(self.device):
            self.config.args.compile = True
            mixin.lengths = lambda *given: [*lengths(*given), (given[3], 0), (given[4], 0)]  # one graph for batches of any size
            backbones.compile_blocks(self.config, network, self.device, 1000)
        return network.train()

    @torch.no_grad()
    def _draw_samples(self) -> None:
        """Write samples/NNNN.png and NNNN_two.png: references of the first people, then frames of a video by a caption of theirs."""
        mixin, now = self.network.get_mixin("adaln_layer"), round(self.clock.elapsed)
        fast, mixin.block = mixin.block, self.plain  # other batches would be compiled anew
        for people, ending in ((1, ""), (2, "_two")):
            shown = showing(self.shown, people)
            refs = np.stack([person.references[-1] for person in shown])  # (B, P, H, W, 3)
            with self.learner.averaged() as network:
                videos = self._sample(network, refs, [person.captions[0] for person in shown])
            rows = [np.concatenate([*ref, *video[:: max(1, len(video) // 4)]], axis=1) for ref, video in zip(refs, videos, strict=True)]
            with written_whole(self.folder / "samples" / f"{now:04d}{ending}.png") as temporary:
                Image.fromarray(np.concatenate(rows)).save(temporary)
        mixin.block = fast

    def _sample(self, network: nn.Module, refs: np.ndarray, captions: list[str]) -> list[np.ndarray]:
        """Make videos (F, H, W, 3) of the people in references (B, P, H, W, 3), by the library's sampler."""
        model, sampler = self.config.model, self.config.model.sampler
        encoded = self.pool.encode(torch.from_numpy(refs).flatten(0, 1)[:, None])[:, 0].unflatten(0, refs.shape[:2])
        num_steps = max(2, round(sampler.num_inference_steps * min(1, SHOWN * self.scale)))
        schedule, generator = recipe_of(model).schedule.sampling_steps(num_steps), torch.Generator(self.device).manual_seed(0)
        start = torch.randn(len(refs), model.max_latent_frames, *encoded.shape[2:], generator=generator, device=self.device)
        scale = guidance_scale(sampler.guidance, sampler.guidance_scale, num_steps)
        denoise = guided_denoiser(self._cast(network), schedule, Condition(self.captions(captions), encoded), scale,
                                  ref_scales=sampler.ref_guidance_scale)  # fmt: skip
        noise = lambda like: torch.randn(like.shape, generator=generator, device=self.device)  # noqa: E731
        return [to_frames(video) for video in self.pool.autoencoder.decode(SAMPLERS[sampler.name](denoise, start, schedule, noise))]

    def _save(self) -> None:
        """Write everything that goes on from here, the weights so far in the released layout, and samples."""
        if self.part != "autoencoder":
            self.pool.save()
            with self.learner.averaged() as network:
                weights = {SAT_PREFIX + name: tensor.to(torch.bfloat16).cpu() for name, tensor in network.state_dict().items()}
                stage = self.folder / "model" / "transformer" / self.part.replace(" ", "")
                with written_whole(stage / "mp_rank_00_model_states.pt") as temporary:
                    torch.save({"module": weights, "iteration": self.learner.done}, temporary)
            with written_whole(stage.parent / "latest") as temporary:
                temporary.write_text(stage.name, encoding="utf-8")
            self._draw_samples()
        tallies = {name: vars(tally) for name, tally in self.tallies.items()}
        with written_whole(self.folder / STATE) as temporary:
            torch.save({"spent": self.clock.elapsed, "part": self.part, "tallies": tallies, "learner": self.learner.state()}, temporary)
        self.saved = time.monotonic()

    def _go_on(self, learner: Descent) -> None:
        if "learner" in self.state:
            learner.go_on(self.state.pop("learner"))

    def _took(self, tally: Tally, start: float, count: int, note: str) -> None:
        """Count a step, say now and then how it goes, and save."""
        if note:  # which has waited for the device
            print(f"{self.clock.elapsed:5.0f} s, {self.part}, step {self.learner.done}: {note}", flush=True)
        tally.seconds += time.monotonic() - start
        tally.samples += count
        if time.monotonic() - self.saved > self.save_every:
            self._save()

    def _await(self, there) -> None:
        """Wait for the first people."""
        while len(there()) < max(1, round(FEWEST * self.scale)):
            arrived = self.studio.arrived(5.0)
            if self.part == "autoencoder":
                self.pixels += arrived
            else:
                self.pool.add(arrived)

    @torch.no_grad()
    def captions(self, sentences: list[str]) -> Tensor:
        """Embed captions (N, L, D), all at once."""
        tokens = torch.cat([self.text_encoder.tokenize(sentence) for sentence in sentences])
        return self.text_network(input_ids=tokens.to(self.device)).last_hidden_state.float()

    def _pool(self) -> Pool:
        model = self.config.model
        model.autoencoder.path = str(self.vae)
        autoencoder = VideoAutoencoder.from_config(model.autoencoder, model.scale_factor, device=self.device,
                                                   temporal=model.transformer.time_compressed_rate)  # fmt: skip
        return Pool(autoencoder, self.captions, self.device, self.folder / "latents")


def logit_normal(share: Tensor, count: int) -> Tensor:
    """The timesteps (B,) of `count`, of normal logit log(t / (1 - t)), below which shares (B,) lie (Esser et al. 2024, section 3.1)."""
    return (count * torch.sigmoid(LOGIT_STD * torch.special.ndtri(share))).long().clamp_(max=count - 1)


def conv_operations(autoencoder: VideoAutoencoder, shape: tuple[int, int, int]) -> float:
    """Operations of the convolutions that encode and decode one clip of a shape (F, H, W)."""
    total, convolutions = [], (nn.Conv2d, nn.Conv3d)

    def count(module: nn.Module, inputs, output: Tensor) -> None:
        total.append(2 * output.numel() * module.weight[0].numel())

    hooks = [module.register_forward_hook(count) for module in autoencoder.modules() if isinstance(module, convolutions)]
    video = torch.zeros(1, 3, *shape, device=autoencoder.device)
    autoencoder.decode(autoencoder.encode(video))
    for hook in hooks:
        hook.remove()
    return float(sum(total))
