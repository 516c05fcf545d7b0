"""ViCLIP over videos and prompts, from the released file of weights. Source: InternVid (arXiv 2307.06942), `ViCLIP-*.pth`."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers.activations import QuickGELUActivation

from concat_id.errors import UserError
from concat_id.files.paths import visible_files
from concat_id.models.clip import average_chunks, load_clip_tokenizer, normalised
from concat_id.weights.loading import check_floats, check_named, load_strictly, load_tensors
from concat_id.weights.model_folders import built_from, made_on

HEAD_SIZE = 64
RENAMED = {".attn.": ".self_attn.", ".ln_1.": ".norm1.", ".ln_2.": ".norm2.", ".c_fc.": ".linear1.", ".c_proj.": ".linear2.", ".mlp.": "."}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # As released: ImageNet's, not CLIP's.


class Blocks(nn.Module):
    """A stack of CLIP's layers: attention and feed-forward, each on its normalised input and added."""

    def __init__(self, width: int, layers: int):
        super().__init__()
        made = (width, width // HEAD_SIZE, 4 * width, 0.0, QuickGELUActivation())
        self.resblocks = nn.ModuleList(nn.TransformerEncoderLayer(*made, batch_first=True, norm_first=True) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        for block in self.resblocks:
            x = block(x, mask)
        return x


class VideoEncoder(nn.Module):
    """CLIP's image encoder over the patches of all frames at once, which learned in addition where in time each frame is."""

    def __init__(self, shapes: dict[str, torch.Size]):
        super().__init__()
        width, _, _, patch, _ = shapes["conv1.weight"]
        self.conv1 = nn.Conv3d(3, width, (1, patch, patch), (1, patch, patch), bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(shapes["positional_embedding"]))
        self.temporal_positional_embedding = nn.Parameter(torch.empty(shapes["temporal_positional_embedding"]))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Blocks(width, _count_layers(shapes))
        self.proj = nn.Parameter(torch.empty(shapes["proj"]))

    def forward(self, video: Tensor) -> Tensor:
        """(B, 3, F, H, W) -> (B, D)."""
        patches = self.conv1(video).flatten(3).permute(0, 2, 3, 1)  # (B, F, patches, width)
        patches = patches + self.positional_embedding[1:] + self.temporal_positional_embedding[:, :, None]
        first = (self.class_embedding + self.positional_embedding[0]).expand(len(video), 1, -1)  # one for the whole video
        tokens = self.transformer(self.ln_pre(torch.cat([first, patches.flatten(1, 2)], dim=1)))
        return self.ln_post(tokens[:, 0]) @ self.proj


class ViClipTextEncoder(nn.Module):
    """CLIP's text encoder, read at the token that ends the text."""

    def __init__(self, shapes: dict[str, torch.Size]):
        super().__init__()
        pieces, width = shapes["token_embedding.weight"]
        self.token_embedding = nn.Embedding(pieces, width)
        self.positional_embedding = nn.Parameter(torch.empty(shapes["positional_embedding"]))
        self.transformer = Blocks(width, _count_layers(shapes))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(shapes["text_projection"]))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L), all of one length and ending in the end-of-text token -> (B, D)."""
        length = tokens.shape[1]
        mask = torch.full((length, length), float("-inf"), device=tokens.device).triu(1)
        hidden = self.transformer(self.token_embedding(tokens) + self.positional_embedding[:length], mask)
        return self.ln_final(hidden[:, -1]) @ self.text_projection


class ViClip(nn.Module):
    """Both encoders, built to fit the tensors of a file."""

    def __init__(self, state_dict: dict[str, Tensor]):
        super().__init__()
        self.vision_encoder = VideoEncoder(_shapes(state_dict, "vision_encoder."))
        self.text_encoder = ViClipTextEncoder(_shapes(state_dict, "text_encoder."))


class ViClipEncoder:
    """Turn a video and a prompt into vectors (D,) of length 1 that can be compared.

    `folder` holds one released `.pth` and CLIP's tokenizer. Raises `UserError` if a file is missing or unfit.
    """

    def __init__(self, folder: str | Path, device: torch.device | str):
        self.folder, self.device = Path(folder), torch.device(device)
        files = [path for pattern in ("*.pth", "*.pt") for path in visible_files(self.folder, pattern)]
        if len(files) != 1:
            names = ", ".join(file.name for file in files) or "none"
            raise UserError(f"{self.folder}: found {names}, expected one ViCLIP-*.pth; put the released file there")
        self.tokenizer = load_clip_tokenizer(self.folder)
        self.file = files[0]
        self.name = self.file.stem
        content = load_tensors(self.file)
        state_dict = content.get("model", content) if isinstance(content, dict) else content
        check_named(state_dict, str(self.file))
        check_floats(state_dict, str(self.file))
        state_dict = {_layer_name(name): tensor for name, tensor in state_dict.items()}
        with built_from(self.file, "ViCLIP", state_dict), made_on("meta"):
            self.model = ViClip(state_dict)
        load_strictly(self.model, state_dict, str(self.file), ignore=("temp",), dtype=torch.float32)
        self.model.eval().requires_grad_(False).to(self.device)
        self.num_frames = self.model.vision_encoder.temporal_positional_embedding.shape[1]

    @torch.no_grad()
    def encode_video(self, frames: np.ndarray) -> np.ndarray:
        """Compute the vector (D,) of frames (F, H, W, 3), uint8 RGB: as many as the model was trained with, taken evenly.

        As released, they are squeezed to a square.
        """
        encoder = self.model.vision_encoder
        side = int(round((encoder.positional_embedding.shape[0] - 1) ** 0.5)) * encoder.conv1.kernel_size[1]
        chosen = frames[np.linspace(0, len(frames) - 1, self.num_frames).round().astype(int)]
        squares = np.stack([np.asarray(Image.fromarray(frame).resize((side, side), Image.Resampling.BILINEAR)) for frame in chosen])
        pixels = (squares.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
        video = torch.from_numpy(pixels).permute(3, 0, 1, 2)[None].to(self.device)
        return normalised(encoder(video))[0]

    @torch.no_grad()
    def encode_text(self, text: str) -> tuple[np.ndarray, int]:
        """Compute the vector (D,) of a prompt, and in how many chunks it was read: the released model reads 32 tokens at once."""
        limit = self.model.text_encoder.positional_embedding.shape[0]
        return average_chunks(
            self.tokenizer, text, limit, lambda tokens: normalised(self.model.text_encoder(torch.tensor([tokens], device=self.device)))[0]
        )


def _layer_name(name: str) -> str:
    """What PyTorch calls a tensor of a layer."""
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    return name


def _shapes(state_dict: dict[str, Tensor], prefix: str) -> dict[str, torch.Size]:
    return {name.removeprefix(prefix): tensor.shape for name, tensor in state_dict.items() if name.startswith(prefix)}


def _count_layers(shapes: dict[str, torch.Size]) -> int:
    return sum(name.startswith("transformer.") and name.endswith("attn.in_proj_weight") for name in shapes)
