"""Questions and images -> `Prompt`, token ids -> text: everything that depends on the tokenizer.

Tokenizer and chat template come from the checkpoint directory, through transformers' tokenizer
class. A question is encoded with special tokens switched off: `<|im_end|>` or `<|image_pad|>` in it
stays plain text and cannot end its turn or add an image slot.

The sampler and the trainer share `suppressed_tokens`: vision tokens, chat control tokens and the
untrained padding rows of the embedding have probability zero in both. Next: model/weights.py.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from answers import TAGS
from model.config import MOST_OF_ANY, VLMConfig
from model.image import ImageConfig, load_image, num_image_tokens, patchify, smart_resize
from model.vlm import Grid, Prompt, rope_positions
from runtime.errors import InputError, one_line
from runtime.run_directory import is_lfs_pointer, read_json_object

# Placeholder of the question while the chat template is rendered: a private-use character, which
# no template contains.
USER_TEXT = "\ue000"
IMAGE_PAD = "<|image_pad|>"


def _image_settings(directory: Path) -> tuple[Path, dict]:
    """The file with the image preprocessing, and its fields.

    transformers 5 nests them in the processor's file, which then wins.
    """
    nested = directory / "processor_config.json"
    if nested.is_file() and (fields := read_json_object(nested).get("image_processor")):
        if not isinstance(fields, dict):
            raise InputError(f"{nested}: image_processor is no JSON object")
        return nested, fields
    path = directory / "preprocessor_config.json"
    return path, read_json_object(path)


class Processor:
    """Tokenizer, chat template and image preprocessing of one checkpoint directory.

    Attributes:
        image_cfg: how images become patches; None where transformers does that.
        end_ids: tokens that end a completion. control_ids: tokens that no text contains.
        suppressed_tokens: (V,) bool, probability zero in sampler and trainer.
    """

    default_template: str | None = None  # where the files have none

    def __init__(self, directory: Path, max_pixels: int | None = None):
        directory = Path(directory)
        if not directory.is_dir():
            raise InputError(f"--model {directory}: no such directory")
        self.cfg = VLMConfig.from_directory(directory)
        self.model_type = self.cfg.model_type
        self.image_cfg: ImageConfig | None = self._read_image_settings(directory, max_pixels)
        self._read_tokenizer(directory, self.cfg.text.vocab_size)
        if self.image_pad != self.cfg.image_token_id:
            raise InputError(f"{directory}: {IMAGE_PAD} is not token {self.cfg.image_token_id}")
        self.suppressed_tokens[self.image_pad] = True  # even where it is not called special

    def _read_image_settings(self, directory: Path, max_pixels: int | None) -> ImageConfig:
        path, settings = _image_settings(directory)
        image, vision = ImageConfig.from_dict(settings, str(path)), self.cfg.vision
        sizes = image.patch_size, image.merge_size, image.temporal_patch_size
        expected = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
        if sizes != expected:
            names = "patch_size, merge_size, temporal_patch_size"
            what = f"{names} are {sizes}, but {expected} in config.json"
            raise InputError(f"{path}: {what}; the files belong to different models")
        if max_pixels is not None:
            if max_pixels < image.min_pixels:
                smallest = image.min_pixels
                raise InputError(f"--max_pixels {max_pixels}: below the checkpoint's {smallest}")
            image = replace(image, max_pixels=max_pixels)
        return image

    def _read_tokenizer(self, directory: Path, vocabulary: int) -> None:
        """The tokenizer, its chat template, and which of the V tokens have which role."""
        self.directory = directory
        self.tokenizer = self._load_tokenizer(directory)
        # A processor's template wins over the tokenizer's, in transformers' order.
        for name in ("chat_template.json", "processor_config.json"):
            path = directory / name
            if path.is_file() and (template := read_json_object(path).get("chat_template")):
                self.tokenizer.chat_template = template
        if is_lfs_pointer(path := directory / "chat_template.jinja"):
            raise InputError(f"{path}: a git-lfs pointer; run git lfs pull")
        if self.tokenizer.chat_template is None:
            self.tokenizer.chat_template = self.default_template
        if self.tokenizer.chat_template is None:
            raise InputError(f"{directory}: no chat template (chat_template.jinja or .json)")
        if vocabulary > MOST_OF_ANY:
            raise InputError(f"{directory}/config.json: vocab_size is above {MOST_OF_ANY}")
        if len(self.tokenizer) > vocabulary:
            raise InputError(
                f"{directory}: the tokenizer has {len(self.tokenizer)} tokens, but config.json "
                f"says vocab_size {vocabulary}; the files belong to different models"
            )
        self.image_pad = self.tokenizer.added_tokens_encoder.get(IMAGE_PAD)
        self.end_ids = self._end_ids(directory, vocabulary)
        special = [i for i, t in self.tokenizer.added_tokens_decoder.items() if t.special]
        tags = {i for i, t in self.tokenizer.added_tokens_decoder.items() if t.content in TAGS}
        self.control_ids = {*special, *self.tokenizer.all_special_ids} - tags
        special = self.control_ids - {*self.end_ids}
        self.suppressed_tokens = torch.zeros(vocabulary, dtype=torch.bool)  # (V,)
        self.suppressed_tokens[[*special, *range(len(self.tokenizer), vocabulary)]] = True

    @cached_property
    def template_lengths(self) -> dict[int, int]:
        """Number of images -> tokens of the template without them; filled by `check_prompt`."""
        return {}

    def _load_tokenizer(self, directory: Path) -> PreTrainedTokenizerBase:
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise InputError(f"{path}: missing; is this a complete checkpoint?")
        try:
            return PreTrainedTokenizerFast.from_pretrained(
                directory, local_files_only=True, model_max_length=10**9
            )
        except Exception as error:  # the library raises almost anything on damaged files
            if pointers := [*filter(is_lfs_pointer, directory.glob("*.json"))]:
                what = f"{pointers[0]}: a git-lfs pointer; run git lfs pull"
                raise InputError(what) from None
            raise InputError(
                f"{directory}: the tokenizer files cannot be read "
                f"({one_line(error)}); copy them again from the source"
            ) from error

    def _end_ids(self, directory: Path, vocabulary: int) -> list[int]:
        """Tokens that end a completion: the tokenizer's and the generation config's."""
        path = directory / "generation_config.json"
        ids = read_json_object(path).get("eos_token_id") if path.is_file() else None
        ids = ids if isinstance(ids, list) else [ids]
        ids = [id for id in (*ids, self.tokenizer.eos_token_id) if id is not None]
        for id in ids:
            is_token = type(id) is int and 0 <= id < vocabulary
            if not is_token or id == self.image_pad:
                raise InputError(f"{path}: eos_token_id {id!r} is not a token that can end a text")
        if not ids:
            raise InputError(f"{directory}: no eos_token_id in tokenizer or generation_config.json")
        return sorted(set(ids))

    def encode(self, text: str) -> list[int]:
        """Plain text to ids; special tokens inside it are ordinary characters."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:  # half a surrogate pair, which JSON can carry
            raise InputError(f"text {text[:60]!r} is no valid Unicode: {error.reason}") from None
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """Ids to text without chat control tokens; invalid UTF-8 pieces become U+FFFD.

        The tags of an answer stay, even where a tokenizer calls them special.
        """
        ids = [id for id in map(int, ids) if id not in self.control_ids]
        return self.tokenizer.decode(ids)

    def says(self, ids: Tensor, texts: Sequence[str]) -> bool:
        """Whether tokens say one of some texts."""
        said = self.decode(ids)
        return any(text in said for text in texts)

    def length_until(self, ids: Tensor, texts: Sequence[str]) -> int | None:
        """How many of some tokens say one of the texts, the last one whole; None: all do not.

        A tag may be several tokens, and a token more than the rest of a tag.
        """
        if not self.says(ids, texts):
            return None
        return 1 + bisect_left(range(1, len(ids)), True, key=lambda n: self.says(ids[:n], texts))

    def turn(self, num_images: int) -> tuple[str, str]:
        """The text of one user turn before and after the question, one slot per image."""
        content = [{"type": "image"}] * num_images + [{"type": "text", "text": USER_TEXT}]
        try:
            rendered = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program of the checkpoint's author
            raise InputError(
                f"{self.directory}: the chat template cannot be rendered ({one_line(error)})"
            ) from error
        if rendered.count(USER_TEXT) != 1:
            raise InputError(f"{self.directory}: the chat template must give the text exactly once")
        before, after = rendered.split(USER_TEXT)
        return before, after

    def template(self, num_images: int) -> tuple[list[int], list[int]]:
        """`turn` as token ids."""
        encode = self.tokenizer.encode
        return tuple(encode(text, add_special_tokens=False) for text in self.turn(num_images))

    @cached_property
    def opening(self) -> str:
        """What the template writes of the answer: `<think>` of a thinking checkpoint, else "".

        A completion's text begins with it, since its tokens do not.
        """
        return "<think>" if self.turn(0)[1].rstrip().endswith("<think>") else ""

    def check_prompt_mode(self, mode: str) -> None:
        """Raise InputError where the template opens a thought, and `mode` asks for none."""
        if self.opening and mode not in ("think", "plain"):
            what = "the model's template opens a thought; use think (train_sft.py: with --cot)"
            raise InputError(f"--prompt_mode {mode}: {what}")

    def check_lengths(self, max_prompt_length: int, completion_length: int) -> None:
        """Rotary positions have no end."""

    def check_prompt(
        self, id: str, sizes: Sequence[tuple[int, int]], question: str, limit: int
    ) -> None:
        """Raise InputError where `prompt` would, for pictures of these (width, height)."""
        cfg, count = self.image_cfg, len(sizes)
        if count not in self.template_lengths:
            self.template_lengths[count] = sum(map(len, self.template(count))) - count
        factor, slots = cfg.patch_size * cfg.merge_size, 0
        for width, height in sizes:
            new = smart_resize(height, width, factor, cfg.min_pixels, cfg.max_pixels)
            slots += new[0] * new[1] // factor**2
        length = self.template_lengths[count] + len(self.encode(question)) + slots
        check_length(id, length, slots, limit, "raise it, or lower --max_pixels")

    def assemble(self, id: str, ids: list[int], patches: list[tuple[Tensor, Grid]]) -> Prompt:
        """Widen each image slot to its number of image tokens and add the positions."""
        ids = torch.tensor(ids)  # (tokens before the slots are widened,)
        grids = [grid for _, grid in patches]
        slots = (ids == self.cfg.image_token_id).nonzero().squeeze(1)  # (images,)
        if len(slots) != len(grids):
            raise InputError(f"prompt {id}: {len(slots)} image slots for {len(grids)} images")
        repeats, merge = torch.ones_like(ids), self.image_cfg.merge_size
        repeats[slots] = torch.tensor([num_image_tokens(g, merge) for g in grids], dtype=torch.long)
        ids = ids.repeat_interleave(repeats)  # (P,)
        return Prompt(
            id=id,
            ids=ids,
            positions=rope_positions(ids, grids, self.cfg),
            pixels=torch.cat([p for p, _ in patches]) if patches else None,
            grids=grids,
        )

    @cached_property
    def image_slot(self) -> list[int]:
        """The tokens of one image inside a text: its slot, and what the template puts around it."""
        before, _ = self.template(1)
        at = before.index(self.image_pad)
        around = [id for id in before[at - 1 : at + 2] if id in (*self.control_ids, self.image_pad)]
        return around

    def piece(self, id: str, parts: Sequence[str | Path | Image.Image]) -> Prompt:
        """Texts and pictures that are put into a completion; positions count from 0.

        Raises InputError as `prompt`.
        """
        ids, patches = [], []
        for part in parts:
            if isinstance(part, str):
                ids += self.encode(part)
            else:
                ids += self.image_slot
                patches.append(patchify(load_image(part), self.image_cfg))
        return self.assemble(id, ids, patches)

    def prompt(
        self,
        id: str,
        images: Sequence[Path | Image.Image],
        question: str,
        max_prompt_length: int | None = None,
    ) -> Prompt:
        """One user turn with its images in front, ending where the answer begins.

        Raises InputError for an unreadable image, or a prompt of more than `max_prompt_length`
        tokens: prompts are never cut, since that would separate image slots from image tokens.
        """
        patches = [patchify(load_image(image), self.image_cfg) for image in images]
        before, after = self.template(len(images))
        prompt = self.assemble(id, before + self.encode(question) + after, patches)
        slots = int((prompt.ids == self.cfg.image_token_id).sum())
        fix = "raise it, or lower --max_pixels"
        check_length(id, len(prompt.ids), slots, max_prompt_length, fix)
        return prompt


def check_length(id: str, length: int, slots: int, limit: int | None, fix: str) -> None:
    """Raise InputError for a prompt of more than `limit` tokens, `slots` of them image tokens."""
    if limit is not None and length > limit:
        raise InputError(
            f"prompt {id}: {length} tokens, {slots} of them image tokens, but "
            f"--max_prompt_length is {limit}; {fix}"
        )
