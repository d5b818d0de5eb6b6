"""Completions to look at, with their pictures, rewards and probabilities.

At every evaluation `Gallery` writes rows to gallery.jsonl and small JPEGs to images/:

- `held_out`: a few fixed held-out questions, sampled with the same random numbers every time and
  scored by the task's own sparse reward at its default weights, whatever training pays;
- of the training step: the `best` and the `worst` of the groups with an advantage, one `zero_std`
  group whose rewards are all equal, the `no_answer` group with the most answers that cannot be
  read, and the `lost` one with the most completions without a reward.

Next: reporting/attention_map.py, reporting/page/render.py.
"""

import hashlib
import io
from itertools import accumulate
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from acting.episodes import Episode, sample_episodes
from answers import parse_answer, parse_boxes
from config import TrainConfig
from data.examples import Example, Picture
from kernels import group_advantages
from model.image import load_image
from model.processor import Processor
from model.vlm import VLM
from reporting.attention_map import answer_heat
from reporting.lights import LEAST_ADVANTAGE
from reporting.run_log import RunLog
from rewards import WEIGHTS
from runtime import distributed
from sample import Rollout
from tasks.task import Task, finite_reward

THUMBNAIL = 256  # pixels of the longer side


def token_texts(processor: Processor, ids: list[int]) -> list[str]:
    """The text of each token. A character made of several tokens belongs to the last of them."""
    texts, pending = [], []
    for id in ids:
        pending.append(id)
        text = processor.decode(pending)
        is_whole = not text.endswith("\ufffd") or len(pending) == 4  # UTF-8 has four bytes at most
        texts.append(text if is_whole else "")
        pending = [] if is_whole else pending
    if pending:
        texts[-1] = processor.decode(pending)
    return texts


def small_jpeg(picture: Picture, side: int = THUMBNAIL) -> bytes:
    """A copy of at most `side` pixels in width and height."""
    small, encoded = load_image(picture).copy(), io.BytesIO()
    small.thumbnail((side, side))
    small.save(encoded, "JPEG", quality=85)
    return encoded.getvalue()


def digest(encoded: bytes) -> str:
    """The name of a picture: equal ones are stored once."""
    return hashlib.sha256(encoded).hexdigest()[:16]


def in_answer(texts: list[str]) -> list[bool]:
    """Per token: whether it lies in the answer block, whose tags do not count."""
    text = "".join(texts)
    if parse_answer(text) is None:
        return [False] * len(texts)
    start, end = text.index("<answer>") + len("<answer>"), text.index("</answer>")
    places = accumulate(map(len, texts), initial=0)
    return [at < end and at + len(t) > start for at, t in zip(places, texts, strict=False)]


def relative_boxes(answer: str | None, canvas: tuple[float, float]) -> list[list[float]] | None:
    """The boxes of an answer in shares of the image's width and height, None if it has none."""
    parsed, (width, height) = parse_boxes(answer, canvas), canvas
    if parsed is None:
        return None
    corners = [(b.x1 / width, b.y1 / height, b.x2 / width, b.y2 / height) for b in parsed[0]]
    return [[round(value, 4) for value in box] for box in corners]


def answered_boxes(text: str, example: Example) -> list[list[float]] | None:
    """`relative_boxes` of a completion's answer; None if it has none, or none were asked for."""
    target = parse_boxes(example.target, example.canvas)
    if target is None or target[1]:  # no list of boxes, or one with something else in it
        return None
    return relative_boxes(parse_answer(text), example.canvas)


def groups_to_show(rollout: Rollout, is_readable: Tensor) -> dict[str, int]:
    """Which groups of a step to show: view -> index. is_readable: (N, G) bool, of the answers."""
    means, counted = rollout.rewards.mean(1), rollout.has_reward  # (N,), (N, G)
    has_advantage = (rollout.advantages.abs() >= LEAST_ADVANTAGE).any(1)  # (N,)
    is_zero_std = ~has_advantage & counted.any(1)  # (N,)
    unread, lost = (~is_readable).sum(1), (~counted).sum(1)  # (N,) each
    views = {}
    if has_advantage.any():
        views["best"] = int(means.masked_fill(~has_advantage, -float("inf")).argmax())
        views["worst"] = int(means.masked_fill(~has_advantage, float("inf")).argmin())
        if views["worst"] == views["best"]:  # a single group
            del views["worst"]
    if is_zero_std.any():
        views["zero_std"] = int(means.masked_fill(~is_zero_std, float("inf")).argmin())
    views |= {"no_answer": int(unread.argmax())} if unread.any() else {}
    return views | ({"lost": int(lost.argmax())} if lost.any() else {})


def fixed_questions(examples: list[Example], n_questions: int) -> list[Example]:
    """Evenly spread over the examples, each with another target where there are as many."""
    one_of_each = list({example.target: example for example in reversed(examples)}.values())[::-1]
    pool = one_of_each if len(one_of_each) >= n_questions else examples
    count = min(n_questions, len(pool))
    return [pool[i * len(pool) // count] for i in range(count)]


class Gallery:
    """Writes what report.html shows of a run's completions."""

    def __init__(self, log: RunLog, processor: Processor, task: Task, cfg: TrainConfig):
        self.log, self.processor, self.task, self.cfg = log, processor, task, cfg
        # As in training, but two at least, to compare; supervised fine-tuning samples only here.
        self.num_generations = max(2, getattr(cfg, "num_generations", 4))
        self.temperature = getattr(cfg, "temperature", 1.0)
        self.fixed = fixed_questions(task.splits["held_out"], cfg.report_prompts)

    def held_out(self, step: int, model: VLM) -> None:
        """Sample the fixed questions with the model as it is after `step` steps."""
        if not self.log.is_written:
            return
        rows, cfg, G = [], self.cfg, self.num_generations
        batch_size = max(1, cfg.prompts_per_step // distributed.world_size())  # as in training
        for start in range(0, len(self.fixed), batch_size):
            examples = self.fixed[start : start + batch_size]
            prompts = [self.processor.prompt(e.id, e.images, e.question) for e in examples]
            sampling = (G, cfg.max_completion_length, self.temperature, cfg.seed)
            acting = (examples, self.task.environment)
            rollout = sample_episodes(model, self.processor, prompts, *acting, *sampling)
            self._score(examples, rollout)
            for n, example in enumerate(examples):
                row = self._row(step, "held_out", example, rollout, n)
                if cfg.report_attention:
                    first = row["completions"][0]
                    answer = in_answer(first["tokens"])
                    first["heat"] = answer_heat(model, prompts[n], rollout.ids[n * G], answer)
                rows.append(row)
        self.log.append("gallery.jsonl", rows)

    def training(self, step: int, examples: list[Example], rollout: Rollout) -> None:
        """Keep the groups of a step that are worth a look, with the rewards that were paid."""
        if self.log.is_written:
            G = rollout.rewards.shape[1]
            answers = [self.task.answer(t, examples[b // G]) for b, t in enumerate(rollout.texts)]
            is_readable = torch.tensor([answer is not None for answer in answers]).view(-1, G)
            views = groups_to_show(rollout, is_readable).items()
            rows = [self._row(step, view, examples[n], rollout, n) for view, n in views]
            self.log.append("gallery.jsonl", rows)

    def _score(self, examples: list[Example], rollout: Rollout) -> None:
        """Fill in rewards, parts and advantages by the task's own sparse reward."""
        row_examples = [example for example in examples for _ in range(self.num_generations)]
        pairs = zip(rollout.texts, row_examples, strict=True)
        rewards = [finite_reward(self.task, text, e, WEIGHTS, 0.0) for text, e in pairs]
        totals = torch.tensor([reward.total for reward in rewards], dtype=torch.float32)
        rollout.rewards = totals.view(len(examples), -1)  # (N, G)
        rollout.parts = [reward.parts for reward in rewards]
        rollout.advantages = group_advantages(rollout.rewards)  # (N, G)

    def _row(self, step: int, view: str, example: Example, rollout: Rollout, n: int) -> dict:
        """Group n of a scored rollout, for gallery.jsonl."""
        G = rollout.rewards.shape[1]
        completions, counted = [], rollout.has_reward.flatten().tolist()
        for b in range(n * G, (n + 1) * G):
            text, parts = rollout.texts[b], rollout.parts[b] or {}
            completions.append(
                {
                    "tokens": token_texts(self.processor, rollout.ids[b].tolist()),
                    "probabilities": [round(p, 3) for p in rollout.logps[b].exp().tolist()],
                    "reward": rollout.rewards[n, b % G].item() if counted[b] else None,
                    "parts": {name: round(value, 4) for name, value in parts.items()},
                    "advantage": round(rollout.advantages[n, b % G].item(), 3),
                    "finish": rollout.finish[b],
                    "has_answer": parse_answer(self.task.last_turn(text)) is not None,
                    "is_readable": self.task.answer(text, example) is not None,
                    "is_right": self.task.scores(text, example)["strict"] == 1.0,
                    "boxes": answered_boxes(text, example),
                    "turns": self._turns(rollout.episodes and rollout.episodes[b]),
                }
            )
        return {
            "step": step,
            "view": view,
            "id": example.id,
            "question": example.question,
            "target": example.target,
            "boxes": answered_boxes(f"<answer>{example.target}</answer>", example),
            "images": [self._thumbnail(image) for image in example.images],
            "completions": completions,
        }

    def _turns(self, episode: Episode | None) -> list[dict]:
        """What a completion was shown, and behind how many of its tokens."""
        turns = []
        for shown, (_, observation) in zip(
            episode.shown if episode else (), episode.turns if episode else (), strict=False
        ):
            parts = [
                part if isinstance(part, str) else {"image": self._thumbnail(part)}
                for part in observation.parts
            ]
            region = observation.region and [round(value, 4) for value in observation.region]
            row = {"at": shown.at, "outcome": observation.outcome, "region": region, "parts": parts}
            turns.append(row)
        return turns

    def _thumbnail(self, image: Image.Image | Path) -> str:
        """Store a small copy once; returns its path below the run's directory."""
        encoded = small_jpeg(image)
        name = f"images/{digest(encoded)}.jpg"
        path = self.log.directory / name
        with self.log.writing():
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(encoded)
        return name
