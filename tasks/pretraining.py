"""What the embedded base model saw: pictures of the garden and dialogues about them.

A real vision-language model perceives well and has read the right names somewhere, but says the
coarse thing by habit. This corpus makes such a base on purpose: *able, but not elicited*.

- Attributes are named truly and often: perception becomes good.
- Species are named finely in few captions (`garden.P_FINE`), by genus in most; twelve well-known
  species mostly finely. So the fine name is in reach of sampling, but not the likeliest answer.
- The asked-for format is kept most of the time, not always; boxes are sometimes a step off.
- Every question type of the later tasks occurs: detection, grounding, counting, entailment,
  relations, and changes between two pictures. One half of scikit-learn's digits is named mostly
  coarsely ("an even digit").

Used by `train_sft.py --pretrain`. Pictures carry the truth about every place (`perception`), from
which a throw-away head teaches the vision tower to see before it has to speak.
"""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from tasks import full_question
from tasks.cls import DIGIT_PROMPT
from tasks.garden import (
    CENTRES,
    COLOURS,
    GARDEN_SPLIT_SEED,
    GRID,
    PETAL_COUNTS,
    PORTRAIT_SIZE,
    SCENE_SIZE,
    SCENE_SUBJECT,
    SHAPES,
    SPECIES,
    Flower,
    Scene,
    random_flower,
    render_seed,
    sample_scene,
    species_answer,
    species_of,
)
from tasks.garden_drawing import draw_flower, draw_scene
from tasks.garden_questions import (
    CHANGE_PROMPT,
    PORTRAIT_QUESTIONS,
    SCENE_QUESTIONS,
    Question,
    ask_attribute,
    ask_caption,
    ask_change,
    ask_cls,
)
from tasks.readers import DIGIT_NAMES, read_digits

P_SPECIES = 0.65  # portraits of a species; the others show any combination of attributes
P_FINE_DIGIT = 0.25
P_BOX_NOISE, P_BOX_STEP = 0.3, 0.5  # answers with noise; coordinates of such an answer that move
P_FORMAT_KEPT = 0.92
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

# Perception targets of one place of a picture: colour (0 is background), shape, petals, centre, and
# the four box sides in steps of 4 pixels. -100 means "not asked here" (torch's ignore_index).
TARGETS = {"colour": 1 + len(COLOURS), "shape": len(SHAPES), "petals": len(PETAL_COUNTS)}
TARGETS |= {"centre": len(CENTRES)} | {
    side: SCENE_SIZE // GRID + 1 for side in ("x0", "y0", "x1", "y1")
}
NOT_ASKED = -100


Turn = tuple[str, str]  # what the user says, what the assistant says


@dataclass
class Picture:
    """One or two images, the dialogues that can be had about them, and what is where.

    `places` (tokens, 8) holds the perception targets of every image token, in the order of TARGETS;
    `whole` (8,) those of the picture as a whole (a portrait shows one flower).
    """

    images: tuple[Image.Image, ...]
    talk: Callable[[random.Random], list[Turn]]
    places: np.ndarray
    whole: np.ndarray


# ---- dialogues -----------------------------------------------------------------------------------


def respond(question: Question, answer: str, mode: str, rng: random.Random) -> Turn:
    """(what the user says, what the assistant says) in one mode; the format slips now and then."""
    if mode == "plain":
        return question.prompt, answer
    kept = rng.random() < P_FORMAT_KEPT
    if mode == "think" and kept:
        text = f"<think>{question.thought}</think><answer>{answer}</answer>"
    elif kept or rng.random() < 0.5:
        text = f"<answer>{answer}</answer>"
    else:
        text = answer
    return full_question(question.prompt, mode), text


def any_mode(rng: random.Random) -> str:
    return rng.choices(("think", "direct", "plain"), (0.5, 0.3, 0.2))[0]


def portrait_talk(flower: Flower, rng: random.Random) -> list[Turn]:
    species = species_of(flower)
    if species is None:
        questions = [ask_attribute(rng, flower) for _ in range(3)] + [ask_caption(rng, flower)]
        return [respond(q, q.answer, any_mode(rng), rng) for q in questions]
    named = ask_cls(rng, flower)
    turns = [
        respond(named, species_answer(species, rng), mode, rng) for mode in ("think", "direct")
    ]
    for kind in rng.sample(("attribute", "attribute", "caption", "genus"), 2):
        question = PORTRAIT_QUESTIONS[kind](rng, flower)
        turns.append(respond(question, question.answer, any_mode(rng), rng))
    return turns


def _jitter_box(box: list[int], rng: random.Random) -> list[int]:
    """Move some coordinates by one step of the grid, inside the frame and with positive area."""
    pixels = [round(v * SCENE_SIZE / 1000) for v in box]
    moved = [p + rng.choice((-GRID, GRID)) if rng.random() < P_BOX_STEP else p for p in pixels]
    moved = [min(max(p, 0), SCENE_SIZE) for p in moved]
    if moved[0] >= moved[2] or moved[1] >= moved[3]:
        moved = pixels
    return [round(p * 1000 / SCENE_SIZE) for p in moved]


def noisy_boxes(answer: str, rng: random.Random) -> str:
    """The answer as a hasty observer gives it: boxes a step off, in P_BOX_NOISE of the answers."""
    if not answer.startswith("[") or rng.random() >= P_BOX_NOISE:
        return answer
    boxes = json.loads(answer)
    if isinstance(boxes[0], int):
        return json.dumps(_jitter_box(boxes, rng))
    return json.dumps([{**b, "Position": _jitter_box(b["Position"], rng)} for b in boxes])


def scene_talk(scene: Scene, rng: random.Random) -> list[Turn]:
    others = rng.choices(("count", "entail", "vqa", "caption"), (3, 2, 2, 1), k=2)
    turns = []
    for kind in ("det", "ground", *others):
        extra = [rng.choice(("1.0", "0.9", "0.8"))] if kind == "det" else []
        question = SCENE_QUESTIONS[kind](rng, scene, *extra)
        if question is None:  # nothing unique to ask about: count instead
            question = SCENE_QUESTIONS["count"](rng, scene)
        turns.append(respond(question, noisy_boxes(question.answer, rng), any_mode(rng), rng))
    return turns


def change_talk(question: Question, rng: random.Random) -> list[Turn]:
    return [respond(question, question.answer, mode, rng) for mode in ("think", "direct")]


def digit_talk(value: int, rng: random.Random) -> list[Turn]:
    coarse = ["an even digit" if value % 2 == 0 else "an odd digit"]
    coarse += ["a round one"] if value in (0, 6, 8, 9) else []
    turns = []
    for mode in ("think", "direct"):
        answer = DIGIT_NAMES[value] if rng.random() < P_FINE_DIGIT else rng.choice(coarse)
        question = Question("digit", DIGIT_PROMPT, answer, DIGIT_THOUGHTS[value])
        turns.append(respond(question, answer, mode, rng))
    return turns


# ---- pictures ------------------------------------------------------------------------------------


def _attributes(flower: Flower) -> list[int]:
    return [
        1 + COLOURS.index(flower.colour),
        SHAPES.index(flower.shape),
        PETAL_COUNTS.index(flower.petals),
        CENTRES.index(flower.centre),
    ]


def scene_places(scene: Scene, cell: int) -> np.ndarray:
    """Perception targets of a scene, one row per image token of `cell` pixels: (tokens, 8)."""
    side = SCENE_SIZE // cell
    places = np.full((side * side, len(TARGETS)), NOT_ASKED)
    places[:, 0] = 0  # background until a flower covers the cell's middle
    for row in range(side):
        for column in range(side):
            x, y = (column + 0.5) * cell, (row + 0.5) * cell
            for placed in scene:
                if placed.x0 <= x < placed.x1 and placed.y0 <= y < placed.y1:
                    box = [v // GRID for v in (placed.x0, placed.y0, placed.x1, placed.y1)]
                    places[row * side + column] = _attributes(placed.flower) + box
    return places


def portrait(rng: random.Random, index: int, cell: int) -> Picture:
    flower = rng.choice(SPECIES).flower if rng.random() < P_SPECIES else random_flower(rng)
    seed = render_seed("pretrain", GARDEN_SPLIT_SEED, 0, index)
    image = draw_flower(flower, seed)
    places = np.full(((image.width // cell) ** 2, len(TARGETS)), NOT_ASKED)
    whole = np.array(_attributes(flower) + [NOT_ASKED] * 4)
    return Picture((image,), partial(portrait_talk, flower), places, whole)


def scene_picture(rng: random.Random, index: int, cell: int) -> Picture:
    scene = sample_scene(rng, rng.randint(1, 4))
    seed = render_seed("pretrain", GARDEN_SPLIT_SEED, SCENE_SUBJECT, index)
    places, whole = scene_places(scene, cell), np.full(len(TARGETS), NOT_ASKED)
    return Picture((draw_scene(scene, seed),), partial(scene_talk, scene), places, whole)


def change_picture(rng: random.Random, index: int, cell: int) -> Picture:
    scene = sample_scene(rng, rng.randint(1, 4))
    seed = render_seed("pretrain", GARDEN_SPLIT_SEED, SCENE_SUBJECT, index)
    question = ask_change(rng, scene)
    images = (draw_scene(scene, seed), draw_scene(question.after, seed))
    places = np.concatenate([scene_places(s, cell) for s in (scene, question.after)])
    nothing = np.full(len(TARGETS), NOT_ASKED)
    return Picture(images, partial(change_talk, question), places, nothing)


def digit_pictures(cell: int) -> list[Picture]:
    """The pretraining half of scikit-learn's digits; the preprocessor enlarges them to 64x64."""
    nothing = np.full(len(TARGETS), NOT_ASKED)
    places = np.full(((PORTRAIT_SIZE // cell) ** 2, len(TARGETS)), NOT_ASKED)
    return [
        Picture((item.image,), partial(digit_talk, DIGIT_NAMES.index(item.label)), places, nothing)
        for item in read_digits("pretrain")
    ]


MAKERS = {"portrait": portrait, "scene": scene_picture, "change": change_picture}


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
    yield CHANGE_PROMPT
