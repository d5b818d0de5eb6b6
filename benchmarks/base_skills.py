"""What the embedded base can do before any reinforcement: one row per question type.

    python benchmarks/base_skills.py

Fresh pictures (split "val"), greedy answers in think mode. Words, numbers and calls count when they
are exactly right; boxes by intersection over union with the true one (`ground`), or by the share of
true boxes that some predicted box overlaps by more than half (`det`).
"""

import json
import random
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from config import BASE_MODEL  # noqa: E402
from model.text import Processor  # noqa: E402
from model.weights import load_model  # noqa: E402
from rewards import parse_answer  # noqa: E402
from sample import generate_group  # noqa: E402
from tasks import full_question  # noqa: E402
from tasks.garden import random_flower, sample_scene  # noqa: E402
from tasks.garden_drawing import draw_flower, draw_scene  # noqa: E402
from tasks.garden_questions import SCENE_QUESTIONS, ask_attribute  # noqa: E402

COUNT = 100


def overlap(a: list[float], b: list[float]) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2)."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


def boxes_in(answer: str | None) -> list[list[float]]:
    """The boxes of an answer, [] for one that is not such a list."""
    try:
        parsed = json.loads(answer or "")
        if isinstance(parsed, list) and parsed and isinstance(parsed[0], dict):
            return [[float(v) for v in item["Position"]] for item in parsed]
        return [[float(v) for v in parsed]] if isinstance(parsed, list) and parsed else []
    except (ValueError, KeyError, TypeError):
        return []


def right(kind: str, answer: str | None, truth: str) -> float:
    if kind not in ("det", "ground") or not truth.startswith("["):
        return float(answer == truth)
    found = [box for box in boxes_in(answer) if len(box) == 4]
    best = [max((overlap(box, true) for box in found), default=0.0) for true in boxes_in(truth)]
    return best[0] if kind == "ground" else sum(iou > 0.5 for iou in best) / len(best)


def main() -> None:
    model, processor = load_model(BASE_MODEL), Processor(BASE_MODEL)
    scores: dict[str, float] = {}
    for kind in ("attribute", *SCENE_QUESTIONS):
        if kind == "caption":  # free text has no single right answer
            continue
        prompts, truths = [], []
        for i in range(COUNT * 3):
            rng = random.Random(f"skills-{kind}-{i}")
            if kind == "attribute":
                flower = random_flower(rng)
                pictures, question = [draw_flower(flower, i)], ask_attribute(rng, flower)
            else:
                scene = sample_scene(rng, rng.randint(1, 4))
                question = SCENE_QUESTIONS[kind](rng, scene)
                pictures = [draw_scene(scene, i)]
                if question is not None and question.after is not None:
                    pictures.append(draw_scene(question.after, i))
            if question is None or len(prompts) == COUNT:
                continue
            text = full_question(question.prompt, "think")
            prompts.append(processor.prompt(f"{kind}{i}", pictures, text))
            truths.append(question.answer)
        rollout = generate_group(model, processor, prompts, 1, 120, temperature=0.0)
        answers = [parse_answer(text) for text in rollout.texts]
        values = [right(kind, a, t) for a, t in zip(answers, truths, strict=True)]
        scores[kind] = round(sum(values) / len(values), 3)
        print(f"{kind:10} {scores[kind]:.1%}   e.g. {rollout.texts[0]!r}, truth {truths[0]!r}")
    print(json.dumps(scores))


if __name__ == "__main__":
    main()
