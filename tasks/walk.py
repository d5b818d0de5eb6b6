"""An embodied miniature: walk through a flower bed to the flower that the question means.

prompt   "Walk to the red flower and pick it. To move: <go>north</go>, south, east, west."
data     beds of 3 x 3 cells with three flowers, somewhere on a lawn of 4 x 4
acting   acting/walk.py: after each move the bed is shown again; the answer "pick" ends the walk.
         Of the training demonstrations three in four pick too early: they show how to walk, not
         how far
reward   the answer "pick" where the gardener stands at the flower + format
metric   strict: arrived and picked; "arrived" and "detour" tell more
ood      larger beds: 4 x 4 cells with five flowers
"""

import random
from functools import partial

from acting.walk import Bed, Walk
from answers import parse_answer, parse_name
from config import TaskConfig
from data.examples import Example, Reasoning
from data.garden.bed import NET, ask_way, draw_bed, sample_bed, way
from data.garden.world import SCENE_SUBJECT, render_seed
from rewards import Reward, format_reward, weighted
from runtime.errors import InputError
from tasks.scenes import OOD_INDEX, generated_splits, make_task
from tasks.task import Task, Weights

FLAGS = ("train_size", "held_out_size")  # what this task reads
INVITATION = "To move: <go>north</go>, south, east, west."
SIDE, OOD_SIDE = 3, 4  # cells
FLOWERS, OOD_FLOWERS = 3, 5
LATER_PICTURES = Walk.budget
TOO_EARLY = 0.75  # of the training demonstrations


def load(cfg: TaskConfig, image_cfg=None) -> Task:
    """Generate walks. Raises InputError for data from outside: nothing there can be walked."""
    if cfg.data != "garden":
        raise InputError("--data: --task walk has the garden's beds alone; leave it out")
    environment = Walk()

    def is_right(text: str, example: Example) -> float:
        answer = parse_name(parse_answer(environment.last_turn(text)))
        state = environment.replay(example, text)
        return float(answer == "pick" and environment.place(state) == example.world.goal)

    def reward(text: str, example: Example, weights: Weights, dense: float) -> Reward:
        format = format_reward(environment.last_turn(text), cfg.prompt_mode)
        return weighted({"correct": is_right(text, example), "format": format}, weights)

    def scores(text: str, example: Example) -> dict[str, float]:
        return {"strict": is_right(text, example)}

    more = dict(max_completion_length=200, environment=environment)
    splits = generated_splits("walk", cfg, draw)
    return make_task("walk", cfg, splits, reward, scores, last_turn=environment.last_turn, **more)


def draw(id: str, split: str, split_seed: int, index: int, is_ood: bool) -> Example:
    """A walk to one of the flowers, with the demonstration of a shortest way."""
    rng = random.Random(id)
    seed = render_seed(split, split_seed, SCENE_SUBJECT, index + OOD_INDEX * is_ood)
    side = OOD_SIDE if is_ood else SIDE
    corner, flowers, start = sample_bed(rng, side, OOD_FLOWERS if is_ood else FLOWERS)
    goal = rng.choice(list(flowers))
    drawn = partial(draw_bed, tuple(flowers.items()), corner, side, seed)
    bed = Bed(NET, corner, side, start, goal, drawn)
    colour = flowers[goal].colour
    question = ask_way(colour, goal)
    moves = tuple((t, f"<go>{move}</go>") for t, move in way(start, goal, colour))
    shown, thought = random.Random(f"{id} shown"), question.thought
    if split == "train" and shown.random() < TOO_EARLY:
        made = shown.randrange(len(moves))
        moves, thought = moves[:made], moves[made][0]
    reasoning = Reasoning(thought, question.seen, "walk", calls=moves)
    prompt = f"{question.prompt} {INVITATION}"
    known = dict(reasoning=reasoning, world=bed)
    return Example(id, (bed.draw(start),), prompt, question.answer, **known)
