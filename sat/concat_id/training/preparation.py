"""What a run starts from: its folder, the network's weights, the clips, and the embeddings of their captions."""

import functools
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from torch import nn
from tqdm import tqdm

from concat_id.config.loading import COMMAND_LINE
from concat_id.config.schema import Config, to_dict
from concat_id.config.yaml_files import RUN_FILE, read_yaml
from concat_id.data.records import Record, read_records
from concat_id.distributed import from_first, own_share, rank, say, sent, world_size
from concat_id.errors import UserError, one_line, printable, shortened, warn
from concat_id.files.locks import locked
from concat_id.files.paths import PROJECT_ROOT, check_writable, kind_of, read_text, resolve_path, safe_name, write_text
from concat_id.models import backbones
from concat_id.training.checkpoint import SavedState, find_run, folder_of_run, open_checkpoint
from concat_id.training.lora import choose_trained, low_rank_scale
from concat_id.training.objective import EmbedPrompts, generator_of
from concat_id.versions import versions
from concat_id.weights.folders import read_tag
from concat_id.weights.low_rank import FILE as LOW_RANK_FILE
from concat_id.weights.low_rank import load_low_rank
from concat_id.weights.tensor_cache import TensorCache

PACKAGES = ("torch", "deepspeed", "SwissArmyTransformer", "diffusers", "transformers")
REMEMBERED = 256  # captions whose embeddings stay in memory
FOUND_BY = {"args.resume", "args.load", "args.save", "args.experiment_name"}  # how a run is found: it goes on with its own weights
CHANGES_TOLD, CONTINUED = 5, "# continued after step"
LOCK = ".lock"  # of the training that writes into the run's folder


@contextmanager
def opened_run(config: Config) -> Iterator[tuple[Path, SavedState | None]]:
    """Make the run's folder, or find the one to continue and its last whole checkpoint; the same for all processes.

    The first process holds the folder's lock inside the block. Raises `UserError` if another training has it.
    """
    args = config.training
    if args.mode == "inference":
        raise UserError("args.mode: found none or inference, expected finetune or pretrain; set it, or add a training file to --base")
    save, name, saved = Path(args.save or "exps"), safe_name(args.experiment_name), None
    with ExitStack() as held:
        if args.resume and args.resume != "false":
            run = find_run(save, name) if args.resume in ("latest", "true") else folder_of_run(resolve_path(args.resume))
            if rank() == 0:
                held.enter_context(locked(run / LOCK, str(run)))
            dist.barrier()
            saved = open_checkpoint(run if args.resume in ("latest", "true") else resolve_path(args.resume))
        else:
            run = Path(from_first(_new_run(save, name, held) if rank() == 0 else None))
        say(printable(f"continuing {run} after step {saved.step}" if saved else f"writing to {run}"))
        yield run, saved


def _new_run(save: Path, name: str, held: ExitStack) -> str:
    """Make a folder that no other run has, and lock it."""
    check_writable(save)
    started = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in count(1):
        run = save / (started if number == 1 else f"{started}-{number}")
        try:
            run.mkdir()
        except FileExistsError:
            continue
        held.callback(_remove_empty, run)  # what failed before there was anything to keep leaves no folder
        held.enter_context(locked(run / LOCK, str(run)))
        return str(run)


def _remove_empty(run: Path) -> None:
    with suppress(OSError):  # it is not empty, or somebody else has taken it
        run.rmdir()


def record_configuration(run: Path, config: Config, notes: Sequence[str] = (), step: int = 0) -> None:
    """Write what the run was started with, versions and commit included, once; tell and add what continuing after `step` changes."""
    if rank():
        return
    if (run / RUN_FILE).exists():
        return _record_changes(run / RUN_FILE, config, step)
    made_with = {"versions": versions(PACKAGES), "commit": _commit(), "processes": world_size(), "notes": list(notes)}
    head = "".join(f"# {line}\n" for line in yaml.safe_dump(made_with, sort_keys=False).splitlines())
    write_text(run / RUN_FILE, head + yaml.safe_dump(_as_given(config), sort_keys=False))


def _as_given(config: Config) -> dict[str, Any]:
    """Every key but the sizes of videos that nobody gave: those are the clips'."""
    keys = to_dict(config)
    for name in ("sampling_image_size", "sampling_num_frames", "sampling_fps"):
        if config.origins.source(f"args.{name}") is None:
            del keys["args"][name]
    return keys


def _record_changes(file: Path, config: Config, step: int) -> None:
    """Tell the first keys that are other than recorded, and add all of them to the record as comments, which change nothing in it."""
    try:
        recorded, text = dict(_keys(read_yaml(file, str(file)))), read_text(file, "a YAML file")
    except UserError as error:
        return warn(f"{error}: what continuing changes is not recorded")
    now, given = dict(_keys(_as_given(config))), config.origins.source("args.load") == COMMAND_LINE
    found_by = FOUND_BY - {"args.load"} if given and getattr(config.model, "lora", None) else FOUND_BY
    differing = [key for key in now if recorded.get(key) != now[key] and key not in found_by]
    values = {key: [shortened(one_line(keys.get(key)), 100) for keys in (recorded, now)] for key in differing}
    for key, (old, new) in list(values.items())[:CHANGES_TOLD]:
        print(f"note: {key}: {old} in {printable(file.parent)}, now {new}", flush=True)
    if len(values) > CHANGES_TOLD:
        print(f"note: and {len(values) - CHANGES_TOLD} more, which {printable(file)} lists at its end", flush=True)
    if values or CONTINUED in text:
        lines = [f"{key}: {old} above, now {new}" for key, (old, new) in values.items()] or ["as above"]
        write_text(file, text + f"{CONTINUED} {step}\n" + "".join(f"#   {line}\n" for line in lines))


def _keys(section: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Go through the keys that hold no mapping, as "args.lr"."""
    if isinstance(section, dict) and section:
        for key, value in section.items():
            yield from _keys(value, f"{name}.{key}" if name else key)
    else:
        yield name, section


def load_network(config: Config, saved: SavedState | None, device: torch.device) -> nn.Module:
    """The transformer on the CPU in the type of the run: of the checkpoint, of `args.load`, or new to pretrain."""
    dtype: torch.dtype = getattr(torch, config.args.dtype_name)
    lora = config.model.lora
    if lora:
        config.args.load = _base_of(saved, config)
    source = saved.folder if saved and not lora else config.args.load
    if source is None and config.training.mode == "pretrain":
        network = backbones.new_transformer(config).to(dtype)
        backbones.initialize_weights(network, generator_of(config.args.seed, "weights"))
    elif source is None:
        raise UserError(f"args.load: {backbones.MISSING}, or mode: pretrain to start from nothing")
    else:
        network = backbones.load_transformer(config, source, train=True)
    names = choose_trained(network, config.model, generator_of(config.args.seed, "lora"))
    if lora:
        torch.manual_seed(generator_of(config.args.seed, f"dropout of process {rank()}").initial_seed())  # a resumed run has its own
        if saved:
            _restore_products(saved, network)
        say(f"training products of rank {lora.rank} beside {len(names)} layers")
    backbones.choose_kernel(config, network, device, measure=False)
    stage = config.training.zero_stage or config.deepspeed.get("zero_optimization", {}).get("stage")
    if config.args.compile or str(stage) != "3":  # whose hooks no compiler follows
        backbones.compile_blocks(config, network, device, config.training.train_iters)
    return network.train()


def _base_of(saved: SavedState | None, config: Config) -> str | None:
    """What products belong to: --load, else as their run recorded; at its start the checkpoint itself, as a folder's `latest` changes."""
    load, file = config.args.load, saved.folder.parent / RUN_FILE if saved else None
    if file and file.is_file() and config.origins.source("args.load") != COMMAND_LINE:
        load = dict(_keys(read_yaml(file, str(file)))).get("args.load") or load
        if load and kind_of(resolve_path(load)) == "no such file":
            raise UserError(f"{file}: args.load: {load} is gone, expected what its products belong to; name it with --load")
    is_whole = load and not saved and kind_of(resolve_path(load) / LOW_RANK_FILE) == "no such file"
    tag = read_tag(resolve_path(load)) if is_whole else None
    return str(Path(load) / tag) if tag else load


def _restore_products(saved: SavedState, network: nn.Module) -> None:
    """Put trained products back. Raises `UserError` unless they are of the layers, rank and scale that model.lora gives."""
    trained = {name: parameter.data for name, parameter in network.named_parameters() if parameter.requires_grad}
    both = load_low_rank(saved.folder), (trained, low_rank_scale(network))
    found, given = ({name: tuple(tensor.shape) for name, tensor in tensors.items()} | {"scale": scale} for tensors, scale in both)
    if different := next((key for key in given | found if found.get(key) != given.get(key)), None):
        told = f"found {different} of {found.get(different, 'nothing')}, model.lora gives {given.get(different, 'none')}"
        expected = "go on with the rank, alpha and targets that the run was started with, or merge-lora and start anew"
        raise UserError(f"{saved.folder}: {told}; {expected}")
    for name, tensor in trained.items():
        tensor.copy_(saved.states(name)["fp32"])


def read_lists(config: Config) -> tuple[list[Record], list[Record]]:
    """Records for training and for validation, with no more references than the model takes."""
    lists, most = [], config.model.transformer.max_refs
    for paths in list_paths(config):
        records = read_records(paths) if paths else []
        for record in records:
            if record.num_refs > most:
                raise UserError(f"{record.source}: image_path: found {record.num_refs} references, expected at most {most}; remove some")
        lists.append(records)
    return lists[0], lists[1]


def list_paths(config: Config) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Paths of the lists for training, of which there must be some, and for validation."""
    if not config.training.train_data:
        raise UserError("args.train_data: missing, expected training lists (JSON) or folders; set it")
    return config.training.train_data, config.training.valid_data


def open_latent_cache(config: Config) -> TensorCache | None:
    """The cache of encoded clips, mean and standard deviation (T, C, h, w), if one is wanted; they belong to one autoencoder."""
    if not config.training.latent_cache:
        return None
    model = config.model
    identity = [backbones.autoencoder_digest(config), model.scale_factor, config.args.dtype_name]
    rate = model.transformer.time_compressed_rate
    identity += [rate] if rate != 4 else []  # the released one is not named, so that latents of earlier versions stay
    return TensorCache(Path(config.training.latent_cache), identity)


def embed_captions(config: Config, records: Sequence[Record], device: torch.device) -> EmbedPrompts:
    """Embed every caption (and the negative prompt) once, shared among the processes and kept on disk; let go of the text encoder."""
    folder = Path(config.training.save or "exps") / ".prompt_embeddings"
    encoder = backbones.make_text_encoder(config, device, folder)
    negative = config.model.negative_prompt
    captions = sorted({record.caption for record in records} | ({negative} if negative is not None else set()))
    cut = [caption for caption in captions if encoder.truncated_part(caption)]
    if cut and rank() == 0:
        limit = config.model.text_encoder.max_length
        warn(f"{len(cut)} of {len(captions)} captions are longer than {limit} tokens and are cut off, the first is {cut[0][:60]!r}")
    lost = [caption for caption in captions if encoder.unknown_part(caption)]
    if lost and rank() == 0:
        part = shortened(encoder.unknown_part(lost[0]), 60)
        warn(f"{len(lost)} of {len(captions)} captions are in part out of the text encoder's vocabulary, the first is {part!r}")
    share = own_share(captions)
    silent = rank() > 0 or all(map(encoder.is_kept, share))
    for caption in tqdm(share, "embedding", unit="caption", dynamic_ncols=True, disable=silent):
        encoder.encode([caption])
        if not encoder.is_kept(caption):
            break  # no room for the others either
    encoder.unload()
    dist.barrier()
    if missing := sum(not encoder.is_kept(caption) for caption in captions):  # which would bring the text encoder back for good
        raise UserError(f"{folder}: lacks the embeddings of {missing} of {len(captions)} captions; give a --save that all share")

    @functools.lru_cache(REMEMBERED)
    def embedding(caption: str) -> torch.Tensor:
        return encoder.encode([caption])[0].cpu()

    return lambda prompts: sent(torch.stack([embedding(prompt) for prompt in prompts]), device)


def _commit() -> str | None:
    """The project's git commit, if it has one."""
    try:
        command = ["git", "-C", str(PROJECT_ROOT), "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"})
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
