"""What every task guarantees: splits never meet, the exact answer is best, metrics are right.

The nine tasks beside classification, on the generated garden and on small sets of rows and
annotations as people have them; and a tenth, defined here. Run: pytest tests/tasks/test_tasks.py
"""

import contextlib
import hashlib
import importlib
import io
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import evaluate
import tasks
import train_grpo
import train_sft
from answers import parse_boxes, parse_sequence
from config import BASE_MODEL, TaskConfig
from data.answer_forms import BOXES, CALLS, ONE_BOX
from data.examples import INSTRUCTIONS, Example, Reasoning, completion_text
from data.garden.questions import DET_PROMPT
from model.image import ImageConfig, load_image
from model.processor import Processor
from reporting.metrics import rollout_metrics
from reporting.provenance import data_hash
from rewards import WEIGHTS
from runtime.errors import InputError
from sample import Rollout
from tasks import TASKS, change
from tasks.boxes import (
    average_precision,
    box_instruction,
    converted,
    cumulative_iou,
)
from tasks.ovd import BASE_COLOURS, NEW_COLOURS
from tasks.task import Task
from tests.helpers import folder_of_classes
from training.evaluation import answer_shares

NAMES = [name for name in TASKS if name != "cls"]
TaskFlags = train_grpo.GRPOConfig.__dataclass_fields__.keys()
IMAGE_CONFIG = ImageConfig(14, 2, 2, 28 * 28, 200 * 28 * 28, (0.5,) * 3, (0.5,) * 3)


def load(name: str, data="garden", image_cfg=None, **flags) -> Task:
    sizes = dict(train_size=12, held_out_size=12, shots=2, coords="norm1000")
    return TASKS[name].load(TaskConfig(data=str(data), **sizes | flags), image_cfg)


@pytest.fixture(scope="module")
def garden() -> dict[str, Task]:
    return {name: load(name) for name in NAMES}


def completion(answer: str, mode: str = "think") -> str:
    return completion_text(answer, mode, Reasoning("so", "a", "b"))


def best_total(name: str) -> float:
    return 2.5 if "confidence_weight" in TASKS[name].FLAGS else 1.5


def pixels(example: Example) -> str:
    data = b"".join(load_image(image).tobytes() for image in example.images)
    return hashlib.sha256(data + example.question.encode()).hexdigest()


def everything(task: Task) -> list[Example]:
    return sum(task.splits.values(), task.train)


# ---- a new task ----------------------------------------------------------------------------------

NEW_TASK = """
from dataclasses import replace

from data.answer_forms import NUMBER
from data.garden.questions import ask_count
from rewards import number_reward
from tasks.scenes import answer_task, one_scene, scene_splits

FLAGS = ["train_size", "held_out_size", "tolerance"]


def ask_again(rng, scene):  # a kind of question that the garden has no name for
    question = ask_count(rng, scene)
    return question and replace(question, kind="again")


def load(cfg, image_cfg=None):
    splits = scene_splits("again", cfg, one_scene(ask_again), NUMBER)
    return answer_task("again", cfg, splits, number_reward, None, 24)
"""


def test_a_new_task_is_one_file_and_one_name(tiny_dir, tmp_path, monkeypatch, capsys):
    (tmp_path / "again.py").write_text(NEW_TASK)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    monkeypatch.setitem(TASKS, "again", importlib.import_module("tasks.again"))  # as NAMES does
    assert list(TASKS) == [*tasks.NAMES, "again"]
    flags = {flag for task in TASKS.values() for flag in task.FLAGS}
    assert flags <= train_grpo.GRPOConfig.__dataclass_fields__.keys()
    with pytest.raises(SystemExit):
        train_grpo.main(["--help"])
    assert "walk,again}" in "".join(capsys.readouterr().out.split())
    words = f"--model {tiny_dir} --task again --tolerance 0.1 --max_steps 2 --held_out_size 2"
    words += " --prompts_per_step 2 --train_size 4 --report_prompts 0 --device cpu"
    train_grpo.main([*words.split(), "--output_dir", str(tmp_path / "run")])
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").open()]
    assert sum("reward" in row for row in rows) == 2 and "eval/strict" in rows[-1]
    steps = ["--prompt_mode", "steps", "--max_completion_length", "60"]
    train_sft.main([*words.split(), "--cot", *steps, "--output_dir", str(tmp_path / "sft")])
    for word in ("--shots=3", "--dense=1", "--coords=abs"):
        with pytest.raises(InputError, match="--task again does not use it; leave it out"):
            train_grpo.main(["--task", "again", word])


def options_of(script, capsys) -> str:
    with pytest.raises(SystemExit):
        script.main(["--help"])
    return "".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("script", [train_grpo, train_sft, evaluate], ids=lambda m: m.__name__)
def test_the_choices_of_task_are_the_table_and_every_file_of_tasks_is_in_it(script, capsys):
    assert f"--task{{{','.join(tasks.NAMES)}}}" in options_of(script, capsys)
    for name, module in TASKS.items():
        assert callable(module.load) and set(module.FLAGS) <= TaskFlags, f"tasks/{name}.py"
    shared = {"task", "boxes", "scenes", "loose", "__init__"}
    files = {path.stem for path in Path(tasks.__file__).parent.glob("*.py")}
    assert files - shared == set(tasks.NAMES), (
        "a file of tasks/ is not in NAMES, or its file is gone"
    )


@pytest.mark.parametrize("flags", [{}, {"shots": 3}, {"tolerance": 0.1}])
def test_a_task_that_is_not_in_the_table_is_refused_as_such(flags):
    with pytest.raises(InputError, match="--task odd: must be one of cls, det"):
        tasks.load_task(TaskConfig(task="odd", **flags), Processor(BASE_MODEL))


def test_a_root_of_pictures_without_data_is_refused(tmp_path):
    for data in ("garden", "digits"):
        with pytest.raises(InputError, match="--data_root .*give --data as well"):
            tasks.check_flags(TaskConfig(data=data, data_root=tmp_path))
    with pytest.raises(InputError, match="--data_root .*class folders hold their pictures"):
        TASKS["cls"].load(TaskConfig(data=str(folder_of_classes(tmp_path)), data_root=tmp_path))


def test_the_frame_of_the_gardens_boxes_is_no_choice():
    with pytest.raises(InputError, match="--data_coords abs: the garden's boxes are known"):
        tasks.check_flags(TaskConfig(task="det", data_coords="abs"))


# ---- splits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_splits_are_disjoint_and_functions_of_the_settings(garden, name):
    task, again, other = garden[name], load(name), load(name, split_seed=7)
    assert sorted(task.splits) == ["held_out", "ood", "val"]
    assert all(len(examples) == 12 for examples in task.splits.values())
    examples = everything(task)
    all_pixels = {pixels(e) for e in examples}
    assert len({e.id for e in examples}) == len(all_pixels) == len(examples)
    assert data_hash(examples) == data_hash(everything(again))
    assert not {pixels(e) for e in everything(other)} & all_pixels


def test_training_sets_are_nested_and_as_large_as_asked_for(garden):
    for name in ("count", "ground"):
        few = load(name, train_size=5)
        assert [e.id for e in few.train] == [e.id for e in garden[name].train[:5]]
        assert data_hash(few.splits["held_out"]) == data_hash(garden[name].splits["held_out"])
    questions = [e.question for e in garden["det"].train]
    present = [e.question for e in garden["det"].train if e.target != "No Objects"]
    assert len(set(questions)) == 7 and all(present.count(q) == 2 for q in set(questions))
    assert len(questions) - len(present) == 2  # 15 % of 14


def third_words(examples: list[Example]) -> set[str]:
    """Of "Find every red flower." the category."""
    return {e.question.split()[2].rstrip(".") for e in examples}


def test_ood_is_harder_in_the_stated_way(garden):
    order, count = garden["order"].splits, load("count", held_out_size=60).splits
    assert {len(e.images) for e in order["held_out"]} <= {1, 3}
    assert {len(e.images) for e in order["ood"]} == {4}
    totals = {
        split: [int(e.target) for e in count[split] if e.question.startswith("How many flowers?")]
        for split in ("held_out", "ood")
    }
    assert max(totals["held_out"]) <= 4 < 5 <= min(totals["ood"])
    task = garden["ovd"]
    assert third_words(task.train) == set(BASE_COLOURS)
    assert third_words(task.splits["held_out"]) <= set(BASE_COLOURS)
    assert third_words(task.splits["ood"]) <= set(NEW_COLOURS)
    assert not set(BASE_COLOURS) & set(NEW_COLOURS)
    moved = 0
    for k in range(40):  # another view moves every flower that stays by the same step
        drawing = change.draw(random.Random(k), k, True)
        if drawing is None:
            continue
        question, images, _ = drawing
        assert len(images) == 2 and images[0].size == images[1].size
        straight, *_ = change.draw(random.Random(k), k, False)
        pairs = zip(straight.after, question.after, strict=True)
        steps = {(b.x0 - a.x0, b.y0 - a.y0) for a, b in pairs}
        assert len(steps) == 1 and (0, 0) not in steps
        assert (straight.prompt, straight.answer) == (question.prompt, question.answer)
        moved += 1
    assert moved > 20


# ---- rewards and scores --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", list(INSTRUCTIONS))
@pytest.mark.parametrize("name", [n for n in NAMES if n != "walk"])  # it has to be walked
def test_the_exact_answer_is_the_best_one_and_silence_the_worst(name, mode):
    task = load(name, train_size=20, held_out_size=1, prompt_mode=mode)
    differ = 0
    for k, example in enumerate(task.train):
        assert example.question.endswith(INSTRUCTIONS[mode])
        right, other = (completion(e.target, mode) for e in (example, task.train[k - 1]))
        best = task.reward(right, example, WEIGHTS, 0.0).total
        assert best == pytest.approx(best_total(name))
        assert task.scores(right, example)["strict"] == task.scores(right, example)["format"] == 1
        assert task.reward("", example, WEIGHTS, 1.0).total == 0.0
        assert task.scores("", example)["strict"] == 0.0
        sparse, dense = (task.reward(other, example, WEIGHTS, d).total for d in (0.0, 1.0))
        assert sparse <= dense <= best
        differ += sparse < best
    assert differ > len(task.train) / 3  # questions do not all have one answer


def test_tolerance_and_order_reach_reward_and_metric(garden):
    calls = ["change_color(cube_1, red)", "change_size(ball_2, small)"]
    for name, flags, target, answer, by_default in (
        ("measure", {"tolerance": 0.1}, "10", "11", 0.0),
        ("change", {"ordered": True}, ", ".join(calls), ", ".join(calls[::-1]), 1.0),
    ):
        text, example = completion(answer), Example("a", (), "?", target)
        for task, right in ((garden[name], by_default), (load(name, **flags), 1.0 - by_default)):
            assert task.scores(text, example)["strict"] == right
            assert task.reward(text, example, WEIGHTS, 0.0).parts["correct"] == right


FORMS = {"det": BOXES, "ovd": BOXES, "ground": ONE_BOX, "change": CALLS}


@pytest.mark.parametrize("name", NAMES)
def test_targets_are_in_the_grammar_and_fit_the_tasks_length(garden, name):
    processor = Processor(BASE_MODEL)
    for example in everything(garden[name]):
        tokens = processor.encode(completion(example.target))
        assert len(tokens) + 20 <= garden[name].max_completion_length
        assert name not in FORMS or FORMS[name].read(example.target) == example.target
        assert garden[name].answer(completion(example.target), example) is not None
        if name == "order":
            assert (parse_sequence(example.target) is None) == (len(example.images) == 1)


BOX, CALL = "[1, 2, 30, 40]", "remove(f1)"


@pytest.mark.parametrize(
    "name, target, read, unread",
    [
        ("count", "3", ["3", "3.", "1,000"], ["three", "3 flowers", "", "<think>", "3 4"]),
        ("measure", "3", ["4.5"], ["B", "4 cm"]),
        ("measure", "B", ["(a)"], ["4", "A or B"]),
        ("vqa", "red", ["red", "any words at all"], ["...", "x" * 1001]),
        ("entail", "yes", ["No", "unknown."], ["maybe", "yes and no"]),
        ("order", "B, A", ["A > B", "BAC"], ["B, A, B", "first B then A"]),
        ("order", "bud", ["in seed"], ["?!"]),
        ("change", CALL, [CALL, "[grow(f2)]"], ["nothing", "remove f1"]),
        ("ground", BOX, [BOX, f"[{BOX}]"], ["left", "No Objects", f"[{BOX}, {BOX}]", "[1, 2, 3]"]),
        ("det", f"[{BOX}]", [BOX, "No Objects", "[]"], ["rose", "[9, 9, 1, 1]", "[{'x': 1}]"]),
        ("ovd", f"[{BOX}]", [f"[{BOX}, [5, 5, 1, 1]]"], ['[{"Position":', "12"]),
    ],
)
def test_what_the_grammar_of_a_task_cannot_read_is_counted_as_no_answer(
    garden, name, target, read, unread
):
    """Not only where the answer block is missing: in training as in evaluation."""
    task, example = garden[name], Example("e", (), "?", target)
    for answers, is_readable in ((read, True), (unread, False)):
        for text in answers:
            assert (task.answer(completion(text), example) is not None) == is_readable, text
    texts = [completion(text) for text in read + unread] + [read[0]]  # the last without a block
    rollout = Rollout([torch.zeros(1)] * len(texts), [], ["stop"] * len(texts), texts)
    rollout.rewards, rollout.parts = torch.zeros(1, len(texts)), [{}] * len(texts)
    share = (len(unread) + 1) / len(texts)
    metrics = rollout_metrics(rollout, [example], task)
    assert metrics["completions/no_answer_ratio"] == pytest.approx(share)
    records = [{"answer": task.answer(text, example)} for text in texts]
    metrics = answer_shares(task, [example] * len(texts), records)
    assert metrics["no_answer_ratio"] == pytest.approx(share)


# ---- metrics of a split --------------------------------------------------------------------------


TRUTH = [
    Example("a", (), "Find every cat.", '[{"Position": [0, 0, 100, 100], "Confidence": 1.0}]'),
    Example("b", (), "Find every dog.", '[{"Position": [0, 0, 500, 500], "Confidence": 1.0}]'),
    Example("c", (), "Find every dog.", "No Objects"),
]
PERFECT = [completion(example.target) for example in TRUTH]


def test_average_precision_of_hand_worked_cases():
    assert average_precision(TRUTH, PERFECT) == pytest.approx({"mAP": 1.0, "AP50": 1.0})
    nothing = average_precision(TRUTH, [completion("No Objects")] * 3)
    assert nothing == average_precision(TRUTH, ["", "<answer>", "[]"])
    assert nothing == {"mAP": 0.0, "AP50": 0.0}
    # A category without a true box does not count. Others: the oracle below.
    absent = Example("d", (), "Find every bee.", "No Objects")
    metrics = average_precision([*TRUTH, absent], [*PERFECT, completion("[[0, 0, 9, 9]]")])
    assert metrics == pytest.approx({"mAP": 1.0, "AP50": 1.0})
    # What the question says of the image is no part of the category, nor is a label not asked for.
    told = [
        replace(e, question=f"{e.question} {box_instruction('abs', (k, 9))}")
        for k, e in enumerate(TRUTH)
    ]
    labelled = [text.replace('"Position"', '"label": "cat", "bbox_2d"') for text in PERFECT]
    assert average_precision(told, labelled) == pytest.approx({"mAP": 1.0, "AP50": 1.0})
    # A false box on an empty image counts, where the question's true boxes have labels, too.
    cat = '[{"bbox_2d": [0, 0, 100, 100], "label": "cat"}]'
    scenes = [Example("a", (), "Find.", cat), Example("b", (), "Find.", "No Objects")]
    sure = cat.replace('"label"', '"Confidence": 0.9, "label"')
    less = cat.replace('"label"', '"Confidence": 0.5, "label"')
    metrics = average_precision(scenes, [completion(less), completion(sure)])
    assert metrics == pytest.approx({"mAP": 0.5, "AP50": 0.5}, abs=0.01)


@pytest.mark.case("O18")
def test_average_precision_equals_pycocotools_on_files(tmp_path):
    # the same boxes, written as COCO files and evaluated by the library on its own
    rng, names = random.Random(0), ["cat", "dog", "bee"]

    def random_box() -> list[int]:
        x1, y1 = rng.randint(0, 700), rng.randint(0, 700)
        return [x1, y1, x1 + rng.randint(50, 300), y1 + rng.randint(50, 300)]

    examples, texts, truths, detections = [], [], [], []
    for image in range(1, 41):
        category = rng.choice(names)
        true = [random_box() for _ in range(rng.randint(0, 3))]
        near = [[min(1000, v + rng.randint(0, 20)) for v in b] for b in true]
        near = [b for b in near if b[0] < b[2] and b[1] < b[3] and rng.random() < 0.8]
        guesses = [(b, rng.randint(1, 100) / 100) for b in (*near, random_box())]
        target = json.dumps([{"Position": b, "Confidence": 1.0} for b in true])
        examples.append(Example(str(image), (), f"Find every {category}.", target))
        items = [{"Position": b, "Confidence": c} for b, c in guesses]
        texts.append(completion(json.dumps(items)))
        where = {"image_id": image, "category_id": names.index(category)}
        for x1, y1, x2, y2 in true:
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            truths.append(where | box | {"id": len(truths) + 1, "iscrowd": 0})
        for (x1, y1, x2, y2), c in guesses:
            detections.append(where | {"bbox": [x1, y1, x2 - x1, y2 - y1], "score": c})
    categories = [{"id": k, "name": name} for k, name in enumerate(names)]
    content = {"info": {}, "images": [{"id": k} for k in range(1, 41)], "annotations": truths}
    (tmp_path / "truth.json").write_text(json.dumps(content | {"categories": categories}))
    (tmp_path / "detections.json").write_text(json.dumps(detections))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp_path / "truth.json"))
        oracle = COCOeval(truth, truth.loadRes(str(tmp_path / "detections.json")), "bbox")
        oracle.evaluate()
        oracle.accumulate()
        oracle.summarize()
    mAP, AP50 = oracle.stats[:2]
    assert 0.1 < mAP < 0.9 and AP50 > mAP
    assert average_precision(examples, texts) == pytest.approx({"mAP": mAP, "AP50": AP50})


def test_cumulative_iou_is_all_intersections_over_all_unions():
    targets = ("[0, 0, 100, 100]", "[0, 0, 100, 300]")
    examples = [Example(target, (), "Where?", target) for target in targets]
    for answers, expected in (
        (targets, 1.0),
        (["[0, 0, 100, 50]", "[0, 0, 200, 300]"], (5000 + 30000) / (10000 + 60000)),
        (["nowhere", "[[0, 0, 100, 300], [0, 0, 9, 9]]"], 0.0),  # no box, or two
    ):
        texts = [completion(answer) for answer in answers]
        assert cumulative_iou(examples, texts) == {"cIoU": pytest.approx(expected)}


# ---- box formats ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "coords, canvas, target",
    [
        ("norm1000", (1000, 1000), "[500, 500, 1000, 1000]"),
        ("abs", (200, 100), "[100, 50, 200, 100]"),
        ("abs_resized", (196, 112), "[98, 56, 196, 112]"),  # of the vision tower: multiples of 28
    ],
)
def test_targets_are_written_in_the_models_box_format(coords, canvas, target):
    example = Example("a", (Image.new("RGB", (200, 100)),), "?", "[100, 50, 200, 100]", "abs")
    example = converted(example, TaskConfig(coords=coords), IMAGE_CONFIG)
    assert (example.canvas, example.target) == (canvas, target)


@pytest.mark.parametrize(
    "data, data_coords, read_as",
    [("garden", "auto", ""), ("a.json", "auto", "abs"), ("a.json", "norm100", "norm100")],
)
def test_the_frame_in_which_the_data_were_read_is_kept(data, data_coords, read_as):
    """Annotations are turned into pixels as they are read; whether that was right can be asked."""
    example = Example("a", (Image.new("RGB", (200, 100)),), "?", "[100, 50, 200, 100]", "abs")
    cfg = TaskConfig(task="ground", coords="norm1000", data=data, data_coords=data_coords)
    example = converted(example, cfg, IMAGE_CONFIG)
    assert (example.box_format, example.read_as) == ("norm1000", read_as)


@pytest.mark.parametrize("coords", ["abs", "abs_resized"])
@pytest.mark.parametrize("name", ["det", "ovd", "ground"])
def test_a_box_task_pays_the_exact_answer_in_its_format_and_no_other(garden, name, coords):
    task = load(name, image_cfg=IMAGE_CONFIG, coords=coords)
    for example, normal in zip(task.train, garden[name].train, strict=True):
        best = task.reward(completion(example.target), example, WEIGHTS, 0.0)
        assert best.total == pytest.approx(best_total(name))
        here, there = (parse_boxes(e.target, e.canvas)[0] for e in (example, normal))
        width, height = example.canvas
        for a, b in zip(here, there, strict=True):
            back = [a.x1 / width, a.y1 / height, a.x2 / width, a.y2 / height]
            assert back == pytest.approx([v / 1000 for v in b[:4]], abs=0.006)
        if name == "ground":  # the same numbers in the wrong format are another box
            assert task.reward(completion(normal.target), example, WEIGHTS, 0.0).total < 1.4


# ---- rows and annotations from disk --------------------------------------------------------------


def write_rows(folder, row: dict, count: int = 4):
    """The row `count` times, about another picture each time: 0.png, 1.png, ..."""
    for k in range(count):
        Image.new("RGB", (64, 48), (6 * k, 30, 90)).save(folder / f"{k}.png")
    path = folder / "rows.jsonl"
    lines = [json.dumps(row).replace("0.png", f"{k}.png") for k in range(count)]
    path.write_text("\n".join(lines))
    return path


def one_row(question: str, solution: str) -> dict:
    return {"image": "0.png", "problem": question, "solution": solution}


CALLS = "change_color(cube_1, 'red'), change_size(ball_2, small)"
POSITIONS = "<answer>[{'Position': [1, 364, 98, 649], 'Confidence': 1}]</answer>"
TURNS = [
    {"from": "human", "value": "<image>Where is the cat?"},
    {"from": "gpt", "value": [8, 6, 32, 24]},  # pixels of the 64 x 48 image
]
TWO = ["0.png", "1.png"]
ENDLESS = "word " * 300  # any text answers vqa, but not this one
ROWS = {  # name -> a row, its right answer, and a solution that is none (where not any is)
    "count": (one_row("How many?", "<answer> 3 </answer>"), "3"),
    "measure": ({"id": "g1", "image": "0.png", "problem": "Angle?", "answer": "4.5"}, "4.5"),
    "change": (
        {"id": "t1", "image": TWO, "problem": "What happened?", "answer": CALLS},
        "change_color(cube_1, red), change_size(ball_2, small)",
    ),
    "vqa": (
        {"images": ["0.png"], "problem": "<image>What is it?", "answer": "a Cat"},
        "a cat",
        ENDLESS,
    ),
    "entail": ({"images": ["0.png"], "prompt": "Is it?", "answer": "Unknown"}, "unknown"),
    "order": ({"images": TWO, "prompt": "Order.", "answer": "B, A"}, "B, A"),
    "det": (
        one_row("Detect cats. Answer in <answer> </answer>.", POSITIONS),
        '[{"Position": [1, 364, 98, 649], "Confidence": 1.0}]',
    ),
    "ground": ({"id": 1, "image": "0.png", "conversations": TURNS}, "[125, 125, 500, 500]"),
}


@pytest.mark.parametrize("name", list(ROWS))
def test_rows_in_the_schemas_of_the_field_become_a_task(tmp_path, name):
    row, answer, *wrong = ROWS[name]
    task = load(name, write_rows(tmp_path, row), train_size=2)
    assert len(task.train) == len(task.splits["held_out"]) == 2 and "ood" not in task.splits
    example = task.train[0]
    assert all(load_image(image).size == (64, 48) for image in example.images)
    assert len(example.images) == (2 if name in ("change", "order") else 1)
    best = task.reward(completion(answer), example, WEIGHTS, 0.0).total
    assert best == pytest.approx(best_total(name))
    assert task.scores(completion(answer), example)["strict"] == 1.0
    if name == "det":  # Visual-RFT's prompts say how to answer, and are used as they are
        assert example.question == row["problem"]
    else:
        assert example.question.endswith(INSTRUCTIONS["think"])
    # Rows of another task are refused.
    (wrong,) = wrong or ["-- nothing, of (this"]
    path = write_rows(tmp_path, one_row("?", f"<answer>{wrong}</answer>"), 6)
    with pytest.raises(InputError, match="solution is no answer of this task"):
        load(name, path)


@pytest.mark.case("I36")
def test_i36_all_questions_about_a_picture_are_on_one_side_even_of_a_copy(tmp_path):
    path = write_rows(tmp_path, one_row("How many?", "3"), 10)
    Image.open(tmp_path / "3.png").save(tmp_path / "copy.png")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows += [row | {"problem": "How many, again?"} for row in rows]
    rows.append(rows[0] | {"image": "copy.png", "problem": "And here?"})
    path.write_text("\n".join(map(json.dumps, rows)))
    task = load("count", path, train_size=99, held_out_size=8)
    train, held_out = (
        {load_image(e.images[0]).tobytes() for e in examples}
        for examples in (task.train, task.splits["held_out"])
    )
    assert len(held_out) >= 4 and len(train) + len(held_out) == 10 and not train & held_out
    assert len(task.splits["held_out"]) == 8


def test_questions_that_cannot_be_split_or_replaced_are_refused(tmp_path):
    path = write_rows(tmp_path, one_row("How many?", "3") | {"image": "1.png"}, 2)
    with pytest.raises(InputError, match="2 usable rows about 1 pictures"):
        load("count", path)
    with pytest.raises(InputError, match="--question: the data asks"):
        load("count", question="How many?")


def test_data_coords_names_the_format_of_the_datas_boxes(tmp_path):
    for name, coords, box, target in (
        ("ground", "auto", "[8, 6, 32, 24]", "[8, 6, 32, 24]"),
        ("ground", "norm1000", "[8, 6, 32, 24]", "[8, 6, 32, 24]"),
        ("ground", "abs", "[8, 6, 32, 24]", "[125, 125, 500, 500]"),
        ("ground", "abs", "[70, 6, 90, 24]", None),  # outside of the image
        ("ground", "auto", "[9, 9, 2000, 99]", None),
        ("det", "auto", "[[1200, 100, 1300, 200]]", None),
    ):
        path = write_rows(tmp_path, one_row("Where?", f"<answer>{box}</answer>"))
        if target is not None:
            assert {e.target for e in load(name, path, data_coords=coords).train} == {target}
            continue
        with pytest.raises(
            InputError, match=r"4 of 4 boxes lie outside of .* rows.jsonl:1: .*--data_coords"
        ):
            load(name, path, data_coords=coords)


def test_labels_of_boxes_are_kept_item_by_item(tmp_path):
    items = [{"bbox_2d": [1, 2, 30, 40], "label": "cat"}, {"bbox_2d": [5, 6, 50, 40]}]
    path = write_rows(tmp_path, one_row("Find all.", json.dumps(items)))
    example = load("det", path, data_coords="abs", coords="abs").train[0]
    assert json.loads(example.target) == items and example.canvas == (64, 48)


def coco_file(folder, categories=("cat", "dog", "horse")):
    """Twelve images, a third for each category, and a yak on the first."""
    images, annotations = [], []
    for k in range(12):
        Image.new("RGB", (200, 100), (20 * k, 99, 10)).save(folder / f"{k}.jpg")
        images.append({"id": k, "file_name": f"{k}.jpg", "width": 200, "height": 100})
        box = {"bbox": [10 + k, 20, 50, 40], "area": 2000, "iscrowd": 0}
        annotations.append(box | {"id": k, "image_id": k, "category_id": k % len(categories)})
    annotations.append(annotations[0] | {"id": 12, "category_id": 9})
    names = [{"id": k, "name": name} for k, name in enumerate(categories)] + [
        {"id": 9, "name": "yak"}
    ]
    path = folder / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": names}))
    return path


def image_ids(examples: list[Example]) -> list[str]:
    return list(dict.fromkeys(e.id.split("-")[0] for e in examples))


def test_coco_annotations_become_few_shot_detection(tmp_path, capsys):
    path = coco_file(tmp_path)
    task = load("det", path, held_out_size=8)
    assert "Answer with a JSON list" in task.train[0].question
    questions = Counter(e.question.split(" Answer")[0] for e in task.train)
    shown = Counter(e.question.split(" Answer")[0] for e in task.train if e.target != "No Objects")
    assert shown == {DET_PROMPT.format(category=c): 2 for c in ("cat", "dog", "horse")}
    assert questions.total() == 7  # 15 % more for what the pictures lack, as in the garden
    assert not set(image_ids(task.train)) & set(image_ids(task.splits["held_out"]))
    ((box,), _) = parse_boxes(task.train[0].target, task.train[0].canvas)
    assert box.x2 - box.x1 == 250 and (box.y1, box.y2) == (200, 600)  # thousandths of 200 x 100
    absent = [e.target == "No Objects" for e in task.splits["held_out"]]
    assert sum(absent) == len(absent) // 4 and task.max_completion_length == 256
    # More shots are evaluated on the same images in the same order, less those trained on.
    one, two = (
        image_ids(load("det", path, held_out_size=99, shots=shots).splits["held_out"])
        for shots in (1, 2)
    )
    assert set(two) < set(one) and [i for i in one if i in two] == two
    assert "1 categories have too few images and are left out: ['yak']" in capsys.readouterr().out
    with pytest.raises(InputError, match="--shots 9: no category has more images"):
        load("det", path, shots=9)
    with pytest.raises(InputError, match="annotations know no model"):
        load("det", path, data_coords="abs_resized")


def test_coco_annotations_are_split_into_base_and_new_categories(tmp_path):
    task = load("ovd", coco_file(tmp_path), shots=1)
    assert third_words(task.train) == {"dog", "horse"}
    assert third_words(task.splits["ood"]) == {"cat"}
    with pytest.raises(InputError, match="NEW_COCO"):
        load("ovd", coco_file(tmp_path, ("dog", "horse")))
    with pytest.raises(InputError, match="--task ovd needs COCO annotations"):
        load("ovd", write_rows(tmp_path, ROWS["det"][0]))


def test_referring_expressions_become_grounding(tmp_path):
    row = {"normal_caption": "left cat", "problem": "?", "solution": [10, 20, 60, 60]}
    for k, colour in enumerate(("black", "red")):
        Image.new("RGB", (200, 100), colour).save(tmp_path / f"{k}.jpg")
    path = tmp_path / "rec.json"
    path.write_text(json.dumps([{"image": f"{k}.jpg"} | row for k in (0, 1)]))
    task = load("ground", path)
    assert len(task.train) == len(task.splits["held_out"]) == 1
    assert task.train[0].question.startswith("Where is left cat?")
    assert task.train[0].target == "[50, 200, 300, 600]"
