"""A step's completions become rewards: the task's or the user's own, shaped, and always finite.

    python train_grpo.py --reward my_rewards.py:tidy

A user's reward is a function `tidy(completions, example) -> numbers`. It gets the G completions of
one question (texts) and its `tasks.Example`, and returns one number for each, or None for a
completion that is not to count. It is the whole reward: the task's own is then not computed, but
may be called from it (`from rewards import classification_reward`).

It is code from outside, so a fault in it is counted and shown, never hidden: an exception, a wrong
number of values, or a value that is no finite number takes the affected completions out of the
comparison. Such a completion stands in with the mean of its group, so its advantage is 0;
a reward of 0 would tell the policy that it was wrong. When more than `MAX_FAULTS` of a step's
completions are lost, the run stops.

Next: train_grpo.py, which calls `score_step`.
"""

import importlib.util
import math
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from config import Config
from model.errors import InputError
from rewards import Reward, length_rewards, repetition_penalty, soft_overlong
from sample import Rollout
from tasks import Example, Task

MAX_FAULTS = 0.2  # of a step's completions
FAULTS = ("exception", "wrong_length", "not_finite")

UserFunction = Callable[[list[str], Example], Sequence[float | None]]


def load_user_reward(spec: str) -> UserFunction:
    """Import `path/to/file.py:function`. Raises InputError if there is no such function."""
    path, colon, name = spec.rpartition(":")
    if not colon or not path.endswith(".py") or not name.isidentifier():
        raise InputError(f"--reward {spec!r}: must be path/to/file.py:function")
    if not Path(path).is_file():
        raise InputError(f"--reward {path}: no such file")
    module_spec = importlib.util.spec_from_file_location("user_reward", path)
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module  # dataclasses look their module up
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file does when it is imported
        raise InputError(f"--reward {path}: importing it fails ({_in_one_line(error)})") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"--reward {path}: has no function {name!r}")
    return function


@dataclass
class UserReward:
    """The user's function, its faults counted. `of_group` never raises and never pays a fault."""

    function: UserFunction
    faults: Counter = field(default_factory=Counter)  # completions by kind of fault, of this step
    has_shown_one: bool = False

    def of_group(self, texts: list[str], example: Example) -> list[Reward | None]:
        """One reward per completion; None where it does not count."""
        try:
            values = self.function(list(texts), example)
            values = [value if value is None else float(value) for value in values]
        except Exception:  # the boundary to code from outside: counted and shown, not swallowed
            return self._lost("exception", texts, traceback.format_exc())
        if len(values) != len(texts):
            counts = f"{len(values)} values for {len(texts)} completions of example {example.id}"
            return self._lost("wrong_length", texts, counts)
        rewards: list[Reward | None] = []
        for value, text in zip(values, texts, strict=True):
            if value is not None and not math.isfinite(value):
                rewards += self._lost("not_finite", [text], f"{value} for {text[:200]!r}")
            else:
                rewards.append(value if value is None else Reward(value, {"user": value}))
        return rewards

    def _lost(self, kind: str, texts: list[str], what: str) -> list[None]:
        self.faults[kind] += len(texts)
        if not self.has_shown_one:
            self.has_shown_one = True
            print(f"--reward: first fault, {kind}: {what.strip()[-2000:]}", file=sys.stderr)
        return [None] * len(texts)


class Scorer:
    """Rewards of a step: `score_step` is all that the loop calls."""

    def __init__(self, task: Task, cfg: Config):
        self.task, self.cfg = task, cfg
        self.user = UserReward(load_user_reward(cfg.reward)) if cfg.reward else None
        if cfg.reward and cfg.length_weight:
            raise InputError("--length_weight: needs the task's own idea of right; drop --reward")
        if cfg.overlong_weight and cfg.overlong_buffer > cfg.max_completion_length:
            raise InputError(
                f"--overlong_buffer {cfg.overlong_buffer}: must be at most "
                f"--max_completion_length {cfg.max_completion_length}"
            )

    def score_step(
        self, examples: list[Example], rollout: Rollout, step: int
    ) -> tuple[Tensor, list[dict[str, float]], dict[str, float]]:
        """Verify every completion of a step.

        Returns: rewards (N, G) fp32; the named parts of each completion; metrics on faults (empty
        without --reward).
        Raises: InputError for a reward of the task that is not finite, and for too many faults.
        """
        G, cfg = self.cfg.num_generations, self.cfg
        decay = 1 - step / cfg.max_steps if cfg.dense_schedule == "linear" else 1.0
        totals, parts = [], []
        for n, example in enumerate(examples):
            own = slice(n * G, (n + 1) * G)
            texts = rollout.texts[own]
            if self.user is None:
                rewards = [self._checked(text, example, cfg.dense * decay) for text in texts]
            else:
                rewards = self.user.of_group(texts, example)
            lengths = [len(ids) for ids in rollout.ids[own]]
            shaped = self._shaped(rewards, example, texts, lengths)
            counted = [reward.total for reward in shaped if reward is not None]
            mean = sum(counted) / len(counted) if counted else 0.0
            totals += [mean if reward is None else reward.total for reward in shaped]
            parts += [self._no_parts(mean) if reward is None else reward.parts for reward in shaped]
        return (
            torch.tensor(totals, dtype=torch.float32).view(-1, G),
            parts,
            self._faults(len(parts)),
        )

    def _checked(self, text: str, example: Example, dense: float) -> Reward:
        reward = self.task.reward(text, example, dense)
        if not math.isfinite(reward.total):
            raise InputError(
                f"reward {reward.total} ({reward.parts}) for a completion of example {example.id}: "
                "rewards must be finite numbers; mend the reward function"
            )
        return reward

    def _shaped(
        self,
        rewards: list[Reward | None],
        example: Example,
        texts: list[str],
        lengths: list[int],
    ) -> list[Reward | None]:
        """Add the optional parts, each with its weight, to the rewards of one group."""
        cfg = self.cfg
        is_right = [False] * len(texts)
        if cfg.length_weight:  # of the whole answer: being nearly right does not count
            is_right = [self.task.scores(text, example)["strict"] == 1.0 for text in texts]
        extras = {
            "overlong": (
                cfg.overlong_weight,
                lambda i: soft_overlong(lengths[i], cfg.max_completion_length, cfg.overlong_buffer),
            ),
            "repetition": (cfg.repetition_weight, lambda i: repetition_penalty(texts[i])),
            "length": (cfg.length_weight, lambda i: length_rewards(lengths, is_right)[i]),
        }
        shaped: list[Reward | None] = []
        for i, reward in enumerate(rewards):
            if reward is not None:
                more = {name: part(i) for name, (weight, part) in extras.items() if weight}
                added = sum(extras[name][0] * value for name, value in more.items())
                reward = Reward(reward.total + added, reward.parts | more)
            shaped.append(reward)
        return shaped

    def _no_parts(self, mean: float) -> dict[str, float]:
        """Parts of a completion that does not count: every completion has the same names."""
        cfg = self.cfg
        weights = {"overlong": cfg.overlong_weight, "repetition": cfg.repetition_weight}
        weights |= {"length": cfg.length_weight}
        return {"user": mean} | {name: 0.0 for name, weight in weights.items() if weight}

    def _faults(self, n_completions: int) -> dict[str, float]:
        if self.user is None:
            return {}
        faults, self.user.faults = self.user.faults, Counter()
        if faults.total() > MAX_FAULTS * n_completions:
            kinds = ", ".join(f"{kind} {count}" for kind, count in faults.items())
            raise InputError(
                f"--reward {self.cfg.reward}: failed for {faults.total()} of {n_completions} "
                f"completions of this step ({kinds}); the first fault is shown above; mend it"
            )
        return {f"reward/{kind}": float(faults[kind]) for kind in FAULTS}


def _in_one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
