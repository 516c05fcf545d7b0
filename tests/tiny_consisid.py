"""A whole ConsisID with small random weights, in the layout of the released folder."""

from pathlib import Path

import torch
import yaml
from diffusers import AutoencoderKLCogVideoX, CogVideoXDPMScheduler, ConsisIDTransformer3DModel
from tiny_model import write_text_encoder

from concat_id.sampling.consisid import FACE_FILES

WIDTH, VECTOR, HIDDEN = 48, 24, (5, 16)  # of the network's tokens; of a face's vector; CLIP's tokens and their width
FACE = {"LFE_id_dim": VECTOR, "LFE_vit_dim": HIDDEN[1], "LFE_depth": 5, "LFE_dim_head": 8, "LFE_num_heads": 2, "LFE_num_id_token": 2,
        "LFE_num_querie": 4, "LFE_output_dim": WIDTH // 3 * 2, "cross_attn_dim_head": 8, "cross_attn_num_heads": 2}  # fmt: skip
PLACES = {"sample_height": 4, "sample_width": 6, "sample_frames": 9, "use_rotary_positional_embeddings": True,
          "use_learned_positional_embeddings": True}  # fmt: skip
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False, "snr_shift_scale": 1.0,
            "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}  # fmt: skip


def write_tiny_consisid(folder: Path) -> Path:
    """Write the model under `folder` and return a YAML file that points at it, for `--base configs/consisid.yaml`."""
    model = folder / "ConsisID"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ConsisIDTransformer3DModel(
            num_attention_heads=3, attention_head_dim=16, in_channels=32, time_embed_dim=32, text_embed_dim=32, num_layers=4,
            is_train_face=True, **FACE, **PLACES,
        )  # fmt: skip
        for name, parameter in network.named_parameters():
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name and name.endswith("weight") else 0.0, std=0.1)
        network.save_pretrained(model / "transformer", max_shard_size="200KB")
        kinds = {f"{way}_block_types": (f"CogVideoX{way.title()}Block3D",) * 4 for way in ("down", "up")}
        AutoencoderKLCogVideoX(block_out_channels=(32,) * 4, layers_per_block=1, scaling_factor=0.7, **kinds).save_pretrained(model / "vae")
        write_text_encoder(model / "text_encoder", 32)
    CogVideoXDPMScheduler(**SCHEDULE).save_pretrained(model / "scheduler")
    (model / "tokenizer").mkdir()
    (model / "text_encoder" / "spiece.model").rename(model / "tokenizer" / "spiece.model")
    for name in FACE_FILES:
        (model / "face_encoder" / name).parent.mkdir(parents=True, exist_ok=True)
        (model / "face_encoder" / name).touch()
    sizes = {"height": 32, "width": 48, "num_frames": 9, "sampler": {"num_inference_steps": 3}}
    (folder / "paths.yaml").write_text(yaml.safe_dump({"model": {"path": str(model)} | sizes}))
    return folder / "paths.yaml"
