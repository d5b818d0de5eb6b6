"""A new, small checkpoint directory: everything of a Qwen2-VL checkpoint but its trained weights.

The real architecture at toy width, with a byte-level BPE tokenizer learned from the texts that the
model will see. Chat template and configuration files are those of the bundled base
(`assets/garden-vlm/`, in the layout of the published Qwen2-VL) with other sizes, so the directory
goes through the same code as a published 2B checkpoint.
Used by `data/garden/pretrain.py` and by the tests.
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from model.config import VLMConfig
from model.vlm import VLM

TEMPLATE = Path(__file__).parents[1] / "assets" / "garden-vlm"  # chat template and configuration
CONTROL_TOKENS = (
    "<|endoftext|> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|vision_pad|> "
    "<|image_pad|> <|video_pad|>"
).split()  # ids 0 to 7, which the configuration files name
TAGS = ("<think>", "</think>", "<answer>", "</answer>")  # one token each, but ordinary text

# A word with the space before it, an integer with the space before it, or white space. Integers
# stay whole, so that a coordinate that occurs often becomes one token.
WORDS = r" ?[^\s\d]+| ?\d+|\s+"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE with Qwen's control tokens; any text can be encoded and decoded back."""
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(WORDS), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in CONTROL_TOKENS])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in TAGS])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=CONTROL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Training renumbers the vocabulary under the tags; reading it back gives them ids of their own.
    return Tokenizer.from_str(tokenizer.to_str())


def write_new_checkpoint(
    directory: Path, texts: Iterable[str], vocab_size: int, max_side: int, **sizes: int
) -> None:
    """Write tokenizer, configs and chat template; the weights come from `init_model`.

    Args:
        texts: what the tokenizer learns its merges from. vocab_size: its upper bound; the embedding
            is padded to a multiple of 64 rows above what the tokenizer used.
        max_side: largest picture side in pixels before downscaling.
        sizes: `patch_size`, and the widths and depths as config.json names them, those of the
            vision tower with the prefix `vision_`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(texts, vocab_size)
    tokenizer.save(str(directory / "tokenizer.json"))
    for name in ("tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        shutil.copyfile(TEMPLATE / name, directory / name)
    names = ("config.json", "preprocessor_config.json")
    model, preprocessor = (json.loads((TEMPLATE / name).read_text("utf-8")) for name in names)
    patch_size, width = sizes.pop("patch_size"), sizes["hidden_size"]
    language = {name: n for name, n in sizes.items() if not name.startswith("vision_")}
    vision = {name.removeprefix("vision_"): n for name, n in sizes.items() if name not in language}
    model |= language | {"vocab_size": -(-tokenizer.get_vocab_size() // 64) * 64}
    model["vision_config"] |= vision | {"hidden_size": width, "patch_size": patch_size}
    # A head's rotary frequencies are split into 1/4 for time, 3/8 for height and 3/8 for width.
    half = width // sizes["num_attention_heads"] // 2
    section = [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8]
    model["rope_scaling"]["mrope_section"] = section
    preprocessor |= {"min_pixels": (8 * patch_size) ** 2, "max_pixels": max_side**2}
    preprocessor["patch_size"] = patch_size
    for name, content in zip(names, (model, preprocessor), strict=True):
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (directory / name).write_text(text, encoding="utf-8")


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
