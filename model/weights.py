"""Load and save Hugging Face checkpoints: safetensors files, single or sharded, nothing else.

Several names exist for every tensor. The published Qwen2-VL files have `model.layers.0...`,
`visual...`; transformers >= 4.52 has `model.language_model.layers.0...`, `model.visual...`; serving
engines write `language_model.model.layers.0...`; wrappers of training code put `module.` in front.
All are read (`published_name`). The files hold q_proj, k_proj and v_proj; here one matrix has the
rows of all three.
Saving writes **the files of the source directory**: the same keys, shapes and dtypes in the same
shards, and its `COMPANIONS` byte for byte, so that whatever loaded the source loads the result.
Loading is strict: a missing, unexpected or misshapen tensor is an error that names it.
Next: model/config.py.
"""

import hashlib
import json
import math
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.config import VLMConfig
from model.vlm import VLM
from runtime.errors import InputError
from runtime.run_directory import is_lfs_pointer, read_json_object

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
COMPANIONS = (  # what a checkpoint has beside its weights, as patterns of names
    *("config.json", "generation_config.json", "configuration.json", "*processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.*", "merges.txt", "spiece.model", "sentencepiece*.model"),
    *("chat_template.*", "README*", "LICEN[CS]E*", "NOTICE*", "USE_POLICY*", "Notice*"),
)
FOLDERS = ("qformer_tokenizer", "additional_chat_templates")  # companions that are directories
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BUFFERS = {"I64": torch.int64}  # `position_ids`, which old files hold and models ignore
QUANTISED = ("I8", "U8", "I16", "I32", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4")


@dataclass(frozen=True)
class TensorSlot:
    """One tensor of a checkpoint directory: its file and its form."""

    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]


Slots = dict[str, TensorSlot]  # key in the files -> slot


PREFIXES = {  # of the layouts in which checkpoints are saved -> of `VLM`
    "model.language_model.": "model.",
    "model.visual.": "visual.",
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
}
WRAPPERS = ("base_model.model.", "module.", "_orig_mod.")  # of PEFT, of parallel and compiled torch
RENAMED = {  # Qwen3-VL's names -> Qwen2-VL's
    "mlp.linear_fc": "mlp.fc",
    ".norm.": ".ln_q.",
    ".linear_fc1.": ".mlp.0.",
    ".linear_fc2.": ".mlp.2.",
}


def published_name(key: str) -> str:
    """The name in `VLM` of a checkpoint key, whichever of the layouts it comes from."""
    while key.startswith(WRAPPERS):
        key = key[len(next(w for w in WRAPPERS if key.startswith(w))) :]
    for prefix, published in PREFIXES.items():
        if key.startswith(prefix):
            key = published + key[len(prefix) :]
            break
    if key.startswith("visual."):
        for theirs, ours in RENAMED.items():
            key = key.replace(theirs, ours)
    return key


def published_tensors(model: VLM) -> dict[str, Tensor]:
    """Published name -> its parameter, or its rows of a parameter, without gradient."""
    text = model.cfg.text
    heads = (text.num_attention_heads, text.num_key_value_heads, text.num_key_value_heads)
    tensors = {}
    for name, parameter in model.named_parameters():
        if ".lora." in name:  # files of its own: model/lora.py
            continue
        if ".qkv_proj." in name and name.startswith("model."):
            parts = parameter.detach().split([count * text.head_dim for count in heads])
            for letter, part in zip("qkv", parts, strict=True):
                tensors[name.replace("qkv_proj", f"{letter}_proj")] = part
        else:
            tensors[name] = parameter.detach()
    return tensors


def read_slots(directory: Path) -> Slots:
    """The tensors that a checkpoint directory promises, read from the file headers alone.

    Raises InputError for a directory without safetensors, a missing shard, a damaged file, or an
    index that disagrees with its shards.
    """
    if not directory.is_dir():
        raise InputError(f"--model {directory}: no such directory")
    index, weight_map = directory / INDEX, None
    if (directory / SINGLE).is_file():  # wins over an index beside it, as in transformers
        files = [SINGLE]
    elif index.is_file():
        weight_map = read_json_object(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise InputError(f"{index}: not a safetensors index, which has a weight_map")
        for file in weight_map.values():
            if not isinstance(file, str) or Path(file).name != file:  # saving writes these names
                raise InputError(f"{index}: {file!r} is not the name of a file beside it")
            if not file.endswith(".safetensors"):
                raise InputError(f"{index}: {file!r} is no safetensors file; only these are read")
        files = sorted(set(weight_map.values()))
    else:
        what = f"neither {SINGLE} nor {INDEX} here"
        raise InputError(f"--model {directory}: {what_is_there(directory, what)}")
    slots: Slots = {}
    for file in files:
        path = directory / file
        if not path.is_file():
            raise InputError(f"{path}: this shard of the checkpoint is missing")
        try:
            with safe_open(path, "pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 (a safe_open is not iterable)
                    header = tensors.get_slice(key)
                    dtype, shape = header.get_dtype(), tuple(header.get_shape())
                    kinds = DTYPES | (BUFFERS if key.endswith("position_ids") else {})
                    if dtype not in kinds:
                        what = f"not one of {[*DTYPES]}"
                        if dtype in QUANTISED:
                            what = "the weights are quantised; take the original of this checkpoint"
                        raise InputError(f"{path}: {key} is {dtype}: {what}")
                    if key in slots:
                        raise InputError(f"{directory}: {key} is in {slots[key].file} and {file}")
                    slots[key] = TensorSlot(file, kinds[dtype], shape)
        except SafetensorError as error:
            if is_lfs_pointer(path):
                raise InputError(f"{path}: a git-lfs pointer; run git lfs pull") from None
            raise InputError(f"{path}: damaged safetensors file ({error})") from None
        except OSError:  # whose text says "no such file" for any reason
            raise InputError(f"{path}: cannot be opened; check its rights") from None
    file_of = {key: slot.file for key, slot in slots.items()}
    if weight_map is not None and weight_map != file_of:
        keys = sorted(key for key, _ in weight_map.items() ^ file_of.items())
        raise InputError(f"{index}: disagrees with its shards about {keys[0]!r}")
    return slots


def what_is_there(directory: Path, missing: str) -> str:
    """Why a directory that lacks a file cannot be used, and the way on; by default `missing`."""
    names = sorted(path.name for path in directory.iterdir())
    for path in directory.iterdir():
        if path.is_symlink() and not path.exists():
            return f"{path.name} is a link to nothing; download it again"
    if "adapter_config.json" in names:
        return "is an adapter; give it as --adapter, and its base as --model"
    if any(name.endswith(".gguf") for name in names):
        return "holds .gguf files, which are quantised; download the safetensors checkpoint"
    if pickled := [name for name in names if name.endswith((".bin", ".pt", ".pth"))]:
        return f"{pickled[0]} is a pickle, which can run code; save it anew as safetensors"
    weights = [n for n in names if n.endswith(".safetensors") and "adapter" not in n]
    if any(re.search(r"-\d+-of-\d+\.", name) for name in weights):
        return f"holds shards ({weights[0]}, ..) without their {INDEX}; download it, too"
    if len(weights) == 1 and weights != [SINGLE]:
        return f"{missing}; if {weights[0]} is the model, rename it to {SINGLE}"
    return f"{missing} (found: {', '.join(names[:8]) or 'nothing'})"


def check_slots(slots: Slots, model: VLM, directory: Path) -> None:
    """Every tensor once, nothing else, every shape right; raises InputError otherwise."""
    if any(key.startswith("vision_tower.") for key in slots):
        what = "an MLX checkpoint (its keys begin with vision_tower), whose arrays lie otherwise"
        raise InputError(f"--model {directory}: {what}; name the one that it was converted from")
    tensors = published_tensors(model)
    names = {published_name(key): key for key in slots}
    if len(names) != len(slots):
        raise InputError(f"{directory}: both key layouts at once for the same tensor")
    in_model, in_files = set(tensors), set(names)
    if model.cfg.tie_word_embeddings:
        in_files -= {"lm_head.weight"}  # some files repeat the tied tensor
    for word, keys in (("missing", in_model - in_files), ("unexpected", in_files - in_model)):
        if keys:
            have = f"files have {len(in_files)}, first {min(slots, default=None)!r}"
            raise InputError(
                f"{directory}: {len(keys)} {word} tensors, first {sorted(keys)[0]!r} "
                f"(model has {len(in_model)}, {have}); does config.json fit?"
            )
    for name, key in names.items():
        tensor = tensors[name] if name in tensors else model.head_weight
        if slots[key].shape != tuple(tensor.shape):
            raise InputError(
                f"{directory / slots[key].file}: {key} has shape {slots[key].shape}, "
                f"config.json asks for {tuple(tensor.shape)}"
            )


def unfilled_model(directory: Path, slots: Slots) -> VLM:
    """The model of a directory on the meta device; raises InputError as `check_slots`."""
    cfg = VLMConfig.from_directory(directory)
    try:
        with torch.device("meta"):
            model = VLM(cfg)
    except (RuntimeError, OverflowError):  # more numbers than one can count
        what = "its sizes are too large to be those of a model"
        raise InputError(f"{directory}/config.json: {what}") from None
    check_slots(slots, model, directory)
    return model


def load_model(
    directory: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> VLM:
    """Build the model of a checkpoint directory and fill it, one tensor at a time.

    Peak memory is the model plus one tensor. Raises InputError as `read_slots` and `check_slots`,
    and where a tied head is repeated with other values.
    """
    directory = Path(directory)
    slots = read_slots(directory)
    model = unfilled_model(directory, slots).to(dtype).to_empty(device=device)
    parameters, repeated = published_tensors(model), []
    for file in sorted({slot.file for slot in slots.values()}):
        with safe_open(directory / file, "pt") as tensors:
            for key in sorted(k for k, slot in slots.items() if slot.file == file):
                name = published_name(key)
                if name in parameters:
                    parameters[name].copy_(tensors.get_tensor(key))
                    if not is_finite(parameters[name]):
                        raise InputError(f"{directory / file}: {key} is not finite; it is damaged")
                else:  # a repeated tied head
                    repeated.append(tensors.get_tensor(key))
    model.fingerprint = fingerprint(directory, slots)
    for head in repeated:
        if not torch.equal(head.to(device, dtype), model.head_weight):
            what = "lm_head.weight differs from the embedding, but config.json ties them"
            raise InputError(f"{directory}: {what}; set tie_word_embeddings to false")
    return model


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite, in one pass without a copy."""
    return all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor.detach()))


def fingerprint(directory: Path, slots: Slots) -> str:
    """Of the weights, to tell bases apart: a hash of each file's size, beginning and end."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted({slot.file for slot in slots.values()}):
        with (directory / file).open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            digest.update(f"{file} {size}".encode() + opened.read(2**20))
            opened.seek(max(0, size - 2**20))
            digest.update(opened.read())
    return digest.hexdigest()


def single_file(model: VLM, dtype: torch.dtype) -> Slots:
    """The layout of a checkpoint that has no source yet (pretraining from scratch)."""
    tensors = published_tensors(model)
    return {name: TensorSlot(SINGLE, dtype, tuple(t.shape)) for name, t in tensors.items()}


def tensors_of_files(model: VLM, slots: Slots, source: Path) -> dict[str, Tensor]:
    """Key of the files -> the value of `model`, without gradient; raises as `check_slots`."""
    check_slots(slots, model, source)
    tensors = published_tensors(model)
    if model.cfg.tie_word_embeddings:
        tensors["lm_head.weight"] = model.head_weight.detach()
    return {key: tensors[published_name(key)] for key in slots}


def save_model(model: VLM, directory: Path, companions: Path, slots: Slots | None = None) -> None:
    """Write a checkpoint directory that loads wherever its source does: see `save_tensors`.

    Args:
        slots: keys, files and dtypes to write; by default those of the source directory.
    """
    slots = source_slots(companions, slots)
    save_tensors(tensors_of_files(model, slots, companions), slots, directory, companions)


def source_slots(companions: Path, slots: Slots | None = None) -> Slots:
    """`slots`, or those of the directory that the model came from; InputError if that is gone."""
    if not companions.is_dir():
        raise InputError(f"{companions}: the source directory is gone; saving needs its files")
    return read_slots(companions) if slots is None else slots


def save_tensors(
    tensors: dict[str, Tensor], slots: Slots, directory: Path, companions: Path
) -> None:
    """Write the tensors of a checkpoint, by key, into the files that `slots` says.

    Args:
        directory: replaced as a whole if it exists; written beside it first, then renamed.
        companions: the source directory, whose non-weight files are copied byte for byte.

    Raises InputError, before anything is written, if a value is not finite.
    """
    if directory.exists() and not (directory / "config.json").is_file():
        raise InputError(f"{directory}: exists and is no checkpoint; it is not overwritten")
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise InputError(f"{directory}: not saved, since {name} is not finite")
    unfinished = directory.with_name(directory.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        _write_files(tensors, slots, unfinished, companions)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise InputError(f"{directory}: cannot be saved ({error}); is the disk full?") from error
    # Deleted last: at every moment a complete checkpoint lies under one of the three names.
    previous = directory.with_name(directory.name + ".previous")
    shutil.rmtree(previous, ignore_errors=True)
    if directory.exists():
        os.replace(directory, previous)
    os.replace(unfinished, directory)
    shutil.rmtree(previous, ignore_errors=True)


def companion_files(directory: Path) -> list[Path]:
    """The files of a checkpoint directory that are copied on beside its weights: `COMPANIONS`.

    By list, since trainers leave gigabytes of states, logs and other weights beside a checkpoint.
    Raises InputError for one that may not be read.
    """
    found = [path for pattern in COMPANIONS for path in directory.glob(pattern)]
    found += [path for folder in FOLDERS for path in (directory / folder).rglob("*")]
    files = sorted({path for path in found if path.is_file()})
    if closed := [path for path in files if not os.access(path, os.R_OK)]:
        what = "cannot be read, but is copied beside the weights of every checkpoint"
        raise InputError(f"{closed[0]}: {what}; check its rights")
    return files


def saved_bytes(directory: Path) -> int:
    """What `save_tensors` writes for a model that came from this directory."""
    tensors = read_slots(directory).values()
    weights = sum(math.prod(slot.shape) * slot.dtype.itemsize for slot in tensors)
    return weights + sum(path.stat().st_size for path in companion_files(directory))


def _write_files(
    tensors: dict[str, Tensor], slots: Slots, directory: Path, companions: Path
) -> None:
    """The companion files, then every shard, then the index if there are several."""
    for source in companion_files(companions):
        target = directory / source.relative_to(companions)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)
    weight_map, total_size = {key: slots[key].file for key in sorted(slots)}, 0
    for file in sorted(set(weight_map.values())):
        shard: dict[str, Tensor] = {}
        storages: set[int] = set()
        for key, slot in slots.items():
            if slot.file == file:
                value, storage = tensors[key], tensors[key].untyped_storage()
                # A file may not hold two views of one storage: parts and repeats are copied.
                copy = storage.nbytes() > value.nbytes or storage.data_ptr() in storages
                storages.add(storage.data_ptr())
                shard[key] = value.to("cpu", slot.dtype, copy=copy)
        save_file(shard, directory / file, metadata={"format": "pt"})
        shutil.copymode(directory / "config.json", directory / file)  # not for the owner alone
        total_size += sum(tensor.nbytes for tensor in shard.values())
    if set(weight_map.values()) != {SINGLE}:
        index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
