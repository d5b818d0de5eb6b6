"""Sizes of a Qwen-VL checkpoint, read from its `config.json`, and the choices of its family.

A `Family` is a record of choices that the files do not state; every size is in the JSON. No other
file reads the JSON or asks for `model_type`.

Public files come in five forms, all read into the same frozen dataclass: flat, as Qwen2-VL and
Qwen2.5-VL were published; flat with a sparse `vision_config` (transformers 4.45 to 4.49), whose
other fields are the family's defaults; flat with a copy in `text_config`; nested, as Qwen3-VL; and
nested with `rope_parameters` (transformers 5). Sources: Qwen2-VL, arXiv:2409.12191; Qwen2.5-VL,
arXiv:2502.13923; Qwen3-VL, arXiv:2511.21631. Next: kernels/advantage.py.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from runtime.errors import InputError
from runtime.run_directory import read_json_object


@dataclass(frozen=True, eq=False)  # one object each: hashed by identity
class Family:
    """What a family of checkpoints has in common beyond its sizes."""

    name: str
    vision_act: str  # activation of the tower's MLP, as `hidden_act` names it
    gated_vision: bool  # MLP of three matrices and RMSNorm, else of two and LayerNorm
    patch_bias: bool
    qkv_bias: bool  # of the language model's queries, keys and values
    qk_norm: bool  # RMSNorm of each query and key head before the rotation
    interleaved_mrope: bool  # frequencies go t, h, w, t, h, w, ..; else in three chunks
    vision_width: str  # the field that holds the tower's width
    vision_defaults: Mapping[str, Any]  # of the fields that a sparse `vision_config` leaves out
    text_defaults: Mapping[str, Any] = field(default_factory=dict)
    text_tie_counts: bool = True  # a tie flag in `text_config` counts beside one at the root


VISION_DEFAULTS = {
    "in_channels": 3,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "num_heads": 16,
}
FAMILIES = {
    "qwen2_vl": Family(
        name="Qwen2-VL",
        vision_act="quick_gelu",
        gated_vision=False,
        patch_bias=False,
        qkv_bias=True,
        qk_norm=False,
        interleaved_mrope=False,
        vision_width="embed_dim",
        vision_defaults=VISION_DEFAULTS
        | {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "patch_size": 14},
    ),
    "qwen2_5_vl": Family(
        name="Qwen2.5-VL",
        vision_act="silu",
        gated_vision=True,
        patch_bias=False,
        qkv_bias=True,
        qk_norm=False,
        interleaved_mrope=False,
        vision_width="hidden_size",
        vision_defaults=VISION_DEFAULTS
        | {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "patch_size": 14}
        | {"out_hidden_size": 3584, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]},
    ),
    "qwen3_vl": Family(
        name="Qwen3-VL",
        vision_act="gelu_pytorch_tanh",
        gated_vision=False,
        patch_bias=True,
        qkv_bias=False,
        qk_norm=True,
        interleaved_mrope=True,
        vision_width="hidden_size",
        vision_defaults=VISION_DEFAULTS
        | {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "patch_size": 16}
        | {"out_hidden_size": 3584, "num_position_embeddings": 2304}
        | {"deepstack_visual_indexes": [8, 16, 24]},
        text_defaults={"head_dim": 128, "rope_theta": 5e5},
        text_tie_counts=False,
    ),
}


@dataclass(frozen=True)
class OtherFamily:
    """What the files of a family that runs through transformers do not say."""

    name: str
    needs_image: bool = False
    template: str | None = None  # its way to ask, where the files have no chat template


QUESTION = "{% for part in messages[0]['content'] %}{{ part['text'] }}{% endfor %}"
OTHER_FAMILIES = {
    "llava": OtherFamily("LLaVA"),
    "llava_next": OtherFamily("LLaVA-NeXT"),
    "idefics3": OtherFamily("Idefics3"),
    "smolvlm": OtherFamily("SmolVLM"),
    "internvl": OtherFamily("InternVL"),
    "gemma3": OtherFamily("Gemma 3"),
    "blip-2": OtherFamily("BLIP-2", True, f"Question: {QUESTION} Answer:"),
    "instructblip": OtherFamily("InstructBLIP", True, QUESTION),
    "qwen3_5": OtherFamily("Qwen3.5"),
}


def runs_through_transformers(directory: Path) -> bool:
    """Whether a checkpoint directory is of `OTHER_FAMILIES`: see model/load.py."""
    path = directory / "config.json"
    return path.is_file() and str(read_json_object(path).get("model_type")) in OTHER_FAMILIES


REFUSED = {  # named so that nobody has to guess why
    "qwen3_vl_moe": "a mixture of experts, whose weights alone fill 58 GiB",
    "qwen3_5_moe": "linear attention and a mixture of experts",
}


@dataclass(frozen=True)
class VisionConfig:
    family: Family
    depth: int
    embed_dim: int  # width of the tower
    num_heads: int
    intermediate_size: int
    in_channels: int
    patch_size: int
    spatial_merge_size: int  # side of the square of patches that becomes one image token
    temporal_patch_size: int
    hidden_size: int  # width of the language model, which the merger projects to
    rope_theta: float
    window_side: int  # tokens; 0: every block sees whole frames
    full_blocks: tuple[int, ...]  # with windows, the blocks that see whole frames
    position_side: int  # of the square table of learned positions; 0: none
    deep_blocks: tuple[int, ...]  # whose output also goes to the language model's first layers

    @property
    def levels(self) -> int:
        """Features per image token: the last block's, and one per deep block."""
        return 1 + len(self.deep_blocks)


@dataclass(frozen=True)
class TextConfig:
    family: Family
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, int, int]  # rotary frequencies for time, height, width


@dataclass(frozen=True)
class VLMConfig:
    model_type: str  # the family, as config.json names it
    vision: VisionConfig
    text: TextConfig
    tie_word_embeddings: bool
    image_token_id: int

    @classmethod
    def from_dict(cls, raw: dict, origin: str = "config.json") -> "VLMConfig":
        """Read a parsed `config.json`.

        Raises InputError naming what is missing or wrong, and whatever would change the model but
        is not computed here.
        """
        model_type = raw.get("model_type") if isinstance(raw, dict) else None
        if not isinstance(model_type, str) or model_type not in FAMILIES:
            names, others = (
                ", ".join(family.name for family in table.values())
                for table in (FAMILIES, OTHER_FAMILIES)
            )
            why = f" ({REFUSED[model_type]})" if str(model_type) in REFUSED else ""
            raise InputError(
                f"{origin}: model_type is {model_type!r}{why}, but this project reads {names} and, "
                f"through transformers, {others}; pass --model such a directory"
            )
        family = FAMILIES[model_type]
        nested = raw.get("text_config") or {}
        try:
            text = family.text_defaults | raw | {k: v for k, v in nested.items() if v is not None}
            if not isinstance(raw["vision_config"], dict):
                raise TypeError("vision_config is not an object")
            vision = _vision_fields(raw["vision_config"], family)
            refused = _what_is_not_computed(raw, nested, text, vision, family)
            config = cls(
                model_type=model_type,
                vision=_typed(VisionConfig, vision | {"family": family}),
                text=_typed(TextConfig, _text_fields(text) | {"family": family}),
                tie_word_embeddings=_is_tied(raw, nested, family),
                image_token_id=raw["image_token_id"],
            )
        except KeyError as error:
            what = f"{error} is missing; is it a {family.name} config?"
            raise InputError(f"{origin}: {what}") from None
        except ZeroDivisionError:
            raise InputError(f"{origin}: a number of heads or a patch size is 0") from None
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(f"{origin}: a field has the wrong type ({error})") from None
        if refused is not None:
            raise InputError(f"{origin}: {refused}: not supported for {family.name}")
        config._check(origin)
        return config

    @classmethod
    def from_directory(cls, directory: Path) -> "VLMConfig":
        """Read `config.json` of a checkpoint; raises InputError as `from_dict` does."""
        path = directory / "config.json"
        if not path.is_file():
            raise InputError(
                f"--model {directory}: has no config.json; name a checkpoint directory"
            )
        return cls.from_dict(read_json_object(path), origin=str(path))

    def _check(self, origin: str) -> None:
        """Raise InputError unless the sizes fit together."""
        text, vision = self.text, self.vision
        may_be_zero = ("window_side", "position_side")
        for name, value in (vars(text) | vars(vision)).items():
            if isinstance(value, int | float) and not 0 <= value < math.inf:
                raise InputError(f"{origin}: {name} is {value}, must be a positive number")
            if value == 0 and name not in may_be_zero:
                raise InputError(f"{origin}: {name} is 0, must be a positive number")
            most = MOST.get(name, MOST_OF_ANY)
            if isinstance(value, int) and value > most:
                raise InputError(f"{origin}: {name} is above {most}, too large for a model")
        if max(text.num_hidden_layers, vision.depth) > 1000:
            raise InputError(f"{origin}: more than 1000 layers")
        H, K, section = text.num_attention_heads, text.num_key_value_heads, text.mrope_section
        vision_head_dim = vision.embed_dim // vision.num_heads
        deep = vision.deep_blocks
        rules = {
            "num_key_value_heads must divide num_attention_heads": H % K == 0,
            "in_channels must be 3": vision.in_channels == 3,
            "image_token_id must be an integer": type(self.image_token_id) is int,
            "rms_norm_eps must be below 1": text.rms_norm_eps < 1,
            "rope_theta must be in 1 .. 1e12": all(
                1 < c.rope_theta <= 1e12 for c in (text, vision)
            ),
            "vision num_heads must divide the tower's width": vision.embed_dim % vision.num_heads
            == 0,
            "the tower's width / num_heads must be a multiple of 4": vision_head_dim % 4 == 0,
            "mrope_section must have three parts": len(section) == 3 and min(section) >= 0,
            "mrope_section must sum to half the head width": 2 * sum(section) == text.head_dim,
            "the tower's output width must equal the text hidden_size": vision.hidden_size
            == text.hidden_size,
            "deepstack_visual_indexes must be increasing blocks": [*deep] == sorted({*deep})
            and {*deep} <= {*range(vision.depth)},
            "window_size is smaller than an image token": vision.window_side > 0
            or "window_size" not in vision.family.vision_defaults,
            "more deepstack levels than language layers": len(deep) <= text.num_hidden_layers,
        }
        for rule, is_met in rules.items():
            if not is_met:
                raise InputError(f"{origin}: {rule}")


MOST_OF_ANY = 2**24  # of any size, so that products of sizes stay numbers of elements
MOST = {"patch_size": 256, "temporal_patch_size": 64, "spatial_merge_size": 64}
NUMBERS = {int: "an integer", float: "a number"}
ROPE_FIELDS = ("rope_parameters", "rope_scaling")
WINDOWS_AND_MORE = {
    *("window_size", "fullatt_block_indexes"),
    *("num_position_embeddings", "deepstack_visual_indexes"),
}


def _vision_fields(raw: dict, family: Family) -> dict:
    """The fields of `VisionConfig` from a `vision_config`, which may be sparse."""
    foreign = WINDOWS_AND_MORE - family.vision_defaults.keys()  # stray: another family's choices
    given = {k: v for k, v in raw.items() if v is not None and k not in foreign}
    raw = family.vision_defaults | given
    width, merge = raw[family.vision_width], raw["spatial_merge_size"]
    values = raw | {"embed_dim": width, "in_channels": raw.get("in_chans", raw["in_channels"])}
    if family.vision_width == "embed_dim":  # and `hidden_size` is that of the language model
        values["intermediate_size"] = int(width * raw["mlp_ratio"])
    else:
        values["hidden_size"] = raw["out_hidden_size"]
    positions = math.isqrt(count := raw.get("num_position_embeddings", 0))
    if positions**2 != count:
        raise ValueError(f"num_position_embeddings {count} is not a square")
    return values | {
        "rope_theta": (raw.get("rope_parameters") or raw).get("rope_theta", 10000.0),
        "window_side": raw.get("window_size", 0) // merge // raw["patch_size"],
        "full_blocks": tuple(raw.get("fullatt_block_indexes", ())),
        "position_side": positions,
        "deep_blocks": tuple(raw.get("deepstack_visual_indexes", ())),
    }


def _text_fields(raw: dict) -> dict:
    """The fields of `TextConfig` from a `text_config`, or from a config.json without one."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    heads = raw["num_attention_heads"]
    return raw | {
        "num_key_value_heads": raw.get("num_key_value_heads") or heads,
        "head_dim": raw.get("head_dim") or raw["hidden_size"] // heads,
        "rope_theta": rope.get("rope_theta", raw.get("rope_theta", 1e6)),
        "mrope_section": tuple(int(n) for n in rope["mrope_section"]),
    }


def _is_tied(raw: dict, nested: dict, family: Family) -> bool:
    """Whether the output layer is the embedding: the flag may stand at the root and in the text."""
    at_root, in_text = (fields.get("tie_word_embeddings") for fields in (raw, nested))
    for flag in (at_root, in_text):
        if flag not in (None, True, False):
            raise ValueError(f"tie_word_embeddings is {flag!r:.40}, not true or false")
    if at_root is None or family.text_tie_counts:
        return bool(at_root or in_text)
    return bool(at_root)


def _what_is_not_computed(
    raw: dict, nested: dict, text: dict, vision: dict, family: Family
) -> str | None:
    """The first field that changes the model in a way that is not written here."""
    places = [fields.get(n) or {} for fields in (raw, nested) for n in ROPE_FIELDS]
    rope_types = {rope.get(n, "default") for rope in places for n in ("type", "rope_type")}
    partial = {rope.get("partial_rotary_factor", 1.0) for rope in places}
    heads, width = text["num_attention_heads"], text["hidden_size"]
    own_width = text.get("head_dim") in (None, width // heads)
    wrong = {
        "quantization_config: weights are quantised; take the original of this checkpoint": (
            raw.get("quantization_config") is not None
        ),
        f"rope type {sorted(rope_types)}: only default and mrope": not rope_types
        <= {"default", "mrope"},
        "use_sliding_window: every token sees all before it": bool(text.get("use_sliding_window")),
        "attention_bias": bool(text.get("attention_bias")) and not family.qkv_bias,
        f"hidden_act {text.get('hidden_act')!r}: only silu": text.get("hidden_act", "silu")
        != "silu",
        f"vision hidden_act {vision.get('hidden_act')!r}: only {family.vision_act}": vision.get(
            "hidden_act", family.vision_act
        )
        != family.vision_act,
        "partial_rotary_factor": partial != {1.0},
        "head_dim unlike hidden_size / num_attention_heads": family.qkv_bias and not own_width,
    }
    return next((what for what, is_wrong in wrong.items() if is_wrong), None)


def _typed(cls, raw: dict):
    """Build a dataclass from the JSON fields of the same names.

    Raises ValueError for what is no number of its type: no text, no truth value, no part of a head.
    """
    values = {item.name: raw[item.name] for item in fields(cls)}
    for name, kind in ((item.name, item.type) for item in fields(cls)):
        value = values[name]
        if kind in (int, float):
            is_number = type(value) in (int, float) and value == value
            if not is_number or (kind is int and value != int(value)):
                raise ValueError(f"{name} is {value!r:.40}, not {NUMBERS[kind]}")
            values[name] = kind(value)
    return cls(**values)
