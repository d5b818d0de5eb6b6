"""Referring and reasoning grounding: the one box that a phrase means, after Visual-RFT's LISA task.

prompt   "Where is the largest flower?", "... the flower left of the blue one?", "... the flower
         that is not red?": relations, superlatives and exclusions
data     garden scenes; RefCOCO-style or LISA-style json; rows with one box as solution
reward   plain IoU of the one box + format
metric   iou: mean IoU, 0 for an answer that is not one box (gIoU in LISA's terms); strict:
         acc@0.5; cIoU; "loose" takes the first box of integers in the text (VLM-R1's rule)
ood      larger scenes: 5 to 7 flowers instead of 1 to 4
"""

from dataclasses import replace

from config import TaskConfig
from data.answer_forms import ONE_BOX
from data.examples import Example
from data.garden.questions import GROUND_PROMPT, ask_ground
from data.grounding import is_grounding, load_grounding
from model.image import ImageConfig
from rewards import Reward, grounding_reward, well_formed_box
from tasks.boxes import box_rows, cumulative_iou, in_model_format, refuse_resized
from tasks.loose import first_box_iou
from tasks.scenes import Splits, make_task, one_scene, scene_splits, split_examples
from tasks.task import Task, Weights

FLAGS = ("train_size", "held_out_size", "coords", "data_coords")  # what this task reads


def load(cfg: TaskConfig, image_cfg: ImageConfig | None = None) -> Task:
    """Read or generate the grounding task. Raises InputError for data that cannot be used."""

    def reward(text: str, example: Example, weights: Weights, dense: float) -> Reward:
        # IoU is graded already: `dense` adds nothing here.
        mode, canvas = cfg.prompt_mode, example.canvas
        return grounding_reward(text, example.target, mode, weights, canvas=canvas)

    splits = in_model_format(source_splits(cfg, image_cfg), cfg, image_cfg)
    metrics = dict(summary=cumulative_iou, headline="iou", read=read)
    return make_task("ground", cfg, splits, reward, scores, max_completion_length=64, **metrics)


def read(answer: str | None, example: Example) -> list | None:
    """An answer is exactly one box."""
    return well_formed_box(answer, example.canvas)


def source_splits(cfg: TaskConfig, image_cfg: ImageConfig | None) -> Splits:
    """The garden's splits or those of --data, in the format of the data."""
    if cfg.data == "garden":
        return scene_splits("ground", cfg, one_scene(ask_ground), ONE_BOX)
    if not is_grounding(cfg.data):
        return box_rows(cfg, ONE_BOX, image_cfg)
    refuse_resized(cfg)
    examples = [
        replace(example, question=GROUND_PROMPT.format(phrase=example.question))
        for example in load_grounding(cfg.data, cfg.data_root, cfg.max_skip, cfg.data_coords)
    ]
    return split_examples(examples, cfg)


def scores(text: str, example: Example) -> dict[str, float]:
    """IoU of the one box, strict where it is at least 0.5."""
    iou = grounding_reward(text, example.target, canvas=example.canvas).parts["iou"]
    return {
        "strict": float(iou >= 0.5),
        "loose": float(first_box_iou(text, example.target, example.canvas) >= 0.5),
        "iou": iou,
    }
