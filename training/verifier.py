"""Verifiers and learned rewards: what a score is trained to say, where it is read, how good it is.

    outcome      after everything that a completion says: is its answer right?
    process      after every statement of its thought: is it true?
    preference   after everything that it says: would people choose it over another?

The first two are log-odds; of the third only differences mean something. All three are a
`model/scored.py`, and a whole group is scored in one forward of the shared prefix. Before it reads
the completions a verifier may have a `Solver` answer the question. A verifier is a directory of its
own, see `save_verifier`.

Read first: train_verifier.py.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.load import load_model, load_processor, save_model
from model.lora import has_adapter, save_adapter
from model.pack import continued, make_pack
from model.processor import Processor
from model.scored import ScoredVLM
from model.vlm import VLM, Prompt
from runtime.errors import InputError
from runtime.run_directory import read_json_object
from sample import generate_group

SCORE, ABOUT = "score.safetensors", "verifier.json"
READ_ALIKE = ("tokenizer.json", "preprocessor_config.json")  # what policy and verifier share


@dataclass
class Labelled:
    """The completions of one question, where their score is read, and what it should say there.

    Attributes:
        ids: (C_i,) int64 each. places: (n,) int64 into the C tokens of the group: the score is that
            of the state before this token. labels: (n,) fp32 in 0 .. 1.
        pairs: (m, 2) int64 into `places`, where pairs are compared; then labels are (m,): 1 where
            the first is better.
    """

    prompt: Prompt
    ids: list[Tensor]
    places: Tensor
    labels: Tensor
    pairs: Tensor | None = None


@dataclass
class Solver:
    """A model that answers the question itself, before a verifier reads what others answer.

    In one forward a verifier can only look. What takes steps, to count for instance, has to be
    worked out in words, and then compared (arXiv:2408.15240 has it reason before its verdict).

    Attributes:
        directory: of its checkpoint.
        length: tokens of its answers at most.
    """

    model: VLM
    processor: Processor
    directory: Path
    length: int

    @torch.no_grad()
    def __call__(self, prompts: list[Prompt]) -> list[Prompt]:
        """The prompts, each with the solver's greedy answer behind it."""
        plain = [replace(prompt, features=None) for prompt in prompts]  # its tower may be another
        rollout = generate_group(self.model, self.processor, plain, 1, self.length, 0.0)
        return [continued(p, ids, 0) for p, ids in zip(prompts, rollout.ids, strict=True)]


def load_solver(
    directory: Path, length: int, dtype: torch.dtype, device: torch.device | str
) -> Solver:
    """The solver that a checkpoint is, without gradients."""
    model = load_model(directory, dtype, device).requires_grad_(False)
    return Solver(model, load_processor(directory), directory, length)


def what_is_read(verifier: ScoredVLM, prompts: list[Prompt]) -> list[Prompt]:
    """What a verifier reads before completions: the prompts, and its solver's answers."""
    return prompts if verifier.solver is None else verifier.solver(prompts)


def ends(ids: list[Tensor]) -> Tensor:
    """Where the last tokens of completions are among all their tokens: (B,) int64.

    The state before the end token has seen everything that a completion says.
    """
    return torch.tensor([len(tokens) for tokens in ids]).cumsum(0) - 1


def scores_of(model: ScoredVLM, groups: Sequence[Labelled]) -> list[Tensor]:
    """The scores at the places of each group, (n,) fp32 each, in one forward."""
    pack = make_pack([g.prompt for g in groups], [g.ids for g in groups], model.device)
    tokens = [sum(len(ids) for ids in group.ids) for group in groups]
    scores = model(pack).split(tokens)  # (C of a group,) each
    return [
        of_group.index_select(0, group.places.to(model.device))
        for of_group, group in zip(scores, groups, strict=True)
    ]


# ---- losses --------------------------------------------------------------------------------------


def verifier_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of log-odds (n,) against labels (n,), summed."""
    return F.binary_cross_entropy_with_logits(scores, labels, reduction="sum")


def preference_loss(first: Tensor, second: Tensor, labels: Tensor, centre: float = 0.01) -> Tensor:
    """Bradley and Terry's model (Biometrika 39, 1952), summed over pairs: the odds that the first
    of a pair is chosen are the exponential of the difference of the scores; a tie is half of each.

    `centre` weighs (first + second)^2, which keeps the scores, whose mean is free, around 0.
    """
    return verifier_loss(first - second, labels) + centre * (first + second).square().sum()


def group_loss(scores: Tensor, group: Labelled) -> Tensor:
    """The loss of one group's scores (n,), summed over what is labelled."""
    labels = group.labels.to(scores.device)
    if group.pairs is None:
        return verifier_loss(scores, labels)
    first, second = scores[group.pairs.to(scores.device)].unbind(1)  # (m,) each
    return preference_loss(first, second, labels)


# ---- how good it is ------------------------------------------------------------------------------


def auc(scores: Tensor, labels: Tensor) -> float:
    """The probability that a right one has a higher score than a wrong one, ties counting half
    (Mann and Whitney 1947): 0.5 for a coin; nan where one of the two is missing."""
    right, wrong = scores[labels > 0.5], scores[labels <= 0.5]
    if len(right) == 0 or len(wrong) == 0:
        return float("nan")
    order = torch.searchsorted(wrong.sort().values, right.contiguous())  # wrong ones below
    up_to = torch.searchsorted(wrong.sort().values, right.contiguous(), right=True)
    return float((order + up_to).double().mean() / 2 / len(wrong))


def calibration_error(scores: Tensor, labels: Tensor, bins: int = 10) -> float:
    """Mean distance of the probability that is said from the share that is right, in bins of equal
    width (expected calibration error, arXiv:1706.04599)."""
    said = scores.sigmoid()
    which = (said * bins).long().clamp(max=bins - 1)
    error = 0.0
    for b in which.unique():
        inside = which == b
        gap = said[inside].mean() - labels[inside].mean()
        error += float(gap.abs() * inside.sum() / len(said))
    return error


@torch.no_grad()
def quality(model: ScoredVLM, groups: Sequence[Labelled], size: int) -> dict[str, float]:
    """How well the scores of a model agree with labels.

    Returns: `n` labels; `accuracy`, the share on the right side of even odds, and `base_rate`, what
        the more frequent label alone would give; `auc` and `calibration_error` of the outcome and
        the process. A tie between a pair counts in none of them.
    """
    said, labels = [], []
    for chunk in in_chunks(groups, size):
        for scores, group in zip(scores_of(model, chunk), chunk, strict=True):
            if group.pairs is not None:
                first, second = scores.cpu()[group.pairs].unbind(1)
                scores = first - second
            said.append(scores.cpu())
            labels.append(group.labels)
    said, labels = torch.cat(said), torch.cat(labels)
    said, labels = said[labels != 0.5], labels[labels != 0.5]
    n, right = len(labels), ((said > 0) == (labels > 0.5)).float()
    if n == 0:
        return {"n": 0}
    share = float(labels.mean())
    metrics = {"n": n, "accuracy": float(right.mean()), "base_rate": max(share, 1 - share)}
    if any(group.pairs is not None for group in groups):
        return metrics | {"base_rate": 0.5}  # which of a pair comes first is chance
    return metrics | {
        "auc": auc(said, labels),
        "calibration_error": calibration_error(said, labels),
    }


@torch.no_grad()
def scale_of(model: ScoredVLM, groups: Sequence[Labelled], size: int) -> dict[str, float]:
    """Mean and standard deviation of the scores: the scale of a preference is arbitrary."""
    scores = [s.cpu() for chunk in in_chunks(groups, size) for s in scores_of(model, chunk)]
    scores = torch.cat(scores)
    return {"mean": float(scores.mean()), "std": max(float(scores.std()), 1e-6)}


def in_chunks(items: Sequence, size: int) -> Iterator[Sequence]:
    """As many items at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


# ---- a directory ---------------------------------------------------------------------------------


def save_verifier(model: ScoredVLM, directory: Path, base: Path, about: dict) -> None:
    """Write a verifier: `hf/` or `adapter/`, the trunk; `score.safetensors`; `verifier.json`.

    Args:
        base: the directory that the trunk was loaded from. about: what was learnt, and how well.
    Raises: InputError if it cannot be written; an older one is untouched then.
    """
    unfinished = directory.with_name(f".{directory.name}.unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        if has_adapter(model.trunk):
            save_adapter(model.trunk, unfinished / "adapter", base)
        else:
            save_model(model.trunk, unfinished / "hf", base)
        score = {name: tensor.contiguous() for name, tensor in model.score.state_dict().items()}
        save_file(score, unfinished / SCORE)
        about = {"base": str(base.resolve())} | about
        (unfinished / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(directory, ignore_errors=True)
        unfinished.replace(directory)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{directory}: the verifier cannot be saved ({error})") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def fingerprint(directory: Path) -> str:
    """Of everything that its scores depend on: sha256 of its score, its trunk and its solver."""
    digest, files = hashlib.sha256(), sorted(directory.rglob("*.safetensors"))
    if (solver := read_json_object(directory / ABOUT).get("solver")) is not None:
        files += sorted(Path(solver["model"]).rglob("*.safetensors"))
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def check_read_alike(directory: Path, policy: Path) -> None:
    """Raise InputError unless a model reads the tokens and pictures that the policy does."""
    for name in READ_ALIKE:
        pair = [place / name for place in (directory, policy)]
        if all(path.is_file() for path in pair) and len({path.read_bytes() for path in pair}) > 1:
            what = f"reads otherwise than the policy {policy}, {name} differs"
            raise InputError(f"{directory}: {what}; take a model of the same family")


def load_verifier(
    directory: Path, dtype: torch.dtype, device: torch.device | str, policy: Path | None = None
) -> tuple[ScoredVLM, dict]:
    """What `save_verifier` wrote, without gradients, and its verifier.json.

    Args:
        policy: the checkpoint directory of the model whose completions it is to read.
    Raises InputError for a directory that is no verifier, a damaged one, and one that reads other
        tokens or pictures than the policy writes.
    """
    if not (directory / ABOUT).is_file():
        raise InputError(f"{directory}: is no verifier (no {ABOUT}); train_verifier.py makes one")
    about, adapter = read_json_object(directory / ABOUT), directory / "adapter"
    trunk = directory / "hf"
    if adapter.is_dir():
        trunk = Path(str(about.get("base")))
        if not trunk.is_dir():
            fix = f'correct "base" in {directory / ABOUT}'
            raise InputError(f"{directory}: its adapter belongs to {trunk}, which is gone; {fix}")
    if policy is not None:
        try:
            check_read_alike(trunk, policy)
        except InputError as error:
            raise InputError(f"{directory}: {error}; train one with --model {policy}") from None
    model = ScoredVLM(load_model(trunk, dtype, device, adapter if adapter.is_dir() else None))
    try:
        model.score.load_state_dict(load_file(directory / SCORE))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(f"{directory / SCORE}: cannot be read ({error})") from None
    if (solver := about.get("solver")) is not None:
        place = Path(solver["model"])
        if not place.is_dir():
            fix = f'correct "solver" in {directory / ABOUT}'
            raise InputError(f"{directory}: its solver {place} is gone; {fix}")
        model.solver = load_solver(place, solver["max_completion_length"], dtype, device)
    return model.requires_grad_(False), about
