"""Sizes of a Qwen2-VL checkpoint, read from its `config.json`.

Two layouts exist. The files published with Qwen2-VL keep the language model's fields at the top
level; transformers >= 4.52 nests them in `text_config` and calls `rope_scaling` `rope_parameters`.
Both are read into the same frozen dataclass; no other file reads the JSON. Next:
kernels/advantage.py.
"""

import math
from dataclasses import dataclass, fields
from pathlib import Path

from runtime.errors import InputError
from runtime.run_directory import read_json_object


@dataclass(frozen=True)
class VisionConfig:
    depth: int
    embed_dim: int  # width of the tower
    num_heads: int
    mlp_ratio: float
    in_channels: int
    patch_size: int
    spatial_merge_size: int  # side of the square of patches that becomes one image token
    temporal_patch_size: int
    hidden_size: int  # width of the language model, which the merger projects to


@dataclass(frozen=True)
class TextConfig:
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    rms_norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, int, int]  # rotary frequencies for time, height, width

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class VLMConfig:
    model_type: str  # the family, as config.json names it
    vision: VisionConfig
    text: TextConfig
    tie_word_embeddings: bool
    image_token_id: int

    @classmethod
    def from_dict(cls, raw: dict, origin: str = "config.json") -> "VLMConfig":
        """Read a parsed `config.json`; raises InputError naming the missing or wrong field."""
        model_type = raw.get("model_type") if isinstance(raw, dict) else None
        if model_type != "qwen2_vl":
            raise InputError(
                f"{origin}: model_type is {model_type!r}, but this project reads 'qwen2_vl' "
                "checkpoints; pass --model a Qwen2-VL directory"
            )
        text, vision = raw.get("text_config", raw), raw.get("vision_config", {})
        try:
            rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
            theta = rope.get("rope_theta", text.get("rope_theta", 1e6))
            section = tuple(int(n) for n in rope["mrope_section"])
            channels = vision.get("in_channels", vision.get("in_chans", 3))
            config = cls(
                model_type=model_type,
                vision=_typed(VisionConfig, vision | {"in_channels": channels}),
                text=_typed(TextConfig, text | {"rope_theta": theta, "mrope_section": section}),
                tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
                image_token_id=int(raw["image_token_id"]),
            )
        except KeyError as error:
            raise InputError(f"{origin}: {error} is missing; is it a Qwen2-VL config?") from None
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(f"{origin}: a field has the wrong type ({error})") from None
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
        for name, value in (vars(text) | vars(vision)).items():
            if name != "mrope_section" and not 0 < value < math.inf:
                raise InputError(f"{origin}: {name} is {value}, must be a positive number")
        if max(text.num_hidden_layers, vision.depth) > 1000:
            raise InputError(f"{origin}: more than 1000 layers")
        D, H, K = text.hidden_size, text.num_attention_heads, text.num_key_value_heads
        section, vision_head_dim = text.mrope_section, vision.embed_dim // vision.num_heads
        rules = {
            "num_attention_heads must divide hidden_size": D % H == 0,
            "num_key_value_heads must divide num_attention_heads": H % K == 0,
            "vision num_heads must divide embed_dim": vision.embed_dim % vision.num_heads == 0,
            "vision embed_dim / num_heads must be a multiple of 4": vision_head_dim % 4 == 0,
            "mrope_section must have three positive parts": len(section) == 3 and min(section) > 0,
            "mrope_section must sum to half the head width": sum(section) == text.head_dim // 2,
            "vision hidden_size must equal the text hidden_size": vision.hidden_size == D,
        }
        for rule, is_met in rules.items():
            if not is_met:
                raise InputError(f"{origin}: {rule}")


def _typed(cls, raw: dict):
    """Build a dataclass from the JSON fields of the same names, each converted to its type."""
    return cls(**{field.name: field.type(raw[field.name]) for field in fields(cls)})
