"""T5's encoder over prompts, loaded only when a prompt is not yet in the cache on disk."""

import itertools
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from concat_id.errors import UserError, one_line
from concat_id.files.paths import kind_of
from concat_id.imports import import_lazily
from concat_id.models.deferred import deferred
from concat_id.weights.folders import weight_files
from concat_id.weights.loading import load_files, load_strictly, matches, weights_digest
from concat_id.weights.model_folders import built_from, check_tokenizer, made_on, read_settings
from concat_id.weights.tensor_cache import TensorCache

TOKENIZER_FILES = ("spiece.model", "tokenizer.json")
TOKENIZER_FOLDERS = (".", "google/umt5-xxl", "umt5-xxl", "tokenizer")  # in a folder, or beside a file of Wan's
DECODER_WEIGHTS = ("decoder.*", "lm_head.*")  # of whole T5 models, which prompts do not need
TABLES = ("shared.weight", "encoder.embed_tokens.weight")  # one table under two names, of which files may hold either alone


class PromptEncoder:
    """Turn prompts into embeddings (B, L, D) of exactly `max_length` tokens, keeping them on disk.

    The network is loaded by the first prompt that `cache_folder` does not hold and freed by `unload`. Each kind of network tells of
    which classes it is (`classes`) and how it is run on one prompt (`run`).
    """

    name: str  # of the network
    length = 226  # tokens of a prompt, where nobody says
    treatment: tuple[str, ...] = ()  # of a prompt, in the identity of embeddings
    has_own_names = False  # whether one file in names that are not transformers' will do

    def __init__(
        self,
        path: str | Path,
        max_length: int | None = None,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        cache_folder: str | Path | None = None,
        trust: bool = False,
    ):
        """Name a folder in Hugging Face's layout, or a file if the network `has_own_names`; nothing is downloaded."""
        self.max_length, self.dtype, self.device = max_length or self.length, dtype, torch.device(device)
        self.path, self.trust = Path(path), trust
        self.folder, self.files, self.tokenizer_folder = find_parts(self.path, type(self))
        parts = [self.folder / "config.json"] if self.folder else [], [self.tokenizer_folder / name for name in TOKENIZER_FILES]
        settings = itertools.chain(*parts[:: -1 if self.has_own_names else 1])  # an order that kept embeddings are found by
        self._identity = identity_of([*self.files, *settings], self.max_length, dtype, *self.treatment)
        self.tokenizer = load_tokenizer(self.tokenizer_folder)
        self.keep_in(cache_folder)
        self._network: nn.Module | None = None
        self._change: Callable[[nn.Module], None] = lambda network: None
        self.check_width: Callable[[int], None] = lambda width: None  # of an embedding's tokens

    def classes(self) -> tuple[type[nn.Module], type]:
        """Import the network's class, which takes a second or more, and that of its settings."""
        raise NotImplementedError

    def run(self, network: nn.Module, prompt: str) -> Tensor:
        """Compute the embedding (L, D) of a prompt."""
        raise NotImplementedError

    @staticmethod
    def clean(prompt: str) -> str:
        """Mend a prompt's text before it is cut into tokens."""
        return prompt

    def read_own(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
        """Return the settings of tensors in the network's own names, and those under transformers' names."""
        raise NotImplementedError

    def load(self) -> nn.Module:
        """Read the network from disk onto the device."""
        network, state_dict = self.build(load_files(self.files, self.trust))
        return filled(network, state_dict, str(self.path), self.dtype, self.device)

    def build(self, tensors: Mapping[str, Tensor]) -> tuple[nn.Module, Mapping[str, Tensor]]:
        """Make the network on the meta device for the files' `tensors`; returns it and those under transformers' names.

        Raises `UserError` for another network's.
        """
        file = self.folder / "config.json" if self.folder else self.path
        settings, tensors = (encoder_settings(file, self.name), tensors) if self.folder else self.read_own(tensors)
        network, configuration = self.classes()
        with built_from(file, f"{self.name} encoder", tensors), made_on("meta"):
            return network(configuration.from_dict(settings)), tensors

    def keep_in(self, cache_folder: str | Path | None) -> None:
        """Keep embeddings in a folder, or nowhere, instead of where they have been kept."""
        self._cache = None if cache_folder is None else TensorCache(cache_folder, self._identity)

    def change(self, name: str, change: Callable[[nn.Module], None]) -> None:
        """Have the network changed once it is loaded; embeddings depend on the change by its `name`."""
        self._change, self._identity = change, f"{self._identity} {name}"
        self.keep_in(self._cache and self._cache.folder)

    def unload(self) -> None:
        """Free the network; the next prompt that is not cached loads it again."""
        self._network = None

    def is_kept(self, prompt: str) -> bool:
        """Whether the embedding of a prompt is on disk."""
        return self._cache is not None and self._cache.holds(prompt)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Return the embeddings (B, L, D) of prompts on the device; what exceeds `max_length` tokens is cut off."""
        embeds = torch.stack([self._encode_one(prompt).to(self.device) for prompt in prompts])
        self.check_width(embeds.shape[-1])
        return embeds

    def truncated_part(self, prompt: str) -> str:
        """Return the end of a prompt, cleaned, that `encode` cuts off, '' if none."""
        kept = self.max_length - 1  # and the end-of-text token
        prompt, tokens = self._pieces(prompt)
        offsets = tokens["offset_mapping"]
        return prompt[offsets[kept][0] :].strip() if len(offsets) > kept else ""

    def unknown_part(self, prompt: str) -> str:
        """Return what of a prompt, cleaned, has no token, which is mostly another script, '' if everything has one."""
        prompt, tokens = self._pieces(prompt)
        places = zip(tokens["input_ids"], tokens["offset_mapping"], strict=True)
        return " ".join(prompt[start:end].strip() for number, (start, end) in places if number == self.tokenizer.unk_token_id)

    def _pieces(self, prompt: str) -> tuple[str, Any]:
        prompt = self.clean(prompt)
        return prompt, self.tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)

    def tokenize(self, prompt: str) -> Tensor:
        """Return token numbers (1, L), end-of-text included."""
        prompt = self.clean(prompt)
        return self.tokenizer(prompt, max_length=self.max_length, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]

    @torch.no_grad()
    def _encode_one(self, prompt: str) -> Tensor:
        """Compute or look up one embedding; alone, so that it does not depend on other prompts."""
        cached = None if self._cache is None else self._cache.read(prompt)
        if cached is not None:
            return cached[0]
        if self._network is None:
            self._network = self.load()
            self._change(self._network)
        embedding = self.run(self._network, prompt)
        if self._cache is not None:
            self._cache.write(prompt, embedding)
        return embedding


class TextEncoder(PromptEncoder):
    """T5's encoder over prompts (B, L, D), padded, without an attention mask."""

    name = "T5"

    def classes(self) -> tuple[type[nn.Module], type]:
        """Import T5's encoder."""
        from transformers.models.t5.configuration_t5 import T5Config

        with deferred("scipy.optimize"):  # for losses of object detection
            from transformers.models.t5.modeling_t5 import T5EncoderModel
        return T5EncoderModel, T5Config

    def run(self, network: nn.Module, prompt: str) -> Tensor:
        """Compute the embedding (L, D) of a prompt."""
        # As released: no attention mask, the padding takes part and the transformer was trained with that.
        return network(input_ids=self.tokenize(prompt).to(self.device)).last_hidden_state[0].to(self.dtype)


def encoder_settings(file: Path, name: str) -> dict[str, Any]:
    """Read a text encoder's config.json. Raises `UserError` where its `model_type` is another: relatives have the same tensors."""
    settings = read_settings(file, f"settings of {name}'s encoder")
    if (found := settings.get("model_type", name.lower())) != name.lower():
        found = one_line(f"{found!s:.40}")
        raise UserError(f"{file}: model_type: found {found}, expected {name.lower()}; name the folder of {name}'s encoder")
    return settings


def check_width(source: str | Path, expected: int, found: int) -> None:
    """Raise `UserError` unless the encoder in `source` makes tokens of the width that the transformer takes."""
    if found != expected:
        told = f"width of its tokens: found {found}, expected {expected} by model.transformer.text_hidden_size"
        raise UserError(f"{source}: {told}; change that key, or correct text_encoder.path")


def identity_of(files: Iterable[Path], max_length: int, dtype: torch.dtype, *more: str) -> str:
    """Name everything but the prompt that embeddings depend on: the content of files, as far as they exist, and settings."""
    digests = [weights_digest(path) for path in files if os.path.exists(path)]
    return json.dumps([digests, max_length, str(dtype), *more])


def find_parts(path: Path, kind: type[PromptEncoder]) -> tuple[Path | None, list[Path], Path]:
    """Return the folder with a configuration, if there is one, the files of the weights, and the folder of the tokenizer.

    Raises `UserError` if anything that an encoder of the class `kind` needs is absent.
    """
    if (found := kind_of(path)) == "no such file":
        raise UserError(f"{path}: no such file or folder, expected {kind.name}'s encoder; download it or correct text_encoder.path")
    folder = path / "text_encoder" if os.path.isdir(path / "text_encoder") else path
    if found == "a file" and kind.has_own_names:
        folder = None
    elif not os.path.isfile(folder / "config.json"):
        raise UserError(f"{folder}: found no config.json, expected {kind.name}'s encoder; download it again or correct text_encoder.path")
    around = path if folder else path.parent
    for tokenizer in [*(around / name for name in TOKENIZER_FOLDERS), around.parent / "tokenizer"]:
        if any(os.path.isfile(tokenizer / name) for name in TOKENIZER_FILES):
            return folder, weight_files(folder) if folder else [path], tokenizer
    raise UserError(f"{around}: found no tokenizer, expected {' or '.join(TOKENIZER_FILES)} there, in {TOKENIZER_FOLDERS[1]}/ or in"
                    " tokenizer/; download it again")  # fmt: skip


def load_tokenizer(folder: Path) -> Any:
    """Read a sentencepiece tokenizer; raises `UserError` if it cannot be."""
    import_lazily("transformers.models")  # which looks through the files of all models
    from transformers.models.t5.tokenization_t5 import T5Tokenizer

    check_tokenizer(folder)
    try:
        return T5Tokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the readers of both formats raise bare exceptions
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{folder}: its tokenizer cannot be read ({reason}); download {' or '.join(TOKENIZER_FILES)} again") from error


def given_names(names: Iterable[str]) -> dict[str, str]:
    """Say which of the names in T5's or UMT5's files each of the encoder's tensors has."""
    own = {name: name for name in names if not matches(name, DECODER_WEIGHTS)}
    table = next((name for name in TABLES if name in own), None)
    return own | dict.fromkeys(TABLES, table) if table else own


def filled(network: nn.Module, state_dict: dict[str, Tensor], source: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Give T5's or UMT5's encoder exactly its weights, and freeze it. Raises `UserError` with what does not fit."""
    load_strictly(network, {name: state_dict[given] for name, given in given_names(state_dict).items()}, source, dtype=dtype)
    for name, module in network.named_modules() if dtype == torch.float16 else ():
        if name.endswith(".wo"):  # stays in float32, as in transformers: what it gives exceeds float16's range
            module.float()
    return network.eval().requires_grad_(False).to(device)
