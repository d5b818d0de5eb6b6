"""Few-shot detection: all boxes of one category, after Visual-RFT (arXiv:2503.01785).

prompt   "Find every red flower."
data     garden scenes: `--shots` images that show each category, and some that do not; COCO's
         annotations (json with --data_root for the images); rows with a box list as solution,
         Visual-RFT's own among them
reward   IoU of matched boxes, punishing misses, extras and duplicates (with --dense, boxes that
         overlap by less than half count too) + confidence + format
metric   mAP and AP50 by pycocotools; strict: every box found at IoU 0.5 and no other
ood      larger scenes: 5 to 7 flowers instead of 1 to 4
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

from answers import parse_boxes
from config import TaskConfig
from data import coco
from data.answer_forms import BOXES
from data.coco import CocoImage
from data.examples import Example, shuffle
from data.files import SkipLog
from data.garden.questions import DET_PROMPT, ask_det
from data.garden.world import COLOURS, sample_scene
from data.paths import named
from data.pictures import look
from data.splits import divide, has_splits
from model.image import ImageConfig
from rewards import Reward, boxes_correct, detection_reward
from runtime.errors import InputError
from tasks.boxes import average_precision, box_list, box_rows, in_model_format, refuse_resized
from tasks.scenes import (
    ID_OBJECTS,
    Drawing,
    Splits,
    drawing_of,
    garden_examples,
    make_task,
    one_scene,
)
from tasks.task import Task, Weights

ABSENT_SHARE = 0.15  # training images that lack the category, as a share of those that show it

FLAGS = (
    "shots",
    "train_size",
    "held_out_size",
    "confidence_weight",
    "dense",
    "coords",
    "data_coords",
)


def load(cfg: TaskConfig, image_cfg: ImageConfig | None = None) -> Task:
    """Read or generate the detection task. Raises InputError for data that cannot be used."""
    if cfg.data == "garden":
        splits = (
            few_shots(cfg, COLOURS),
            {
                "held_out": colour_questions("det", cfg, COLOURS, "test"),
                "ood": colour_questions("det", cfg, COLOURS, "test", is_ood=True),
                "val": colour_questions("det", cfg, COLOURS, "val"),
            },
        )
    elif coco.is_coco(cfg.data):
        images, names = coco_images(cfg)
        splits = coco_splits(images, cfg, names, {"held_out": names})
    else:
        splits = box_rows(cfg, BOXES, image_cfg)
    return detection_task("det", cfg, splits, image_cfg)


def detection_task(
    name: str, cfg: TaskConfig, splits: Splits, image_cfg: ImageConfig | None
) -> Task:
    """A Task with detection's reward and metrics, its targets in the model's box format."""

    def reward(text: str, example: Example, weights: Weights, dense: float) -> Reward:
        mode, canvas = cfg.prompt_mode, example.canvas
        return detection_reward(text, example.target, mode, weights, dense, canvas)

    splits = in_model_format(splits, cfg, image_cfg)
    metrics = dict(summary=average_precision, headline="mAP", read=read)
    return make_task(name, cfg, splits, reward, scores, max_completion_length=144, **metrics)


def scores(text: str, example: Example) -> dict[str, float]:
    """Strict: every box right and no other."""
    return {"strict": boxes_correct(text, example.target, example.canvas)}


def read(answer: str | None, example: Example) -> list | None:
    """An answer is a list with at least one box, or says that there is none."""
    boxes, malformed = parse_boxes(answer, example.canvas) or ([], 1)
    return None if malformed and not boxes else boxes


def few_shots(cfg: TaskConfig, colours: Sequence[str]) -> list[Example]:
    """Scenes to train on: `--shots` that show each colour, and some that lack it."""
    n_absent = max(1, round(ABSENT_SHARE * cfg.shots * len(colours)))
    cases = [(colour, True) for _ in range(cfg.shots) for colour in colours]
    cases += [(colours[k % len(colours)], False) for k in range(n_absent)]
    examples = []
    for k, (colour, is_present) in enumerate(cases):
        draw = partial(draw_colour, colour, is_present)
        examples += garden_examples("det", draw, cfg.split_seed, range(k, k + 1), "train")
    return examples


def draw_colour(
    colour: str, is_present: bool, rng: random.Random, seed: int, is_ood: bool
) -> Drawing | None:
    """A scene that shows, or does not show, the colour of its question."""
    scene = sample_scene(rng, rng.randint(*ID_OBJECTS))
    if any(placed.colour == colour for placed in scene) != is_present:
        return None
    question = ask_det(rng, scene, categories=(colour,))
    return drawing_of(question, scene, seed)


def colour_questions(
    name: str, cfg: TaskConfig, colours: Sequence[str], split: str, is_ood: bool = False
) -> list[Example]:
    """`--held_out_size` questions about one of the colours each; 15 % of them find nothing."""
    draw = one_scene(partial(ask_det, categories=colours))
    return garden_examples(name, draw, cfg.split_seed, range(cfg.held_out_size), split, is_ood)


def coco_images(cfg: TaskConfig) -> tuple[list[CocoImage], list[str]]:
    """The annotated images, and the categories with enough of them to train on and one to evaluate.

    The other categories are named. Raises InputError for no category.
    """
    refuse_resized(cfg)
    images = coco.load_coco(cfg.data, cfg.data_root, cfg.max_skip, cfg.data_coords)
    by_name = has_splits((i.split for i in images), cfg.data)  # then all of train may be shots
    trained = [i for i in images if i.split == "train"] if by_name else images
    counts = Counter(name for i in trained for name in i.boxes if name not in i.unsure)
    names = sorted(name for name, count in counts.items() if count >= cfg.shots + (not by_name))
    if rare := sorted({name for i in images for name in i.boxes} - set(names)):
        print(f"data: {len(rare)} categories have too few images and are left out: {rare[:10]}")
    if not names:
        fix = "lower it" if cfg.shots > 1 else "add images"
        raise InputError(f"--shots {cfg.shots}: no category has more images; {fix}")
    return images, names


def coco_splits(
    images: list[CocoImage],
    cfg: TaskConfig,
    trained: Sequence[str],
    evaluated: Mapping[str, Sequence[str]],
) -> Splits:
    """`--shots` images of each trained category; questions about `evaluated` for the other images.

    `evaluated` names the categories of each held-out split. The order of its images depends on the
    seed alone, so more shots are evaluated on the same ones, less those trained on. Every fourth
    question asks for a category that its image is known to lack; `absent_examples` to train on.
    Where the data name their splits, the shots are of train, and the other images of the rest.
    """
    parts = {split: images for split in ("train", *evaluated)}
    if has_splits(i.split for i in images):
        parts["train"], rest = divide(images, lambda i: i.split, lambda i: str(i.path), cfg.data)
        parts |= rest | {split: rest["held_out"] for split in evaluated}
        evaluated = {"val": evaluated["held_out"]} | evaluated if "val" in rest else evaluated
    about = (trained, cfg.shots, cfg.split_seed, cfg.max_skip)
    shots = coco.few_shot_categories(parts["train"], *about)
    train = [coco_example(image, name) for name, subset in shots.items() for image in subset]
    train += absent_examples(shots, trained, cfg.split_seed)
    used = {image.id for subset in shots.values() for image in subset}
    seen = {look(image.path).pixels for subset in shots.values() for image in subset}
    splits = {}
    for split, names in evaluated.items():
        order = parts[split].copy()
        random.Random(cfg.split_seed).shuffle(order)
        skips, examples, n_absent, n_copies = SkipLog(), [], 0, 0
        for image in coco.usable_images((i for i in order if i.id not in used), skips):
            if look(image.path).pixels in seen:
                n_copies += 1
                continue
            rng = random.Random(f"{cfg.split_seed}-{image.id}")
            sure = [name for name in names if name not in image.unsure]
            absent = [name for name in sure if coco.lacks(image, name)]
            examples += [coco_example(image, name) for name in sure if name in image.boxes]
            if absent and 4 * n_absent < len(examples):
                n_absent += 1
                examples.append(coco_example(image, rng.choice(absent)))
            if len(examples) >= cfg.held_out_size:
                break
        skips.check(len(examples) + skips.counts.total(), max(coco.REPLACED, cfg.max_skip))
        if n_copies:
            print(f"data: {n_copies} {split} images dropped: copies of training images")
        if not examples:
            fix = "lower --shots" if cfg.shots > 1 else "add images"
            raise InputError(f"--data {named(cfg.data)}: no image is left to evaluate; {fix}")
        splits[split] = examples[: cfg.held_out_size]
    return train, splits


def absent_examples(
    shots: Mapping[str, Sequence[CocoImage]], trained: Sequence[str], seed: int
) -> list[Example]:
    """Questions for categories that images of the shots are known to lack: `ABSENT_SHARE` more.

    As in the garden. Without them a model learns that whatever it is asked for is there.
    """
    n_shots = sum(map(len, shots.values()))
    wanted, examples = max(1, round(ABSENT_SHARE * n_shots)), []
    images = list({image.id: image for subset in shots.values() for image in subset}.values())
    for image in shuffle(images, seed):
        lacking = [name for name in trained if coco.lacks(image, name)]
        if lacking and len(examples) < wanted:
            rng = random.Random(f"{seed}-{image.id}")
            examples.append(coco_example(image, rng.choice(lacking)))
    print(f"data: {n_shots} questions to train on, and {len(examples)} for what is not there")
    return examples


def coco_example(image: CocoImage, category: str) -> Example:
    """The question for one category of an image."""
    question = DET_PROMPT.format(category=category)
    target = box_list(image.boxes.get(category, []))
    return Example(f"{image.id}-{category}", (image.path,), question, target, "abs")
