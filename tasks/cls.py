"""Few-shot fine-grained classification: one image, one name, after Visual-RFT (arXiv:2503.01785).

    prompt   "Which species is this flower?" and how to answer; open-ended, no list of names
    data     the garden world, scikit-learn's digits, a folder of class folders, a Visual-RFT table
    reward   right name (whole, normalised) + format
    metric   strict accuracy; Visual-RFT's substring rule is printed beside it as "loose"

The splits: `train` holds `shots` pictures of each of the 30 RL species, taken outdoors, `held_out`
other renderings of the same species, `val` a third set for choosing settings, and `ood` the ten
species that no RL run ever trains on. Real data have `train` and `held_out`. Next: train_grpo.py.
"""

import random
from dataclasses import replace

from answers import normalise_name
from config import TaskConfig
from data.examples import Example, shuffle
from data.garden.drawing import draw_flower, outdoors
from data.garden.facts import facts_of
from data.garden.questions import CLS_PROMPT, ask_cls
from data.garden.world import OOD_SPECIES, RL_SPECIES, class_examples
from data.labelled import few_shot_split, load_labelled, named_splits
from data.splits import has_splits
from rewards import classification_reward
from runtime.errors import InputError
from tasks.loose import loose_name_correct
from tasks.scenes import Splits, answer_task
from tasks.task import Task

# What this task reads.
FLAGS = ("shots", "held_out_per_class", "list_classes", "shuffle_labels", "dense")
MAX_LISTED = 4000  # characters of class names in a question


def load(cfg: TaskConfig, image_cfg=None) -> Task:
    """Read or generate the classification task. Raises InputError for data that cannot be used."""
    train, evaluated = garden_splits(cfg) if cfg.data == "garden" else labelled_splits(cfg)
    if cfg.shuffle_labels:
        train = shuffled(train, cfg.split_seed)
    if cfg.list_classes:
        names = sorted({e.target for e in sum(evaluated.values(), train)})
        train = with_names(train, names, cfg.question)
        evaluated = {s: with_names(e, names, cfg.question) for s, e in evaluated.items()}
        cfg = replace(cfg, question=None)
    splits = train, evaluated
    return answer_task("cls", cfg, splits, classification_reward, loose_name_correct, 40)


def garden_splits(cfg: TaskConfig) -> Splits:
    """Portraits of species: 30 for RL, each in three disjoint sets of renderings, and 10 OOD."""

    def portraits(all_species, count: int, split: str) -> list[Example]:
        examples = []
        for id, seed, species in class_examples(all_species, count, split, cfg.split_seed):
            image = outdoors(draw_flower(species.flower, seed), seed)
            question = ask_cls(random.Random(0), species.flower)
            facts = facts_of(question, flower=species.flower)
            known = {"reasoning": question.reasoning, "facts": facts}
            examples.append(Example(id, (image,), CLS_PROMPT, species.name, **known))
        return examples

    return portraits(RL_SPECIES, cfg.shots, "train"), {
        "held_out": portraits(RL_SPECIES, cfg.held_out_per_class, "test"),
        "ood": portraits(OOD_SPECIES, cfg.held_out_per_class, "test"),
        "val": portraits(RL_SPECIES, cfg.held_out_per_class, "val"),
    }


def labelled_splits(cfg: TaskConfig) -> Splits:
    """Any labelled images: `--shots` of every class to train on, other ones held out."""
    items = load_labelled(cfg.data, cfg.max_skip, cfg.data_root)
    if has_splits((item.split for item in items), cfg.data):
        return named_splits(items, cfg.shots, cfg.split_seed, cfg.held_out_per_class, cfg.data)
    train, held_out = few_shot_split(items, cfg.shots, cfg.split_seed, cfg.held_out_per_class)
    return train, {"held_out": held_out}


def with_names(examples: list[Example], names: list[str], asked: str | None) -> list[Example]:
    """The examples, their questions (or `asked`) followed by all class names.

    Raises InputError for names that are too long together.
    """
    listed = ("; " if any("," in name for name in names) else ", ").join(names)
    if len(listed) > MAX_LISTED:
        what = f"{len(names)} names of {len(listed)} characters"
        raise InputError(f"--list_classes: {what}, more than {MAX_LISTED}; leave it out")
    return [
        replace(e, question=f"{asked or e.question} Choose one of: {listed}.") for e in examples
    ]


def shuffled(examples: list[Example], seed: int) -> list[Example]:
    """The same images with wrong names: classes in a random order, each named like the next."""
    # Keyed by the normalised name: "Rose" and "rose" are one class, and not wrong for each other.
    spelling = {normalise_name(example.target): example.target for example in examples}
    if len(spelling) < 2:
        raise InputError("--shuffle_labels: needs two classes at least")
    order = shuffle(sorted(spelling), seed)
    wrong = dict(zip(order, order[1:] + order[:1], strict=True))
    return [replace(e, target=spelling[wrong[normalise_name(e.target)]]) for e in examples]
