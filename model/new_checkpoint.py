"""A new, small checkpoint directory: everything of a Qwen2-VL checkpoint but its trained weights.

The embedded base (`assets/garden-vlm/`) starts here: the real architecture at toy width, a real
byte-level BPE `tokenizer.json` learned from the texts it will see, the chat template, preprocessor
and generation config. The directory then goes through the same code as a published 2B checkpoint.
Used by `data/garden/pretrain.py` and by the tests.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from model.config import VLMConfig
from model.vlm import VLM

CONTROL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")  # one token each, but ordinary text

# A word with the space before it, an integer with the space before it, or white space. Integers
# stay whole, so that a coordinate that occurs often becomes one token.
WORDS = r" ?[^\s\d]+| ?\d+|\s+"

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE with Qwen's control tokens; any text can be encoded and decoded back."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in CONTROL_TOKENS])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in TAGS])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Training renumbers the vocabulary under the tags; reading it back gives them ids of their own.
    return Tokenizer.from_str(tokenizer.to_str())


def scratch_config(vocab_size: int, token_id: dict[str, int], **sizes: int) -> dict:
    """A `config.json` in the layout of the published Qwen2-VL files."""
    D, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    # The rotary frequencies of a head are shared out: 1/4 time, 3/8 height, 3/8 width.
    half = D // heads // 2
    section = [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8]
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "bos_token_id": token_id["<|endoftext|>"],
        "eos_token_id": token_id["<|im_end|>"],
        "vision_start_token_id": token_id["<|vision_start|>"],
        "vision_end_token_id": token_id["<|vision_end|>"],
        "vision_token_id": token_id["<|vision_pad|>"],
        "image_token_id": token_id["<|image_pad|>"],
        "video_token_id": token_id["<|video_pad|>"],
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": D,
        "initializer_range": 0.02,
        "intermediate_size": sizes["intermediate_size"],
        "max_position_embeddings": 4096,
        "num_attention_heads": heads,
        "num_hidden_layers": sizes["num_hidden_layers"],
        "num_key_value_heads": sizes["num_key_value_heads"],
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": section},
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": vocab_size,
        "vision_config": {
            "depth": sizes["vision_depth"],
            "embed_dim": sizes["vision_embed_dim"],
            "hidden_size": D,
            "in_channels": 3,
            "mlp_ratio": sizes["vision_mlp_ratio"],
            "model_type": "qwen2_vl",
            "num_heads": sizes["vision_num_heads"],
            "patch_size": sizes["patch_size"],
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    }


def write_scratch_directory(
    directory: Path, texts: Iterable[str], vocab_size: int, max_side: int, **sizes: int
) -> None:
    """Write tokenizer, configs and chat template; the weights come from `init_model`.

    Args:
        texts: what the tokenizer learns its merges from. vocab_size: its upper bound; the embedding
            is padded to a multiple of 64 rows above what the tokenizer used.
        max_side: largest picture side in pixels before downscaling.
        sizes: the widths and depths named in `scratch_config`.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(texts, vocab_size)
    tokenizer.save(str(directory / "tokenizer.json"))
    token_id = {t: tokenizer.token_to_id(t) for t in CONTROL_TOKENS}
    rows = -(-tokenizer.get_vocab_size() // 64) * 64
    factor = 2 * sizes["patch_size"]
    files = {
        "config.json": scratch_config(rows, token_id, **sizes),
        "generation_config.json": {
            "bos_token_id": token_id["<|endoftext|>"],
            "eos_token_id": [token_id["<|im_end|>"], token_id["<|endoftext|>"]],
            "pad_token_id": token_id["<|endoftext|>"],
            "do_sample": True,
            "temperature": 1.0,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": 4096,
            "clean_up_tokenization_spaces": False,
        },
        "preprocessor_config.json": {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2VLProcessor",
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "rescale_factor": 1 / 255,
            "resample": 3,
            "min_pixels": (4 * factor) ** 2,
            "max_pixels": max_side**2,
            "patch_size": sizes["patch_size"],
            "temporal_patch_size": 2,
            "merge_size": 2,
        },
    }
    for name, content in files.items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (directory / name).write_text(text, encoding="utf-8")
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def init_model(cfg: VLMConfig, seed: int, dtype: torch.dtype = torch.float32) -> VLM:
    """Random weights: normal with standard deviation 0.02, norms 1, biases 0."""
    with torch.device("meta"):
        model = VLM(cfg)
    model = model.to(dtype).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.02, generator=generator)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return model
