"""The completions of a step become rewards: the task's or the user's own, shaped, always finite.

    python train_grpo.py --reward my_rewards.py:brief

A user's reward is a function `brief(completions, example) -> numbers`. It gets the G completions of
one question (texts) and its `data.examples.Example`, and returns one number for each, or None for a
completion that is not to count. It is the whole reward: the task's own is not computed then, but
may be called from it (`from rewards import classification_reward`).

It runs in processes of its own (training/reward_worker.py). A fault in it is counted and shown: an
exception, a wrong number of values, a value that is no finite number, no answer within
`--reward_timeout`, or the end of its process. Such a completion has no reward: a stand-in, the mean
of its group, makes its advantage 0, and no metric counts it (reporting/metrics.py). The first fault
of each kind is shown, and kept in reward_faults.jsonl of the run. When more than `MAX_FAULTS` of
the completions of `WINDOW` steps are lost, the run stops: of a step with few questions one dead
process may cost more than that.

Next: kernels/advantage.py.
"""

import sys
from collections import Counter, deque
from pathlib import Path

import torch
from torch import Tensor

from acting.episodes import Episode
from config import TrainConfig
from data.examples import Example
from reporting.lights import FAULTS
from reporting.page.saved_run import json_lines
from reporting.run_log import RunLog
from rewards import Reward
from runtime import distributed
from runtime.errors import InputError, visible
from runtime.run_directory import FAULT_LOG, REWARD_FILE
from sample import Rollout
from tasks.task import Task, finite_reward
from training.reward_worker import MAX_SHOWN, Workers
from training.rollout_config import weights_of_parts

MAX_REWARD = 1e30  # float32 and the spread of a group have to hold it
MAX_FAULTS = 0.2  # of the completions of so many steps:
WINDOW = 10


class UserReward:
    """The user's function, its faults counted. `score` never pays a fault."""

    def __init__(self, workers: Workers):
        self.workers = workers
        self.faults: Counter = Counter()  # completions by kind of fault, of this step
        self.first: dict[str, str] = {}  # kind -> the first fault of it in this process

    def score(self, groups: list[tuple[list[str], Example]]) -> list[list[Reward | None]]:
        """One reward per completion of every group; None where it does not count."""
        replies = self.workers.answers(groups)
        return [
            self._read(reply, texts, example)
            for reply, (texts, example) in zip(replies, groups, strict=True)
        ]

    def _read(self, reply: dict, texts: list[str], example: Example) -> list[Reward | None]:
        if reply.get("fault") in FAULTS:
            return self._lost(reply["fault"], texts, f"example {example.id}: {reply.get('what')}")
        values = reply.get("values")
        if not isinstance(values, list) or len(values) != len(texts):
            counts = f"{str(values)[:200]} for {len(texts)} completions of example {example.id}"
            return self._lost("wrong_length", texts, counts)
        rewards: list[Reward | None] = []
        for value, text in zip(values, texts, strict=True):
            if value is None:
                rewards.append(None)
            elif isinstance(value, float) and abs(value) < MAX_REWARD:
                rewards.append(Reward(value, {"user": value}))
            else:
                rewards += self._lost("not_finite", [text], f"{value} for {text[:200]!r}")
        return rewards

    def _lost(self, kind: str, texts: list[str], reason: str) -> list[None]:
        self.faults[kind] += len(texts)
        if kind not in self.first:
            self.first[kind] = visible(reason.strip()[-MAX_SHOWN:])
            print(f"--reward: first fault, {kind}: {self.first[kind]}", file=sys.stderr)
        return [None] * len(texts)


def user_reward(cfg: TrainConfig) -> UserReward | None:
    """The reward of --reward, None without the flag. Begun before data and model are read.

    Raises InputError if it cannot be used.
    """
    if cfg.reward is None:
        return None
    path, _, name = cfg.reward.rpartition(":")
    kept = cfg.output_dir and cfg.output_dir / REWARD_FILE
    if kept and kept.is_file() and not Path(path).is_file():  # a run that is resumed
        fix = f"the run has kept it, give --reward {kept}:{name}"
        raise InputError(f"--reward {path}: no such file; {fix}")
    return UserReward(Workers(cfg.reward, cfg.reward_timeout))


def soft_overlong(length: int, max_length: int, buffer: int) -> float:
    """Return DAPO's penalty for length in tokens, in [-1, 0] (arXiv:2503.14476, eq. 13).

    0 up to max_length - buffer, then linear down to -1 at max_length, and -1 beyond.
    """
    return 0.0 - min(1.0, max(0.0, (length - (max_length - buffer)) / buffer))


def repetition_penalty(text: str, n: int = 4) -> float:
    """Return unique / total - 1 for the n-grams of words, in (-1, 0], as VLM-R1 does.

    Words stand between white space; case is ignored; fewer than n words cost 0.
    """
    words = text.casefold().split()
    ngrams = list(zip(*(words[i:] for i in range(n)), strict=False))
    return len(set(ngrams)) / len(ngrams) - 1.0 if ngrams else 0.0


def length_rewards(lengths: list[int], is_right: list[bool]) -> list[float]:
    """Return Kimi k1.5's length reward of one group, each in [-0.5, 0.5] (arXiv:2501.12599, 2.3.3).

    From 0.5 for the shortest completion down to -0.5 for the longest; a wrong completion never
    gains by it. All 0.0 where all lengths are equal.
    """
    shortest, longest = min(lengths), max(lengths)
    if shortest == longest:
        return [0.0] * len(lengths)
    graded = [0.5 - (length - shortest) / (longest - shortest) for length in lengths]
    return [v if right else min(0.0, v) for v, right in zip(graded, is_right, strict=True)]


class Scorer:
    """Rewards of a step. `cfg`: the settings of train_grpo.py. `user`: instead of the task's."""

    def __init__(self, task: Task, cfg: TrainConfig, user: UserReward | None = None):
        self.task, self.cfg, self.user = task, cfg, user
        self.recent: deque = deque(maxlen=min(WINDOW, cfg.max_steps))  # faults of the last steps
        self.weights = weights_of_parts(cfg)
        self.shaping = {"overlong": cfg.overlong_weight, "repetition": cfg.repetition_weight}
        self.shaping |= {"length": cfg.length_weight}
        if task.environment is not None:
            weights = task.environment.weights
            self.shaping |= dict.fromkeys(weights, 0.0) if user is not None else weights
        if cfg.overlong_weight and cfg.overlong_buffer > cfg.max_completion_length:
            raise InputError(
                f"--overlong_buffer {cfg.overlong_buffer}: must be at most "
                f"--max_completion_length {cfg.max_completion_length}"
            )

    def score(
        self, examples: list[Example], rollout: Rollout, step: int
    ) -> tuple[Tensor, list[dict[str, float] | None]]:
        """Verify every completion of this rank: rewards (N, G) fp32, and the parts of each.

        A completion without a reward has no parts (None), and a stand-in among the rewards.

        Raises: InputError for a reward of the task that is not finite.
        """
        G, totals, parts = len(rollout.texts) // len(examples), [], []
        groups = [(rollout.texts[n * G : (n + 1) * G], e) for n, e in enumerate(examples)]
        for n, rewards in enumerate(self._unshaped(groups, step)):
            (texts, example), rows = groups[n], slice(n * G, (n + 1) * G)
            lengths = [len(ids) for ids in rollout.ids[rows]]
            optional = self._optional_parts(example, texts, lengths)
            if rollout.episodes is not None:
                optional |= self._parts_of_acting(example, texts, rollout.episodes[rows])
            shaped = self._shaped(rewards, optional)
            counted = [reward.total for reward in shaped if reward is not None]
            stand_in = sum(counted) / len(counted) if counted else 0.0
            totals += [stand_in if reward is None else reward.total for reward in shaped]
            parts += [reward and reward.parts for reward in shaped]
        return torch.tensor(totals, dtype=torch.float32).view(-1, G), parts

    def _unshaped(
        self, groups: list[tuple[list[str], Example]], step: int
    ) -> list[list[Reward | None]]:
        """The user's or the task's reward for every completion of every group."""
        if self.user is not None:
            return self.user.score(groups)
        is_decaying = self.cfg.dense_schedule == "linear"
        dense = self.cfg.dense * (1 - step / self.cfg.max_steps if is_decaying else 1.0)
        return [
            [finite_reward(self.task, text, example, self.weights, dense) for text in texts]
            for texts, example in groups
        ]

    def _shaped(
        self, rewards: list[Reward | None], optional: dict[str, list[float]]
    ) -> list[Reward | None]:
        """Add the optional parts of a group to the rewards that there are."""
        counted = []
        for i, reward in enumerate(rewards):
            parts = {name: values[i] for name, values in optional.items()}
            added = sum(self.shaping[name] * value for name, value in parts.items())
            counted.append(reward and Reward(reward.total + added, reward.parts | parts))
        return counted

    def _optional_parts(
        self, example: Example, texts: list[str], lengths: list[int]
    ) -> dict[str, list[float]]:
        """The shaping parts that have a weight, unweighted: name -> one number per completion."""
        parts, limit = {}, self.cfg.max_completion_length
        if self.shaping["overlong"]:
            buffer = self.cfg.overlong_buffer
            parts["overlong"] = [soft_overlong(length, limit, buffer) for length in lengths]
        if self.shaping["repetition"]:
            parts["repetition"] = [repetition_penalty(text) for text in texts]
        if self.shaping["length"]:  # for the whole answer: being nearly right does not count
            is_right = [self.task.scores(text, example)["strict"] == 1.0 for text in texts]
            parts["length"] = length_rewards(lengths, is_right)
        return parts

    def _parts_of_acting(
        self, example: Example, texts: list[str], episodes: list[Episode]
    ) -> dict[str, list[float]]:
        """What the environment says of each episode: name -> one number per completion."""
        parts = [
            self.task.environment.reward(example, episode.state, text)
            for text, episode in zip(texts, episodes, strict=True)
        ]
        return {name: [part[name] for part in parts] for name in parts[0]}

    def fault_metrics(self, n_completions: int, log: RunLog, step: int) -> dict[str, float]:
        """Faults of this step over all ranks, {} without --reward. A collective.

        The first fault of each kind in the run goes to its reward_faults.jsonl. `n_completions`:
        that all ranks have sampled.

        Raises: InputError if more than MAX_FAULTS of the completions of WINDOW steps are lost.
        """
        if self.user is None:
            return {}
        local, self.user.faults = dict(self.user.faults), Counter()
        of_ranks = distributed.all_gather([local, self.user.first])
        faults = sum((Counter(counts) for counts, _ in of_ranks), Counter())
        first = {kind: what for _, texts in reversed(of_ranks) for kind, what in texts.items()}
        if faults:
            kept = {row.get("kind") for row in json_lines(log.directory / FAULT_LOG)}
            new = [kind for kind in first if kind not in kept]
            log.append(FAULT_LOG, [{"step": step, "kind": k, "what": first[k]} for k in new])
        self.recent.append(faults)
        lost = sum(self.recent, Counter())
        if lost.total() > MAX_FAULTS * n_completions * self.recent.maxlen:
            kinds = ", ".join(f"{kind} {count}" for kind, count in lost.items())
            raise InputError(
                f"--reward {self.cfg.reward}: failed for {lost.total()} of the last "
                f"{n_completions * len(self.recent)} completions ({kinds}), too many; see above, "
                f"or {FAULT_LOG} of the run; fix it"
            )
        return {f"reward/{kind}": float(faults[kind]) for kind in FAULTS}
