"""Looking closer: details are lost at first sight, and the model may ask for a part of the picture.

prompt   "What shape are the petals of the red flower? To look closer: <zoom>[x1, y1, ..]</zoom>."
data     meadows of the garden, half of the questions answerable at first sight; or rows with a
         short text as solution and pictures larger than --max_pixels (data/rows.py)
acting   acting/zoom.py: the region is shown, cut from the original; then the model goes on. Of the
         training demonstrations half look where it is needed, and a fifth where it is not: they
         show how to look, not when
reward   the right word as the whole answer of the last turn + format, and a bonus for a look that
         was needed and helped (--look_bonus)
metric   strict accuracy; "needs_look" and "at_sight": of either half of the questions
ood      larger meadows: 5 to 7 flowers instead of 2 to 4
"""

import random
from dataclasses import replace
from functools import partial
from statistics import mean

from acting.zoom import Sight, Zoom
from config import TaskConfig
from data.answer_forms import WORD
from data.box_formats import canvas_size, convert_box, round_box
from data.examples import Example
from data.garden import meadow
from data.garden.world import SCENE_SUBJECT, render_seed
from data.pictures import size_of
from model.image import ImageConfig
from rewards import Reward, classification_reward
from tasks.boxes import resizer
from tasks.scenes import OOD_INDEX, Splits, generated_splits, make_task, record_splits
from tasks.task import Task, Weights

FLAGS = ("train_size", "held_out_size", "coords", "look_bonus")  # what this task reads
INVITATION = "To look closer: <zoom>[x1, y1, x2, y2]</zoom>."
ID_FLOWERS, OOD_FLOWERS = (2, 4), (5, 7)
LATER_PICTURES = Zoom.budget
LOOKS_NEEDED, LOOKS_AT_SIGHT = 0.5, 0.2  # of the training demonstrations


def load(cfg: TaskConfig, image_cfg: ImageConfig | None = None) -> Task:
    """Read or generate the questions. Raises InputError for data that cannot be used."""

    def reward(text: str, example: Example, weights: Weights, dense: float) -> Reward:
        last = environment.last_turn(text)
        return classification_reward(last, example.target, cfg.prompt_mode, weights)

    def is_right(text: str, example: Example) -> bool:
        return (
            classification_reward(environment.last_turn(text), example.target).parts["correct"]
            == 1.0
        )

    def scores(text: str, example: Example) -> dict[str, float]:
        return {"strict": float(is_right(text, example))}

    train, evaluated = source_splits(cfg, image_cfg)
    splits = (
        [invited(e, cfg, image_cfg) for e in train],
        {
            name: [invited(e, cfg, image_cfg) for e in examples]
            for name, examples in evaluated.items()
        },
    )
    environment = Zoom(is_right, getattr(cfg, "look_bonus", 0.0))  # only GRPO and PPO pay
    more = dict(
        max_completion_length=96, summary=partial(by_need, environment), environment=environment
    )
    return make_task("zoom", cfg, splits, reward, scores, last_turn=environment.last_turn, **more)


def invited(example: Example, cfg: TaskConfig, image_cfg: ImageConfig | None) -> Example:
    """The question with how to look closer, in the box format of the model; its demonstration, too.

    Crops of demonstrations come in pixels of the original.
    """
    size, resized = size_of(example.world.original), resizer(image_cfg)(size_of(example.images[0]))
    canvas = canvas_size(cfg.coords, size, resized)
    reasoning = example.reasoning
    if reasoning is not None:
        calls = []
        for thought, crop in reasoning.calls:
            box = convert_box(crop, "abs", cfg.coords, size, resized)
            calls.append((thought, f"<zoom>{list(round_box(box, canvas))}</zoom>"))
        reasoning = replace(reasoning, calls=tuple(calls))
    question = f"{example.question} {INVITATION}"
    if cfg.data != "garden":
        which = "whole" if len(example.images) == 1 else "first"
        unit = "{:g} x {:g} for the {} picture".format(*canvas, which)
        question = f"{question[:-1]}, in {unit}."
    known = dict(reasoning=reasoning, canvas=canvas, box_format=cfg.coords)
    return replace(example, question=question, **known)


def by_need(environment: Zoom, examples: list[Example], texts: list[str]) -> dict[str, float]:
    """Accuracy and share of looks, apart for questions that need a look and those that do not."""
    found = {"needs_look": [], "at_sight": []}
    for example, text in zip(examples, texts, strict=True):
        if not example.world.is_known:
            continue
        is_right = float(environment.is_right(text, example))
        has_looked = bool(environment.replay(example, text).done)
        found["at_sight" if example.world.region is None else "needs_look"].append(
            (is_right, has_looked)
        )
    metrics = {}
    for name, pairs in found.items():
        if pairs:
            right, looked = zip(*pairs, strict=True)
            metrics |= {f"{name}/strict": mean(right), f"{name}/looked": mean(looked)}
    return metrics


def source_splits(cfg: TaskConfig, image_cfg: ImageConfig | None) -> Splits:
    """The garden's meadows, or rows whose first picture is seen reduced."""
    if cfg.data != "garden":
        train, evaluated = record_splits(cfg, WORD)
        return [whole(e, image_cfg) for e in train], {
            name: [whole(e, image_cfg) for e in examples] for name, examples in evaluated.items()
        }
    return generated_splits("zoom", cfg, draw)


def whole(example: Example, image_cfg: ImageConfig | None) -> Example:
    """A question about a picture from outside: crops are cut from its file, whatever it needs."""
    view = resizer(image_cfg)(size_of(example.images[0]))
    return replace(example, world=Sight(example.images[0], view, is_known=False))


def draw(id: str, split: str, split_seed: int, index: int, is_ood: bool) -> Example:
    """A question about a meadow, with the demonstration of a careful answer.

    Every second one needs a look.
    """
    rng, needs_look = random.Random(id), index % 2 == 0
    seed = render_seed(split, split_seed, SCENE_SUBJECT, index + OOD_INDEX * is_ood)
    question = None
    while question is None:
        scene = meadow.sample_meadow(rng, rng.randint(*(OOD_FLOWERS if is_ood else ID_FLOWERS)))
        if needs_look:
            question, flower = meadow.ask_detail(rng, scene)
        else:
            question, flower = meadow.ask_at_sight(rng, scene)
    original, view = meadow.draw_meadow(scene, seed)
    region = None
    if needs_look:
        region = tuple(pixel / meadow.MEADOW_SIZE for pixel in flower.corners)
    looks = needs_look
    if split == "train":
        share = LOOKS_NEEDED if needs_look else LOOKS_AT_SIGHT
        looks = random.Random(f"{id} shown").random() < share
    calls = ((meadow.place(flower), meadow.crop_around(flower)),) if looks else ()
    reasoning = replace(question.reasoning, calls=calls)
    known = dict(world=Sight(original, view.size, region), reasoning=reasoning)
    return Example(id, (view,), question.prompt, question.answer, **known)
