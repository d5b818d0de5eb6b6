"""Few-shot fine-grained classification: one image, one name, after Visual-RFT (arXiv:2503.01785).

    prompt   "Which species is this flower?" and how to answer; open-ended, no list of names
    data     the garden world, scikit-learn's digits, a folder of class folders, a Visual-RFT table
    reward   right name (whole, normalised) + asked-for format
    metric   strict accuracy; Visual-RFT's substring rule is printed beside it as "loose"

The garden's pictures are taken outdoors (`garden_drawing.outdoors`), while the base was pretrained
on clean ones: it sees well, not perfectly. The splits: `train` holds `shots` pictures of each of
the 30 RL species, `held_out` other renderings of the same species, `val` a third set of renderings
for choosing settings, and `ood` the ten species that no RL run ever trains on. Real data have
`train` and `held_out`. Next: train_grpo.py.
"""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np

from answers import normalise_name, parse_answer
from config import TaskConfig
from data.examples import Example
from data.garden.drawing import draw_flower, outdoors
from data.garden.questions import CLS_PROMPT, ask_cls
from data.garden.world import OOD_SPECIES, RL_SPECIES, class_examples
from data.labelled import few_shot_split, load_labelled
from model.image import ImageConfig
from rewards import classification_reward, name_correct
from runtime.errors import InputError
from tasks.loose import loose_name_correct
from tasks.scenes import wire
from tasks.task import Task, Weights

DIGIT_PROMPT = "Which digit is this?"
ANY_PROMPT = "Which class does this image show?"

FLAGS = "shots held_out_per_class shuffle_labels dense".split()  # what this task reads


def load(cfg: TaskConfig, image_cfg: ImageConfig | None = None) -> Task:
    """Read or generate the classification task. Raises InputError for data that cannot be used."""
    if cfg.data == "garden":
        train, splits = garden_examples(cfg.shots, cfg.held_out_per_class, cfg.split_seed)
    else:
        train, splits = labelled_examples(
            cfg.data,
            cfg.max_skip,
            cfg.data_root,
            cfg.shots,
            cfg.held_out_per_class,
            cfg.split_seed,
        )
    if cfg.shuffle_labels:
        train = shuffled(train, cfg.split_seed)

    def reward(text: str, example: Example, weights: Weights, dense: float):
        return classification_reward(text, example.target, cfg.prompt_mode, weights, dense)

    return wire("cls", cfg, (train, splits), reward, scores, max_completion_length=40)


def scores(text: str, example: Example) -> dict[str, float]:
    return {
        "strict": name_correct(parse_answer(text), example.target),
        "loose": loose_name_correct(text, example.target),
    }


def garden_examples(shots: int, held_out: int, split_seed: int):
    """Portraits of species: 30 for RL, each in three disjoint sets of renderings, and 10 OOD."""

    def portrait(id: str, seed: int, species) -> Example:
        image = outdoors(draw_flower(species.flower, seed), seed)
        reasoning = ask_cls(random.Random(0), species.flower).reasoning
        return Example(id, (image,), CLS_PROMPT, species.name, reasoning=reasoning)

    def draw(species, count, split) -> list[Example]:
        return [portrait(*made) for made in class_examples(species, count, split, split_seed)]

    return draw(RL_SPECIES, shots, "train"), {
        "held_out": draw(RL_SPECIES, held_out, "test"),
        "ood": draw(OOD_SPECIES, held_out, "test"),
        "val": draw(RL_SPECIES, held_out, "val"),
    }


def labelled_examples(
    data: str,
    max_skip: float,
    data_root: Path | None,
    shots: int,
    held_out: int,
    split_seed: int,
):
    """Any labelled images: `shots` of every class train, up to `held_out` others judge."""
    default = DIGIT_PROMPT if data == "digits" else ANY_PROMPT

    def as_examples(items) -> list[Example]:
        return [Example(i.id, (i.image,), i.question or default, i.label) for i in items]

    train, judged = few_shot_split(
        load_labelled(data, max_skip, data_root), shots, split_seed, held_out
    )
    return as_examples(train), {"held_out": as_examples(judged)}


def shuffled(examples: list[Example], seed: int) -> list[Example]:
    """The same images with wrong names: classes in a random order, each named like the next."""
    # Keyed by the normalised name: "Rose" and "rose" are one class, and not wrong for each other.
    spelling = {normalise_name(example.target): example.target for example in examples}
    names = sorted(spelling)
    if len(names) < 2:
        raise InputError("--shuffle_labels: needs two classes at least")
    bits = np.random.Philox(key=np.array([seed, 0], dtype=np.uint64))
    order = [names[i] for i in np.argsort(bits.random_raw(len(names)), kind="stable")]
    wrong = dict(zip(order, order[1:] + order[:1], strict=True))
    return [replace(e, target=spelling[wrong[normalise_name(e.target)]]) for e in examples]
