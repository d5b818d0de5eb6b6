"""Settings: one frozen dataclass per script <-> command line <-> JSON.

A field is the single truth about a flag: its name, type, default, and help text. `parse` builds the
command line from it, `save` and `load` write and read it beside a run. What several scripts share
is here; each script has the dataclass of its own flags. Names are TRL's wherever TRL has the
concept (https://huggingface.co/docs/trl/grpo_trainer), so that runs and curves compare.
"""

import argparse
import dataclasses
import difflib
import json
import math
import re
import shlex
import sys
import types
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

from runtime.errors import InputError
from runtime.run_directory import read_json_object, write_atomically

C = TypeVar("C")
METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
BASE_MODEL = Path(__file__).parent / "assets" / "garden-vlm"
MAX_SKIP = 0.01  # share of a data set that may be unusable; two records always may
SPLIT_SEED = 2503  # of the published splits and few-shot subsets


def flag(default: Any, help: str) -> Any:
    """A field with its help text."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class TaskConfig:
    """What is asked of which model: the flags of training and evaluation alike."""

    script: ClassVar[str] = ""  # that has these settings

    # Task
    task: str = flag("cls", "what is asked, a file of tasks/")
    data: str = flag("garden", "garden | digits | folder of class folders | file (docs/data.md)")
    data_root: Path | None = flag(None, "folder of the images; default: the folder of the file")
    question: str | None = flag(None, "asked of every image; default: the data's own question")
    shots: int = flag(1, "training images per class: cls, det, ovd")
    train_size: int = flag(256, "training questions: the other tasks")
    held_out_per_class: int = flag(10, "held-out images per class: cls")
    held_out_size: int = flag(200, "held-out questions: the other tasks")
    split_seed: int = flag(SPLIT_SEED, "of the training and the held-out examples")
    max_skip: float = flag(MAX_SKIP, "share of the data that may be unusable; two always may")
    prompt_mode: Literal["think", "steps", "direct"] = flag(
        "think", "reason first; in four steps; or answer at once"
    )
    tolerance: float = flag(0.04, "measure: relative error of a number that is still right")
    ordered: bool = flag(False, "change: the order of the calls counts")
    list_classes: bool = flag(False, "cls: the question lists the class names to choose from")
    shuffle_labels: bool = flag(False, "cls, control run: train on wrong labels; must not help")
    coords: Literal["auto", "norm1000", "abs", "abs_resized"] = flag(
        "auto", "format in which the model writes boxes; auto: what its family was taught"
    )
    data_coords: Literal["auto", "norm1000", "abs", "abs_resized", "norm1", "norm100"] = flag(
        "auto", "format of the data's boxes; auto: what its file format prescribes"
    )
    # Model
    model: Path = flag(BASE_MODEL, "checkpoint directory, see docs/models.md")
    adapter: Path | None = flag(None, "directory of a LoRA adapter, PEFT's files")
    device: str = flag("auto", "cpu, cuda, cuda:1, ...; auto takes a GPU if there is one")
    dtype: Literal["float32", "bfloat16"] = flag("float32", "of the weights; AdamW stays fp32")
    max_prompt_length: int = flag(2048, "tokens; a question with a longer prompt is left out")
    max_completion_length: int | None = flag(None, "tokens; default: what the task's answers need")
    max_pixels: int | None = flag(None, "larger images are downscaled; default: the checkpoint's")
    seed: int = flag(0, "of all random choices")

    def __post_init__(self) -> None:
        require_counts(self, "shots train_size held_out_per_class held_out_size max_prompt_length")
        length = self.max_completion_length
        require(length is None or 1 <= length <= 10**6, "max_completion_length", "1 .. 10^6", self)
        asked = self.question
        is_text = asked is None or (asked.strip() != "" and "<image>" not in asked)
        require(is_text, "question", "a text without <image> (pictures come first)", self)
        require(0 <= self.max_skip <= 1, "max_skip", "in 0 .. 1", self)
        require(0 <= self.tolerance < 1, "tolerance", "in 0 .. 1", self)
        require(self.max_pixels is None or self.max_pixels > 0, "max_pixels", "positive", self)
        require(0 <= self.seed < 2**63, "seed", "in 0 .. 2^63 - 1", self)
        require(0 <= self.split_seed < 2**24, "split_seed", "in 0 .. 2^24 - 1", self)


@dataclass(frozen=True)
class TrainConfig(TaskConfig):
    """The flags of every training run. The defaults suit the bundled base on a laptop."""

    trained_models: ClassVar[int] = 1  # 2: a critic, too

    freeze_vision: bool = flag(True, "keep the vision tower as it is")
    lora_rank: int = flag(0, "train a LoRA adapter of this rank, not the weights; 0: the weights")
    lora_alpha: float | None = flag(
        None, "of a new adapter: its scale is lora_alpha / lora_rank; default: 32"
    )
    prompts_per_step: int = flag(8, "questions per optimizer step: N")
    max_steps: int = flag(150, "batches of questions")
    learning_rate: float = flag(5e-5, "peak; a real 2B checkpoint wants 1e-6")
    lr_scheduler_type: Literal["linear", "constant"] = flag("linear", "decay to 0, or none")
    max_grad_norm: float = flag(1.0, "gradients are scaled down to this norm")
    weight_decay: float = flag(0.0, "of AdamW")
    groups_per_micro_batch: int | None = flag(
        None, "questions per forward: memory, not the result; default: what fits, at most 8"
    )
    gradient_checkpointing: bool = flag(False, "recompute layers in backward: memory for time")
    gpu_memory: float | None = flag(None, "GiB to plan for; default: the card's")
    plan: bool = flag(False, "print the memory that the run would need, and end")
    fsdp: bool = flag(False, "under torchrun: shard weights and optimizer state over the GPUs")
    # Logging
    output_dir: Path | None = flag(None, "default: runs/<task>-<time>")
    eval_steps: int = flag(50, "held-out evaluation every so many steps; also at start and end")
    save_steps: int | None = flag(
        None, "checkpoint every so many steps, 0: at the end; default: a fifth of the run"
    )
    save_total_limit: int | None = flag(2, "how many of the newest checkpoints stay; none: all")
    resume_from_checkpoint: str | None = flag(
        None, "latest (in runs/), runs/NAME or runs/NAME/step_N"
    )
    report_prompts: int = flag(4, "held-out questions whose answers report.html follows")
    report_attention: bool = flag(False, "also show where their answers look in the image")
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = flag(
        "none", "mirror the metrics to a tracker, where it is installed"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_counts(self, "prompts_per_step max_steps eval_steps")
        if self.groups_per_micro_batch is not None:
            require_counts(self, "groups_per_micro_batch")
        memory = self.gpu_memory
        require(memory is None or 0 < memory <= 1e6, "gpu_memory", "above 0", self)
        require(0 < self.learning_rate <= 1, "learning_rate", "above 0, at most 1", self)
        require(0 <= self.lora_rank <= 4096, "lora_rank", "in 0 .. 4096", self)
        alpha, is_new = self.lora_alpha, self.lora_rank > 0 and self.adapter is None
        require(alpha is None or 0 < alpha <= 1e6, "lora_alpha", "above 0", self)
        require(alpha is None or is_new, "lora_alpha", "given with --lora_rank alone", self)
        if self.trains_adapter:
            why = "left out with --lora_rank or --adapter, which train an adapter"
            require(self.freeze_vision, "freeze_vision", f"{why} of the language model", self)
            require(not self.fsdp, "fsdp", f"{why} whole on every GPU", self)
        require(0 < self.max_grad_norm < math.inf, "max_grad_norm", "a positive number", self)
        require(0 <= self.weight_decay <= 1e6, "weight_decay", "in 0 .. 1e6", self)
        require(self.save_steps is None or self.save_steps >= 0, "save_steps", "0 or more", self)
        limit = self.save_total_limit
        require(limit is None or limit >= 1, "save_total_limit", "at least 1, or none", self)
        require(0 <= self.report_prompts <= 100, "report_prompts", "in 0 .. 100", self)

    @property
    def frozen_models(self) -> int:
        """How many models of the same size are in memory that are not trained."""
        return 0

    @property
    def trains_adapter(self) -> bool:
        """Whether a LoRA adapter is trained, and the weights are not."""
        return self.lora_rank > 0 or self.adapter is not None

    @property
    def steps_between_saves(self) -> int:
        """`save_steps`, by default a fifth of the run at most; 0: only at the end."""
        return max(1, self.max_steps // 5) if self.save_steps is None else self.save_steps


def require(holds: bool, name: str, what: str, config: Any) -> None:
    """Raise InputError naming the flag `name` of `config` unless the condition holds."""
    if not holds:
        raise InputError(f"--{name} {str(getattr(config, name))[:80]}: must be {what}")


def require_counts(config: Any, names: str) -> None:
    """Raise InputError unless the named fields are between 1 and a million."""
    for name in names.split():
        require(1 <= getattr(config, name) <= 10**6, name, "at least 1, at most a million", config)


def require_temperature(config: Any) -> None:
    """Raise InputError unless the temperature is 0 (greedy) or one that float32 can divide by."""
    t = config.temperature
    require(t == 0 or 1e-3 <= t <= 1e3, "temperature", "0 or in 0.001 .. 1000", config)


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, with the nearest flag for a misspelt one.

    Args:
        description: its first paragraph is shown; None, as Python -OO has it, for nothing.
    """

    def __init__(self, description: str | None = None, **more: Any):
        super().__init__(description=(description or "").split("\n\n")[0], **more)

    def error(self, message: str) -> None:
        """Print one line and exit with code 2."""
        unknown = re.search(r"unrecognized arguments: (\S+)", message)
        if unknown:
            flags = [f for action in self._actions for f in action.option_strings]
            word = unknown[1].split("=")[0].replace("-", "_").replace("__", "--", 1)
            near = difflib.get_close_matches(word, flags, n=1)
            hint = f"; did you mean {near[0]}?" if near else "; --help lists the flags"
            message = f"{unknown[1]}: no such flag{hint}"
        if not self.exit_on_error:  # a config.json is read
            raise ValueError(message)
        self.exit(2, f"error: {message}\n")


def parse(
    kind: type[C], argv: list[str] | None, description: str | None, **choices: Iterable[str]
) -> C:
    """Build a config from the command line; raises InputError for an impossible value."""
    return kind(**given_flags(kind, argv, description, **choices))


def given_flags(
    kind: type[C],
    argv: list[str] | None,
    description: str | None = None,
    exit_on_error: bool = True,
    **choices: Iterable[str],
) -> dict[str, Any]:
    """The flags that stand on the command line; `-` and `_` are the same in their names.

    Args:
        choices: the values that a flag may take, where its type does not say so.
    For an unknown flag or a wrong value exits with code 2 and one line, or raises ArgumentError.
    """
    argv = [_with_underscores(word) for word in (sys.argv[1:] if argv is None else argv)]
    say_repeated(argv)
    parser = Parser(
        usage="%(prog)s [--flag value ...]",
        description=description,
        allow_abbrev=False,
        exit_on_error=exit_on_error,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34),
    )
    for item in dataclasses.fields(kind):
        inner, optional = _inner_type(item.type)
        required = item.default is dataclasses.MISSING
        default = "" if required or item.default is None else f" (default: {_show(item.default)})"
        options: dict[str, Any] = {
            "help": (item.metadata["help"] + default).replace("%", "%%"),
            "required": required,
            "default": argparse.SUPPRESS,
        }
        if inner is bool:
            parser.add_argument(f"--{item.name}", action=argparse.BooleanOptionalAction, **options)
            continue
        if get_origin(inner) is Literal or item.name in choices:
            options["choices"] = tuple(choices.get(item.name, get_args(inner)))
            inner = str
        elif inner in METAVARS:
            options["metavar"] = METAVARS[inner]
        parser.add_argument(f"--{item.name}", type=_reader(inner, optional), **options)
    return vars(parser.parse_args(argv))


def say_repeated(argv: list[str]) -> None:
    """A warning for a flag that is given twice: its last value counts, as in every command line."""
    names = [word[2:].split("=")[0].removeprefix("no-") for word in argv if word[:2] == "--"]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        print(
            f"warning: --{name} is given {names.count(name)} times: the last counts",
            file=sys.stderr,
        )


def _with_underscores(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    negation = "no-" if name.startswith(("no-", "no_")) else ""
    return f"--{negation}{name[len(negation) :].replace('-', '_')}{equals}{value}"


def _inner_type(annotation: Any) -> tuple[Any, bool]:
    """`int | None` -> (int, True); `int` -> (int, False)."""
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [t for t in get_args(annotation) if t is not type(None)]
        return inner[0], True
    return annotation, False


def _reader(kind: type, optional: bool):
    def read(text: str) -> Any:
        return None if optional and text.lower() == "none" else kind(text)

    read.__name__ = kind.__name__  # argparse prints it: "invalid int value: 'x'"
    return read


def _show(value: Any) -> Any:
    return value.relative_to(Path(__file__).parent) if value == BASE_MODEL else value


def command(config: TrainConfig, processes: int = 1) -> str:
    """The command line that repeats such a run: the task, and the flags that differ from their
    defaults. The directory of this run, and what it was resumed from, are left out.
    """
    words = ["python"] if processes == 1 else ["torchrun", f"--nproc_per_node={processes}"]
    words += [config.script, "--task", config.task]
    for name in changed_flags(config):
        if name not in ("task", "output_dir", "resume_from_checkpoint"):
            words += _words(name, getattr(config, name))
    return shlex.join(words)


def _words(name: str, value: Any) -> list[str]:
    """A setting as it stands on the command line."""
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    text = str(value)  # "=" where the value looks like a flag itself
    return [f"--{name}={text}"] if text[:1] == "-" else [f"--{name}", text]


def to_dict(config: Any) -> dict:
    """The config as JSON can hold it, with the script that it belongs to."""
    raw = {"script": config.script} | dataclasses.asdict(config)
    return {name: str(v) if isinstance(v, Path) else v for name, v in raw.items()}


def save(config: Any, path: Path) -> None:
    """Write a config as JSON; raises OSError where that fails."""
    write_atomically(path, json.dumps(to_dict(config), indent=2) + "\n")


def changed_flags(config: Any) -> list[str]:
    """Names of the fields that differ from their defaults."""
    return [f.name for f in dataclasses.fields(config) if getattr(config, f.name) != f.default]


def load(kind: type[C], path: Path, strict: bool = True) -> C:
    """Read what `save` wrote; raises InputError for a file that is not such a config.

    Args:
        strict: refuse settings of another script, and fields that `kind` does not have. Otherwise
            these are ignored.
    """
    raw = read_settings(path)
    script = raw.pop("script", None)
    if strict and script != kind.script:
        raise InputError(f"{path}: not a run of {kind.script}, but of {script or 'no script'}")
    unknown = raw.keys() - {item.name for item in dataclasses.fields(kind)}
    words = ["=".join(_words(name, raw[name])) for name in raw.keys() - unknown]
    try:
        if strict and unknown:
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
        return kind(**given_flags(kind, words, exit_on_error=False))
    except (ValueError, argparse.ArgumentError) as error:
        raise InputError(f"{path}: not a {kind.__name__} of this version ({error})") from None


def read_settings(path: Path) -> dict:
    """The JSON object in a config.json, unchecked; raises InputError for any other file."""
    if not path.is_file():
        raise InputError(f"{path.parent} is no run, it has no {path.name}")
    return read_json_object(path)
