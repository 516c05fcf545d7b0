"""Read the `model:` section of the original's files (`target:` class, `params:` arguments) into this project's form."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from concat_id.config.typed import Origins, convert, mismatch, nearest, shown, unknown_key
from concat_id.errors import UserError, warn

RELEASED, TYPED = "released target:/params:", "typed"
NEUTRAL = {"scale_factor", "ref_image_dropout", "not_trainable_prefixes", "faces"}  # keys that both forms have


class Only(NamedTuple):
    """The one value of a key that this project can do, and what to do instead of another; null is as good as false."""

    value: Any
    remedy: str = ""

    def allows(self, value: Any) -> bool:
        """Whether this value asks for nothing else."""
        return value == self.value or (value is None and self.value is False)


_NETWORK = "network_config.params."
_ARGS = _NETWORK + "transformer_args."
_MODULES = _NETWORK + "modules."
_POSITIONS = _MODULES + "pos_embed_config.params."
_LORA = _MODULES + "lora_config.params."
_EMBEDDER = "conditioner_config.params.emb_models.0."
_VAE = "first_stage_config.params."
_LOSS = "loss_fn_config.params."
_SIGMAS = _LOSS + "sigma_sampler_config.params."
_SAMPLER = "sampler_config.params."
_GUIDER = _SAMPLER + "guider_config.params."

# Key of the released form -> key of the typed form, or the only value that is possible, or None where it has no effect.
# Where several give one typed key they must agree. A leading underscore marks what is combined further down.
KEYS: dict[str, Any] = {
    "scale_factor": "scale_factor",
    "ref_image_dropout": "ref_image_dropout",
    "input_key": Only("mp4"),
    "latent_input": Only(False, "name lists of videos; args.latent_cache keeps what is encoded"),
    "compile_model": Only(False, "args.compile says it"),
    "noised_image_input": Only(False),
    "not_trainable_prefixes": "not_trainable_prefixes",
    "denoiser_config.params.num_idx": "schedule.num_timesteps",
    "denoiser_config.params.quantize_c_noise": Only(False),
    "denoiser_config.params.discretization_config.params.shift_scale": "schedule.shift",
    _NETWORK + "elementwise_affine": Only(True),
    _NETWORK + "input_time": Only("adaln"),
    _NETWORK + "use_SwiGLU": Only(False),
    _NETWORK + "use_RMSNorm": Only(False),
    _ARGS + "layernorm_order": Only("pre"),
    _ARGS + "model_parallel_size": Only(1),
    _ARGS + "is_decoder": Only(False),
    _POSITIONS + "hidden_size_head": "_head_size",
    _POSITIONS + "theta": Only(10000),
    _POSITIONS + "rot_v": Only(False),
    _POSITIONS + "learnable_pos_embed": Only(False),
    _LORA + "r": "lora.rank",
    _LORA + "lora_alpha": "lora.alpha",
    _LORA + "lora_dropout": "lora.dropout",
    _LORA + "qlora": Only(False),
    _MODULES + "patch_embed_config.params.text_hidden_size": "transformer.text_hidden_size",
    _MODULES + "adaln_layer_config.params.qk_ln": Only(True),
    _EMBEDDER + "is_trainable": Only(False),
    _EMBEDDER + "input_key": Only("txt"),
    _EMBEDDER + "ucg_rate": "text_dropout",
    _EMBEDDER + "params.model_dir": "text_encoder.path",
    _EMBEDDER + "params.max_length": "text_encoder.max_length",
    _VAE + "cp_size": Only(1),
    _VAE + "ckpt_path": "autoencoder.path",
    _LOSS + "type": Only("l2"),
    _LOSS + "offset_noise_level": Only(0),
    _SIGMAS + "uniform_sampling": Only(True),
    _SIGMAS + "num_idx": "schedule.num_timesteps",
    _SIGMAS + "discretization_config.params.shift_scale": "schedule.shift",
    _SAMPLER + "num_steps": "sampler.num_inference_steps",
    _SAMPLER + "discretization_config.params.shift_scale": "schedule.shift",
    _GUIDER + "scale": "sampler.guidance_scale",
    _GUIDER + "exp": "sampler.guidance_exponent",
    _GUIDER + "num_steps": "sampler.guidance_steps",
}
_OF_TRANSFORMER = {  # which have the same names in the typed form
    _NETWORK: "num_layers hidden_size num_attention_heads time_embed_dim in_channels out_channels patch_size latent_height latent_width"
    " num_frames time_compressed_rate",
    _ARGS: "checkpoint_activations max_sequence_length",
    _POSITIONS: "text_length time_interpolation height_interpolation width_interpolation",
}
_NO_EFFECT = {  # noised_image_* without noised_image_input; lora_train, use_pd and the loss's not even in the original
    "": "disable_first_stage_autocast log_keys en_and_decode_n_samples_a_time noised_image_all_concat noised_image_dropout lora_train"
    " use_pd",
    _NETWORK: "adm_in_channels parallel_output",
    _ARGS: "vocab_size skip_init",
    _VAE: "ignore_keys",
    _VAE + "encoder_config.params.": "resolution dropout gather_norm",
    _VAE + "decoder_config.params.": "resolution dropout gather_norm",
    _LOSS: "fixed_frames block_scale block_size",
    _SAMPLER: "verbose",
}
KEYS.update({prefix + name: f"transformer.{name}" for prefix, names in _OF_TRANSFORMER.items() for name in names.split()})
KEYS.update({prefix + name: None for prefix, names in _NO_EFFECT.items() for name in names.split()})
for _side in ("encoder_config.params.", "decoder_config.params."):
    KEYS.update({
        _VAE + _side + "z_channels": "autoencoder.latent_channels",
        _VAE + _side + "num_res_blocks": "autoencoder.layers_per_block",
        _VAE + _side + "ch": "_ch",
        _VAE + _side + "ch_mult": "_ch_mult",
        _VAE + _side + "double_z": Only(True),
        _VAE + _side + "in_channels": Only(3),
        _VAE + _side + "out_ch": Only(3),
        _VAE + _side + "attn_resolutions": Only([]),
    })

# Key of a target -> class name (without its module) -> the typed values that stand for the class.
_SDE, _DDIM = {"sampler.name": "sde_dpmpp_2m"}, {"sampler.name": "ddim"}
_SCHEDULE: dict[str, dict[str, Any]] = {"ZeroSNRDDPMDiscretization": {}}
TARGETS: dict[str, dict[str, dict[str, Any]]] = {
    "denoiser_config.target": {"DiscreteDenoiser": {}},
    "denoiser_config.params.weighting_config.target": {"EpsWeighting": {}},
    "denoiser_config.params.scaling_config.target": {"VideoScaling": {}},
    "denoiser_config.params.discretization_config.target": _SCHEDULE,
    "network_config.target": {"DiffusionTransformer": {}},
    _MODULES + "pos_embed_config.target": {
        "Rotary3DPositionEmbeddingMixin": {"transformer.position_embedding": "rotary"},
        "Basic3DPositionEmbeddingMixin": {"transformer.position_embedding": "sincos"},
    },
    _MODULES + "lora_config.target": {"LoraMixin": {"_lora": True}},
    _MODULES + "patch_embed_config.target": {"ImagePatchEmbeddingMixin": {}},
    _MODULES + "adaln_layer_config.target": {"AdaLNMixin": {}},
    _MODULES + "final_layer_config.target": {"FinalLayerMixin": {}},
    "conditioner_config.target": {"GeneralConditioner": {}},
    _EMBEDDER + "target": {"FrozenT5Embedder": {}},
    "first_stage_config.target": {"VideoAutoencoderInferenceWrapper": {}, "VideoAutoencodingEngine": {}},
    _VAE + "loss_config.target": {"Identity": {}},
    _VAE + "regularizer_config.target": {"DiagonalGaussianRegularizer": {}},
    _VAE + "encoder_config.target": {"ContextParallelEncoder3D": {}},
    _VAE + "decoder_config.target": {"ContextParallelDecoder3D": {}},
    "loss_fn_config.target": {"VideoDiffusionLoss": {}},
    _LOSS + "sigma_sampler_config.target": {"DiscreteSampling": {}},
    _SIGMAS + "discretization_config.target": _SCHEDULE,
    "sampler_config.target": {
        "VPSDEDPMPP2MSampler": _SDE,
        "VPSDEDPMPP2MSampler_cfg": _SDE,
        "VPODEDPMPP2MSampler": _DDIM,
        "VPODEDPMPP2MSampler_cfg": _DDIM,
        "VideoDDIMSampler": _DDIM,
        "VideoDDIMSampler_cfg": _DDIM,
    },
    _SAMPLER + "discretization_config.target": _SCHEDULE,
    _SAMPLER + "guider_config.target": {
        "VanillaCFG": {"sampler.guidance": "constant"},
        "DynamicCFG": {"sampler.guidance": "dynamic"},
        "IdentityGuider": {"sampler.guidance": "constant", "sampler.guidance_scale": 1.0},
    },
}
_KNOWN = {**KEYS, **TARGETS}
_TOP = {key.partition(".")[0] for key in _KNOWN}


def form_of(model: Any) -> str | None:
    """Tell the form of a `model:` section: `RELEASED`, `TYPED`, or None where its keys belong to both."""
    names = set(model if isinstance(model, dict) else ()) - NEUTRAL
    if not names:
        return None
    return RELEASED if names & _TOP or any(str(name).endswith("_config") for name in names) else TYPED


def import_model(model: dict[str, Any], origins: Origins, training: bool) -> dict[str, Any]:
    """Return the typed form of a released `model:` section, still as plain mappings; `origins` learns the new names.

    Raises `UserError` for keys and targets that are not known, values this project cannot do, those of the loss only if `training`,
    and values that must agree.
    """
    flat: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for released, typed in reversed(KEYS.items()):  # of several the first is named
        if isinstance(typed, str):
            origins.alias(f"model.{typed}", f"model.{released}")
    section = {name: value for name, value in model.items() if name != "faces"}
    for key, value in _leaves(section):
        for typed, new in _translate(key, value, origins, training):
            if typed in flat and flat[typed] != new:
                expected = f"{shown(flat[typed])} as {sources[typed]} says"
                raise mismatch(f"model.{key}", value, expected, origins, "give all of these the same value")
            if typed not in flat:
                flat[typed], sources[typed] = new, key
                origins.alias(f"model.{typed}", f"model.{key}")
    _combine(flat, sources, origins)
    result: dict[str, Any] = {"faces": model["faces"]} if "faces" in model else {}
    result["transformer"] = {}
    for typed, value in flat.items():
        group, _, name = typed.rpartition(".")
        (result.setdefault(group, {}) if group else result)[name] = value
    return result


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every dotted key and its value; lists of mappings are entered by index, empty ones yield nothing."""
    for name, value in node.items() if isinstance(node, dict) else enumerate(node):
        key = f"{prefix}{name}"
        if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict) for item in value)):
            yield from _leaves(value, f"{key}.")
        elif value is not None or key in _KNOWN:
            yield key, value


def _translate(key: str, value: Any, origins: Origins, training: bool) -> list[tuple[str, Any]]:
    if key in TARGETS:
        return list(_target(key, value, origins).items())
    if key not in KEYS:
        raise _unknown(key, origins)
    typed = KEYS[key]
    if isinstance(typed, Only) and not typed.allows(value) and (training or not key.startswith(_LOSS)):
        raise mismatch(f"model.{key}", value, f"{typed.value!r}, the only value this project can do", origins, typed.remedy)
    return [(typed, value)] if isinstance(typed, str) else []


def _target(key: str, value: Any, origins: Origins) -> dict[str, Any]:
    known = TARGETS[key]
    name = value.rpartition(".")[2] if isinstance(value, str) else shown(value)
    if name not in known:
        raise mismatch(f"model.{key}", value, f"a known target ({', '.join(known)})", origins, f"the nearest is {nearest(name, known)}")
    if name.startswith("VPODEDPMPP2M"):
        warn(f"{origins.place(f'model.{key}')}: {name} is not offered; ddim, its first-order form, is used")
    return known[name]


def _unknown(key: str, origins: Origins) -> UserError:
    """Compare the first name that is unknown with its possible neighbours."""
    parts = key.split(".")
    for depth in range(len(parts)):
        parent = "".join(f"{part}." for part in parts[:depth])
        neighbours = {known[len(parent) :].partition(".")[0] for known in _KNOWN if known.startswith(parent)}
        if parts[depth] in neighbours:
            continue
        if parts[depth].isdecimal():
            place = origins.place(f"model.{parent}{parts[depth]}")
            return UserError(f"{place}: found a further entry, expected one T5 encoder only; remove it")
        if neighbours - {""}:
            return unknown_key(f"model.{parent}{parts[depth]}", neighbours, origins)
        break
    return unknown_key(f"model.{key}", {known.rpartition('.')[2] for known in _KNOWN}, origins)


def _combine(flat: dict[str, Any], sources: dict[str, str], origins: Origins) -> None:
    """Make the typed values that several released keys give together, and check what they repeat."""
    if "_ch" in flat or "_ch_mult" in flat:
        base = convert(flat.pop("_ch", None), int, "model._ch", origins)
        multipliers = convert(flat.pop("_ch_mult", [1, 2, 4, 8]), tuple[int, ...], "model._ch_mult", origins)
        flat["autoencoder.block_out_channels"] = [base * multiplier for multiplier in multipliers]
        origins.alias("model.autoencoder.block_out_channels", f"model.{sources.get('_ch_mult', sources.get('_ch'))}")
    if flat.pop("_lora", False):
        flat.setdefault("lora.rank", None)  # refused by its type: LoRA without a rank would change nothing
    if "_head_size" in flat:
        size = convert(flat.pop("_head_size"), int, "model._head_size", origins)
        width, heads = flat.get("transformer.hidden_size"), flat.get("transformer.num_attention_heads")
        if isinstance(width, int) and isinstance(heads, int) and heads and size * heads != width:
            raise mismatch("model._head_size", size, f"hidden_size {width} / num_attention_heads {heads}", origins)
