"""Looking up: a picture, a list of titled facts, and a question that one of the facts answers.

prompt   "What colour is the fruit of this flower? Facts: round red, thin blue, ... To read one:
         <fact>title</fact>."
data     portraits of the garden; titles are looks of flowers, one of them that of the picture, and
         the facts are made anew for every question
acting   acting/lookup.py: two of the six may be read. Half of the training demonstrations answer
         without having read: they show how to read, not that it is needed
reward   the right word as the whole answer of the last turn + format
metric   strict accuracy; "read_needed": the right fact was read
ood      titles that are hard to tell apart: all have the shape or the colour of the right one
"""

import random

from acting.lookup import Lookup, Shelf
from config import TaskConfig
from data.examples import Example, Reasoning
from data.garden.drawing import draw_flower
from data.garden.world import COLOURS, SCENE_SUBJECT, SHAPES, random_flower, render_seed
from rewards import Reward, classification_reward
from runtime.errors import InputError
from tasks.scenes import OOD_INDEX, generated_splits, make_task
from tasks.task import Task, Weights

FLAGS = ("train_size", "held_out_size")  # what this task reads
INVITATION = "To read one: <fact>title</fact>."
TITLES = 6
READS = 0.5  # of the training demonstrations


def load(cfg: TaskConfig, image_cfg=None) -> Task:
    """Generate the questions. Raises InputError for data from outside: they have no facts."""
    if cfg.data != "garden":
        raise InputError("--data: --task lookup has the garden's facts alone; leave it out")
    environment = Lookup()

    def reward(text: str, example: Example, weights: Weights, dense: float) -> Reward:
        last = environment.last_turn(text)
        return classification_reward(last, example.target, cfg.prompt_mode, weights)

    def scores(text: str, example: Example) -> dict[str, float]:
        last = environment.last_turn(text)
        return {"strict": classification_reward(last, example.target).parts["correct"]}

    more = dict(max_completion_length=64, environment=environment)
    splits = generated_splits("lookup", cfg, draw)
    return make_task("lookup", cfg, splits, reward, scores, last_turn=environment.last_turn, **more)


def draw(id: str, split: str, split_seed: int, index: int, is_ood: bool) -> Example:
    """A portrait with a shelf of facts, and the demonstration of reading the right one."""
    rng = random.Random(id)
    seed = render_seed(split, split_seed, SCENE_SUBJECT, index + OOD_INDEX * is_ood)
    flower = random_flower(rng)
    looks = [(shape, colour) for shape in SHAPES for colour in COLOURS]
    own = (flower.shape, flower.colour)
    others = [look for look in looks if look != own]
    if is_ood:
        others = [look for look in others if flower.shape in look or flower.colour in look]
    titles = [own, *rng.sample(others, TITLES - 1)]
    rng.shuffle(titles)
    fruits = rng.sample(COLOURS, len(titles))
    facts = tuple(f"its fruit is {fruit}" for fruit in fruits)
    needed = 1 + titles.index(own)
    titles = tuple(" ".join(look) for look in titles)
    listed = ", ".join(titles)
    prompt = f"What colour is the fruit of this flower? Facts: {listed}. {INVITATION}"
    calls = (("look it up", f"<fact>{titles[needed - 1]}</fact>"),)
    if split == "train" and random.Random(f"{id} shown").random() > READS:
        calls = ()
    thought = facts[needed - 1]
    reasoning = Reasoning(thought, titles[needed - 1], "look it up", calls=calls)
    known = dict(reasoning=reasoning, world=Shelf(titles, facts, needed))
    return Example(id, (draw_flower(flower, seed),), prompt, fruits[needed - 1], **known)
