"""Model sections in the released form: what they say arrives, and what they cannot say here is refused."""

from pathlib import Path

import pytest
from conftest import ROOT
from in_process import refused
from omegaconf import OmegaConf

from concat_id.config.loading import load_config

RELEASED = ROOT.parent / "shared" / "released_configs"
DEBUG = ROOT / "configs" / "debug.yaml"


def target(name: str, **params) -> dict:
    return {"target": name, "params": params} if params else {"target": name}


def released_model() -> dict:
    """A small model in the released form."""
    return OmegaConf.to_container(OmegaConf.load(Path(__file__).with_name("released_model.yaml")).model)


@pytest.fixture
def load(tmp_path):
    def load(model: dict, changes: dict | None = None, *more: dict):
        """Load `model` with the values of `changes` (dotted key -> value), and further files."""
        config = OmegaConf.create({"model": model})
        for key, value in (changes or {}).items():
            OmegaConf.update(config, f"model.{key}", value, force_add=True)
        paths = []
        for number, content in enumerate([config, *map(OmegaConf.create, more)]):
            paths.append(tmp_path / f"{number}.yaml")
            OmegaConf.save(content, paths[-1])
        return load_config(paths)

    return load


def test_every_value_arrives(load):
    model = load(released_model()).model
    transformer = model.transformer
    assert (transformer.num_layers, transformer.hidden_size, transformer.num_attention_heads, transformer.time_embed_dim) == (3, 96, 3, 64)
    assert (transformer.latent_height, transformer.latent_width, transformer.num_frames, model.max_latent_frames) == (8, 12, 17, 5)
    assert (transformer.text_hidden_size, transformer.text_length, transformer.max_sequence_length) == (40, 20, 48)
    assert (transformer.position_embedding, transformer.checkpoint_activations, transformer.max_refs) == ("rotary", True, 3)
    assert (model.schedule.num_timesteps, model.schedule.shift) == (500, 2.0)
    assert (model.sampler.name, model.sampler.num_inference_steps) == ("sde_dpmpp_2m", 40)
    assert (model.sampler.guidance, model.sampler.guidance_scale) == ("constant", 5.0)
    assert (model.text_encoder.path, model.text_encoder.max_length) == ("./some/t5", 20)
    assert (model.autoencoder.path, model.autoencoder.layers_per_block) == ("./some/3d-vae.pt", 2)
    assert (model.autoencoder.block_out_channels, model.autoencoder.latent_channels) == ((32, 64, 64, 128), 16)
    assert (model.scale_factor, model.ref_image_dropout, model.text_dropout, model.lora) == (0.9, 0.2, 0.3, None)


def test_sincos_positions_and_lora(load):
    model = released_model()
    modules = model["network_config"]["params"]["modules"]
    positions = {"text_length": 20, "time_interpolation": 1.2, "height_interpolation": 1.5, "width_interpolation": 1.25}
    modules["pos_embed_config"] = target("dit_video_concat.Basic3DPositionEmbeddingMixin", **positions)
    modules["lora_config"] = target("sat.model.finetune.lora2.LoraMixin", r=16, lora_alpha=4, lora_dropout=0.1)
    found = load(model).model
    assert found.transformer.position_embedding == "sincos"
    assert [getattr(found.transformer, f"{name}_interpolation") for name in ("time", "height", "width")] == [1.2, 1.5, 1.25]
    assert (found.lora.rank, found.lora.alpha, found.lora.dropout) == (16, 4.0, 0.1)


def test_samplers_by_their_class_names(load, capsys):
    for kind, name in {"VPSDEDPMPP2MSampler": "sde_dpmpp_2m", "VideoDDIMSampler": "ddim", "VPODEDPMPP2MSampler": "ddim"}.items():
        for sampler in (kind, f"{kind}_cfg"):
            assert load(released_model(), {"sampler_config.target": f"any.module.{sampler}"}).model.sampler.name == name
            assert ("first-order" in capsys.readouterr().err) == (kind == "VPODEDPMPP2MSampler")


def test_dynamic_guidance_is_the_released_one(load):
    guider = "sampler_config.params.guider_config"
    changes = {f"{guider}.target": "x.DynamicCFG", f"{guider}.params.exp": 4, f"{guider}.params.num_steps": 50}
    sampler = load(released_model(), changes).model.sampler
    assert (sampler.guidance, sampler.guidance_scale, sampler.guidance_exponent, sampler.guidance_steps) == ("dynamic", 5.0, 4.0, 50)
    sampler = load(released_model(), {guider: target("x.IdentityGuider")} | {f"{guider}.params": None}).model.sampler
    assert (sampler.guidance, sampler.guidance_scale) == ("constant", 1.0)


def test_users_edits_take_effect(load):
    edits = {"sampler_config.params.num_steps": 25, "sampler_config.params.guider_config.params.scale": 7}
    sampler = load(released_model(), edits).model.sampler
    assert (sampler.num_inference_steps, sampler.guidance_scale) == (25, 7.0)
    overlay = {"model": {"sampler_config": {"params": {"num_steps": 10}}}, "args": {"seed": 3}}
    config = load(released_model(), None, overlay)
    assert (config.model.sampler.num_inference_steps, config.args.seed) == (10, 3)
    config = load(released_model(), None, {"model": {"faces": {"detector": "elsewhere"}, "scale_factor": 0.8}})
    assert (config.model.faces.detector, config.model.scale_factor) == ("elsewhere", 0.8)


NETWORK = "network_config.params"


@pytest.mark.parametrize("changes, parts", [
    ({"sampler_config.target": "x.EulerEDMSampler"}, ["model.sampler_config.target: found 'x.EulerEDMSampler'", "VideoDDIMSampler"]),
    ({f"{NETWORK}.num_layer": 3}, [f"model.{NETWORK}.num_layer: unknown key", "is num_layers"]),
    ({f"{NETWORK}.transformer_args.layernorm_order": "post"}, ["found 'post', expected 'pre', the only value"]),
    ({f"{NETWORK}.modules.pos_embed_config.params.hidden_size_head": 16}, ["hidden_size_head: found 16", "96 / num_attention_heads 3"]),
    ({f"{NETWORK}.modules.pos_embed_config.params.text_length": 21}, ["emb_models.0.params.max_length: found 20", "21"]),
    ({"first_stage_config.params.decoder_config.params.ch": 64}, ["decoder_config.params.ch: found 64, expected 32", "encoder_config"]),
    ({"sampler_config.params.discretization_config.params.shift_scale": 3.0}, ["shift_scale: found 3.0, expected 2.0 as denoiser_"]),
    ({"loss_fn_config.params.sigma_sampler_config.params.num_idx": 1000}, ["num_idx: found 1000, expected 500 as denoiser_config"]),
    ({"loss_fn_config.params.sigma_sampler_config.params.discretization_config.params.shift_scale": 3.0}, ["shift_scale: found 3.0, exp"]),
    ({"conditioner_config.params.emb_models": [{"ucg_rate": 0.1}, {"ucg_rate": 0.1}]}, ["emb_models.1: found a further entry"]),
    ({f"{NETWORK}.modules.lora_config": {"target": "x.LoraMixin"}}, ["lora_config.params.r: found null, expected an integer"]),
    ({"latent_input": True}, ["model.latent_input: found True, expected False, the only value this project can do; name lists of videos"]),
    ({"compile_model": True}, ["model.compile_model: found True", "args.compile says it"]),
    ({"input_key": "avi"}, ["model.input_key: found 'avi', expected 'mp4'"]),
    ({"noised_image_input": True}, ["model.noised_image_input: found True"]),
    ({f"{NETWORK}.input_time": "text"}, [f"model.{NETWORK}.input_time: found 'text', expected 'adaln'"]),
    ({f"{NETWORK}.use_SwiGLU": True}, [f"model.{NETWORK}.use_SwiGLU: found True"]),
])  # fmt: skip
def test_what_the_project_cannot_do_is_refused_under_its_released_name(load, tmp_path, changes, parts):
    message = refused(parts[0], load, released_model(), changes)
    assert message.startswith(str(tmp_path / "0.yaml")) and all(part in message for part in parts)


LOSS = "loss_fn_config.params"
ONE_POSSIBILITY = {  # another would make another network, another VAE or another training
    "denoiser_config.params.quantize_c_noise": True, "input_key": None, f"{LOSS}.offset_noise_level": 0.1,
    f"{NETWORK}.elementwise_affine": False, f"{NETWORK}.modules.adaln_layer_config.params.qk_ln": False,
    **{f"{NETWORK}.transformer_args.{name}": value for name, value in {"model_parallel_size": 2, "is_decoder": True}.items()},
    **{f"{NETWORK}.modules.pos_embed_config.params.{name}": value
       for name, value in {"theta": 500, "rot_v": True, "learnable_pos_embed": True}.items()},
    **{f"first_stage_config.params.decoder_config.params.{name}": value
       for name, value in {"double_z": False, "in_channels": 4, "out_ch": 1, "attn_resolutions": [16]}.items()},
    "first_stage_config.params.cp_size": 2, "conditioner_config.params.emb_models[0].is_trainable": True,
    f"{NETWORK}.modules.lora_config": target("x.LoraMixin", r=4, qlora=True),
}  # fmt: skip


@pytest.mark.parametrize("key", ONE_POSSIBILITY)
def test_another_model_is_refused(load, key):
    refused("the only value this project can do", load, released_model(), {key: ONE_POSSIBILITY[key]}, {"args": {"mode": "finetune"}})


def test_values_of_the_original_that_change_nothing_are_taken(load):
    either = ["lora_train", "use_pd", "noised_image_all_concat", "noised_image_dropout", f"{NETWORK}.parallel_output",
              *(f"{LOSS}.{name}" for name in ("fixed_frames", "block_scale", "block_size"))]  # fmt: skip
    for number in (0, 1):
        changes = {
            "input_key": "mp4", "en_and_decode_n_samples_a_time": [None, 3][number], f"{NETWORK}.input_time": "adaln", f"{LOSS}.type": "l2",
            **dict.fromkeys(["latent_input", "compile_model", "noised_image_input", f"{NETWORK}.use_SwiGLU"], [None, False][number]),
            f"{NETWORK}.use_RMSNorm": False, **dict.fromkeys(either, number),
        }  # fmt: skip
        assert load(released_model(), changes, {"args": {"mode": "finetune"}}).model == load(released_model()).model


@pytest.mark.parametrize("key, value", [(f"{LOSS}.type", "l1"), (f"{LOSS}.sigma_sampler_config.params.uniform_sampling", False)])
def test_the_loss_counts_in_training_alone(load, key, value):
    assert load(released_model(), {key: value}).model == load(released_model()).model
    refused(f"model.{key}: found {value!r}, expected", load, released_model(), {key: value}, {"args": {"mode": "finetune"}})


def test_a_missing_size_is_named_as_the_file_would_call_it(load, tmp_path):
    model = released_model()
    del model["network_config"]["params"]["num_layers"]
    refused("0.yaml: model.network_config.params.num_layers: missing, expected an integer", load, model)


def test_the_widths_of_a_vae_need_a_first_and_have_the_originals_factors(load):
    model = released_model()
    sides = [model["first_stage_config"]["params"][f"{side}_config"]["params"] for side in ("encoder", "decoder")]
    for side in sides:
        del side["ch_mult"]
    assert load(model).model.autoencoder.block_out_channels == (32, 64, 128, 256)
    for side in sides:
        side["ch_mult"] = [1, 2, 2, 4]
        del side["ch"]
    refused("first_stage_config.params.encoder_config.params.ch: found null, expected an integer", load, model)


def test_two_forms_do_not_mix(load, tmp_path):
    typed = {"model": {"sampler": {"num_inference_steps": 3}}}
    refused(r"1\.yaml: its model section has the typed form, that of .*0\.yaml the released", load, released_model(), None, typed)


@pytest.mark.skipif(not RELEASED.is_dir(), reason="the released files are not here")
@pytest.mark.parametrize("size", ["5b", "5b_lora", "2b", "2b_lora"])
@pytest.mark.parametrize("people", ["single_identity", "two_identities"])
def test_released_files_load_unchanged(size, people):
    model = RELEASED / f"cogvideox_{size}.yaml"
    inference = load_config([model, RELEASED / "inference" / f"inference_{people}.yaml"])
    assert (inference.training.mode, inference.args.dtype_name, inference.args.sampling_num_frames) == ("inference", "bfloat16", 13)
    training = load_config([model, RELEASED / "training" / f"sft_{people}.yaml"], {"seed": "7"})
    args, steps = training.args, training.training
    assert (steps.mode, steps.train_iters, args.seed, args.dtype_name) == ("finetune", 1000, 7, "bfloat16")
    assert (training.data.video_size, training.data.skip_frms_num) == ((480, 720), 3)
    assert training.deepspeed["optimizer"]["params"]["eps"] == 1e-8
    assert inference.model == training.model
    assert (inference.model.lora is not None) == (inference.model.not_trainable_prefixes == ("all",)) == size.endswith("lora")


@pytest.mark.skipif(not RELEASED.is_dir(), reason="the released files are not here")
@pytest.mark.parametrize("size", ["5b", "2b"])
def test_our_files_say_what_the_released_ones_say(size):
    name = f"cogvideox_{size}.yaml"
    ours, theirs = load_config([ROOT / "configs" / name]).model, load_config([RELEASED / name]).model
    theirs.sampler.guidance_steps = ours.sampler.guidance_steps
    for name in ("transformer", "schedule", "text_encoder", "autoencoder", "sampler", "scale_factor", "ref_image_dropout"):
        assert getattr(ours, name) == getattr(theirs, name), name
