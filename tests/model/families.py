"""Tiny random models of every family, made by transformers' own classes."""

import shutil
from pathlib import Path

import torch
import transformers

CLASSES = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}


def random_reference(
    family: str,
    tied: bool,
    heads: int,
    kv: int,
    depth: int,
    vocab: int = 151,
    qwen3_width: int = 24,
):
    """A random model of transformers' class of the family; windows are 2 x 2 tokens wide.

    `qwen3_width`: of a head; in Qwen3-VL it is a field of its own.
    """
    E = 16 if family != "qwen3_vl" else qwen3_width
    D, section = 16 * heads, {16: [2, 3, 3], 24: [4, 4, 4], 32: [6, 5, 5]}[E]
    rope = dict(rope_type="default", type="mrope", mrope_section=section, rope_theta=1e4)
    # Large weights: differences between tokens are visible.
    text = dict(hidden_size=D, intermediate_size=72, vocab_size=vocab, initializer_range=0.2)
    text |= dict(num_hidden_layers=3, num_attention_heads=heads, rms_norm_eps=1e-6)
    text |= dict(num_key_value_heads=kv, bos_token_id=0, eos_token_id=1, rope_parameters=rope)
    vision = dict(depth=depth, num_heads=2, initializer_range=0.2)
    vision |= dict(patch_size=4, spatial_merge_size=2, temporal_patch_size=2)
    vision |= dict(rope_parameters=dict(rope_type="axial", rope_theta=5e3))
    if family == "qwen2_vl":
        vision |= dict(embed_dim=32, hidden_size=D, mlp_ratio=2)
    else:
        vision |= dict(hidden_size=32, out_hidden_size=D, intermediate_size=44)
    if family == "qwen2_5_vl":
        vision |= dict(window_size=16, fullatt_block_indexes=[1])
    if family == "qwen3_vl":
        vision |= dict(num_position_embeddings=49, deepstack_visual_indexes=[0, 2])
        text |= dict(head_dim=E)
        rope |= dict(mrope_interleaved=True)
    kind = getattr(transformers, CLASSES[family] + "Config")
    config = kind(
        text_config=text,
        vision_config=vision,
        vision_start_token_id=3,
        vision_end_token_id=4,
        image_token_id=6,
        video_token_id=7,
        tie_word_embeddings=tied,
    )
    model = getattr(transformers, CLASSES[family] + "ForConditionalGeneration")(config).eval()
    with torch.no_grad():  # transformers starts biases at zero and norms at one
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def write_tiny_directory(family: str, source: Path, directory: Path, qwen3_width: int = 24) -> Path:
    """A complete checkpoint directory of a family: tokenizer and preprocessing of `source`, a tiny
    Qwen2-VL, and config and weights as transformers saves them."""
    vocab = transformers.Qwen2VLConfig.from_pretrained(source).text_config.vocab_size
    torch.manual_seed(0)
    model = random_reference(family, True, 4, 2, 4, vocab, qwen3_width)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(0.6)  # answers depend on what is seen, gradients are not chaotic
    model.save_pretrained(directory)
    for path in source.iterdir():
        if not (directory / path.name).exists():
            shutil.copyfile(path, directory / path.name)
    shutil.copyfile(source / "generation_config.json", directory / "generation_config.json")
    return directory
