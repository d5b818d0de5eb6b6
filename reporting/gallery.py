"""What a reader can look at: completions with their pictures, rewards and probabilities.

At every evaluation `Gallery` writes rows to gallery.jsonl and small JPEGs to images/:

- `held_out`: a few fixed held-out questions, answered with the same random numbers every time, so
  that whatever changes between two snapshots is the model;
- of the training step: the `best` and the `worst` of the groups that teach something, one
  `no_spread` group whose rewards are all equal, and a `no_answer` group, where answers could not
  be parsed.

Held-out completions are judged by the task's own sparse reward, whatever training pays.
Next: reporting/attention_map.py, report.py.
"""

import hashlib
import io
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from answers import parse_answer, parse_boxes
from config import TrainConfig
from kernels import group_advantages
from model.image import load_image
from model.processor import Processor
from model.vlm import VLM
from reporting.attention_map import answer_heat
from reporting.run_log import RunLog
from runtime import distributed
from sample import Rollout, generate_group
from tasks import Example, Task
from training.scoring import finite_reward

THUMBNAIL = 256  # pixels of the longer side
HEAT_MAPS = 1  # completions per question that get one


def token_texts(processor: Processor, ids: list[int]) -> list[str]:
    """The text of each token. A character made of several tokens stands with the last of them."""
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


def in_answer(texts: list[str]) -> list[bool]:
    """Per token: whether it lies in the answer block, whose tags do not count."""
    whole, at, inside = "".join(texts), 0, []
    answer = parse_answer(whole)
    start = len(whole) if answer is None else whole.index("<answer>") + len("<answer>")
    end = len(whole) if answer is None else whole.index("</answer>")
    for text in texts:
        inside.append(at < end and at + len(text) > start)
        at += len(text)
    return inside


def box_shares(answer: str | None, frame: tuple[float, float]) -> list[list[float]] | None:
    """The boxes of an answer as shares of the image's width and height, or None if it has none."""
    parsed = parse_boxes(answer, frame)
    if parsed is None:
        return None
    width, height = frame
    return [
        [round(v, 4) for v in (b.x1 / width, b.y1 / height, b.x2 / width, b.y2 / height)]
        for b in parsed[0]
    ]


def telling_groups(rewards: Tensor, texts: list[str]) -> dict[str, int]:
    """Which groups of a step to show: view -> index. rewards: (N, G)."""
    N, G = rewards.shape
    means, is_flat = rewards.mean(1), (rewards == rewards[:, :1]).all(1)  # (N,) each
    failed = [sum(parse_answer(t) is None for t in texts[n * G : (n + 1) * G]) for n in range(N)]
    ignored = is_flat & ~is_flat.all()  # best and worst are of those that teach, if any does
    views = {
        "best": int(means.masked_fill(ignored, -float("inf")).argmax()),
        "worst": int(means.masked_fill(ignored, float("inf")).argmin()),
    }
    if views["worst"] == views["best"]:  # a single group
        del views["worst"]
    if bool(is_flat.any()):
        views["no_spread"] = int(means.masked_fill(~is_flat, float("inf")).argmin())
    if any(failed):
        views["no_answer"] = failed.index(max(failed))
    return views


def fixed_questions(examples: list[Example], wanted: int) -> list[Example]:
    """Evenly spread over the examples, each moved on to the next target that is not there yet."""
    n, chosen, targets = len(examples), [], set()
    count = min(wanted, n)
    for i in range(count):
        places = [(i * n // count + k) % n for k in range(n)]
        free = [place for place in places if place not in chosen]
        fresh = (place for place in free if examples[place].target not in targets)
        chosen.append(next(fresh, free[0]))
        targets.add(examples[chosen[-1]].target)
    return [examples[place] for place in chosen]


class Gallery:
    """Writes what report.html shows of a run's completions."""

    def __init__(
        self,
        log: RunLog,
        processor: Processor,
        task: Task,
        cfg: TrainConfig,
        num_generations: int,
        temperature: float,
    ):
        self.log, self.processor, self.task, self.cfg = log, processor, task, cfg
        self.num_generations, self.temperature = num_generations, temperature
        self.fixed = fixed_questions(task.splits["held_out"], cfg.report_prompts)

    def held_out(self, step: int, model: VLM) -> None:
        """Answer the fixed questions with the model as it is after `step` steps."""
        if not self.log.is_written:
            return
        rows = []
        at_once = max(1, self.cfg.prompts_per_step // distributed.world_size())  # as in training
        for start in range(0, len(self.fixed), at_once):
            rows += self._answered(step, model, self.fixed[start : start + at_once])
        self.log.append("gallery.jsonl", rows)

    def _answered(self, step: int, model: VLM, examples: list[Example]) -> list[dict]:
        G, length = self.num_generations, self.cfg.max_completion_length
        prompts = [self.processor.prompt(e.id, e.images, e.question) for e in examples]
        rollout = generate_group(
            model, self.processor, prompts, G, length, self.temperature, self.cfg.seed
        )
        judged = [
            finite_reward(self.task, text, examples[b // G], 0.0)
            for b, text in enumerate(rollout.texts)
        ]
        totals = torch.tensor([reward.total for reward in judged], dtype=torch.float32)
        rewards = totals.view(-1, G)  # (N, G)
        advantages, parts = group_advantages(rewards), [reward.parts for reward in judged]
        rows = []
        for n, example in enumerate(examples):
            row = self._row(step, "held_out", example, rollout, n, rewards, parts, advantages)
            if self.cfg.report_attention:
                for g, completion in enumerate(row["completions"][:HEAT_MAPS]):
                    ids = rollout.ids[n * G + g]
                    inside = in_answer(completion["tokens"])
                    completion["heat"] = answer_heat(model, prompts[n], ids, inside)
            rows.append(row)
        return rows

    def training(
        self,
        step: int,
        examples: list[Example],
        rollout: Rollout,
        rewards: Tensor,
        parts: list[dict],
        advantages: Tensor,
    ) -> None:
        """Keep the telling groups of a step: rewards and advantages (N, G), as they were paid."""
        if not self.log.is_written:
            return
        views = telling_groups(rewards, rollout.texts)
        rows = [
            self._row(step, view, examples[n], rollout, n, rewards, parts, advantages)
            for view, n in views.items()
        ]
        self.log.append("gallery.jsonl", rows)

    def _row(self, step, view, example, rollout, n, rewards, parts, advantages) -> dict:
        G, frame = rewards.shape[1], example.frame
        true = parse_boxes(example.target, frame)
        is_boxes = true is not None and true[1] == 0
        completions = []
        for g in range(G):
            b = n * G + g
            completion = {
                "tokens": token_texts(self.processor, rollout.ids[b].tolist()),
                "probabilities": [round(p, 3) for p in rollout.logps[b].exp().tolist()],
                "reward": rewards[n, g].item(),
                "parts": {name: round(value, 4) for name, value in parts[b].items()},
                "advantage": round(advantages[n, g].item(), 3),
                "finish": rollout.finish[b],
                "has_answer": parse_answer(rollout.texts[b]) is not None,
            }
            if is_boxes:
                completion["boxes"] = box_shares(parse_answer(rollout.texts[b]), frame)
            completions.append(completion)
        return {
            "step": step,
            "view": view,
            "id": example.id,
            "question": example.question,
            "target": example.target,
            "boxes": box_shares(example.target, frame) if is_boxes else None,
            "images": [self._thumbnail(image) for image in example.images],
            "completions": completions,
        }

    def _thumbnail(self, image: Image.Image | Path) -> str:
        """Store a small copy once; returns its path below the run's directory."""
        small = load_image(image).copy()
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        encoded = io.BytesIO()
        small.save(encoded, "JPEG", quality=85)
        name = f"images/{hashlib.sha256(encoded.getvalue()).hexdigest()[:16]}.jpg"
        path = self.log.directory / name
        with self.log.writing():
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(encoded.getvalue())
        return name
