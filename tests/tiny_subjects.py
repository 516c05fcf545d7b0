"""Grounding DINO, SAM 2 and Stable Diffusion XL's inpainting with small random weights, in the real formats."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLInpaintPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertTokenizerFast,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    Sam2Config,
    Sam2Model,
)
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", "?", "clothes", "person"]
TOKENIZER = Path(__file__).parent / "golden" / "clip_tokenizer"


def write_detector(folder: Path) -> Path:
    """Grounding DINO, whose tokenizer knows two words."""
    words = Tokenizer(models.WordPiece({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    words.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    BertTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    swin = {"model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4, "image_size": 64,
            "out_features": ["stage2", "stage3", "stage4"]}  # fmt: skip
    text = {"model_type": "bert", "vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16}  # fmt: skip
    torch.manual_seed(0)
    GroundingDinoForObjectDetection(
        GroundingDinoConfig(backbone_config=swin, text_config=text, d_model=32, encoder_layers=1, decoder_layers=2, num_queries=20,
                            encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32)  # fmt: skip
    ).save_pretrained(folder)
    return folder


def write_segmenter(folder: Path) -> Path:
    """SAM 2 for images of 64 pixels."""
    hiera = {"hidden_size": 8, "image_size": [64, 64], "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64],
             "num_attention_heads_per_stage": [1, 1, 2, 2], "window_size_per_stage": [8, 4, 8, 4], "global_attention_blocks": [3],
             "window_positional_embedding_background_size": [4, 4]}  # fmt: skip
    vision = {"backbone_config": {"model_type": "sam2_hiera_det_model", **hiera}, "backbone_channel_list": [64, 32, 16, 8],
              "fpn_hidden_size": 32, "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]}  # fmt: skip
    torch.manual_seed(0)
    prompts = {"hidden_size": 32, "image_size": 64, "patch_size": 16}
    decoder = {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 32}
    Sam2Model(Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)).save_pretrained(folder)
    return folder


def write_inpainter(folder: Path) -> Path:
    """Stable Diffusion XL's inpainting for images of 64 x 64."""
    torch.manual_seed(0)
    text = {"vocab_size": 49_408, "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 2,
            "max_position_embeddings": 77, "projection_dim": 32}  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=32, in_channels=9, out_channels=4, block_out_channels=(16, 32), layers_per_block=1, attention_head_dim=(2, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8, transformer_layers_per_block=(1, 1),
        projection_class_embeddings_input_dim=6 * 8 + 32, cross_attention_dim=64, norm_num_groups=8,
    )  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4,
                        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)  # fmt: skip
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER, model_max_length=77)
    config = CLIPTextConfig(**text)
    StableDiffusionXLInpaintPipeline(
        vae=vae, text_encoder=CLIPTextModel(config), text_encoder_2=CLIPTextModelWithProjection(config), tokenizer=tokenizer,
        tokenizer_2=tokenizer, unet=unet, scheduler=EulerDiscreteScheduler(),
    ).save_pretrained(folder)  # fmt: skip
    return folder
