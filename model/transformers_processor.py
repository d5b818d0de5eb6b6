"""Prompts of the families that run through transformers: their own processors make them.

Next: model/transformers_vlm.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
import transformers
from PIL import Image
from torch import Tensor

from model.config import OTHER_FAMILIES
from model.image import load_image
from model.processor import Processor, check_length
from model.vlm import Prompt
from runtime.errors import InputError, one_line
from runtime.run_directory import is_lfs_pointer, read_json_object


@dataclass
class TransformersPrompt(Prompt):
    """A prompt of transformers' classes. Pixels, grids and features are theirs, not ours."""

    inputs: dict[str, Tensor] = field(default_factory=dict)  # of the prefill, besides `ids`


class TransformersProcessor(Processor):
    """`Processor` of `OTHER_FAMILIES`: the checkpoint's own processor class makes the prompts."""

    def __init__(self, directory: Path, max_pixels: int | None = None):
        if max_pixels is not None:
            raise InputError(f"--max_pixels: {directory} sets the size of its images itself")
        path = Path(directory) / "config.json"
        if read_json_object(path).get("quantization_config") is not None:
            raise InputError(f"{path}: weights are quantised; take the original of this checkpoint")
        config = self._read(transformers.AutoConfig, Path(directory))
        self.model_type, self.image_cfg = config.model_type, None
        self.family = OTHER_FAMILIES[self.model_type]
        self.default_template = self.family.template
        qformer = getattr(config, "qformer_config", None)
        self.qformer_length = getattr(qformer, "max_position_embeddings", 0)
        self.processor = self._read(transformers.AutoProcessor, Path(directory))
        text = config.get_text_config()
        self._read_tokenizer(Path(directory), text.vocab_size)
        ids = (getattr(config, name, None) for name in ("image_token_id", "image_token_index"))
        self.image_token_id = next((id for id in ids if type(id) is int), -1)
        if self.image_token_id in range(text.vocab_size):
            self.suppressed_tokens[self.image_token_id] = True
        # Learned positions end; rotary ones do not.
        self.max_positions = text.max_position_embeddings if text.model_type == "opt" else None

    def _read(self, kind: type, directory: Path):
        """A configuration or a processor, as transformers reads it from a directory."""
        try:
            return kind.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # the library raises almost anything on damaged files
            if pointers := [p.name for p in directory.glob("*.json") if is_lfs_pointer(p)]:
                what = f"{directory / pointers[0]}: a git-lfs pointer; run git lfs pull"
                raise InputError(what) from error
            if "torchvision" in str(error).lower():
                what = f"{directory}: the processor of this family needs torchvision"
                raise InputError(f"{what}; pip install torchvision") from error
            raise InputError(f"{directory}: cannot be read ({one_line(error)})") from error

    def _load_tokenizer(self, directory: Path) -> transformers.PreTrainedTokenizerBase:
        return self.processor.tokenizer

    @cached_property
    def control_tokens(self) -> list[str]:
        """What may not stand in a question: transformers would read it as the token."""
        return [self.tokenizer.convert_ids_to_tokens(id) for id in sorted(self.control_ids)]

    def prompt(
        self,
        id: str,
        images: Sequence[Path | Image.Image],
        question: str,
        max_prompt_length: int | None = None,
    ) -> TransformersPrompt:
        """One user turn with its images in front, ending where the answer begins.

        Raises InputError as `Processor.prompt`, for a question with a control token in it, and for
        a number of images that the family does not take.
        """
        if found := [token for token in self.control_tokens if token in question]:
            what = f"the question contains {found[0]!r}, a control token of this model"
            raise InputError(f"prompt {id}: {what}; remove it")
        if self.family.needs_image and len(images) != 1:
            what = f"{self.family.name} takes exactly one image, not {len(images)}"
            raise InputError(f"prompt {id}: {what}")
        self.encode(question)  # refuses what is no valid Unicode
        pictures = [load_image(image) for image in images]
        text = question.join(self.turn(len(images)))
        bos = self.tokenizer.bos_token
        try:
            inputs = self.processor(
                text=text,
                images=pictures or None,
                add_special_tokens=bos is None or not text.startswith(bos),
                return_tensors="pt",
            )
        except Exception as error:  # the library raises almost anything on odd images
            what = f"cannot be made ({one_line(error)}); {self._do_they_fit()}"
            raise InputError(f"prompt {id}: {what}") from error
        ids = inputs.pop("input_ids")[0]  # (P,)
        inputs.pop("attention_mask", None)  # of one row: all ones
        positions = torch.arange(len(ids)).expand(3, -1)
        prompt = TransformersPrompt(id, ids, positions, None, [], inputs=dict(inputs))
        slots = int((ids == self.image_token_id).sum())
        if pictures and slots == 0:
            raise InputError(f"prompt {id}: no place for its image; {self._do_they_fit()}")
        check_length(id, len(ids), slots, max_prompt_length, "raise it")
        read = inputs.get("qformer_input_ids", ids[None, :0]).shape[1]
        if read > self.qformer_length:
            what = f"{read} tokens for the query transformer, which reads {self.qformer_length}"
            raise InputError(f"prompt {id}: {what}; shorten the question")
        return prompt

    def _do_they_fit(self) -> str:
        """What to look at where processor and model disagree."""
        names = ("processor_config.json", "preprocessor_config.json", "config.json")
        missing = [name for name in names if not (self.directory / name).is_file()]
        if missing:
            return f"{self.directory} has no {' and no '.join(missing)}: copy them from the source"
        return f"do {', '.join(names)} in {self.directory} belong together?"

    def check_lengths(self, max_prompt_length: int, completion_length: int) -> None:
        """Raise InputError for lengths beyond the positions that the model has learned."""
        limit = self.max_positions
        if limit is not None and max_prompt_length + completion_length > limit:
            fix = f"with completions of {completion_length} at most {limit - completion_length}"
            what = f"{self.family.name} has {limit} positions; {fix}"
            raise InputError(f"--max_prompt_length {max_prompt_length}: {what}")
