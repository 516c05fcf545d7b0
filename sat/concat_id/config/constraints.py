"""What must hold between the keys of a configuration, whatever each of them is by itself."""

from collections.abc import Iterator
from operator import attrgetter
from typing import get_args, get_type_hints

from concat_id.config.schema import BACKBONES, Config
from concat_id.config.typed import mismatch


def validate(config: Config) -> None:
    """Check what must hold between keys. Raises `UserError` naming the key, its value and what the model can do."""
    for key, holds, expected in _constraints(config):
        if not holds:
            raise mismatch(key, attrgetter(key)(config), expected, config.origins)


def _constraints(config: Config) -> Iterator[tuple[str, bool, str]]:
    """Yield (key, whether it fits, what is expected of it)."""
    if config.model.kind in BACKBONES:
        yield from _of_backbone(config)
    yield from _of_args(config)
    yield from {"cogvideox": _of_cogvideox, "wan": _of_wan}.get(config.model.kind, _of_neighbour)(config)


def _of_backbone(config: Config) -> Iterator[tuple[str, bool, str]]:
    args, model, transformer = config.args, config.model, config.model.transformer
    heads, rate = transformer.num_attention_heads, transformer.time_compressed_rate
    patch, frames = transformer.patch_size, transformer.num_frames
    yield "model.transformer.hidden_size", transformer.hidden_size % heads == 0, f"a multiple of the {heads} attention heads"
    yield "model.transformer.latent_height", transformer.latent_height % patch == 0, f"a multiple of patch_size {patch}"
    yield "model.transformer.latent_width", transformer.latent_width % patch == 0, f"a multiple of patch_size {patch}"
    yield "model.transformer.num_frames", (frames - 1) % rate == 0, f"1 more than a multiple of {rate}"
    for name in ("in_channels", "out_channels"):
        channels = model.autoencoder.latent_channels
        yield f"model.transformer.{name}", getattr(transformer, name) == channels, f"the autoencoder's {channels} latent channels"
    length = transformer.text_length
    yield "model.text_encoder.max_length", model.text_encoder.max_length == length, f"the transformer's text_length {length}"
    enough = 2 ** (len(model.autoencoder.block_out_channels) - 1) >= rate
    yield "model.autoencoder.block_out_channels", enough, f"enough levels to shorten the video {rate} times"
    steps, sampler = model.schedule.num_timesteps, model.sampler
    yield "model.sampler.num_inference_steps", sampler.num_inference_steps <= steps, f"at most the schedule's {steps} steps"
    random = model.lora is not None and model.lora.dropout > 0
    yield "args.compile", not (args.compile and random), "false or auto with model.lora.dropout, whose draws compiling changes"
    clip = config.data.max_num_frames
    yield "data.max_num_frames", (clip - 1) % rate == 0 and clip <= frames, f"{rate} n + 1, at most {frames}"


def _of_args(config: Config) -> Iterator[tuple[str, bool, str]]:
    args, model, sampler = config.args, config.model, config.model.sampler
    people = "one number" + (f", or one for each of at most {model.max_people} people" if model.max_people > 1 else "")
    yield "model.sampler.ref_guidance_scale", 1 <= len(sampler.ref_guidance_scale) <= model.max_people, people
    for name in ("name", "guidance"):
        known = get_args(get_type_hints(type(sampler))[name])
        yield f"model.sampler.{name}", getattr(sampler, name) in known, " or ".join(known)
    most = model.max_latent_frames
    span = f"1 to {most} latent frames ({most} are {model.num_frames} frames of video, 1 is a portrait image)"
    yield "args.sampling_num_frames", 1 <= args.sampling_num_frames <= most, span
    yield "args.fp16", not (args.bf16 and args.fp16), "false where bf16 is true; choose one of them"
    yield "args.compile", not (args.compile and args.memory == "low"), "false or auto with memory: low, whose layers come and go"
    yield from _of_acceleration(config)
    yield "args.batch_size", args.best_of in (None, args.batch_size), f"none beside best_of {args.best_of}, which says how many"
    yield "args.image", len(args.image) <= model.max_people, _photos(model.max_people)
    yield "args.prompt", bool(args.image) or args.prompt is None, "a photo per person beside it, given with --image"
    yield "args.prompt", args.prompt is None or bool(args.prompt.strip()), "a text that is not empty"
    yield "args.image", args.prompt is not None or not args.image, "the text of the video beside it, given with --prompt"


def _photos(most: int) -> str:
    return f"at most {most} photos" if most > 1 else "one photo, as the model takes one person"


def _of_acceleration(config: Config) -> Iterator[tuple[str, bool, str]]:
    args, is_sat = config.args, config.args.network == "sat"
    for name in ("cache", "quantize"):
        yield f"args.{name}", not is_sat or not getattr(args, name), "none with network: sat, which has none; --network diffusers"
    yield "args.parallel", not is_sat or args.parallel != "video", "prompts or guidance with network: sat; --network diffusers"
    kinds = args.quantize in (None, "int8", "fp8") or args.gguf
    yield "args.quantize", bool(kinds), "int8, fp8 or gguf:FILE"
    yield "args.cache_threshold", args.cache is not None or args.cache_threshold is None, "none without cache; choose one with --cache"
    together = args.cache != "dbcache" or args.memory != "low"
    yield "args.cache", together, "first_block or mag with memory: low, which runs the guidance branches one by one; dbcache would mix them"
    alone = args.cache != "dbcache" or args.parallel in ("prompts", "guidance")
    yield "args.cache", alone, "first_block or mag with parallel: video, whose processes must decide alike"
    shared = args.parallel != "video" or args.attention_kernel not in ("efficient", "math")
    yield "args.attention_kernel", shared, "auto, cudnn, flash, flash3 or sage with parallel: video"


def _of_cogvideox(config: Config) -> Iterator[tuple[str, bool, str]]:
    transformer, sampler = config.model.transformer, config.model.sampler
    head_size, rotary = transformer.hidden_size // transformer.num_attention_heads, transformer.position_embedding == "rotary"
    yield "model.transformer.hidden_size", not rotary or head_size % 16 == 0, f"heads ({head_size} wide) divisible by 16 for rotary"
    yield "model.transformer.hidden_size", rotary or transformer.hidden_size % 16 == 0, "a multiple of 16 for sin-cos positions"
    yield from _of_cogvideox_vae(config)
    whole = sampler.guidance != "dynamic" or sampler.guidance_exponent.is_integer()
    yield "model.sampler.guidance_exponent", whole, "a whole number with dynamic guidance, whose base is negative at times"
    yield from _sizes(config)


def _of_wan(config: Config) -> Iterator[tuple[str, bool, str]]:
    transformer, autoencoder, args = config.model.transformer, config.model.autoencoder, config.args
    head_size = transformer.hidden_size // transformer.num_attention_heads
    yield "model.transformer.hidden_size", head_size % 2 == 0 and head_size >= 6, "an even number, 6 or more, for every attention head"
    if autoencoder.kind == "cogvideox":
        yield from _of_cogvideox_vae(config)
    else:
        yield "model.transformer.time_compressed_rate", transformer.time_compressed_rate == 4, "4, as Wan's autoencoder makes it"
        first = autoencoder.block_out_channels[0]
        multiples = all(channels % first == 0 for channels in autoencoder.block_out_channels)
        yield "model.autoencoder.block_out_channels", multiples, f"multiples of the first, {first}"
    yield "args.network", args.network == "diffusers", "auto or diffusers with Wan"
    yield from _sizes(config)


def _of_neighbour(config: Config) -> Iterator[tuple[str, bool, str]]:
    """Systems beside Concat-ID, which run as diffusers runs them."""
    args, model = config.args, config.model
    yield "args.network", args.network == "diffusers", "auto or diffusers with this system"
    yield "args.compile", not args.compile, "false or auto with this system"
    yield "args.best_of", args.best_of is None or model.num_frames > 1, "none with portraits; batch_size makes several"
    if model.kind == "consistentid":
        for name in ("cache", "quantize"):
            yield f"args.{name}", getattr(args, name) is None, "none with this system"
        yield "args.attention_kernel", args.attention_kernel == "auto", "auto with this system"
    else:
        yield "args.cache", args.cache != "mag", "first_block or dbcache with this system, which mag cannot measure"
        yield "args.quantize", not args.gguf, "int8 or fp8 with this system"
        yield "args.load", args.load is None, "none with this system, whose folder is model.path"
        yield "model.sampler.ref_guidance_scale", {*model.sampler.ref_guidance_scale} == {1.0}, "1 with this system, which knows no other"
        yield "args.attention_kernel", args.attention_kernel != "sage", "one of PyTorch's own with this system"
    yield "args.parallel", args.parallel == "prompts", "prompts with this system"
    yield "model.sampler.guidance_scale", model.sampler.guidance_scale >= 1, "1 or more with this system"
    yield "model.sampler.num_inference_steps", model.sampler.num_inference_steps <= 1000, "at most the schedule's 1000 steps"
    multiple = 16 if model.kind == "consisid" else 8
    fits = all(side % multiple == 0 for side in args.sampling_image_size)
    yield "args.sampling_image_size", fits, f"[height, width] divisible by {multiple}"


def _of_cogvideox_vae(config: Config) -> Iterator[tuple[str, bool, str]]:
    autoencoder, rate = config.model.autoencoder, config.model.transformer.time_compressed_rate
    yield "model.transformer.time_compressed_rate", rate.bit_count() == 1, "1, 2, 4 or another power of two, which levels of the VAE make"
    whole = all(channels % autoencoder.norm_num_groups == 0 for channels in autoencoder.block_out_channels)
    yield "model.autoencoder.block_out_channels", whole, f"multiples of norm_num_groups {autoencoder.norm_num_groups}"


def _sizes(config: Config) -> Iterator[tuple[str, bool, str]]:
    """Images that the autoencoder and the patches divide, of any size: positions are made for every grid."""
    factor, patch = config.model.autoencoder.spatial_factor, config.model.transformer.patch_size
    multiple = factor * patch
    expected = f"[height, width] divisible by {multiple} (VAE {factor} x patch {patch})"
    for key, sizes in (("data.video_size", config.data.video_size), ("args.sampling_image_size", config.args.sampling_image_size)):
        yield key, all(side % multiple == 0 for side in sizes), expected
