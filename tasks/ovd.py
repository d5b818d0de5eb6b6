"""Open-vocabulary detection: learn on base categories, evaluate on others, after Visual-RFT.

Prompt, reward and metric are those of tasks/det.py. The base categories are four colours of flowers
in the garden, all categories but Visual-RFT's fifteen (`NEW_COCO`) in COCO's annotations.

    held_out   other images of the base categories
    ood        images asked about the new categories, which no training question names
"""

from answers import normalise_name
from config import TaskConfig
from data.coco import is_coco
from model.image import ImageConfig
from runtime.errors import InputError
from tasks.det import coco_images, coco_splits, colour_questions, detection_task, few_shots
from tasks.task import Task

BASE_COLOURS = ("red", "yellow", "white", "purple")
NEW_COLOURS = ("orange", "pink", "blue")
NEW_COCO = (
    "mouse", "fork", "hot dog", "cat", "airplane", "suitcase", "parking meter", "sandwich",
    "train", "hair drier", "toilet", "toaster", "snowboard", "frisbee", "bear",
)  # fmt: skip

FLAGS = ("shots", "held_out_size", "confidence_weight", "dense", "coords", "data_coords")


def load(cfg: TaskConfig, image_cfg: ImageConfig | None = None) -> Task:
    """Read or generate the task. Raises InputError for data without base or new categories."""
    if cfg.data == "garden":
        splits = (
            few_shots(cfg, BASE_COLOURS),
            {
                "held_out": colour_questions("base", cfg, BASE_COLOURS, "test"),
                "ood": colour_questions("new", cfg, NEW_COLOURS, "test"),
                "val": colour_questions("base", cfg, BASE_COLOURS, "val"),
            },
        )
    else:
        if not is_coco(cfg.data):
            raise InputError(f"--data {cfg.data!r}: --task ovd needs COCO annotations (json)")
        images, names = coco_images(cfg)
        new = [name for name in names if normalise_name(name) in NEW_COCO]
        base = [name for name in names if name not in new]
        if not new or not base:
            raise InputError(
                f"--data {cfg.data!r}: needs categories of tasks/ovd.py:NEW_COCO and others, "
                f"has {names[:20]}"
            )
        splits = coco_splits(images, cfg, base, {"held_out": base, "ood": new})
    return detection_task("ovd", cfg, splits, image_cfg)
