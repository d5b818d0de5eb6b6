"""Metrics of a model on held-out questions, with 95 % intervals; used by training and evaluate.py.

Next: training/run.py.
"""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from config import TaskConfig, TrainConfig
from data.examples import Example
from data.files import SkipLog
from data.pictures import size_of
from model.processor import Processor
from model.vlm import VLM
from runtime import distributed
from runtime.errors import InputError
from tasks.task import Task
from training.blind import with_pictures
from training.process import thought_shares
from training.search import Sampling, choose

EVAL_SPLITS = {"held_out": "eval/", "ood": "eval/ood_"}  # split -> prefix of its metrics


def usable_splits(
    splits: dict[str, list[Example]], processor: Processor, cfg: TaskConfig
) -> dict[str, list[Example]]:
    """The splits without the examples whose prompt cannot be built: too long, a damaged image.

    Prompts are never cut: that would separate image slots from image tokens. Raises InputError when
    more than a few examples are lost, or none of a split is left; a chat template that cannot be
    rendered is no fault of the data. Pictures are not decoded again where their sizes decide.
    """
    skips, usable = SkipLog(), {name: [] for name in splits}
    for count in {len(e.images) for examples in splits.values() for e in examples}:
        processor.template(count)
    for name, examples in splits.items():
        for e in examples:
            try:
                if processor.image_cfg is None:  # transformers decides
                    processor.prompt(e.id, e.images, e.question, cfg.max_prompt_length)
                else:
                    sizes = [size_of(image) for image in e.images]
                    processor.check_prompt(e.id, sizes, e.question, cfg.max_prompt_length)
                usable[name].append(e)
            except InputError as error:
                skips.add("no prompt", str(error))
    skips.check(sum(map(len, splits.values())), cfg.max_skip)
    if empty := [name for name, examples in usable.items() if not examples]:
        raise InputError(f"--data: no example is left in {empty[0]}; {skips.first[0]}")
    return usable


def wilson_interval(p: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a fraction p of n trials. Wilson (1927), JASA 22, page 209."""
    centre = p + z * z / (2 * n)
    reach = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (centre - reach) / (1 + z * z / n), (centre + reach) / (1 + z * z / n)
    return max(low, 0.0), min(high, 1.0)


def bootstrap_interval(
    metric: Callable[[np.ndarray], float], n: int, resamples: int = 100
) -> tuple[float, float]:
    """95 % percentile interval of a metric of n examples (Efron 1979): resample them, recompute.

    `metric` takes indices (n,) int64 into the examples. The seed is fixed, and so the interval.
    """
    rng = np.random.Generator(np.random.Philox(key=n))
    values = [metric(rng.integers(0, n, n)) for _ in range(resamples)]
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def headline_interval(
    task: Task, examples: list[Example], records: list[dict]
) -> tuple[float, float]:
    """95 % interval of the task's headline metric: Wilson's for a share, else a bootstrap."""
    n = len(records)
    if task.headline == "strict":
        return wilson_interval(sum(record["strict"] for record in records) / n, n)
    if task.headline in records[0]:
        values = np.array([record[task.headline] for record in records])
        return bootstrap_interval(lambda index: float(values[index].mean()), n, 1000)

    def resampled(index: np.ndarray) -> float:
        texts = [records[i]["text"] for i in index]
        return task.summary([examples[i] for i in index], texts)[task.headline]

    return bootstrap_interval(resampled, n)


def answer_shares(task: Task, examples: list[Example], records: list[dict]) -> dict[str, float]:
    """How varied the answers are, whatever they earn.

    Returns: `no_answer_ratio`, the share that the task's grammar cannot read; `top_answer_share`,
    that of the most frequent answer, and `top_target_share`, that of the most frequent target:
    what a model earns that gives one answer to every question.
    """
    answers = [record["answer"] for record in records]
    targets = [str(task.read(example.target, example)) for example in examples]
    n, unreadable = len(answers), answers.count(None)
    most = Counter(answer for answer in answers if answer is not None).most_common(1)
    return {
        "no_answer_ratio": unreadable / n,
        "top_answer_share": (most[0][1] if most else 0) / n,
        "top_target_share": Counter(targets).most_common(1)[0][1] / n,
    }


def evaluate(
    model: VLM,
    processor: Processor,
    task: Task,
    examples: list[Example],
    max_completion_length: int | None = None,
    temperature: float = 0.0,
    batch_size: int = 64,
    seed: int = 0,
    with_interval: bool = False,
    votes: int = 1,
    **search: Any,
) -> tuple[dict[str, float], list[dict]]:
    """Answer every example, once or as the choice among several completions, and score the answers.

    A collective: each rank answers its shard of the examples.

    Args:
        votes: completions per question. search: how one is chosen, see `training.search.choose`.
    Returns: the means of the task's scores, `answer_shares`, its summary, `mean_length` in tokens,
    `n`, on request the interval of the headline metric (`<headline>_low`, `_high`), of several
    completions `pass_at_n` and `tokens_computed`; and one record per answer.
    """
    length = max_completion_length or task.max_completion_length
    distributed.require_same([e.id for e in examples], "questions")
    shard, records = distributed.local_shard(examples), []
    sampling = Sampling(model, processor, length, temperature, seed, task.environment)
    for start in range(0, len(shard), batch_size):
        batch = shard[start : start + batch_size]
        prompts = [processor.prompt(e.id, e.images, e.question) for e in batch]
        chosen = choose(sampling, task, prompts, batch, votes, **search)
        for example, answer in zip(batch, chosen, strict=True):
            text = answer.text
            record = {"id": example.id, "target": example.target, "text": text}
            record |= {"length": len(answer.ids), "answer": task.answer(text, example)}
            if votes > 1:
                scores = [task.scores(text, example)["strict"] for text in answer.texts]
                record |= {"pass_at_n": max(scores), "tokens_computed": answer.computed}
            if answer.episode is not None:
                record |= task.environment.reward(example, answer.episode.state, text)
            records.append(record | task.scores(text, example))
    records = sum(distributed.all_gather(records), [])
    n, about = len(records), ("id", "target", "text", "length", "answer")
    names = [name for name in records[0] if name not in about]
    metrics = {name: sum(record[name] for record in records) / n for name in names}
    metrics |= answer_shares(task, examples, records) | thought_shares(task, examples, records)
    if task.summary is not None:
        metrics |= task.summary(examples, [record["text"] for record in records])
    if with_interval:
        low, high = headline_interval(task, examples, records)
        metrics |= {f"{task.headline}_low": low, f"{task.headline}_high": high}
    metrics |= {"mean_length": sum(record["length"] for record in records) / n, "n": n}
    return metrics, records


def held_out_metrics(
    model: VLM, processor: Processor, task: Task, cfg: TrainConfig, with_interval: bool
) -> dict[str, float]:
    """Metrics of greedy answers: held out (eval/...) and out of distribution (eval/ood_...).

    `with_interval`, at start and end, also eval/blind_<headline>: held out, with the pictures of
    other questions. Not where completions are shown further pictures: those would be right ones.
    """
    row = {}
    batch_size = max(1, 8 * cfg.prompts_per_step // distributed.world_size())  # as in a rollout
    for split, prefix in EVAL_SPLITS.items():
        if split in task.splits:
            arguments = (processor, task, task.splits[split], cfg.max_completion_length)
            is_asked = with_interval and split == "held_out"
            metrics, _ = evaluate(model, *arguments, batch_size=batch_size, with_interval=is_asked)
            row |= {prefix + name: value for name, value in metrics.items()}
    if with_interval and task.environment is None:
        blind = with_pictures(task.splits["held_out"], "swapped")
        about = (processor, task, blind, cfg.max_completion_length)
        metrics, _ = evaluate(model, *about, batch_size=batch_size)
        row[f"eval/blind_{task.headline}"] = metrics[task.headline]
    return row
