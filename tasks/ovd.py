"""Open-vocabulary detection: learn on base categories, be judged on others, after Visual-RFT.

Prompt, reward and metric are those of tasks/det.py. Visual-RFT (arXiv:2503.01785) trains on 65 COCO
categories and judges on 15 others; here the garden's flowers of four colours train, and those of
three other colours judge.

    held_out   other images of the base categories
    ood        images asked about the new categories, which no training question names

COCO's annotations are split in the same way: the categories named in `NEW_COCO`, Visual-RFT's
fifteen, are never trained on.
"""

from answers import normalise_name
from data.coco import is_coco
from runtime.errors import InputError
from tasks import Settings, Task
from tasks.det import (
    coco_images,
    coco_splits,
    common_categories,
    few_shots,
    judged,
    wire_detection,
)

BASE_COLOURS = ("red", "yellow", "white", "purple")
NEW_COLOURS = ("orange", "pink", "blue")
NEW_COCO = (
    "mouse", "fork", "hot dog", "cat", "airplane", "suitcase", "parking meter", "sandwich",
    "train", "hair drier", "toilet", "toaster", "snowboard", "frisbee", "bear",
)  # fmt: skip


def load(settings: Settings) -> Task:
    """Read or generate the task. Raises InputError for data without base or new categories."""
    if settings.data == "garden":
        train = few_shots(settings, BASE_COLOURS)
        splits = {
            "held_out": judged("base", settings, BASE_COLOURS, "test"),
            "ood": judged("new", settings, NEW_COLOURS, "test"),
            "val": judged("base", settings, BASE_COLOURS, "val"),
        }
    else:
        if not is_coco(settings.data):
            raise InputError(f"--data {settings.data!r}: --task ovd needs COCO annotations (json)")
        images = coco_images(settings)
        names = common_categories(images, settings.shots)
        new = [name for name in names if normalise_name(name) in NEW_COCO]
        base = [name for name in names if normalise_name(name) not in NEW_COCO]
        if not new or not base:
            raise InputError(
                f"--data {settings.data!r}: needs categories of tasks/ovd.py:NEW_COCO and others, "
                f"has {names[:20]}"
            )
        asked = {"held_out": base, "ood": new}
        train, splits = coco_splits(images, settings, base, asked)
    return wire_detection("ovd", settings, (train, splits))
