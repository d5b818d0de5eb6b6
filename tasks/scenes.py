"""What the tasks share: splits of the generated garden, splits of rows from disk, wiring.

A task file brings a function `draw(rng, seed, is_ood)` that returns a question and its pictures, or
None where the drawn scene has nothing to ask; `scene_splits` makes disjoint splits of it: `train`,
`held_out`, `val` (for choosing settings) and `ood` (larger scenes, another view, ...).

Next: tasks/count.py, the simplest of them.
"""

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from PIL import Image

from answers import parse_name
from config import TaskConfig
from data.examples import STEPS_TOKENS, Example, full_question, pixel_hash, shuffle
from data.files import SkipLog
from data.garden.drawing import draw_scene
from data.garden.questions import Question
from data.garden.world import SCENE_SUBJECT, Scene, render_seed, sample_scene
from data.rows import load_records
from rewards import Reward, format_reward
from runtime.errors import InputError
from tasks.task import Task, Weights

ID_OBJECTS, OOD_OBJECTS = (1, 4), (5, 7)  # flowers in a scene
REAL_LENGTH = 256  # tokens of a completion for data from outside, as in the field's recipes
OOD_INDEX = 1 << 23  # the pictures of "ood" have other numbers than those of "held_out"

Splits = tuple[list[Example], dict[str, list[Example]]]  # train; the others by name
Drawing = tuple[Question, tuple[Image.Image, ...]]
Draw = Callable[[random.Random, int, bool], Drawing | None]  # of (rng, rendering seed, is_ood)


def one_scene(ask: Callable[[random.Random, Scene], Question | None]) -> Draw:
    """Draw a scene and ask about it; out of distribution there are more flowers in it."""

    def draw(rng: random.Random, seed: int, is_ood: bool) -> Drawing | None:
        scene = sample_scene(rng, rng.randint(*(OOD_OBJECTS if is_ood else ID_OBJECTS)))
        question = ask(rng, scene)
        return question and (question, (draw_scene(scene, seed, ailing=question.ailing),))

    return draw


def garden_examples(
    name: str, draw: Draw, split_seed: int, indices: range, split: str, is_ood: bool = False
) -> list[Example]:
    """Generated examples, each a function of (name, split, split_seed, is_ood, index)."""
    examples = []
    for index in indices:
        id = f"{name}-{'ood' if is_ood else split}-{split_seed}-{index}"
        rng = random.Random(id)
        seed = render_seed(split, split_seed, SCENE_SUBJECT, index + OOD_INDEX * is_ood)
        while (drawing := draw(rng, seed, is_ood)) is None:
            pass
        question, images = drawing
        examples.append(
            Example(id, images, question.prompt, question.answer, reasoning=question.reasoning)
        )
    return examples


def scene_splits(
    name: str, cfg: TaskConfig, draw: Draw, is_target: Callable[[str], bool]
) -> Splits:
    """`--data garden`: train, held_out, ood and val, drawn. Otherwise `record_splits` of a file."""
    if cfg.data != "garden":
        return record_splits(cfg, is_target)
    generate = partial(garden_examples, name, draw, cfg.split_seed)
    indices = range(cfg.held_out_size)
    return generate(range(cfg.train_size), "train"), {
        "held_out": generate(indices, "test"),
        "ood": generate(indices, "test", is_ood=True),
        "val": generate(indices, "val"),
    }


def record_splits(cfg: TaskConfig, is_target: Callable[[str], bool]) -> Splits:
    """Rows of a file (data/rows.py): `--train_size` of them to train on, the others held out.

    Rows whose solution is not in the task's answer grammar are skipped and counted.
    """
    _, records = load_records(cfg.data, cfg.max_skip, cfg.data_root)
    skips, examples = SkipLog(), []
    for example in records:
        if is_target(example.target):
            examples.append(example)
        else:
            reason = "solution is no answer of this task"
            skips.add(reason, f"{example.id}: {example.target[:40]!r}")
    skips.check(len(records), cfg.max_skip)
    return split_examples(examples, cfg)


def split_examples(examples: list[Example], cfg: TaskConfig) -> Splits:
    """train and held_out from one list, by pictures: all questions about one go to the same side.

    The order of the pictures depends on the split seed alone; held-out questions come from its end,
    training questions from its start, so fewer of these are a subset of more. At most half of the
    questions are held out. Raises InputError for fewer than two pictures.
    """
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        groups[pixel_hash(example)].append(example)
    if len(groups) < 2:
        raise InputError(
            f"--data {cfg.data!r}: {len(examples)} usable rows about {len(groups)} pictures; "
            "two pictures are needed, one to train on and one to hold out"
        )
    shuffled = shuffle(list(groups.values()), cfg.split_seed)
    held_out: list[Example] = []
    while len(shuffled) > 1 and len(held_out) < min(cfg.held_out_size, len(examples) // 2):
        held_out += shuffled.pop()
    train = [example for group in shuffled for example in group][: cfg.train_size]
    held_out = held_out[: cfg.held_out_size]
    print(f"data: {len(train)} rows to train on, {len(held_out)} held out, no picture in both")
    return train, {"held_out": held_out}


def answer_task(
    name: str,
    cfg: TaskConfig,
    splits: Splits,
    reward: Callable[..., Reward],
    loose: Callable[[str, str], float] | None,
    max_completion_length: int,
    read: Callable[[str | None, str], object | None] = lambda answer, _: parse_name(answer),
) -> Task:
    """A Task whose reward compares the answer with the target, and needs nothing else.

    Args:
        reward: (text, target, mode, weights, dense) -> Reward (rewards.py). Its part `correct` at
            dense = 0 is the strict metric. loose: (text, target) -> the loose one, if there is one.
        read: (answer, target) -> the value of an answer, None if it cannot be read (`Task.read`).
    """

    def task_reward(text: str, example: Example, weights: Weights, dense: float) -> Reward:
        return reward(text, example.target, cfg.prompt_mode, weights, dense)

    def scores(text: str, example: Example) -> dict[str, float]:
        strict = reward(text, example.target).parts["correct"]
        return {"strict": strict} | ({"loose": loose(text, example.target)} if loose else {})

    def read_answer(answer: str | None, example: Example) -> object | None:
        return read(answer, example.target)

    more = {"max_completion_length": max_completion_length, "read": read_answer}
    return make_task(name, cfg, splits, task_reward, scores, **more)


def make_task(
    name: str,
    cfg: TaskConfig,
    splits: Splits,
    reward: Callable[[str, Example, Weights, float], Reward],
    scores: Callable[[str, Example], dict[str, float]],
    max_completion_length: int,
    **more,
) -> Task:
    """A Task whose questions say how to answer, and whose scores include the format.

    `scores` gives the metrics of one answer without the format. `more` are fields of Task.
    Raises InputError for --question where the data asks different ones (cls aside).
    """
    mode, (train, evaluated) = cfg.prompt_mode, splits
    questions = {e.question for examples in (train, *evaluated.values()) for e in examples}
    if cfg.question is not None and len(questions) > 1 and name != "cls":
        raise InputError(f"--question: the data asks {len(questions)} different ones; leave it out")
    if cfg.data not in ("garden", "digits"):
        max_completion_length = REAL_LENGTH

    def ask(examples: list[Example]) -> list[Example]:
        texts = [e.question if cfg.question is None else cfg.question for e in examples]
        return [
            replace(e, question=full_question(text, mode))
            for e, text in zip(examples, texts, strict=True)
        ]

    return Task(
        name=name,
        train=ask(train),
        splits={split: ask(examples) for split, examples in evaluated.items()},
        reward=reward,
        scores=lambda text, e: scores(text, e) | {"format": format_reward(text, mode)},
        max_completion_length=max_completion_length + STEPS_TOKENS * (mode == "steps"),
        **more,
    )
