"""What must hold between the keys of a configuration, whatever each of them is by itself."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from concat_id.typed import Origins, mismatch

if TYPE_CHECKING:
    from concat_id.config import Config


def validate(config: "Config", origins: Origins | None = None) -> None:
    """Check what must hold between keys. Raises `UserError` naming the key, its value and what the model can do."""
    for key, holds, expected in _constraints(config):
        if not holds:
            value: Any = config
            for name in key.split("."):
                value = getattr(value, name)
            raise mismatch(key, value, expected, origins or Origins())


def _constraints(config: "Config") -> Iterator[tuple[str, bool, str]]:
    """Yield (key, whether it fits, what is expected of it)."""
    args, data, transformer = config.args, config.data, config.model.transformer
    autoencoder, factor = config.model.autoencoder, config.model.autoencoder.spatial_factor
    heads, head_size = transformer.num_attention_heads, transformer.hidden_size // transformer.num_attention_heads
    rate, patch, frames = transformer.time_compressed_rate, transformer.patch_size, transformer.max_latent_frames
    multiple, height, width = factor * patch, transformer.latent_height * factor, transformer.latent_width * factor
    size = f"[height, width] divisible by {multiple} (VAE {factor} x patch {patch}) and at most [{height}, {width}]"
    span = f"1 to {frames} latent frames ({frames} are {transformer.num_frames} frames of video, 1 is a portrait picture)"

    def fits(sizes: tuple[int, int] | None) -> bool:
        return sizes is None or all(n % multiple == 0 and n <= most for n, most in zip(sizes, (height, width), strict=True))

    yield "model.transformer.hidden_size", transformer.hidden_size % heads == 0, f"a multiple of the {heads} attention heads"
    rotary = transformer.position_embedding == "rotary"
    yield "model.transformer.hidden_size", not rotary or head_size % 16 == 0, f"heads ({head_size} wide) divisible by 16 for rotary"
    yield "model.transformer.hidden_size", rotary or transformer.hidden_size % 16 == 0, "a multiple of 16 for sin-cos positions"
    yield "model.transformer.latent_height", transformer.latent_height % patch == 0, f"a multiple of patch_size {patch}"
    yield "model.transformer.latent_width", transformer.latent_width % patch == 0, f"a multiple of patch_size {patch}"
    yield "model.transformer.num_frames", (transformer.num_frames - 1) % rate == 0, f"1 more than a multiple of {rate}"
    for name in ("in_channels", "out_channels"):
        channels = autoencoder.latent_channels
        yield f"model.transformer.{name}", getattr(transformer, name) == channels, f"the autoencoder's {channels} latent channels"
    length = transformer.text_length
    yield "model.text_encoder.max_length", config.model.text_encoder.max_length == length, f"the transformer's text_length {length}"
    groups = autoencoder.norm_num_groups
    whole = all(channels % groups == 0 for channels in autoencoder.block_out_channels)
    yield "model.autoencoder.block_out_channels", whole, f"multiples of norm_num_groups {groups}"
    enough = 2 ** (len(autoencoder.block_out_channels) - 1) >= rate
    yield "model.autoencoder.block_out_channels", enough, f"enough levels to shorten the video {rate} times"
    steps = config.model.schedule.num_timesteps
    yield "model.sampler.num_inference_steps", config.model.sampler.num_inference_steps <= steps, f"at most the schedule's {steps} steps"
    whole = config.model.sampler.guidance != "dynamic" or config.model.sampler.guidance_exponent.is_integer()
    yield "model.sampler.guidance_exponent", whole, "a whole number with dynamic guidance, whose base is negative at times"
    yield "args.sampling_image_size", fits(args.sampling_image_size), size
    yield "args.sampling_num_frames", args.sampling_num_frames is None or 1 <= args.sampling_num_frames <= frames, span
    yield "data.video_size", fits(data.video_size), size
    clip, longest = data.max_num_frames or 1, transformer.num_frames
    yield "data.max_num_frames", (clip - 1) % rate == 0 and clip <= longest, f"{rate} n + 1, at most {longest}"
    yield "args.fp16", not (args.bf16 and args.fp16), "false where bf16 is true; choose one of them"
    yield "args.image", len(args.image) <= transformer.max_refs, f"at most {transformer.max_refs} photos"
    yield "args.prompt", bool(args.image) or args.prompt is None, "a photo per person beside it, given with --image"
    yield "args.prompt", args.prompt is None or bool(args.prompt.strip()), "a text that is not empty"
    yield "args.prompt", args.prompt is not None or not args.image, "the text of the video, given with --prompt beside --image"
