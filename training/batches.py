"""The data of a step: the questions that it asks, and groups of a prompt with its completions.

Nothing here carries an equation. Read first: train_grpo.py. Next: training/micro_batches.py.
"""

import copy
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from acting.environment import Environment
from acting.episodes import sample_episodes
from config import TrainConfig
from data.examples import Example, shuffle
from model.pack import Pack, Shown, completion_logps, make_pack
from model.processor import Processor
from model.scored import ScoredVLM
from model.vlm import VLM, Prompt
from runtime import distributed
from sample import Rollout
from training.rollout_config import RolloutConfig

MOST_GROUPS = 8  # of a micro-batch, where nobody says how many


def places_of_step(step: int, cfg: TrainConfig) -> range:
    """Where the questions of a step stand in the endless order of `questions_at`."""
    return range(step * cfg.prompts_per_step, (step + 1) * cfg.prompts_per_step)


def questions_at(
    examples: list[Example], places: Sequence[int], cfg: TrainConfig
) -> list[tuple[str, Example]]:
    """The questions at some places of an endless order: (key of its randomness, example) each.

    Epoch after epoch, each in an order of its own, a pure function of (seed, epoch). A step larger
    than the data meets an example twice: the epoch in the key gives it other random numbers the
    second time.
    """
    count = len(examples)
    orders = {epoch: shuffle(examples, cfg.seed, epoch) for epoch in {p // count for p in places}}
    questions = []
    for place in places:
        epoch, index = divmod(place, count)
        example = orders[epoch][index]
        questions.append((f"{example.id}@{epoch}", example))
    return questions


class PromptReader:
    """Reads the questions of one step after the other, and makes this rank's prompts of them.

    Pictures are opened and resized on the host. A thread does that for the next step while the
    device works on the present one.
    """

    def __init__(self, examples: list[Example], processor: Processor, cfg: TrainConfig):
        self.examples, self.cfg = examples, cfg
        # Its own: a tokenizer is changed while it encodes, and the other thread encodes, too.
        self.processor = copy.deepcopy(processor)
        self.thread = ThreadPoolExecutor(1)
        self.ahead: dict[range, Future] = {}  # places -> their prompts

    def read(self, places: range) -> tuple[list[tuple[str, Example]], list[Prompt]]:
        """All questions at these places, see `questions_at`, and the prompts of this rank's shard.

        Raises InputError for a picture that cannot be read, in its own step.
        """
        prompts = self.ahead.pop(places, None) or self._submit(places)
        following = range(places.stop, places.stop + self.cfg.prompts_per_step)
        if following.start < self.cfg.max_steps * self.cfg.prompts_per_step:
            self.ahead = {following: self._submit(following)}
        return questions_at(self.examples, places, self.cfg), prompts.result()

    def read_again(self, local_places: Sequence[int]) -> list[Prompt]:
        """The prompts of places, all of them this rank's."""
        return self.thread.submit(self._prompts, local_places).result()

    def _submit(self, places: range) -> Future:
        return self.thread.submit(self._prompts, distributed.local_shard(places))

    def _prompts(self, places: Sequence[int]) -> list[Prompt]:
        prompt = self.processor.prompt
        questions = questions_at(self.examples, places, self.cfg)
        return [prompt(key, example.images, example.question) for key, example in questions]


def keep_features(model: VLM, prompts: list[Prompt], cfg: TrainConfig) -> None:
    """Run a frozen tower over the images: sampling and all updates of the step use its features."""
    if cfg.freeze_vision:
        with torch.no_grad():
            model.keep_image_features(prompts)


@dataclass
class Group:
    """A prompt with its completions, and what a loss needs of every completion token.

    Supervised fine-tuning has one completion per prompt, and no advantages.
    """

    prompt: Prompt
    ids: list[Tensor]  # G x (C_i,) int64
    weights: Tensor  # (C of the group,) fp32, as the following
    shown: list[list[Shown]] | None = None  # to each completion; None: nothing
    logp_old: Tensor | None = None
    advantages: Tensor | None = None
    returns: Tensor | None = None  # what a critic should have said
    is_fresh: Tensor | None = None  # bool: sampled in this step; None: all are


def sample_groups(
    model: VLM,
    processor: Processor,
    prompts: list[Prompt],
    cfg: RolloutConfig,
    step: int,
    environment: Environment | None = None,
    examples: Sequence[Example] = (),
) -> Rollout:
    """`sample_episodes` as a training step asks for it: G completions of every prompt.

    Returns when all ranks have
    theirs: waiting for the slowest is a part of the rollout.
    """
    sizes = (cfg.num_generations, cfg.max_completion_length, cfg.temperature)
    more = dict(seed=cfg.seed, step=step, freeze_vision=cfg.freeze_vision)
    acting = (examples, environment)
    rollout = sample_episodes(model, processor, prompts, *acting, *sizes, **more)
    distributed.barrier()
    return rollout


def packs_of(
    prompts: list[Prompt],
    ids: list[Tensor],
    device: torch.device,
    size: int | None = None,
    shown: list[list[Shown]] | None = None,
) -> Iterator[Pack]:
    """The completions (N * G of them) of prompts, `size` groups at a time (None: MOST_GROUPS)."""
    G, size = len(ids) // len(prompts), size or MOST_GROUPS
    for start in range(0, len(prompts), size):
        chunk = range(start, min(start + size, len(prompts)))
        rows = [slice(n * G, (n + 1) * G) for n in chunk]
        seen = shown and [shown[row] for row in rows]
        yield make_pack([prompts[n] for n in chunk], [ids[row] for row in rows], device, seen)


@torch.no_grad()
def logps_of_completions(
    model: VLM, prompts: list[Prompt], rollout: Rollout, cfg: RolloutConfig, suppressed: Tensor
) -> list[Tensor]:
    """Log-probabilities of completions under a model: (C_i,) fp32 each, on the CPU."""
    terms = (suppressed.device, cfg.groups_per_micro_batch, rollout.shown)
    logps = [
        completion_logps(model, pack, cfg.temperature, suppressed)[0].cpu()  # (C,)
        for pack in packs_of(prompts, rollout.ids, *terms)
    ]
    return list(torch.cat(logps).split([len(tokens) for tokens in rollout.ids]))


@torch.no_grad()
def scores_of_completions(
    model: ScoredVLM,
    prompts: list[Prompt],
    ids: list[Tensor],
    size: int | None = None,
    shown: list[list[Shown]] | None = None,
) -> Tensor:
    """The scores of the states before every token of completions: (C,) fp32, on the CPU."""
    packs = packs_of(prompts, ids, model.device, size, shown)
    return torch.cat([model(pack).cpu() for pack in packs])


def gather_rollout(rollout: Rollout) -> Rollout:
    """The scored rollouts of all ranks as one, in the order of the questions. A collective."""
    if distributed.world_size() == 1:
        return rollout
    own, episodes = rollout.episodes, rollout.episodes
    if episodes is not None:  # pictures stay where they are
        episodes = [episode.without_pictures() for episode in episodes]
    parts = distributed.all_gather(replace(rollout, episodes=episodes))
    if own is not None:
        parts[distributed.rank()].episodes = own
    return concatenate(parts)


def completion_lengths(rollout: Rollout, mask_truncated: bool) -> tuple[list[int], list[bool]]:
    """Tokens of every completion, and whether it counts: a cut one not where `mask_truncated`."""
    lengths = [len(ids) for ids in rollout.ids]
    return lengths, [not (mask_truncated and finish == "length") for finish in rollout.finish]


def concatenate(rollouts: list[Rollout]) -> Rollout:
    """Several scored rollouts as one."""
    lists = {
        name: sum((getattr(r, name) for r in rollouts), [])
        for name in ("ids", "logps", "finish", "texts", "parts", "episodes")
        if getattr(rollouts[0], name) is not None
    }
    tensors = {
        name: torch.cat([getattr(r, name) for r in rollouts])
        for name in ("rewards", "advantages")
        if getattr(rollouts[0], name) is not None
    }
    return Rollout(**lists, **tensors)


def make_groups(
    prompts: list[Prompt], rollout: Rollout, weights: Tensor, **per_token: list[Tensor]
) -> list[Group]:
    """Sort this rank's part of a scored rollout into groups.

    Args:
        prompts: this rank's. rollout: of all ranks. weights: (C of all ranks,) fp32.
        per_token: further fields of `Group`, or other advantages: (C_i,) each, for every completion
            of this rank.
    """
    N, G = rollout.advantages.shape
    lengths = [len(ids) for ids in rollout.ids]
    completion_weights, groups = weights.split(lengths), []  # (C_i,) each
    for local, (n, prompt) in enumerate(
        zip(distributed.local_shard(range(N)), prompts, strict=True)
    ):
        rows = slice(n * G, (n + 1) * G)
        counts = torch.tensor(lengths[rows])
        tensors = {
            "weights": torch.cat(completion_weights[rows]),
            "logp_old": torch.cat(rollout.logps[rows]),
            "advantages": rollout.advantages[n].repeat_interleave(counts),
        }
        for name, values in per_token.items():
            tensors[name] = torch.cat(values[local * G : (local + 1) * G])
        shown = rollout.shown and rollout.shown[rows]
        groups.append(Group(prompt, rollout.ids[rows], shown=shown, **tensors))
    return groups
