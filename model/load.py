"""Which classes read a checkpoint directory: the hand-written model, or transformers' own.

The Qwen-VL families of `model/config.py` are computed by `VLM`; those of `OTHER_FAMILIES` run
through transformers (`model/transformers_vlm.py`), slower. Both have the same methods, and nobody
else asks which it is. Next: model/config.py.
"""

from pathlib import Path

import torch

from model import weights
from model.config import OTHER_FAMILIES
from model.lora import load_adapter
from model.processor import Processor
from model.transformers_processor import TransformersProcessor
from model.vlm import VLM
from model.weights import local_directory  # noqa: F401 (the name of a --model becomes a directory)
from runtime.errors import InputError
from runtime.run_directory import read_json_object


def runs_through_transformers(directory: Path) -> bool:
    """Whether a checkpoint directory is of `OTHER_FAMILIES`."""
    path = Path(directory) / "config.json"
    return path.is_file() and read_json_object(path).get("model_type") in OTHER_FAMILIES


def load_processor(directory: Path, max_pixels: int | None = None) -> Processor:
    """Tokenizer, template and image preprocessing; raises InputError for incomplete files."""
    kind = TransformersProcessor if runs_through_transformers(directory) else Processor
    return kind(directory, max_pixels)


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
    if not runs_through_transformers(directory):
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


def save_model(model: VLM, directory: Path, companions: Path) -> None:
    """Write the model as the files of the directory that it was loaded from, `companions`.

    Raises InputError as `weights.save_tensors`.
    """
    if isinstance(model, VLM):
        return weights.save_model(model, directory, companions)
    slots = weights.source_slots(companions)
    tensors = model.tensors_of_files(slots, companions)
    weights.save_tensors(tensors, slots, directory, companions)
