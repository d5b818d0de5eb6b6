"""Open-vocabulary detection: learn on base categories, be judged on others, after Visual-RFT.

Prompt, reward and metric are those of tasks/det.py. Visual-RFT (arXiv:2503.01785) trains on 65 COCO
categories and judges on 15 others; here the garden's flowers of four colours train, and those of
three other colours judge.

    held_out   other images of the base categories
    ood        images asked about the new categories, which no training question names

COCO's annotations are split in the same way: the categories named in `NEW_COCO`, Visual-RFT's
fifteen, are never trained on.
"""

from model.errors import InputError
from tasks import Settings, Task
from tasks.coco import is_coco, load_coco
from tasks.det import coco_splits, few_shots, judged, wire_detection

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
        images = load_coco(settings.data, settings.data_root)
        names = {name for image in images for name in image.boxes}
        base, new = sorted(names - set(NEW_COCO)), sorted(names & set(NEW_COCO))
        if not new or not base:
            raise InputError(
                f"--data {settings.data!r}: needs categories of tasks/ovd.py:NEW_COCO and others, "
                f"has {sorted(names)[:20]}"
            )
        train, splits = coco_splits(images, settings, base, base)
        splits["ood"] = coco_splits(images, settings, base, new)[1]["held_out"]
    return wire_detection("ovd", settings, (train, splits))
