"""Which classes read a checkpoint directory: the hand-written model, or transformers' own.

The Qwen-VL families of `model/config.py` are computed by `VLM`; those of `OTHER_FAMILIES` run
through transformers (`model/transformers_vlm.py`), slower. Both have the same methods, and nobody
else asks which it is. Next: model/processor.py.
"""

import re
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from model import weights
from model.config import runs_through_transformers
from model.lora import load_adapter
from model.processor import Processor
from model.transformers_processor import TransformersProcessor
from model.vlm import VLM, Prompt
from model.weights import what_is_there
from runtime.console import is_out_of_memory
from runtime.errors import InputError, one_line


def local_directory(model: Path) -> Path:
    """The directory of a checkpoint: `model` itself, or what the hub's cache has under that name.

    Raises InputError if it is neither, or no checkpoint; nothing is downloaded.
    """
    directory = model
    if model.is_file():
        raise InputError(f"--model {model}: is a file; name its directory")
    if model.parts[:1] in (("https:",), ("http:",)):
        raise InputError(f"--model {model}: is a URL; download it with hf download ORG/NAME")
    if not model.exists() and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(model)):
        try:
            directory = Path(snapshot_download(str(model), local_files_only=True))
        except (HFValidationError, LocalEntryNotFoundError, OSError):
            download = f"hf download {model} --local-dir {model.name}"
            raise InputError(f"--model {model}: no such directory; {download}") from None
    if (directory / "run.json").is_file():
        raise InputError(f"--model {model}: is a run; name its {model.name}/step_N/hf")
    if directory.is_dir() and not (directory / "config.json").is_file():
        what = "has no config.json; name a checkpoint directory"
        raise InputError(f"--model {model}: {what_is_there(directory, what)}")
    return directory


def load_processor(directory: Path, max_pixels: int | None = None) -> Processor:
    """Tokenizer, template and image preprocessing; raises InputError for incomplete files.

    Sizes in config.json that are not those of the weights are refused here, before any picture is
    cut into patches of such a size.
    """
    directory = Path(directory)
    if runs_through_transformers(directory):
        return TransformersProcessor(directory, max_pixels)
    processor = Processor(directory, max_pixels)
    weights.unfilled_model(directory, weights.read_slots(directory))
    return processor


def load_model(
    directory: Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    adapter: Path | None = None,
) -> VLM:
    """Build and fill the model of a checkpoint directory, a `VLM` or a `TransformersVLM`.

    Args:
        adapter: a LoRA adapter to put into it.
    Raises InputError for files that are damaged, incomplete or of another model.
    """
    if not runs_through_transformers(Path(directory)):
        model = weights.load_model(directory, dtype, device)
        if adapter is not None:
            load_adapter(model, adapter)
        return model
    if adapter is not None:
        raise InputError(
            f"--adapter {adapter}: {directory} runs through transformers, without LoRA"
        )
    from model import transformers_vlm  # takes a second, which the default run need not wait

    return transformers_vlm.load(Path(directory), dtype, device)


@torch.no_grad()
def check_files_fit(model: VLM, prompt: Prompt) -> None:
    """Compute one prompt with a model of transformers; the hand-written one checks what it reads.

    Raises InputError where transformers finds that processor and model do not fit together.
    """
    if isinstance(model, VLM):
        return
    try:
        model.prefill_one(prompt)
    except (RuntimeError, ValueError, IndexError, AttributeError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        what = "do its processor's files and config.json belong together?"
        raise InputError(
            f"prompt {prompt.id}: transformers refuses it ({one_line(error)}); {what}"
        ) from error


def save_model(model: VLM, directory: Path, companions: Path) -> None:
    """Write the model as the files of the directory that it was loaded from, `companions`.

    Raises InputError as `weights.save_tensors`.
    """
    if isinstance(model, VLM):
        return weights.save_model(model, directory, companions)
    slots = weights.source_slots(companions)
    tensors = model.tensors_of_files(slots, companions)
    weights.save_tensors(tensors, slots, directory, companions)
