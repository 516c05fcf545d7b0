"""DeepSpeed's configuration from released and own files, and what is refused."""

from pathlib import Path

import pytest
from conftest import ROOT
from in_process import refused

from concat_id.config.loading import load_config
from concat_id.training.settings import engine_settings

RELEASED = Path(__file__).with_name("released_training.yaml").read_text()


@pytest.fixture
def read(tmp_path):
    """Settings of the released training file with keys of `deepspeed:` and `args:` changed; None removes."""

    def read(*files, world_size=8, args=None, **changes):
        (tmp_path / "training.yaml").write_text(RELEASED)
        config = load_config([ROOT / "configs" / "cogvideox_5b.yaml", tmp_path / "training.yaml", *files], args or {})
        config.deepspeed = {name: value for name, value in (config.deepspeed | changes).items() if value is not None}
        return engine_settings(config, world_size)

    return read


def test_released_files_reach_the_engine(read):
    settings = read()
    assert settings.optimizer == {"lr": 1e-5, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 1e-4, "ema_decay": 0.9999}
    assert (settings.micro_batch_size, settings.accumulation, settings.zero_stage) == (1, 1, 2)
    given = settings.deepspeed
    assert given["gradient_clipping"] == 0.1 and given["bf16"]["enabled"] is True and given["fp16"]["enabled"] is False
    assert given["zero_optimization"]["overlap_comm"] is True and given["zero_optimization"]["reduce_bucket_size"] == 10**9
    assert "optimizer" not in given and "loss_scale" not in given
    assert [note for note in settings.notes if "sat.ops.FusedEmaAdam stands for torch's AdamW" in note] == list(settings.notes)
    import deepspeed

    parsed = deepspeed.DeepSpeedConfig(given)
    assert parsed.zero_optimization_stage == 2 and parsed.bfloat16_config.enabled and not parsed.float16_config.enabled


def test_the_projects_files_say_the_same(read):
    for kind in ("single_identity", "two_identities"):
        own = load_config([ROOT / "configs" / "cogvideox_5b.yaml", ROOT / "configs" / "training" / f"sft_{kind}.yaml"])
        settings, released = engine_settings(own, 8), read()
        assert settings.optimizer == released.optimizer and settings.notes == ()
        assert own.args.dtype_name == "bfloat16" and own.model.transformer.checkpoint_activations
        assert (own.data.video_size, own.data.fps, own.data.max_num_frames, own.data.skip_frms_num) == ((480, 720), 8, 49, 3)
        for name, value in settings.deepspeed["zero_optimization"].items():
            assert released.deepspeed["zero_optimization"][name] == value


def test_the_command_line_goes_first(read):
    settings = read(args={"lr": "2e-4", "bf16": "false", "fp16": "true", "ema_decay": "0"})
    assert (settings.optimizer["lr"], settings.optimizer["ema_decay"]) == (2e-4, 0)
    fp16 = settings.deepspeed["fp16"]
    assert fp16 == {"enabled": True, "loss_scale": 0, "loss_scale_window": 400, "hysteresis": 2, "min_loss_scale": 1}
    assert settings.deepspeed["bf16"]["enabled"] is False
    settings = read(args={"weight_decay": "0.3", "zero_stage": "1", "gradient_accumulation_steps": "4"})
    assert (settings.optimizer["weight_decay"], settings.zero_stage, settings.accumulation) == (0.3, 1, 4)


def test_batch_size_of_the_command_line_replaces_the_micro_batch(read):
    assert (read(args={"batch_size": "3"}).micro_batch_size, read().micro_batch_size) == (3, 1)


def test_the_originals_optimizer_is_read_whole(read, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("deepspeed: {optimizer: {params: {ema_decay: 0.99, set_grad_none: false, use_num_upates: true, adam_w_mode: true}}}")
    assert read(own).optimizer == read().optimizer | {"ema_decay": 0.99}
    assert read(own, args={"ema_decay": "0"}).optimizer["ema_decay"] == 0
    own.write_text(own.read_text() + "\nargs: {ema_decay: 0.9}")
    settings = read(own)
    assert settings.optimizer["ema_decay"] == 0.9
    assert [note.partition(",")[0] for note in settings.notes if "remove one" in note] == ["args.ema_decay: 0.9 is taken"]
    own.write_text("deepspeed: {optimizer: {params: {ema_decay: 2}}}")
    refused(f"^{own}: deepspeed.optimizer.params.ema_decay: found 2.0, expected 0 to 1", read, own)
    read(optimizer={"type": "AdamW", "params": {"adam_w_mode": False}})


def test_what_two_sections_say_differently_is_told(read, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("args: {lr: 0.001, weight_decay: 0.0001, bf16: false, batch_size: 4}")
    settings = read(own)
    assert settings.optimizer["lr"] == 1e-3 and not settings.deepspeed["bf16"]["enabled"] and settings.micro_batch_size == 1
    told = {note.partition(":")[0]: note for note in settings.notes if "remove one of them" in note}
    assert told["args.lr"] == "args.lr: 0.001 is taken, not deepspeed.optimizer.params.lr, which says 1e-05; remove one of them"
    micro = "deepspeed.train_micro_batch_size_per_gpu"
    assert told[micro] == f"{micro}: 1 is taken, not args.batch_size, which says 4; remove one of them"
    assert told.keys() == {"args.lr", "args.bf16", micro}
    assert not [note for note in read(own, optimizer=None, bf16=None).notes if note.startswith(("args.lr", "args.bf16"))]
    own.write_text("args: {lr: 0.00001, zero_stage: 3, gradient_accumulation_steps: 2}")
    told = [note.partition(",")[0] for note in read(own).notes if "remove one of them" in note]
    assert told == ["args.zero_stage: 3 is taken", "args.gradient_accumulation_steps: 2 is taken"]


def test_what_deepspeed_knows_passes(read):
    known = {
        "flops_profiler": {"enabled": False, "profile_step": 1, "output_file": None}, "tensorboard": {"enabled": False, "output_path": "x"},
        "activation_checkpointing": {"partition_activations": False, "number_checkpoints": 2}, "compile": {"deepcompile": False},
        "data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32", "dump_state": False, "gradient_clipping": 1,
        "timers": {"throughput": {"enabled": False}}, "torch_autocast": {"enabled": False, "dtype": "bfloat16"},
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": True}, "sub_group_size": 10**9},
        "bf16": {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True},
    }  # fmt: skip
    settings = read(**known)
    assert {name: settings.deepspeed[name] for name in known} == known


@pytest.mark.parametrize("given, message", [
    ({"zero_optimization": {"stge": 2}}, "zero_optimization.stge: unknown key; the nearest known key is stage"),
    ({"zero_optimization": {"pin_memory": True}}, "zero_optimization.pin_memory: found here, expected in another section"),
    ({"optimizer": {"params": {"betas": 3}}}, "optimizer.params.betas: found 3, expected a list of 2 numbers"),
    ({"optimizer": {"type": "sat.ops.FusedEmaAdam", "params": {"adam_w_mode": False}}}, "optimizer.params.adam_w_mode: found False"),
    ({"optimizer": {"params": {"bias_correction": False}}}, "optimizer.params.bias_correction: found False, expected true"),
    ({"optimizer": {"params": {"use_num_upates": False}}}, "optimizer.params.use_num_upates: found False, expected true"),
    ({"optimizer": {"type": "Lion"}}, "optimizer.type: found 'Lion', expected AdamW or sat"),
    ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage: found 4, expected 0, 1, 2 or 3"),
    ({"zero_optimization": {"stage": 2, "round_robin_gradients": True}}, "zero_optimization.round_robin_gradients: found true"),
    ({"zero_optimization": {"offload_optimizer": {"device": "x"}}}, "zero_optimization.offload_optimizer.device: found 'x'"),
    ({"train_micro_batch_size_per_gpu": 10**400}, "train_micro_batch_size_per_gpu: found 1000"),
    ({"train_batch_size": 9}, "train_batch_size: found 9, expected 1 a process x 1 accumulated x 8 processes"),
    ({"scheduler": {"type": "WarmupLR"}}, "scheduler: found one, expected none; set args.lr_decay_style"),
    ({"sparse_attention": {"mode": "fixed"}}, "sparse_attention: DeepSpeed Sparse Attention has been removed"),
])  # fmt: skip
def test_what_cannot_be_is_named_with_file_and_key(read, tmp_path, given, message):
    refused(f"^{tmp_path / 'training.yaml'}: deepspeed.{message}", read, **given)


@pytest.mark.parametrize("given, expected", [
    ({"train_batch_size": 32, "gradient_accumulation_steps": None}, (1, 4)),
    ({"train_batch_size": 32, "train_micro_batch_size_per_gpu": None, "gradient_accumulation_steps": 2}, (2, 2)),
    ({"train_micro_batch_size_per_gpu": None, "gradient_accumulation_steps": None}, (1, 1)),
])  # fmt: skip
def test_batch_sizes(read, given, expected):
    settings = read(**given)
    assert (settings.micro_batch_size, settings.accumulation) == expected
    assert "train_batch_size" not in settings.deepspeed


@pytest.mark.parametrize("given, stage, said", [
    ({"zero_optimization": None}, 1, "1 in place of 0"),
    ({"zero_optimization": {"stage": 3}}, 3, None), ({"zero_optimization": {"stage": "2"}}, 2, None),
    ({"activation_checkpointing": {"number_checkpoints": None}}, 2, None), ({"optimizer": {"params": {"amsgrad": False}}}, 2, None),
])  # fmt: skip
def test_stages(read, given, stage, said):
    settings = read(**given)
    assert settings.zero_stage == stage
    assert said is None or any(said in note for note in settings.notes)


def test_offload_by_its_older_name(read):
    settings = read(zero_optimization={"stage": 2, "cpu_offload": True})
    assert settings.deepspeed["zero_optimization"] == {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    assert settings.deepspeed["zero_force_ds_cpu_optimizer"] is False
