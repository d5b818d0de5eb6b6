"""Few-shot detection: all boxes of one category, after Visual-RFT (arXiv:2503.01785).

prompt   "Find every red flower."
data     garden scenes: `--shots` images that show each category, and some that do not; COCO's
         annotations (json with --data_root for the images); rows with a box list as solution,
         Visual-RFT's own among them
reward   IoU of matched boxes, punishing misses, extras and duplicates (with --dense, boxes that
         overlap by less than half count too) + confidence + asked-for format
metric   mAP and AP50 by pycocotools; strict: every box found at IoU 0.5 and no other
ood      larger scenes: 5 to 7 flowers instead of 1 to 4
"""

import random
from collections.abc import Sequence
from functools import partial

from model.errors import InputError
from rewards import boxes_correct, detection_reward
from tasks import Example, Settings, Task
from tasks.boxes import average_precision, box_list, in_frame, is_box_list, row_in_frame
from tasks.coco import CocoImage, few_shot_categories, is_coco, lacks, load_coco
from tasks.garden import COLOURS, sample_scene
from tasks.garden_drawing import draw_scene
from tasks.garden_questions import DET_PROMPT, ask_det
from tasks.scenes import (
    ID_OBJECTS,
    Made,
    Splits,
    draw_question,
    garden_examples,
    record_splits,
    wire,
)

ABSENT_SHARE = 0.15  # training images that lack the category, as a share of those that show it


def load(settings: Settings) -> Task:
    """Read or generate the detection task. Raises InputError for data that cannot be used."""
    if settings.data == "garden":
        splits = {
            "held_out": judged("det", settings, COLOURS, "test"),
            "ood": judged("det", settings, COLOURS, "test", is_ood=True),
            "val": judged("det", settings, COLOURS, "val"),
        }
        return wire_detection("det", settings, (few_shots(settings, COLOURS), splits))
    return wire_detection("det", settings, real_splits(settings))


def few_shots(settings: Settings, colours: Sequence[str]) -> list[Example]:
    """Scenes to train on: `--shots` that show each colour, and some that lack it."""
    n_absent = max(1, round(ABSENT_SHARE * settings.shots * len(colours)))
    wanted = [(colour, True) for _ in range(settings.shots) for colour in colours]
    wanted += [(colours[k % len(colours)], False) for k in range(n_absent)]
    examples = []
    for k, (colour, is_present) in enumerate(wanted):
        make = partial(shows, colour, is_present)
        examples += garden_examples(f"det-{k}", make, 1, "train", settings.split_seed)
    return to_frame("norm1000", examples, settings)


def judged(
    name: str, settings: Settings, colours: Sequence[str], split: str, is_ood: bool = False
) -> list[Example]:
    """`--held_out_size` questions about one of the colours each; 15 % of them find nothing."""
    make = partial(draw_question, partial(ask_det, categories=colours))
    size, seed = settings.held_out_size, settings.split_seed
    examples = garden_examples(name, make, size, split, seed, is_ood)
    return to_frame("norm1000", examples, settings)


def shows(
    colour: str, is_present: bool, rng: random.Random, seed: int, is_ood: bool
) -> Made | None:
    """A scene that shows, or does not show, the colour that is asked for."""
    scene = sample_scene(rng, rng.randint(*ID_OBJECTS))
    if any(placed.colour == colour for placed in scene) != is_present:
        return None
    return ask_det(rng, scene, categories=(colour,)), (draw_scene(scene, seed),)


def to_frame(prescribed: str, examples: list[Example], settings: Settings) -> list[Example]:
    return [in_frame(example, prescribed, settings) for example in examples]


# ---- real data -----------------------------------------------------------------------------------


def real_splits(settings: Settings) -> Splits:
    if is_coco(settings.data):
        images = load_coco(settings.data, settings.data_root)
        categories = sorted({name for image in images for name in image.boxes})
        return coco_splits(images, settings, categories, categories)
    return record_splits(settings, is_box_list, row_in_frame(settings))


def coco_splits(
    images: list[CocoImage], settings: Settings, trained: Sequence[str], asked: Sequence[str]
) -> Splits:
    """`--shots` images of each trained category; the others are asked about the `asked` ones.

    Every fourth judged question asks for a category that its image is known to lack.
    """
    shots = few_shot_categories(images, trained, settings.shots, settings.split_seed)
    train = [coco_example(image, name) for name, chosen in shots.items() for image in chosen]
    used = {image.id for chosen in shots.values() for image in chosen}
    rng = random.Random(settings.split_seed)
    rest = [image for image in images if image.id not in used]
    rng.shuffle(rest)
    held_out: list[Example] = []
    for image in rest:
        sure = [name for name in asked if name not in image.unsure]
        absent = [name for name in sure if lacks(image, name)]
        held_out += [coco_example(image, name) for name in sure if name in image.boxes]
        if absent and len(held_out) % 4 == 3:
            held_out.append(coco_example(image, rng.choice(absent)))
        if len(held_out) >= settings.held_out_size:
            break
    if not held_out:
        raise InputError(f"--data {settings.data!r}: no image is left to be judged; lower --shots")
    held_out = held_out[: settings.held_out_size]
    return to_frame("abs", train, settings), {"held_out": to_frame("abs", held_out, settings)}


def coco_example(image: CocoImage, category: str) -> Example:
    question = DET_PROMPT.format(category=category)
    target = box_list(image.boxes.get(category, []))
    return Example(f"{image.id}-{category}", (image.path,), question, target)


# ---- wiring --------------------------------------------------------------------------------------


def wire_detection(name: str, settings: Settings, splits: Splits) -> Task:
    weights = {
        "iou": settings.correct_weight,
        "confidence": settings.confidence_weight,
        "format": settings.format_weight,
    }

    def reward(text: str, example: Example, dense: float):
        mode, frame = settings.prompt_mode, example.frame
        return detection_reward(text, example.target, mode, weights, dense, frame)

    return wire(
        name,
        settings,
        splits,
        reward,
        scores,
        max_completion_length=144,
        summary=average_precision,
        headline="mAP",
    )


def scores(text: str, example: Example) -> dict[str, float]:
    return {"strict": boxes_correct(text, example.target, example.frame)}
