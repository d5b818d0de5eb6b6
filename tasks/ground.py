"""Referring and reasoning grounding: the one box that a phrase means, after Visual-RFT's LISA task.

prompt   "Where is the largest flower?", "... the flower left of the blue one?", "... the flower
         that is not red?": relations, superlatives and exclusions
data     garden scenes; RefCOCO-style or LISA-style json; rows with one box as solution
reward   IoU of the one box + asked-for format; with --dense 0 it counts from 0.5 upwards
metric   iou: mean IoU, 0 for an answer that is not one box (gIoU in LISA's terms); strict:
         acc@0.5; cIoU; "loose" takes the first box of integers in the text (VLM-R1's rule)
ood      larger scenes: 5 to 7 flowers instead of 1 to 4
"""

from functools import partial

from data.garden.questions import GROUND_PROMPT, ask_ground
from data.grounding import is_grounding, load_grounding
from rewards import grounding_reward
from runtime.errors import InputError
from tasks import Example, Settings, Task
from tasks.boxes import cumulative_iou, in_frame, is_one_box, row_in_frame
from tasks.loose import first_box_iou
from tasks.scenes import (
    Splits,
    draw_question,
    garden_splits,
    record_splits,
    split_examples,
    wire,
)


def load(settings: Settings) -> Task:
    """Read or generate the grounding task. Raises InputError for data that cannot be used."""
    weights = {"iou": settings.correct_weight, "format": settings.format_weight}

    def reward(text: str, example: Example, dense: float):
        # IoU is graded already: `dense` has nothing to add here.
        mode, frame = settings.prompt_mode, example.frame
        return grounding_reward(text, example.target, mode, weights, frame=frame)

    train, judged = splits_of(settings)
    return wire(
        "ground",
        settings,
        (train, judged),
        reward,
        scores,
        max_completion_length=64,
        summary=cumulative_iou,
        headline="iou",
    )


def splits_of(settings: Settings) -> Splits:
    if settings.data != "garden" and not is_grounding(settings.data):
        return record_splits(settings, is_one_box, row_in_frame(settings))
    if settings.data == "garden":
        prescribed = "norm1000"
        train, judged = garden_splits("ground", partial(draw_question, ask_ground), settings)
    else:
        if settings.data_coords not in ("auto", "abs"):
            raise InputError(f"--data_coords {settings.data_coords}: these boxes are pixels (abs)")
        prescribed = "abs"
        examples = [
            Example(g.id, (g.path,), GROUND_PROMPT.format(phrase=g.phrase), str(list(g.box)))
            for g in load_grounding(settings.data, settings.data_root, settings.max_skip)
        ]
        train, judged = split_examples(examples, settings)
    return [in_frame(e, prescribed, settings) for e in train], {
        name: [in_frame(e, prescribed, settings) for e in examples]
        for name, examples in judged.items()
    }


def scores(text: str, example: Example) -> dict[str, float]:
    iou = grounding_reward(text, example.target, frame=example.frame).parts["iou"]
    return {
        "strict": float(iou >= 0.5),
        "loose": float(first_box_iou(text, example.target, example.frame) >= 0.5),
        "iou": iou,
    }
