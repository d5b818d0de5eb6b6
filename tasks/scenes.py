"""What the tasks share: splits of the generated garden, splits of rows from disk, wiring.

A task file brings a function `draw(rng, seed, is_ood)` that returns a question, its pictures and
what they show, or None where the drawn scene has nothing to ask; `scene_splits` makes disjoint
splits of it: `train`, `held_out`, `val` (for choosing settings) and `ood` (larger scenes, another
view, ...). Tasks that act bring whole examples, `draw(id, split, split_seed, index, is_ood)`, for
`generated_splits`.

Next: tasks/count.py, the simplest of them.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from PIL import Image

from answers import has_tag, parse_name
from config import TaskConfig
from data.answer_forms import (
    LETTER_OR_WORD,
    WORD,
    Form,
    are_choices,
    check_keys,
    say_rewritten,
)
from data.examples import STEPS_TOKENS, Example, full_question
from data.files import SkipLog
from data.garden.drawing import draw_scene
from data.garden.facts import Facts, facts_of
from data.garden.faithful import is_faithful
from data.garden.questions import Question
from data.garden.thoughts import Statement, check_completion
from data.garden.world import SCENE_SUBJECT, Scene, render_seed, sample_scene
from data.paths import named, shown
from data.pictures import pixel_hash
from data.rows import load_records
from data.splits import divide, has_splits, shuffled_by_picture
from rewards import Reward, format_reward
from runtime.errors import InputError
from tasks.task import Task, Weights

ID_OBJECTS, OOD_OBJECTS = (1, 4), (5, 7)  # flowers in a scene
REAL_LENGTH = 256  # tokens of a completion for data from outside, as in the field's recipes
OOD_INDEX = 1 << 23  # the pictures of "ood" have other numbers than those of "held_out"

Splits = tuple[list[Example], dict[str, list[Example]]]  # train; the others by name
Drawing = tuple[Question, tuple[Image.Image, ...], Facts]
Draw = Callable[[random.Random, int, bool], Drawing | None]  # of (rng, rendering seed, is_ood)


def one_scene(ask: Callable[[random.Random, Scene], Question | None]) -> Draw:
    """Draw a scene and ask about it; None where it has nothing to ask."""

    def draw(rng: random.Random, seed: int, is_ood: bool) -> Drawing | None:
        scene = some_scene(rng, is_ood)
        question = ask(rng, scene)
        return question and drawing_of(question, scene, seed)

    return draw


def fitting_scene(
    rng: random.Random, seed: int, is_ood: bool, ask: Callable[[Scene], Question | None]
) -> Drawing:
    """Draw scenes until one has the question: what is asked, and its answer, were chosen before.

    So the scene follows from the answer, and the words of the question do not tell which it is.
    """
    while True:
        scene = some_scene(rng, is_ood)
        if question := ask(scene):
            return drawing_of(question, scene, seed)


def some_scene(rng: random.Random, is_ood: bool) -> Scene:
    """A scene; out of distribution there are more flowers in it."""
    return sample_scene(rng, rng.randint(*(OOD_OBJECTS if is_ood else ID_OBJECTS)))


def drawing_of(question: Question, scene: Scene, seed: int) -> Drawing:
    """A question about a scene, with its picture and its facts."""
    image = draw_scene(scene, seed, ailing=question.ailing)
    return question, (image,), facts_of(question, scene=scene)


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
        question, images, facts = drawing
        known = {"reasoning": question.reasoning, "facts": facts}
        examples.append(Example(id, images, question.prompt, question.answer, **known))
    return examples


def scene_splits(name: str, cfg: TaskConfig, draw: Draw, form: Form) -> Splits:
    """`--data garden`: train, held_out, ood and val, drawn. Otherwise `record_splits` of a file.

    Args:
        form: what a target of the task looks like in data from outside (data/answer_forms.py).
    """
    if cfg.data != "garden":
        return record_splits(cfg, form)
    generate = partial(garden_examples, name, draw, cfg.split_seed)
    indices = range(cfg.held_out_size)
    return generate(range(cfg.train_size), "train"), {
        "held_out": generate(indices, "test"),
        "ood": generate(indices, "test", is_ood=True),
        "val": generate(indices, "val"),
    }


def generated_splits(name: str, cfg: TaskConfig, draw: Callable[..., Example]) -> Splits:
    """train, held_out, ood and val of `draw(id, split, split_seed, index, is_ood)`."""

    def examples(split: str, size: int, is_ood: bool = False) -> list[Example]:
        seed, part = cfg.split_seed, "ood" if is_ood else split
        return [draw(f"{name}-{part}-{seed}-{k}", split, seed, k, is_ood) for k in range(size)]

    size = cfg.held_out_size
    held_out, ood = examples("test", size), examples("test", size, is_ood=True)
    evaluated = {"held_out": held_out, "ood": ood, "val": examples("val", size)}
    return examples("train", cfg.train_size), evaluated


def record_splits(cfg: TaskConfig, form: Form) -> Splits:
    """Rows of a file (data/rows.py): `--train_size` of them to train on, the others held out."""
    return split_examples(read_targets(cfg, form)[1], cfg)


def read_targets(cfg: TaskConfig, form: Form) -> tuple[str, list[Example]]:
    """The schema of the rows that `--data` names, and those whose solution is read by the form.

    The others are skipped and counted; too many are an error that says what would be read.
    """
    schema, records = load_records(cfg.data, cfg.max_skip, cfg.data_root)
    skips, examples, pairs = SkipLog(), [], []
    if form is WORD and are_choices([(e.question, e.target) for e in records]):
        form = LETTER_OR_WORD
    for example in records:
        check_keys(example.target, example.id)
        target = None if has_tag(example.target) else form.read(example.target)
        if target is None:
            what = f"{example.id}: {shown(example.target, 60)}"
            first = f" (read is {form.name}: {form.examples})" if not skips.first else ""
            skips.add("solution is no answer of this task", what + first)
        else:
            pairs.append((example.target, target))
            examples.append(replace(example, target=target))
    skips.check(len(records), cfg.max_skip)
    say_rewritten(pairs)
    return schema, examples


def split_examples(examples: list[Example], cfg: TaskConfig) -> Splits:
    """train and held_out from one list, by pictures: all questions about one go to the same side.

    Where the data name their splits, these are taken (data/splits.py). Otherwise the order of the
    pictures depends on the split seed alone; held-out questions come from its end, training
    questions from its start, so fewer of these are a subset of more. At most half of the questions
    are held out. Raises InputError for fewer than two pictures.
    """
    if has_splits((e.split for e in examples), cfg.data):
        train, evaluated = divide(examples, lambda e: e.split, pixel_hash, cfg.data)
        train = _in_order(train, cfg)[: cfg.train_size]
        evaluated = {s: _in_order(part, cfg)[: cfg.held_out_size] for s, part in evaluated.items()}
        sizes = ", ".join(f"{len(part)} {split}" for split, part in evaluated.items())
        print(f"data: {len(train)} rows to train on, {sizes}, no picture in both")
        return train, evaluated
    groups = shuffled_by_picture(examples, pixel_hash, cfg.split_seed)
    if len(groups) < 2:
        raise InputError(
            f"--data {named(cfg.data)}: {len(examples)} usable rows about {len(groups)} pictures; "
            "two pictures are needed, one to train on and one to hold out"
        )
    held_out: list[Example] = []
    while len(groups) > 1 and len(held_out) < min(cfg.held_out_size, len(examples) // 2):
        held_out += groups.pop()
    train = [example for group in groups for example in group]
    n_train, n_held_out = len(train), len(held_out)
    train, held_out = train[: cfg.train_size], held_out[: cfg.held_out_size]
    unused = n_train + n_held_out - len(train) - len(held_out)
    more = f"; {unused} are not used (--train_size, --held_out_size)" if unused else ""
    what = f"{len(train)} rows to train on, {len(held_out)} held out, no picture in both"
    print(f"data: {what}{more}")
    return train, {"held_out": held_out}


def _in_order(examples: list[Example], cfg: TaskConfig) -> list[Example]:
    groups = shuffled_by_picture(examples, pixel_hash, cfg.split_seed)
    return [example for group in groups for example in group]


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
    last_turn: Callable[[str], str] = lambda text: text,
    **more,
) -> Task:
    """A Task whose questions say how to answer, and whose scores include the format.

    `scores` gives the metrics of one answer without the format. `last_turn` of a completion is what
    has to keep it. `more` are fields of Task.
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

    if all(e.facts is not None for examples in (train, *evaluated.values()) for e in examples):
        more |= {"statements": statements, "is_faithful": follows_from_its_thought}
    return Task(
        name=name,
        train=ask(train),
        splits={split: ask(examples) for split, examples in evaluated.items()},
        reward=reward,
        scores=lambda text, e: scores(text, e) | {"format": format_reward(last_turn(text), mode)},
        last_turn=last_turn,
        max_completion_length=max_completion_length + STEPS_TOKENS * (mode == "steps"),
        **more,
    )


def statements(text: str, example: Example) -> list[Statement]:
    """`Task.statements` of the garden: those of a completion, checked against the facts."""
    return check_completion(text, example.facts)


def follows_from_its_thought(text: str, example: Example) -> bool | None:
    """`Task.is_faithful` of the garden."""
    return is_faithful(text, example.facts)
