"""Which groups a step learns from: those that it sampled, or others in the place of silent ones.

A group whose advantages are all 0 (a zero-std group) teaches nothing. Two ways to give its place
away, both off by default:

- `--dynamic_sample` asks further questions until N groups speak (DAPO, arXiv:2503.14476). It costs
  rollouts.
- `--replay_buffer_size` keeps groups of past steps and lets them speak again (after the selective
  sample replay of VL-Rethinker, arXiv:2504.08837). It costs no rollout, only the update that a
  silent group would have saved.

A replayed group needs no loss of its own: it brings the log-probabilities of the policy that
sampled it, so the ratio corrects for the difference, token by token (not for that of the states
that led there), and the clip and `--delta` bound what that costs in variance. Its advantages stay
what they were. No picture is kept: the question is read again, and the tower runs again.

Next: training/batches.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from config import require
from data.examples import Example
from model.vlm import VLM, Prompt
from runtime import distributed
from runtime.keyed_random import keyed
from sample import Rollout
from training.batches import PromptReader, concatenate, keep_features, places_of_step
from training.fsdp import unsharded


@dataclass
class PastGroup:
    """The completions of one question, as far as an update needs them."""

    place: int  # of the question in the endless order (`questions_at`)
    step: int  # in which they were sampled
    ids: list[Tensor]  # G x (C_i,) int64
    logps: list[Tensor]  # G x (C_i,) fp32, of the policy that sampled them
    is_cut: list[bool]
    rewards: Tensor  # (G,) fp32
    advantages: Tensor  # (G,) fp32

    @property
    def speaks(self) -> bool:
        """Whether an advantage is not 0."""
        return bool(self.advantages.any())


def groups_of(places: range, step: int, rollout: Rollout) -> list[PastGroup]:
    """The groups of a scored rollout."""
    N, G = rollout.rewards.shape
    rows = [slice(n * G, (n + 1) * G) for n in range(N)]
    return [
        PastGroup(
            place,
            step,
            rollout.ids[row],
            rollout.logps[row],
            [finish == "length" for finish in rollout.finish[row]],
            rollout.rewards[n],
            rollout.advantages[n],
        )
        for n, (place, row) in enumerate(zip(places, rows, strict=True))
    ]


class Replay:
    """Groups of past steps that had something to say; the oldest goes first.

    The same on every rank.
    """

    def __init__(self, capacity: int, max_age: int, seed: int):
        self.capacity, self.max_age, self.seed = capacity, max_age, seed
        self.groups: list[PastGroup] = []

    def add(self, groups: list[PastGroup]) -> None:
        """Keep the groups that speak."""
        kept = [*self.groups, *(group for group in groups if group.speaks)]
        self.groups = kept[-self.capacity :]

    def draw(self, step: int, count: int) -> list[PastGroup]:
        """At most `count` groups of at most `max_age` steps ago, the likelier the more their
        rewards spread: a function of (seed, step) and of what is kept."""
        young = [group for group in self.groups if step - group.step <= self.max_age]
        spread = np.array([float(group.rewards.std()) for group in young])
        count = min(count, int((spread > 0).sum()))
        if count == 0:
            return []
        # The shortest of exponential waiting times at these rates: a weighted draw without
        # replacement.
        uniform = np.random.Generator(keyed(f"{self.seed}|{step}|replay")).random(len(spread))
        waits = -np.log1p(-uniform) / np.maximum(spread, 1e-30)
        return [young[index] for index in sorted(np.argsort(waits)[:count])]

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is kept, by name: n groups, their n G completions, all their tokens."""
        groups = self.groups
        ids, logps = sum((g.ids for g in groups), []), sum((g.logps for g in groups), [])
        return {
            "places": torch.tensor([g.place for g in groups], dtype=torch.int64),  # (n,)
            "steps": torch.tensor([g.step for g in groups], dtype=torch.int64),  # (n,)
            "lengths": torch.tensor([len(x) for x in ids], dtype=torch.int64),  # (n G,)
            "is_cut": torch.tensor([g.is_cut for g in groups], dtype=torch.bool).flatten(),
            "ids": torch.cat([torch.zeros(0, dtype=torch.int64), *ids]),
            "logps": torch.cat([torch.zeros(0), *logps]),
            "rewards": torch.cat([torch.zeros(0), *(g.rewards for g in groups)]),  # (n G,)
            "advantages": torch.cat([torch.zeros(0), *(g.advantages for g in groups)]),
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Continue from what `tensors` returned."""
        places, steps = tensors["places"].tolist(), tensors["steps"].tolist()
        lengths = tensors["lengths"].tolist()
        G = len(lengths) // max(len(places), 1)
        ids, logps = tensors["ids"].split(lengths), tensors["logps"].split(lengths)
        is_cut = tensors["is_cut"].tolist()
        self.groups = []
        for n, (place, step) in enumerate(zip(places, steps, strict=True)):
            row = slice(n * G, (n + 1) * G)
            numbers = (tensors["rewards"][row], tensors["advantages"][row])
            parts = (list(ids[row]), list(logps[row]), is_cut[row])
            self.groups.append(PastGroup(place, step, *parts, *numbers))


def as_rollout(groups: list[PastGroup]) -> Rollout:
    """Scored groups as one rollout, whose texts and parts are empty."""
    finish = ["length" if cut else "stop" for group in groups for cut in group.is_cut]
    return Rollout(
        ids=sum((group.ids for group in groups), []),
        logps=sum((group.logps for group in groups), []),
        finish=finish,
        texts=[""] * len(finish),
        parts=[{}] * len(finish),
        rewards=torch.stack([group.rewards for group in groups]),
        advantages=torch.stack([group.advantages for group in groups]),
    )


class Selection:
    """What the steps of a run ask, and what they learn from. `cfg`: of train_grpo.py."""

    def __init__(self, reader: PromptReader, cfg):
        self.reader, self.cfg = reader, cfg
        size = cfg.replay_buffer_size
        self.replay = Replay(size, cfg.replay_max_age, cfg.seed) if size else None
        self.next_place = 0  # of the endless order, with dynamic_sample

    @property
    def is_plain(self) -> bool:
        """Whether every step learns from exactly what it sampled."""
        return self.replay is None and not self.cfg.dynamic_sample

    def rounds(self, step: int) -> Iterator[range]:
        """The places of the questions that a step asks, N at a time.

        With dynamic_sample again and again, until `add` has seen N groups that speak, or
        max_resample_times.
        """
        self.step, self.asked = step, []
        self.groups: list[PastGroup] = []
        self.made: dict[int, Prompt] = {}  # place -> the prompt that this rank has made
        if not self.cfg.dynamic_sample:
            yield places_of_step(step, self.cfg)
            return
        N, start = self.cfg.prompts_per_step, self.next_place
        for _ in range(1 + self.cfg.max_resample_times):
            self.last_place = start + N
            yield range(start, start + N)
            start += N
            if sum(group.speaks for group in self.groups) >= N:
                break

    def add(
        self,
        places: range,
        questions: list[tuple[str, Example]],
        prompts: list[Prompt],
        rollout: Rollout,
    ) -> None:
        """Note a round: its questions and rollout over all ranks, and this rank's prompts."""
        self.asked.append((questions, prompts, rollout))
        if not self.is_plain:
            self.groups += groups_of(places, self.step, rollout)
            self.made |= zip(distributed.local_shard(places), prompts, strict=True)

    @property
    def examples(self) -> list[Example]:
        """All questions of the step."""
        return [example for questions, *_ in self.asked for _, example in questions]

    @property
    def rollout(self) -> Rollout:
        """All completions of the step, over all ranks."""
        rollouts = [rollout for *_, rollout in self.asked]
        return rollouts[0] if len(rollouts) == 1 else concatenate(rollouts)

    def choose(self, model: VLM) -> tuple[list[Prompt], Rollout, dict[str, list[Tensor]]]:
        """This rank's prompts and the rollout (of all ranks) that the step learns from, and what
        `make_groups` shall know of every token: which are fresh. A collective.

        Groups that speak come first, then replayed ones, then silent ones: N in all.
        """
        if self.is_plain:
            ((_, prompts, rollout),) = self.asked
            return prompts, rollout, {}
        N = self.cfg.prompts_per_step
        fresh = [group for group in self.groups if group.speaks][:N]
        replayed = self.replay.draw(self.step, N - len(fresh)) if self.replay else []
        silent = [group for group in self.groups if not group.speaks]
        chosen = [*fresh, *replayed, *silent][:N]
        self.replayed = replayed
        local = distributed.local_shard(chosen)
        is_fresh = [
            torch.full((len(ids),), group.step == self.step) for group in local for ids in group.ids
        ]
        return self._prompts(local, model), as_rollout(chosen), {"is_fresh": is_fresh}

    def _prompts(self, groups: list[PastGroup], model: VLM) -> list[Prompt]:
        """Those that this rank has made in this step, and the others made again."""
        places = [group.place for group in groups]
        missing = [place for place in dict.fromkeys(places) if place not in self.made]
        prompts = self.reader.read_again(missing)
        with unsharded(model):
            keep_features(model, prompts, self.cfg)
        self.made |= zip(missing, prompts, strict=True)
        return [self.made[place] for place in places]

    def finish(self) -> dict[str, float]:
        """Remember what the next step needs, once the update is made: a run that is stopped before
        begins this step again. Returns metrics, {} where there was nothing to select."""
        if self.is_plain:
            return {}
        row = {"selection/groups_that_speak": float(sum(g.speaks for g in self.groups))}
        if self.cfg.dynamic_sample:
            self.next_place = self.last_place
            row["selection/rounds"] = float(len(self.asked))
        if self.replay is not None:
            self.replay.add(self.groups)
            ages = [self.step - group.step for group in self.replayed]
            row["replay/groups"] = float(len(ages))
            row |= {"replay/age": sum(ages) / len(ages)} if ages else {}
        return row

    def tensors(self) -> dict[str, Tensor]:
        """What the next step needs of the past, by name."""
        tensors = {"place": torch.tensor(self.next_place)}
        return tensors if self.replay is None else tensors | self.replay.tensors()

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Continue from what `tensors` returned."""
        self.next_place = int(tensors["place"])
        if self.replay is not None:
            self.replay.restore(tensors)


def check_selection(cfg) -> None:
    """Refuse flags of train_grpo.py that leave nothing to select, or a past that means something
    else by now."""

    def wants(holds: bool, name: str, what: str) -> None:
        require(holds, name, what, cfg)

    size, defaults = cfg.replay_buffer_size, type(cfg)
    wants(0 <= size <= 10**6, "replay_buffer_size", "in 0 .. a million")
    for name, switch, is_on in (
        ("max_resample_times", "dynamic_sample", cfg.dynamic_sample),
        ("replay_max_age", "replay_buffer_size", size > 0),
    ):
        is_unset = getattr(cfg, name) == getattr(defaults, name)
        wants(is_on or is_unset, name, f"left out without --{switch}")
    if cfg.dynamic_sample or size:
        flag = "--dynamic_sample" if cfg.dynamic_sample else "--replay_buffer_size"
        why = f"grpo or rloo with {flag}: with a baseline of the whole step no group is silent"
        wants(cfg.advantage_estimator != "reinforce", "advantage_estimator", why)
        why = f"left out with {flag}: with a KL in the reward no group is silent"
        wants(not cfg.kl_in_reward, "kl_in_reward", why)
    if size:
        has_bound = cfg.delta is not None or cfg.loss_type in ("cispo", "sapo")
        why = "given with --replay_buffer_size, 3 for example: nothing else bounds a past ratio"
        wants(has_bound, "delta", why)
        why = "constant with --replay_buffer_size: a past reward would mean something else"
        wants(cfg.dense_schedule == "constant", "dense_schedule", why)
