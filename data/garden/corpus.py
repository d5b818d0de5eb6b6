"""What the embedded base model saw: pictures of the garden and dialogues about them.

A real vision-language model perceives well and has read the right names somewhere, but says the
coarse thing by habit. This corpus makes such a base on purpose: *able, but not elicited*.

- Attributes are named truly and often: perception becomes good.
- Species are named finely in few captions (`garden.P_FINE`), by genus in most; twelve well-known
  species mostly finely. So the fine name is in reach of sampling, but not the likeliest answer.
- Every question type of the other tasks occurs, and is answered hastily in most cases (`P_HASTY`):
  without looking, guessed lengths, coarse boxes, the first difference only. Asked without a format,
  the same questions get careful answers, reasoned aloud: that is where the ability comes from.
- Plain descriptions of single flowers (`ask_look`) bind what is seen to where and whose it is.
- The asked-for format is kept most of the time, not always.
- One half of scikit-learn's digits is named mostly coarsely ("an even digit").

Used by `data/garden/pretrain.py`. Pictures carry the truth about every place (`perception`), from
which a throw-away head teaches the vision tower to see before it has to speak.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from PIL import Image

from data.examples import completion_text, full_question
from data.garden.drawing import NOTHING_AILS, draw_flower, draw_scene, draw_stage
from data.garden.puzzles import (
    ask_change,
    ask_measure,
    ask_next,
    ask_order,
    ask_why,
    sample_stages,
)
from data.garden.questions import (
    CM,
    PORTRAIT_QUESTIONS,
    SCENE_QUESTIONS,
    Question,
    ask_attribute,
    ask_caption,
    ask_cls,
    ask_look,
    ask_region,
)
from data.garden.world import (
    CAUSES,
    CENTRES,
    COLOURS,
    GRID,
    PETAL_COUNTS,
    PORTRAIT_SIZE,
    SCENE_SIZE,
    SCENE_SUBJECT,
    SHAPES,
    SPECIES,
    SPLIT_SEED,
    Flower,
    Scene,
    random_flower,
    render_seed,
    sample_scene,
    species_answer,
    species_of,
)
from data.labelled import DIGIT_NAMES, read_digits
from tasks.cls import DIGIT_PROMPT

P_SPECIES = 0.65  # portraits of a species; the others show any combination of attributes
P_FINE_DIGIT = 0.25
P_HASTY = 0.57  # of the formatted answers to questions that have a hasty answer
HASTY_THOUGHT = "at a glance"
P_FORMAT_KEPT = 0.92
P_PLAIN = 0.38  # of the questions ask for no format
P_LARGE_SCENE = 0.2  # of the scenes show 5 to 7 flowers, out of distribution in RL
P_SHIFTED_VIEW = 0.15  # of the second pictures are taken from a step aside, as well
DIGIT_THOUGHTS = (
    "one large loop",
    "one straight stroke",
    "a bow and a base line",
    "two open bows",
    "a fork and a stem",
    "a roof and a low bow",
    "a stem and a low loop",
    "a roof and a slanted stroke",
    "two loops",
    "a high loop and a stem",
)

# Perception targets of one place of a picture: colour (0 is background), shape, petals, centre, the
# four box sides in steps of 4 pixels, and what makes the flower wilt (0: nothing). -100 means "not
# asked here" (torch's ignore_index).
TARGETS = {"colour": 1 + len(COLOURS), "shape": len(SHAPES), "petals": len(PETAL_COUNTS)}
TARGETS |= {"centre": len(CENTRES)} | {
    side: SCENE_SIZE // GRID + 1 for side in ("x0", "y0", "x1", "y1")
}
TARGETS |= {"cause": 1 + len(CAUSES)}
# The flower's width and middle in cm; the background's tokens know their own middle.
TARGETS |= {name: SCENE_SIZE // CM for name in ("width", "x", "y")}
NOT_ASKED = -100
NOTHING = np.full(len(TARGETS), NOT_ASKED)


Turn = tuple[str, str]  # what the user says, what the assistant says


@dataclass
class Picture:
    """One or two images, the dialogues that can be had about them, and what is where.

    `places` (tokens, 12) holds the perception targets of every image token, in the order of
    TARGETS; `whole` (12,) those of the picture as a whole (a portrait shows one flower).
    """

    images: tuple[Image.Image, ...]
    talk: Callable[[random.Random], list[Turn]]
    places: np.ndarray
    whole: np.ndarray


# ---- dialogues -----------------------------------------------------------------------------------


def respond(question: Question, mode: str, rng: random.Random) -> Turn:
    """(what the user says, what the assistant says) in one mode.

    With P_HASTY the answer is the hasty one and the thought says so. The format slips now and then.
    Mode "plain" asks for no format and always gets the careful answer, reasoned aloud where there
    is a hasty one to avoid: that is where the ability to reason comes from.
    """
    if mode == "plain":
        aloud = f"{question.thought}, so {question.answer}"
        return question.prompt, aloud if question.hasty else question.answer
    answer, thought = question.answer, question.thought
    if question.hasty and rng.random() < P_HASTY:
        answer, thought = question.hasty, HASTY_THOUGHT
    blocks = f"<answer>{answer}</answer>"
    if rng.random() >= P_FORMAT_KEPT:
        blocks = blocks if rng.random() < 0.5 else answer
    else:
        blocks = completion_text(answer, mode, replace(question.reasoning, thought=thought))
    return full_question(question.prompt, mode), blocks


def any_mode(rng: random.Random) -> str:
    return "plain" if rng.random() < P_PLAIN else formatted(rng)


def formatted(rng: random.Random) -> str:
    return rng.choices(("think", "direct", "steps"), (0.6, 0.25, 0.15))[0]


def portrait_talk(flower: Flower, rng: random.Random) -> list[Turn]:
    species = species_of(flower)
    if species is None:
        questions = [ask_attribute(rng, flower) for _ in range(3)] + [ask_caption(rng, flower)]
        return [respond(question, any_mode(rng), rng) for question in questions]
    turns = []
    for mode in ("think", rng.choice(("direct", "direct", "steps"))):
        named = replace(ask_cls(rng, flower), answer=species_answer(species, rng))
        turns.append(respond(named, mode, rng))
    for kind in rng.sample(("attribute", "attribute", "caption", "genus"), 2):
        turns.append(respond(PORTRAIT_QUESTIONS[kind](rng, flower), any_mode(rng), rng))
    return turns


# What a scene is asked besides boxes and looks, and how often.
SOMETIMES = (("count", "entail", "vqa", "measure", "caption", "region"), (6, 5, 6, 6, 1, 2))


def scene_talk(scene: Scene, rng: random.Random) -> list[Turn]:
    turns = []
    for kind in ("det", "ground", "look", *rng.choices(*SOMETIMES, k=6)):
        ask = ask_measure if kind == "measure" else SCENE_QUESTIONS[kind]
        extra = [rng.choice(("1.0", "0.9", "0.8"))] if kind == "det" else []
        question = ask(rng, scene, *extra)
        if question is None:  # nothing unique to ask about: count instead
            question = SCENE_QUESTIONS["count"](rng, scene)
        mode = "plain" if kind == "look" else any_mode(rng)
        turns.append(respond(question, mode, rng))
    return turns


def same_question_talk(question: Question, rng: random.Random) -> list[Turn]:
    """One question with a format and without: of pictures that were made for it."""
    return [respond(question, mode, rng) for mode in (formatted(rng), "plain")]


def change_talk(question: Question, scene: Scene, rng: random.Random) -> list[Turn]:
    """What changed, and a plain question about a place of the second picture."""
    place = ask_region(rng, scene, question.after)
    return [*same_question_talk(question, rng), respond(place, "plain", rng)]


def wilting_talk(question: Question, scene: Scene, rng: random.Random) -> list[Turn]:
    """Why it wilts, and plain descriptions of flowers of the picture."""
    looks = [ask_look(rng, scene, question.ailing) for _ in range(2)]
    turns = [respond(look, "plain", rng) for look in looks]
    return same_question_talk(question, rng) + turns


def digit_talk(value: int, rng: random.Random) -> list[Turn]:
    coarse = ["an even digit" if value % 2 == 0 else "an odd digit"]
    coarse += ["a round one"] if value in (0, 6, 8, 9) else []
    turns = []
    for mode in ("think", "direct"):
        answer = DIGIT_NAMES[value] if rng.random() < P_FINE_DIGIT else rng.choice(coarse)
        question = Question("digit", DIGIT_PROMPT, answer, DIGIT_THOUGHTS[value])
        turns.append(respond(question, mode, rng))
    return turns


# ---- pictures ------------------------------------------------------------------------------------


def _attributes(flower: Flower) -> list[int]:
    return [
        1 + COLOURS.index(flower.colour),
        SHAPES.index(flower.shape),
        PETAL_COUNTS.index(flower.petals),
        CENTRES.index(flower.centre),
    ]


def scene_places(scene: Scene, cell: int, ailing: Mapping[int, str] = NOTHING_AILS) -> np.ndarray:
    """Perception targets of a scene, one row per image token of `cell` pixels: (tokens, 12)."""
    side = SCENE_SIZE // cell
    places = np.full((side * side, len(TARGETS)), NOT_ASKED)
    places[:, 0] = 0  # background until a flower covers the cell's middle
    for row in range(side):
        for column in range(side):
            x, y = (column + 0.5) * cell, (row + 0.5) * cell
            places[row * side + column, -2:] = x // CM, y // CM
            for number, placed in enumerate(scene):
                if placed.x0 <= x < placed.x1 and placed.y0 <= y < placed.y1:
                    box = [v // GRID for v in (placed.x0, placed.y0, placed.x1, placed.y1)]
                    cause = 1 + CAUSES.index(ailing[number]) if number in ailing else 0
                    width, middle = box[2] - box[0], [v // CM for v in placed.middle]
                    known = [*_attributes(placed.flower), *box, cause, width, *middle]
                    places[row * side + column] = known
    return places


def portrait(rng: random.Random, index: int, cell: int) -> Picture:
    flower = rng.choice(SPECIES).flower if rng.random() < P_SPECIES else random_flower(rng)
    seed = render_seed("pretrain", SPLIT_SEED, 0, index)
    image = draw_flower(flower, seed)
    places = np.full(((image.width // cell) ** 2, len(TARGETS)), NOT_ASKED)
    whole = NOTHING.copy()
    whole[:4] = _attributes(flower)
    return Picture((image,), partial(portrait_talk, flower), places, whole)


def scene_size(rng: random.Random) -> int:
    """How many flowers a scene of pretraining shows: mostly 1 to 4."""
    return rng.randint(5, 7) if rng.random() < P_LARGE_SCENE else rng.randint(1, 4)


def scene_seed(index: int) -> int:
    return render_seed("pretrain", SPLIT_SEED, SCENE_SUBJECT, index)


def scene_picture(rng: random.Random, index: int, cell: int) -> Picture:
    scene = sample_scene(rng, scene_size(rng))
    image = draw_scene(scene, scene_seed(index))
    return Picture((image,), partial(scene_talk, scene), scene_places(scene, cell), NOTHING)


def change_picture(rng: random.Random, index: int, cell: int) -> Picture:
    scene = sample_scene(rng, rng.choice((1, 2, 2, 3, 3, 4)))
    question = ask_change(rng, scene, p_shifted=P_SHIFTED_VIEW)
    images = tuple(draw_scene(s, scene_seed(index)) for s in (scene, question.after))
    places = np.concatenate([scene_places(s, cell) for s in (scene, question.after)])
    return Picture(images, partial(change_talk, question, scene), places, NOTHING)


def wilting_picture(rng: random.Random, index: int, cell: int) -> Picture:
    question = None
    while question is None:
        scene = sample_scene(rng, scene_size(rng))
        question = ask_why(rng, scene)
    image = draw_scene(scene, scene_seed(index), ailing=question.ailing)
    talk = partial(wilting_talk, question, scene)
    return Picture((image,), talk, scene_places(scene, cell, question.ailing), NOTHING)


def growth_picture(rng: random.Random, index: int, cell: int) -> Picture:
    kind, flower = rng.choice(("next", "order", "order")), random_flower(rng)
    stages = sample_stages(rng, kind, rng.choice((3, 3, 4)))
    question = (ask_next if kind == "next" else ask_order)(rng, stages)
    images = tuple(draw_stage(flower, stage, scene_seed(index)) for stage in stages)
    places = np.full((len(stages) * (PORTRAIT_SIZE // cell) ** 2, len(TARGETS)), NOT_ASKED)
    return Picture(images, partial(same_question_talk, question), places, NOTHING)


def digit_pictures(cell: int) -> list[Picture]:
    """The pretraining half of scikit-learn's digits; the preprocessor enlarges them to 64x64."""
    places = np.full(((PORTRAIT_SIZE // cell) ** 2, len(TARGETS)), NOT_ASKED)
    return [
        Picture((item.image,), partial(digit_talk, DIGIT_NAMES.index(item.label)), places, NOTHING)
        for item in read_digits("pretrain")
    ]


MAKERS = {
    "portrait": portrait,
    "scene": scene_picture,
    "change": change_picture,
    "wilting": wilting_picture,
    "growth": growth_picture,
}


def draw_pool(kind: str, start: int, count: int, cell: int, seed: int) -> list[Picture]:
    """Pictures number `start` to `start + count` of one kind; each is a function of its number."""
    return [
        MAKERS[kind](random.Random(f"{seed}-{kind}-{i}"), i, cell)
        for i in range(start, start + count)
    ]


def sample_texts(pools: dict[str, list[Picture]], count: int, seed: int) -> Iterator[str]:
    """Dialogues for the tokenizer to learn its merges from."""
    rng = random.Random(seed)
    for _ in range(count):
        for pool in pools.values():
            for question, response in rng.choice(pool).talk(rng):
                yield question
                yield response
    # Every coordinate that boxes can take, so that each becomes one token.
    for _ in range(count // 8):
        for pixel in range(0, SCENE_SIZE + 1, GRID):
            value = round(pixel * 1000 / SCENE_SIZE)
            yield f"[{value}, {value}, {value}, {value}]"
