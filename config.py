"""Settings: one frozen dataclass per script <-> command line <-> JSON.

A field is the single truth about a flag: its name, type, default, and help text. `parse` builds the
command line from it, `save` and `load` write and read it beside a run. Names are TRL's wherever TRL
has the concept (https://huggingface.co/docs/trl/grpo_trainer), so that runs and curves compare.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

from data.files import MAX_SKIP
from data.garden.world import GARDEN_SPLIT_SEED
from runtime.errors import InputError

C = TypeVar("C")
METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
BASE_MODEL = Path(__file__).parent / "assets" / "garden-vlm"


def flag(default: Any, help: str) -> Any:
    """A field with its help text."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class TaskConfig:
    """What is asked of which model: the flags that training and evaluation share."""

    # Task
    task: Literal[
        "cls", "det", "ovd", "ground", "count", "measure", "change", "vqa", "entail", "order"
    ] = flag("cls", "what is asked; tasks/__init__.py lists them")
    data: str = flag("garden", "garden | digits | folder of class folders | file (README)")
    data_root: Path | None = flag(None, "folder of the images; default: the folder of the file")
    question: str | None = flag(None, "asked of every image; default: the data's own question")
    shots: int = flag(1, "training images per class: cls, det, ovd")
    train_size: int = flag(256, "training questions: the other tasks")
    held_out_per_class: int = flag(10, "test images per class: cls")
    held_out_size: int = flag(200, "test questions: the other tasks")
    split_seed: int = flag(GARDEN_SPLIT_SEED, "of the training and the held-out examples")
    max_skip: float = flag(MAX_SKIP, "share of the data that may be unusable; two always may")
    prompt_mode: Literal["think", "steps", "direct"] = flag(
        "think", "reason first; in four steps; or answer at once"
    )
    tolerance: float = flag(0.04, "measure: relative error of a number that is still right")
    ordered: bool = flag(False, "change: the order of the calls counts")
    coords: Literal["auto", "norm1000", "abs", "abs_resized"] = flag(
        "auto", "frame in which the model writes boxes; auto: what its family was taught"
    )
    data_coords: Literal["auto", "norm1000", "abs", "abs_resized"] = flag(
        "auto", "frame of the data's boxes; auto: what its format prescribes"
    )
    # Model
    model: Path = flag(BASE_MODEL, "checkpoint directory of a Qwen2-VL model")
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
        require(0 <= self.max_skip <= 1, "max_skip", "in 0 .. 1", self)
        require(0 <= self.tolerance < 1, "tolerance", "in 0 .. 1", self)
        require(self.max_pixels is None or self.max_pixels > 0, "max_pixels", "positive", self)
        require(0 <= self.seed < 2**63, "seed", "in 0 .. 2^63 - 1", self)
        require(0 <= self.split_seed < 2**24, "split_seed", "in 0 .. 2^24 - 1", self)


@dataclass(frozen=True)
class TrainConfig(TaskConfig):
    """What every training run is told. The defaults are those of the embedded base on a laptop."""

    freeze_vision: bool = flag(True, "keep the vision tower as it is")
    prompts_per_step: int = flag(8, "questions per optimizer step: N")
    max_steps: int = flag(150, "batches of questions")
    learning_rate: float = flag(5e-5, "peak; a real 2B checkpoint wants 1e-6")
    lr_scheduler_type: Literal["linear", "constant"] = flag("linear", "decay to 0, or none")
    max_grad_norm: float = flag(1.0, "gradients are scaled down to this norm")
    weight_decay: float = flag(0.0, "of AdamW")
    groups_per_micro_batch: int = flag(8, "questions per forward: memory, not the result")
    gradient_checkpointing: bool = flag(False, "recompute layers in backward: memory for time")
    fsdp: bool = flag(False, "under torchrun: share weights and optimizer state out over the GPUs")
    # Logging
    output_dir: Path | None = flag(None, "default: runs/<task>-<time>")
    eval_steps: int = flag(50, "held-out evaluation every so many steps; also at start and end")
    save_steps: int = flag(0, "checkpoint every so many steps; 0: only at the end")
    save_total_limit: int | None = flag(None, "checkpoints that may stay; default: all of them")
    resume_from_checkpoint: str | None = flag(None, "latest, runs/NAME or runs/NAME/step_N: go on")
    report_prompts: int = flag(4, "held-out questions whose answers report.html follows")
    report_attention: bool = flag(False, "also show where their answers look in the image")
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = flag(
        "none", "mirror the metrics to a tracker, where it is installed"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_counts(self, "prompts_per_step max_steps groups_per_micro_batch eval_steps")
        require(0 < self.learning_rate <= 1, "learning_rate", "above 0, at most 1", self)
        require(0 < self.max_grad_norm < math.inf, "max_grad_norm", "a positive number", self)
        require(0 <= self.weight_decay <= 1e6, "weight_decay", "in 0 .. 1e6", self)
        require(self.save_steps >= 0, "save_steps", "0 or more", self)
        limit = self.save_total_limit
        require(limit is None or limit >= 1, "save_total_limit", "at least 1", self)
        require(0 <= self.report_prompts <= 100, "report_prompts", "in 0 .. 100", self)


@dataclass(frozen=True)
class SftConfig(TrainConfig):
    """A run of supervised fine-tuning."""

    script: ClassVar[str] = "train_sft.py"

    prompt_mode: Literal["think", "steps", "direct"] = flag(
        "direct", "answer at once; where cot is set, reason first or in four steps"
    )
    cot: bool = flag(False, "learn the reasoning too, not the answer alone")
    cot_texts: Path | None = flag(None, "jsonl of id and thought, for data from outside")

    def __post_init__(self) -> None:
        super().__post_init__()
        alone = not self.cot and self.prompt_mode != "direct"
        require(not alone, "prompt_mode", "direct, or taken with --cot", self)
        require(self.cot or self.cot_texts is None, "cot_texts", "taken with --cot", self)


@dataclass(frozen=True)
class Config(TrainConfig):
    """A GRPO run."""

    script: ClassVar[str] = "train_grpo.py"

    shuffle_labels: bool = flag(False, "cls, control run: train on wrong labels; must not help")
    # Rollout
    num_generations: int = flag(8, "completions per question: G")
    temperature: float = flag(1.0, "of sampling and of the trained distribution alike")
    # Reward
    correct_weight: float = flag(1.0, "weight of the right answer, or of the boxes' overlap")
    confidence_weight: float = flag(1.0, "det, ovd: weight of well-placed confidence")
    format_weight: float = flag(0.5, "weight of the asked-for format")
    dense: float = flag(0.0, "credit for being nearly right, 0 (sparse) .. 1")
    dense_schedule: Literal["constant", "linear"] = flag("constant", "or: decay dense to 0")
    overlong_weight: float = flag(0.0, "penalty near the length limit (DAPO)")
    overlong_buffer: int = flag(16, "tokens before the limit in which that penalty grows")
    repetition_weight: float = flag(0.0, "penalty for repeated n-grams of words")
    length_weight: float = flag(0.0, "reward for short right answers (Kimi k1.5)")
    reward: str | None = flag(None, "path/to/file.py:function, instead of the task's own reward")
    reward_timeout: float = flag(30.0, "seconds that it may take for the answers to one question")
    # Update
    loss_type: Literal["grpo", "dapo", "dr_grpo"] = flag("dapo", "how tokens are averaged")
    scale_rewards: Literal["group", "none"] = flag("group", "divide by the group's std, or not")
    beta: float = flag(0.0, "weight of the KL to the starting model; 0 needs no second model")
    epsilon: float = flag(0.2, "clip range of the ratio, below")
    epsilon_high: float | None = flag(None, "clip range above; default: epsilon")
    num_iterations: int = flag(1, "updates per batch of completions: mu")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_counts(self, "num_generations num_iterations overlong_buffer")
        require(self.num_generations >= 2, "num_generations", "at least 2 (a group compares)", self)
        require(1e-3 <= self.temperature <= 1e3, "temperature", "in 0.001 .. 1000", self)
        for name in (
            "correct_weight confidence_weight format_weight overlong_weight repetition_weight "
            "length_weight beta"
        ).split():
            require(0 <= getattr(self, name) <= 1e6, name, "in 0 .. 1e6", self)
        require(0 <= self.dense <= 1, "dense", "in 0 .. 1", self)
        require(0 < self.reward_timeout <= 1e6, "reward_timeout", "above 0 seconds", self)
        weights = self.correct_weight + self.format_weight
        require(weights > 0, "correct_weight", "above 0 where --format_weight is 0", self)
        require(0 < self.epsilon < 1, "epsilon", "between 0 and 1", self)
        high = self.epsilon_high
        require(high is None or 0 < high <= 1e6, "epsilon_high", "above 0, at most 1e6", self)


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


# ---- command line --------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, with the nearest flag for a misspelt one."""

    def error(self, message: str) -> None:
        unknown = re.search(r"unrecognized arguments: (\S+)", message)
        if unknown:
            flags = [f for action in self._actions for f in action.option_strings]
            word = unknown[1].split("=")[0].replace("-", "_").replace("__", "--", 1)
            near = difflib.get_close_matches(word, flags, n=1)
            hint = f"; did you mean {near[0]}?" if near else "; --help lists the flags"
            message = f"{unknown[1]}: no such flag{hint}"
        self.exit(2, f"error: {message}\n")


def parse(kind: type[C], argv: list[str] | None, description: str) -> C:
    """Build a config from the command line; raises InputError for an impossible value."""
    return kind(**given_flags(kind, argv, description))


def given_flags(kind: type[C], argv: list[str] | None, description: str) -> dict[str, Any]:
    """The flags that stand on the command line; `-` and `_` are the same in their names.

    Exits with code 2 and one line for an unknown flag.
    """
    argv = sys.argv[1:] if argv is None else argv
    argv = [_with_underscores(word) for word in argv]
    parser = Parser(
        usage="%(prog)s [--flag value ...]",
        description=description,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34),
    )
    for item in dataclasses.fields(kind):
        inner, optional = _inner_type(item.type)
        required = item.default is dataclasses.MISSING
        shown = "" if required or item.default is None else f" (default: {_show(item.default)})"
        options: dict[str, Any] = {
            "help": (item.metadata["help"] + shown).replace("%", "%%"),
            "required": required,
            "default": argparse.SUPPRESS,
        }
        if inner is bool:
            parser.add_argument(f"--{item.name}", action=argparse.BooleanOptionalAction, **options)
            continue
        if get_origin(inner) is Literal:
            options["choices"] = get_args(inner)
            inner = str
        elif inner in METAVARS:
            options["metavar"] = METAVARS[inner]
        parser.add_argument(f"--{item.name}", type=_reader(inner, optional), **options)
    return vars(parser.parse_args(argv))


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
        if optional and text.lower() == "none":
            return None
        return kind(text)

    read.__name__ = kind.__name__  # argparse prints it: "invalid int value: 'x'"
    return read


def _show(value: Any) -> Any:
    if isinstance(value, Path):
        root = Path(__file__).parent
        return value.relative_to(root) if value.is_relative_to(root) else value
    return value


def command(config: TrainConfig, processes: int = 1) -> str:
    """The command line that makes such a run again: the task, and the flags that differ from their
    defaults. Where this run was kept, or went on from, is left out.
    """
    words = ["python"] if processes == 1 else ["torchrun", f"--nproc_per_node={processes}"]
    words += [config.script, "--task", config.task]
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if item.name in ("task", "output_dir", "resume_from_checkpoint"):
            continue
        if isinstance(value, bool) and value != item.default:
            words.append(f"--{item.name}" if value else f"--no-{item.name}")
        elif value != item.default:
            shown = str(value)  # "=" where the value looks like a flag itself
            words += [f"--{item.name}={shown}"] if shown[:1] == "-" else [f"--{item.name}", shown]
    return shlex.join(words)


# ---- JSON ----------------------------------------------------------------------------------------


def to_dict(config: Any) -> dict:
    """The config as JSON can hold it."""
    raw = dataclasses.asdict(config)
    return {name: str(v) if isinstance(v, Path) else v for name, v in raw.items()}


def save(config: Any, path: Path) -> None:
    path.write_text(json.dumps(to_dict(config), indent=2) + "\n", encoding="utf-8")


def load(kind: type[C], path: Path) -> C:
    """Read what `save` wrote; raises InputError for a file that is not such a config."""
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError(f"a JSON object is needed, not {type(raw).__name__}")
        for item in dataclasses.fields(kind):
            if item.name in raw:
                raw[item.name] = _from_json(item.name, raw[item.name], item.type)
        return kind(**raw)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a {kind.__name__} of this version ({error})") from None


def load_run(path: Path) -> TrainConfig:
    """A run's config.json, of whichever training script; raises InputError as `load` does."""
    if not path.is_file():
        raise InputError(f"{path.parent} is no run, it has no {path.name}")
    try:
        is_sft = "cot" in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        is_sft = False  # `load` says what is wrong
    return load(SftConfig if is_sft else Config, path)


def _from_json(name: str, value: Any, annotation: Any) -> Any:
    """The value of a field, or ValueError if JSON holds one that the command line would refuse."""
    inner, optional = _inner_type(annotation)
    if value is None and optional:
        return None
    if get_origin(inner) is Literal:
        fits = value in get_args(inner)
    else:  # whole numbers stand for floats in JSON; True is no number
        fits = type(value) in {Path: (str,), float: (float, int)}.get(inner, (inner,))
    if not fits:
        raise ValueError(f"{name} {value!r} does not fit {annotation}")
    return Path(value) if inner is Path else value
