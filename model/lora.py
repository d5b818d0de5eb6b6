"""LoRA: low-rank adapters beside the frozen weights of the language model.

    y = x W^T + scale (x A^T) B^T,   A (r, in), B (out, r),   scale = alpha / r

Source: Hu et al., arXiv:2106.09685, section 4.1. Only A and B are trained: 18 bytes for each of
their numbers, instead of for each weight. B starts at 0, so the first policy is the base itself.

- **Never merged**, in the sampler as little as in the trainer. A policy gradient's update of W is
  far smaller than a step of bfloat16: merged, most of it would be rounded away, and sampler and
  trainer would hold different policies. `merge.py` writes merged weights at the end, and says how
  much of the update they keep.
- **The reference of a KL term costs no second model**: it is the same base with the adapter that
  the run began from, or with none (`AdapterReference`).
- Dropout is 0: with a shared prefix one mask would serve all completions of a group, and the
  sampler's distribution would not be the trained one.

The files are PEFT's (https://huggingface.co/docs/peft), read and written: adapter_config.json and
adapter_model.safetensors. Next: model/weights.py.
"""

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.adapter import Adapter, Change
from model.vlm import VLM
from model.weights import is_finite, published_name, published_tensors
from runtime.errors import InputError
from runtime.keyed_random import keyed
from runtime.run_directory import is_lfs_pointer, read_json_object

DEFAULT_ALPHA = 32.0
CONFIG, TENSORS, BASE = "adapter_config.json", "adapter_model.safetensors", "base.json"
LINEARS = {  # linear layers of a decoder layer -> their names in the files, in the order of rows
    "self_attn.qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "self_attn.o_proj": ("o_proj",),
    "mlp.gate_proj": ("gate_proj",),
    "mlp.up_proj": ("up_proj",),
    "mlp.down_proj": ("down_proj",),
}
REFUSED = {  # fields of PEFT's config that make something else of an adapter
    "use_dora": "DoRA",
    "modules_to_save": "whole modules beside the adapter",
    "trainable_token_indices": "trained token embeddings",
    "target_parameters": "adapters of bare parameters",
    "lora_bias": "biases",
    "rank_pattern": "ranks that differ from layer to layer",
    "alpha_pattern": "scales that differ from layer to layer",
    "layer_replication": "repeated layers",
    "alora_invocation_tokens": "an adapter that begins at a token",
    "fan_in_fan_out": "transposed weights",
}
PLAIN_INITS = (None, True, False, "gaussian", "orthogonal")  # all others change the base, too


@dataclass(frozen=True)
class LoRAConfig:
    """What adapter_config.json says of the adapter's mathematics."""

    rank: int
    alpha: float
    use_rslora: bool = False

    @property
    def scale(self) -> float:
        """alpha / r; with rank-stabilised LoRA (arXiv:2312.03732) alpha / sqrt(r)."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    @classmethod
    def from_directory(cls, directory: Path) -> "LoRAConfig":
        """Read PEFT's adapter_config.json; raises InputError naming what is not supported."""
        path = directory / CONFIG
        if not path.is_file():
            raise InputError(f"--adapter {directory}: has no {CONFIG}; name an adapter's directory")
        raw = read_json_object(path)
        wrong = [what for name, what in REFUSED.items() if raw.get(name)]
        # Each new kind of PEFT has a switch `use_..` or settings `.._config`.
        is_kind = lambda name: name.startswith("use_") or name.endswith("_config")  # noqa: E731
        wrong += [name for name in raw if raw[name] and is_kind(name) and name != "use_rslora"]
        if raw.get("peft_type") != "LORA":
            wrong = [f"peft_type {raw.get('peft_type')!r}"]
        if raw.get("bias", "none") != "none":
            wrong.append(f"bias {raw['bias']!r}")
        if raw.get("init_lora_weights") not in PLAIN_INITS:
            wrong.append(f"init_lora_weights {raw['init_lora_weights']!r}, which changes the base")
        if wrong:
            raise InputError(f"{path}: {wrong[0]}: not supported; only plain LoRA is")
        rank, alpha = raw.get("r"), raw.get("lora_alpha")
        if type(rank) is not int or not 1 <= rank <= 4096 or type(alpha) not in (int, float):
            raise InputError(f"{path}: r and lora_alpha must be numbers, are {rank!r}, {alpha!r}")
        if raw.get("lora_dropout"):
            print(f"{path}: lora_dropout {raw['lora_dropout']} is taken as 0")
        return cls(rank, alpha, bool(raw.get("use_rslora")))


def linears(model: VLM) -> Iterator[tuple[str, nn.Module, dict[str, int]]]:
    """The layers that can be adapted: name of the parent in the files, layer, rows by name."""
    text = model.cfg.text
    heads = (text.num_attention_heads, text.num_key_value_heads, text.num_key_value_heads)
    for number, layer in enumerate(model.model.layers):
        for path, names in LINEARS.items():
            module, parent = layer.get_submodule(path), path.split(".")[0]
            rows = [count * text.head_dim for count in heads]
            if len(names) == 1:
                rows = [module.out_features]
            yield f"model.layers.{number}.{parent}.", module, dict(zip(names, rows, strict=True))


def has_adapter(model: nn.Module) -> bool:
    """Whether a model has an adapter, which is then all that is trained."""
    return getattr(model, "lora_config", None) is not None


def attach(pairs_of: dict[str, tuple[Tensor, Tensor]], model: VLM, lora: LoRAConfig) -> None:
    """Freeze the model and put pairs into its layers, to be trained; names as `published_name`."""
    model.requires_grad_(False)
    for parent, module, rows in linears(model):
        weight = module.weight
        pairs = {
            name: tuple(
                tensor.to(weight.device, weight.dtype) for tensor in pairs_of[parent + name]
            )
            for name in rows
            if parent + name in pairs_of
        }
        module.lora = Adapter(rows, pairs, lora.scale) if pairs else None
    model.lora_config, model.outside = lora, Change()


def new_adapter(model: VLM, rank: int, alpha: float, seed: int) -> None:
    """A new adapter of all linear layers: A uniform within 1 / sqrt(in), as PEFT's; B is 0.

    A is a function of the seed and of the layer's name alone (Philox, as in sample.py).
    """
    pairs = {}
    for parent, module, rows in linears(model):
        for name, count in rows.items():
            bits = keyed(f"{seed}|{parent}{name}")
            uniform = np.random.Generator(bits).random((rank, module.in_features), np.float32)
            A = (2 * torch.from_numpy(uniform) - 1) * module.in_features**-0.5
            pairs[parent + name] = A, torch.zeros(count, rank)
    attach(pairs, model, LoRAConfig(rank, alpha))


def read_adapter(model: VLM, directory: Path) -> tuple[dict, LoRAConfig]:
    """The pairs of an adapter directory, by `published_name`, checked against the model.

    Keys may have any of the prefixes that PEFT and its forerunners wrote. Raises InputError for
    what PEFT would load with a warning and without effect: a tensor of an unknown layer, half of a
    pair, a wrong shape.
    """
    lora, path, pairs = LoRAConfig.from_directory(directory), directory / TENSORS, {}
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        if is_lfs_pointer(path):
            raise InputError(f"{path}: a git-lfs pointer; run git lfs pull") from None
        raise InputError(f"{path}: cannot be read ({error})") from None
    if wrong := [key for key, tensor in tensors.items() if not is_finite(tensor)]:
        raise InputError(f"{path}: {wrong[0]} is not finite; it is damaged")
    known = {
        parent + name: (count, module.in_features)
        for parent, module, rows in linears(model)
        for name, count in rows.items()
    } | {name: tuple(weight.shape) for name, weight in outside_weights(model).items()}
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(
            r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight", key
        )
        name = published_name(match[1] + ".").removesuffix(".") if match else key
        if name not in known:
            what = "is not a linear layer of --model" if match else "is no part of a pair"
            raise InputError(f"{path}: {key} {what}")
        halves.setdefault(name, {})[match[2]] = tensor
    for name, pair in halves.items():
        rows, columns = known[name]
        expected = {"A": (lora.rank, columns), "B": (rows, lora.rank)}
        shapes = {letter: tuple(tensor.shape) for letter, tensor in pair.items()}
        if shapes != expected:
            raise InputError(f"{path}: {name} has shapes {shapes}, --model wants {expected}")
        pairs[name] = pair["A"], pair["B"]
    if not pairs:
        raise InputError(f"{path}: holds no adapter")
    check_base(directory, model)
    return pairs, lora


def outside_weights(model: VLM) -> dict[str, Tensor]:
    """Weights of linear layers outside the language model's layers, which are not adapted here:
    those of the tower, and an output layer of its own. By `published_name`, without ".weight"."""
    return {
        name.removesuffix(".weight"): tensor
        for name, tensor in published_tensors(model).items()
        if name.startswith(("visual.", "lm_head."))
        and name.endswith("weight")
        and tensor.dim() == 2
    }


def load_adapter(model: VLM, directory: Path, rank: int = 0, trains: bool = False) -> None:
    """Put the adapter of a directory into a model.

    Pairs outside the language model's layers (`outside_weights`) are added to their weights.

    Args:
        rank: what --lora_rank asks for, if not 0. trains: whether the adapter is to be trained on.
    Raises: InputError as `read_adapter`, and where pairs outside would have to be trained.
    """
    pairs, lora = read_adapter(model, directory)
    if rank not in (0, lora.rank):
        raise InputError(f"--lora_rank {rank}: the adapter in {directory} has {lora.rank}")
    weights = outside_weights(model)
    outside = {name: pairs.pop(name) for name in sorted(pairs.keys() & weights.keys())}
    if outside and trains:
        raise InputError(
            f"--adapter {directory}: {len(outside)} of its pairs, first {next(iter(outside))}, are "
            "of the tower or the output layer and are not trained here; merge them into the base "
            "with merge.py, and begin a new adapter"
        )
    attach(pairs, model, lora)
    for name, (A, B) in outside.items():
        model.outside.add(weights[name], lora.scale * (B.float() @ A.float()).to(model.device))
    if outside:
        print(f"{directory}: {len(outside)} pairs of tower or output layer added to the weights")


def published_pairs(model: VLM) -> dict[str, tuple[Tensor, Tensor]]:
    """Published name -> A and B in use, without gradient."""
    return {
        parent + name: tuple(tensor.detach() for tensor in pair)
        for parent, module, _ in linears(model)
        if module.lora is not None
        for name, pair in module.lora.pairs().items()
    }


def save_adapter(model: VLM, directory: Path, base: Path) -> None:
    """Write an adapter as PEFT does, with the values that were sampled, in fp32.

    Raises InputError, before anything is written, if a value is not finite.
    """
    tensors = {}
    for name, (A, B) in published_pairs(model).items():
        for letter, tensor in (("A", A), ("B", B)):
            if not bool(torch.isfinite(tensor).all()):
                raise InputError(f"{directory}: not saved, since {name} is not finite")
            key = name.replace("model.", "model.language_model.", 1)
            key = f"base_model.model.{key}.lora_{letter}.weight"
            tensors[key] = tensor.to("cpu", torch.float32, copy=True).contiguous()
    lora = model.lora_config
    names = "|".join(name for names in LINEARS.values() for name in names)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "revision": None,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "use_rslora": lora.use_rslora,
        "bias": "none",
        "inference_mode": True,
        # Not a list of names: Qwen2.5-VL's tower has layers that are called gate_proj, too.
        "target_modules": rf".*language_model.*\.({names})",
    }
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / TENSORS, metadata={"format": "pt"})
    (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    about = {"fingerprint": model.fingerprint, "model": str(base)}
    (directory / BASE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def check_base(directory: Path, model: VLM) -> None:
    """Raise InputError for an adapter of this project that was trained on other weights."""
    path = directory / BASE
    if path.is_file() and read_json_object(path).get("fingerprint") != model.fingerprint:
        was = read_json_object(path).get("model")
        raise InputError(f"--adapter {directory}: was trained on other weights, of {was}")


# ---- the reference of a KL term ------------------------------------------------------------------


class AdapterReference:
    """The same base with another adapter, or none: stands in for the reference model."""

    def __init__(self, model: VLM, start: Path | None):
        """`start`: the adapter that the run began from; None for a new one."""
        self.model, self.head_weight = model, model.head_weight
        if start is None:
            return
        pairs, _ = read_adapter(model, start)
        for parent, module, rows in linears(model):
            if module.lora is not None:
                module.lora.reference = {
                    name: tuple(x.to(module.weight) for x in pairs[parent + name])
                    for name in rows
                    if parent + name in pairs
                }

    def completion_hidden(self, pack) -> Tensor:
        """`VLM.completion_hidden` of the reference."""
        with reference_in_use(self.model):
            return self.model.completion_hidden(pack)


@contextmanager
def reference_in_use(model: VLM) -> Iterator[None]:
    """Inside, the model computes the reference policy."""
    used = [module.lora for _, module, _ in linears(model) if module.lora is not None]
    for adapter in used:
        adapter.use_reference = True
    try:
        yield
    finally:
        for adapter in used:
            adapter.use_reference = False


# ---- merging -------------------------------------------------------------------------------------


@torch.no_grad()
def merge(model: VLM) -> tuple[float, float]:
    """Add the adapter to the weights, computed in fp32 and rounded once, and take it out.

    Returns: the relative error of the change that the rounded weights hold, and its cosine with
        the change that was wanted; both over all weights together.
    """
    sums = model.outside
    for _, module, rows in linears(model):
        if module.lora is None:
            continue
        pairs = module.lora.pairs()
        for name, weight in zip(rows, module.weight.split([*rows.values()]), strict=True):
            if name in pairs:
                A, B = pairs[name]
                sums.add(weight, module.lora.scale * (B.float() @ A.float()))  # (rows, in)
        module.lora = None
    if sums.wanted == 0:
        return 0.0, 1.0
    norms = (sums.wanted * sums.held).sqrt().clamp_min(1e-30)
    return float((sums.error / sums.wanted).sqrt()), float(sums.product / norms)
