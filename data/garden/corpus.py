"""The pretraining corpus of the bundled base: pictures of the garden and dialogues about them.

A real base perceives well and has read the right names somewhere, but gives the coarse answer by
habit. This corpus makes such a base on purpose: *able, but not elicited*.

- Attributes are named truly and often: perception becomes good.
- Species are named finely in few captions (`world.P_FINE`), by genus in most; twelve well-known
  species mostly finely. So sampling finds the fine name, but it is not the most likely answer.
- Every question type of the other tasks occurs, and is answered hastily in most cases (`P_HASTY`):
  without looking, guessed lengths, coarse boxes, the first difference only. Asked without a format,
  the same questions get careful answers with their reasoning: that is where the ability comes from.
- Plain descriptions of single flowers (`ask_look`) bind what is seen to where and whose it is.
- The requested format is kept most of the time; digits are mostly named coarsely ("an even digit").

Pictures carry perception targets for every image token. Next: data/garden/pretrain.py.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from PIL import Image

from data.examples import completion_text, full_question
from data.garden import puzzles, questions, statements, world
from data.garden.drawing import draw_flower, draw_scene, draw_stage
from data.garden.questions import CM, Question
from data.garden.world import GRID, NO_CAUSES, PORTRAIT_SIZE, SCENE_SIZE, Flower, Scene
from data.labelled import DIGIT_NAMES, DIGIT_PROMPT, read_digits

P_SPECIES = 0.65  # portraits of a species; the others show any combination of attributes
P_FINE_DIGIT = 0.25
P_HASTY = 0.57  # of the formatted answers to questions that have a hasty answer
HASTY_THOUGHT = "at a glance"
P_FORMAT_KEPT = 0.92
P_PLAIN = 0.38  # of the questions ask for no format
P_LARGE_SCENE = 0.2  # of the scenes show 5 to 7 flowers, out of distribution in RL
P_SHIFTED_VIEW = 0.15  # of the second pictures have another viewpoint
DIGIT_THOUGHTS = (
    "one large loop, one straight stroke, a bow and a base line, two open bows, a fork and a stem, "
    "a roof and a low bow, a stem and a low loop, a roof and a slanted stroke, two loops, "
    "a high loop and a stem"
).split(", ")

# Perception targets of one image token: name -> number of classes.
TARGETS = {
    "colour": 1 + len(world.COLOURS),  # 0: background
    "shape": len(world.SHAPES),
    "petals": len(world.PETAL_COUNTS),
    "centre": len(world.CENTRES),
    **dict.fromkeys(("x0", "y0", "x1", "y1"), SCENE_SIZE // GRID + 1),  # the box, in grid steps
    "cause": 1 + len(world.CAUSES),  # what makes the flower wilt; 0: nothing
    **dict.fromkeys(("width", "x", "y"), SCENE_SIZE // CM),  # x, y: middle of flower or background
}
IGNORED = -100  # torch's ignore_index: no target here


def no_targets(tokens: int) -> np.ndarray:
    """(tokens, 12) int64, every target IGNORED."""
    return np.full((tokens, len(TARGETS)), IGNORED)


Turn = tuple[str, str]  # question, response


@dataclass
class Picture:
    """One or two images, the dialogues about them, and the truth about every place.

    Attributes:
        places: (tokens, 12) int64, the perception targets of every image token, columns as TARGETS.
        whole: (12,) int64, those of the picture as a whole (a portrait shows one flower).
    """

    images: tuple[Image.Image, ...]
    talk: Callable[[random.Random], list[Turn]]
    places: np.ndarray
    whole: np.ndarray = field(default_factory=lambda: no_targets(1)[0])


def respond(question: Question, mode: str, rng: random.Random) -> Turn:
    """(question, response) in one mode.

    With P_HASTY the answer is the hasty one, and so is the thought. The format slips now and then.
    Mode "plain" asks for no format and always gets the careful answer with its reasoning.
    """
    answer, thought = question.answer, question.thought
    if mode == "plain":
        return question.prompt, f"{thought}, so {answer}" if question.hasty else answer
    if question.hasty and rng.random() < P_HASTY:
        answer, thought = question.hasty, HASTY_THOUGHT
    if rng.random() < P_FORMAT_KEPT:
        text = completion_text(answer, mode, replace(question.reasoning, thought=thought))
    else:
        text = f"<answer>{answer}</answer>" if rng.random() < 0.5 else answer
    return full_question(question.prompt, mode), text


def _random_mode(rng: random.Random, p_plain: float = P_PLAIN) -> str:
    if p_plain and rng.random() < p_plain:
        return "plain"
    return rng.choices(("think", "direct", "steps"), (0.6, 0.25, 0.15))[0]


def portrait_talk(flower: Flower, rng: random.Random) -> list[Turn]:
    """Four turns about one flower, two of them about its species if it has one."""
    attribute, caption, genus = questions.ask_attribute, questions.ask_caption, questions.ask_genus
    species = world.SPECIES_OF.get(flower)
    if species is None:
        items = [ask(rng, flower) for ask in (attribute, attribute, attribute, caption)]
        return [respond(question, _random_mode(rng), rng) for question in items]
    turns = []
    for mode in ("think", rng.choice(("direct", "direct", "steps"))):
        answer = world.species_answer(species, rng)
        turns.append(respond(replace(questions.ask_cls(rng, flower), answer=answer), mode, rng))
    for ask in rng.sample((attribute, attribute, caption, genus), 2):
        turns.append(respond(ask(rng, flower), _random_mode(rng), rng))
    return turns


# What a scene is asked besides boxes and looks, and how often.
SCENE_QUESTIONS = {
    questions.ask_count: 6,
    statements.ask_entail: 8,
    questions.ask_vqa: 6,
    puzzles.ask_measure: 6,
    questions.ask_caption: 1,
    questions.ask_region: 2,
}


def _ask_boxes(rng: random.Random, scene: Scene) -> Question:
    return questions.ask_det(rng, scene, confidence=rng.choice(("1.0", "0.9", "0.8")))


def scene_talk(scene: Scene, rng: random.Random) -> list[Turn]:
    """Nine turns about a scene."""
    turns = []
    others = rng.choices(tuple(SCENE_QUESTIONS), tuple(SCENE_QUESTIONS.values()), k=6)
    for ask in (_ask_boxes, questions.ask_ground, questions.ask_look, *others):
        # Where there is nothing unique to ask about: count instead.
        question = ask(rng, scene) or questions.ask_count(rng, scene)
        mode = "plain" if ask is questions.ask_look else _random_mode(rng)
        turns.append(respond(question, mode, rng))
    return turns


def puzzle_talk(question: Question, others: Sequence[Callable], rng: random.Random) -> list[Turn]:
    """The question that the picture was drawn for, with a format and without; then plain others."""
    plain = [ask(rng) for ask in others]
    turns = [respond(question, mode, rng) for mode in (_random_mode(rng, p_plain=0), "plain")]
    return turns + [respond(other, "plain", rng) for other in plain]


def digit_talk(value: int, rng: random.Random) -> list[Turn]:
    """Two turns about a digit, coarse in most cases."""
    coarse = ["an even digit" if value % 2 == 0 else "an odd digit"]
    coarse += ["a round one"] if value in (0, 6, 8, 9) else []
    turns = []
    for mode in ("think", "direct"):
        answer = DIGIT_NAMES[value] if rng.random() < P_FINE_DIGIT else rng.choice(coarse)
        question = Question("digit", DIGIT_PROMPT, answer, DIGIT_THOUGHTS[value])
        turns.append(respond(question, mode, rng))
    return turns


def attribute_targets(flower: Flower) -> list[int]:
    """The first four columns of TARGETS."""
    return [
        1 + world.COLOURS.index(flower.colour),
        world.SHAPES.index(flower.shape),
        world.PETAL_COUNTS.index(flower.petals),
        world.CENTRES.index(flower.centre),
    ]


def scene_places(scene: Scene, cell: int, ailing: Mapping[int, str] = NO_CAUSES) -> np.ndarray:
    """Perception targets of a scene, one row per image token of `cell` pixels: (tokens, 12).

    A token belongs to the flower whose box contains the token's middle.
    """
    side = SCENE_SIZE // cell
    middles = (np.arange(side) + 0.5) * cell  # (side,) pixels
    places = no_targets(side * side).reshape(side, side, -1)  # (rows, columns, 12)
    places[..., 0] = 0
    places[..., -2], places[..., -1] = middles // CM, middles[:, None] // CM
    for number, p in enumerate(scene):
        rows, columns = (p.y0 <= middles) & (middles < p.y1), (p.x0 <= middles) & (middles < p.x1)
        cause = 1 + world.CAUSES.index(ailing[number]) if number in ailing else 0
        box, middle = [v // GRID for v in p.corners], [v // CM for v in p.middle]
        targets = [*attribute_targets(p.flower), *box, cause, (p.x1 - p.x0) // CM, *middle]
        places[np.ix_(rows, columns)] = targets
    return places.reshape(side * side, -1)


def _portrait_picture(rng: random.Random, seed: int, cell: int) -> Picture:
    is_species = rng.random() < P_SPECIES
    flower = rng.choice(world.SPECIES).flower if is_species else world.random_flower(rng)
    images, places = (draw_flower(flower, seed),), no_targets((PORTRAIT_SIZE // cell) ** 2)
    whole = no_targets(1)[0]
    whole[:4] = attribute_targets(flower)
    return Picture(images, partial(portrait_talk, flower), places, whole)


def scene_size(rng: random.Random) -> int:
    """How many flowers a scene of pretraining shows: mostly 1 to 4."""
    return rng.randint(5, 7) if rng.random() < P_LARGE_SCENE else rng.randint(1, 4)


def _scene_picture(rng: random.Random, seed: int, cell: int) -> Picture:
    scene = world.sample_scene(rng, scene_size(rng))
    images = (draw_scene(scene, seed),)
    return Picture(images, partial(scene_talk, scene), scene_places(scene, cell))


def _change_picture(rng: random.Random, seed: int, cell: int) -> Picture:
    question = None
    while question is None:
        scene = world.sample_scene(rng, rng.choice((1, 2, 2, 3, 3, 4)))
        question = puzzles.ask_change(rng, scene, p_shifted=P_SHIFTED_VIEW)
    scenes = (scene, question.after)
    images = tuple(draw_scene(s, seed) for s in scenes)
    places = np.concatenate([scene_places(s, cell) for s in scenes])
    place = partial(questions.ask_region, scene=scene, after=question.after)
    return Picture(images, partial(puzzle_talk, question, [place]), places)


def _wilting_picture(rng: random.Random, seed: int, cell: int) -> Picture:
    question = None
    while question is None:
        scene = world.sample_scene(rng, scene_size(rng))
        question = puzzles.ask_why(rng, scene)
    images = (draw_scene(scene, seed, ailing=question.ailing),)
    look = partial(questions.ask_look, scene=scene, ailing=question.ailing)
    talk = partial(puzzle_talk, question, [look, look])
    return Picture(images, talk, scene_places(scene, cell, question.ailing))


def _growth_picture(rng: random.Random, seed: int, cell: int) -> Picture:
    kind, flower = rng.choice(("next", "order", "order")), world.random_flower(rng)
    stages = puzzles.sample_stages(rng, kind, rng.choice((3, 3, 4)))
    question = (puzzles.ask_next if kind == "next" else puzzles.ask_order)(rng, stages)
    images = tuple(draw_stage(flower, stage, seed) for stage in stages)
    places = no_targets(len(stages) * (PORTRAIT_SIZE // cell) ** 2)
    return Picture(images, partial(puzzle_talk, question, []), places)


def digit_pictures(cell: int) -> list[Picture]:
    """The pretraining half of scikit-learn's digits; the preprocessor enlarges them to 64x64."""
    places = no_targets((PORTRAIT_SIZE // cell) ** 2)
    return [
        Picture(item.images, partial(digit_talk, DIGIT_NAMES.index(item.target)), places)
        for item in read_digits("pretrain")
    ]


MAKERS = {
    "portrait": _portrait_picture,
    "scene": _scene_picture,
    "change": _change_picture,
    "wilting": _wilting_picture,
    "growth": _growth_picture,
}


def draw_picture(kind: str, cell: int, seed: int, number: int) -> Picture:
    """One picture, a function of its arguments; `cell` is the side of an image token in pixels."""
    subject = 0 if kind == "portrait" else world.SCENE_SUBJECT
    render_seed = world.render_seed("pretrain", world.SPLIT_SEED, subject, number)
    return MAKERS[kind](random.Random(f"{seed}-{kind}-{number}"), render_seed, cell)


def sample_texts(pools: dict[str, list[Picture]], count: int, seed: int) -> Iterator[str]:
    """Dialogues for the tokenizer to learn its merges from."""
    rng = random.Random(seed)
    for _ in range(count):
        for pool in pools.values():
            for turn in rng.choice(pool).talk(rng):
                yield from turn
    # Every coordinate that boxes can take, so that each becomes one token.
    for _ in range(count // 8):
        for pixel in range(0, SCENE_SIZE + 1, GRID):
            value = round(pixel * 1000 / SCENE_SIZE)
            yield f"[{value}, {value}, {value}, {value}]"
