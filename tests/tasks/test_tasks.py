"""What every task guarantees: splits never meet, the exact answer is best, metrics are right.

The nine tasks beside classification, on the generated garden and on small sets of rows and
annotations as people have them. Run: pytest tests/tasks/test_tasks.py
"""

import contextlib
import hashlib
import io
import json
import random
from collections import Counter
from dataclasses import replace

import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from answers import parse_boxes, parse_calls, parse_sequence
from config import BASE_MODEL
from data.examples import INSTRUCTIONS, Example
from data.garden.questions import DET_PROMPT
from model.image import ImageConfig, load_image
from model.processor import Processor
from runtime.errors import InputError
from tasks import TASKS, Settings, change
from tasks.boxes import average_precision, cumulative_iou, in_frame, is_box_list, is_one_box
from tasks.ovd import BASE_COLOURS, NEW_COLOURS
from tasks.task import Task

NAMES = [name for name in TASKS if name != "cls"]
SMALL = Settings(train_size=12, held_out_size=12, shots=2)


@pytest.fixture(scope="module")
def garden() -> dict[str, Task]:
    return {name: TASKS[name](SMALL) for name in NAMES}


def said(answer: str, mode: str = "think") -> str:
    thoughts = {
        "think": "<think>so</think>",
        "steps": "<summary>a</summary><caption>b</caption><reasoning>c</reasoning>",
        "direct": "",
    }
    return f"{thoughts[mode]}<answer>{answer}</answer>"


def pixels(example: Example) -> str:
    data = b"".join(load_image(image).tobytes() for image in example.images)
    return hashlib.sha256(data + example.question.encode()).hexdigest()


def everything(task: Task) -> list[Example]:
    return [*task.train, *(e for examples in task.splits.values() for e in examples)]


# ---- splits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_splits_of_the_garden_share_neither_ids_nor_pictures(garden, name):
    task = garden[name]
    assert sorted(task.splits) == ["held_out", "ood", "val"]
    assert all(len(examples) == 12 for examples in task.splits.values())
    examples = everything(task)
    assert len({e.id for e in examples}) == len({pixels(e) for e in examples}) == len(examples)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_settings_give_the_same_examples_and_another_seed_others(garden, name):
    again, other = TASKS[name](SMALL), TASKS[name](replace(SMALL, split_seed=7))
    known = [(e.id, e.question, e.target, pixels(e)) for e in everything(garden[name])]
    assert known == [(e.id, e.question, e.target, pixels(e)) for e in everything(again)]
    assert not {pixels(e) for e in everything(other)} & {p for *_, p in known}


def test_fewer_training_questions_are_a_subset_and_are_judged_on_the_same_ones():
    for name in ("count", "ground"):
        few = TASKS[name](replace(SMALL, train_size=5))
        more = TASKS[name](SMALL)
        assert [e.id for e in few.train] == [e.id for e in more.train[:5]]
        assert [e.id for e in few.splits["held_out"]] == [e.id for e in more.splits["held_out"]]


def test_detection_has_its_shots_of_every_category_and_some_negatives(garden):
    asked = [e.question for e in garden["det"].train]
    shown = [e.question for e in garden["det"].train if e.target != "No Objects"]
    assert len(set(asked)) == 7 and all(shown.count(q) == 2 for q in set(asked))
    assert len(asked) - len(shown) == 2  # 15 % of 14


def test_open_vocabulary_detection_never_trains_on_what_ood_asks_for(garden):
    def colours(examples):
        return {e.question.split()[2] for e in examples}

    task = garden["ovd"]
    assert colours(task.train) == set(BASE_COLOURS)
    assert colours(task.splits["held_out"]) <= set(BASE_COLOURS)
    assert colours(task.splits["ood"]) <= set(NEW_COLOURS)
    assert not set(BASE_COLOURS) & set(NEW_COLOURS)


def test_ood_is_harder_in_the_stated_way(garden):
    ordered = garden["order"].splits
    assert {len(e.images) for e in ordered["held_out"]} <= {1, 3}
    assert {len(e.images) for e in ordered["ood"]} == {4}
    counted = TASKS["count"](replace(SMALL, held_out_size=60)).splits
    totals = {
        split: [int(e.target) for e in counted[split] if e.question.startswith("How many flowers?")]
        for split in ("held_out", "ood")
    }
    assert max(totals["held_out"]) <= 4 < 5 <= min(totals["ood"])


def test_another_view_moves_every_flower_that_stays_by_the_same_step():
    moved = 0
    for k in range(40):
        made = change.make(random.Random(k), k, True)
        if made is None:
            continue
        question, images = made
        assert len(images) == 2 and images[0].size == images[1].size
        straight = change.make(random.Random(k), k, False)[0]
        steps = {
            (b.x0 - a.x0, b.y0 - a.y0) for a, b in zip(straight.after, question.after, strict=True)
        }
        assert len(steps) == 1 and (0, 0) not in steps
        moved += 1
        assert (straight.prompt, straight.answer) == (question.prompt, question.answer)
    assert moved > 20


# ---- rewards and scores --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", list(INSTRUCTIONS))
@pytest.mark.parametrize("name", NAMES)
def test_the_exact_answer_is_the_best_one_and_silence_the_worst(name, mode):
    task = TASKS[name](replace(SMALL, train_size=30, held_out_size=2, prompt_mode=mode))
    differ = 0
    for k, example in enumerate(task.train):
        assert example.question.endswith(INSTRUCTIONS[mode])
        right, silent = said(example.target, mode), ""
        best = task.reward(right, example, 0.0)
        assert best.total == pytest.approx(2.5 if name in ("det", "ovd") else 1.5)
        assert task.scores(right, example)["strict"] == task.scores(right, example)["format"] == 1
        assert task.reward(silent, example, 1.0).total == 0.0
        other = said(task.train[k - 1].target, mode)
        assert task.reward(other, example, 1.0).total <= best.total
        differ += task.reward(other, example, 0.0).total < best.total
        assert task.scores(silent, example)["strict"] == 0.0
    assert differ > len(task.train) / 3  # questions do not all have one answer


@pytest.mark.parametrize("name", NAMES)
def test_dense_credit_never_lowers_a_reward(garden, name):
    task = garden[name]
    for a in task.train:
        for b in task.train[:6]:
            sparse, dense = (task.reward(said(b.target), a, d).total for d in (0.0, 1.0))
            assert sparse <= dense


@pytest.mark.parametrize("name", NAMES)
def test_a_completion_of_the_garden_fits_the_tasks_length(garden, name):
    processor = Processor(BASE_MODEL)
    for example in everything(garden[name]):
        answer = len(processor.encode(said(example.target)))
        assert answer + 20 <= garden[name].max_completion_length


def test_every_target_is_in_the_grammar_of_its_task(garden):
    assert all(is_box_list(e.target) for n in ("det", "ovd") for e in everything(garden[n]))
    assert all(is_one_box(e.target) for e in everything(garden["ground"]))
    assert all(parse_calls(e.target) for e in everything(garden["change"]))
    for example in everything(garden["order"]):
        items = parse_sequence(example.target)
        assert (items is None) == (len(example.images) == 1)


# ---- metrics of a split --------------------------------------------------------------------------


def boxes(*numbers: list[int], confidence: float = 1.0) -> str:
    return said(json.dumps([{"Position": b, "Confidence": confidence} for b in numbers]))


TRUTH = [
    Example("a", (), "Find every cat.", '[{"Position": [0, 0, 100, 100], "Confidence": 1.0}]'),
    Example("b", (), "Find every cat.", '[{"Position": [500, 0, 900, 100], "Confidence": 1.0}]'),
    Example("c", (), "Find every dog.", '[{"Position": [0, 0, 500, 500], "Confidence": 1.0}]'),
    Example("d", (), "Find every dog.", "No Objects"),
]
PERFECT = [said(example.target) for example in TRUTH]


def test_perfect_boxes_have_an_average_precision_of_one_and_no_boxes_of_zero():
    assert average_precision(TRUTH, PERFECT) == pytest.approx({"mAP": 1.0, "AP50": 1.0})
    nothing = average_precision(TRUTH, [said("No Objects")] * 4)
    assert nothing == average_precision(TRUTH, ["", "?", "<answer>", "[]"])
    assert nothing == {"mAP": 0.0, "AP50": 0.0}


def test_average_precision_is_the_mean_over_categories_and_thresholds():
    # the dog's box overlaps by 0.8: right at 0.50, 0.55, ..., 0.80 (7 of 10); the cats are perfect
    texts = [*PERFECT[:2], boxes([0, 0, 400, 500]), PERFECT[3]]
    metrics = average_precision(TRUTH, texts)
    assert metrics["AP50"] == pytest.approx(1.0)
    assert metrics["mAP"] == pytest.approx((1.0 + 0.7) / 2, abs=1e-6)


def test_a_false_box_costs_precision_unless_it_is_less_confident():
    # one dog of two images; the other image shows none
    for confidence, precision in ((0.2, 1.0), (1.0, 0.5)):
        false = boxes([600, 600, 900, 900], confidence=confidence)
        true = boxes([0, 0, 500, 500], confidence=0.5)
        metrics = average_precision(TRUTH[2:], [true, false])
        assert metrics["AP50"] == pytest.approx(precision)


def test_a_category_without_a_true_box_does_not_count():
    only_absent = Example("e", (), "Find every bee.", "No Objects")
    assert average_precision([*TRUTH, only_absent], [*PERFECT, boxes([0, 0, 9, 9])]) == (
        pytest.approx({"mAP": 1.0, "AP50": 1.0})
    )


@pytest.mark.case("O18")
def test_average_precision_equals_pycocotools_on_files(tmp_path):
    # the same boxes, written as COCO files and judged by the library on its own
    rng = random.Random(0)
    examples, texts, truths, found = [], [], [], []
    for image in range(1, 41):
        category = rng.choice(("cat", "dog", "bee"))
        key = {"cat": 1, "dog": 2, "bee": 3}[category]
        true = [random_box(rng) for _ in range(rng.randint(0, 3))]
        near = [[min(1000, v + rng.randint(0, 20)) for v in b] for b in true]
        near = [b for b in near if b[0] < b[2] and b[1] < b[3] and rng.random() < 0.8]
        guesses = [(b, rng.randint(1, 100) / 100) for b in (*near, random_box(rng))]
        target = json.dumps([{"Position": b, "Confidence": 1.0} for b in true])
        examples.append(Example(str(image), (), f"Find every {category}.", target))
        items = [{"Position": b, "Confidence": c} for b, c in guesses]
        texts.append(said(json.dumps(items)))
        where = {"image_id": image, "category_id": key}
        for x1, y1, x2, y2 in true:
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            truths.append(where | box | {"id": len(truths) + 1, "iscrowd": 0})
        for (x1, y1, x2, y2), c in guesses:
            found.append(where | {"bbox": [x1, y1, x2 - x1, y2 - y1], "score": c})
    categories = [{"id": k, "name": n} for k, n in ((1, "cat"), (2, "dog"), (3, "bee"))]
    images = [{"id": k} for k in range(1, 41)]
    content = {"info": {}, "images": images, "annotations": truths, "categories": categories}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    (tmp_path / "found.json").write_text(json.dumps(found))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp_path / "truth.json"))
        judge = COCOeval(truth, truth.loadRes(str(tmp_path / "found.json")), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    metrics = average_precision(examples, texts)
    assert 0.1 < judge.stats[0] < 0.9 and judge.stats[1] > judge.stats[0]
    assert metrics == pytest.approx({"mAP": judge.stats[0], "AP50": judge.stats[1]})


def random_box(rng) -> list[int]:
    x1, y1 = rng.randint(0, 700), rng.randint(0, 700)
    return [x1, y1, x1 + rng.randint(50, 300), y1 + rng.randint(50, 300)]


def test_cumulative_iou_is_all_intersections_over_all_unions():
    examples = [
        Example("a", (), "Where?", "[0, 0, 100, 100]"),
        Example("b", (), "Where?", "[0, 0, 100, 300]"),
    ]
    assert cumulative_iou(examples, [said(e.target) for e in examples]) == {"cIoU": 1.0}
    half = [said("[0, 0, 100, 50]"), said("[0, 0, 100, 300]")]
    assert cumulative_iou(examples, half)["cIoU"] == pytest.approx((5000 + 30000) / 40000)
    # no box, or two, intersect nothing
    none = [said("nowhere"), said("[[0, 0, 100, 300], [0, 0, 9, 9]]")]
    assert cumulative_iou(examples, none) == {"cIoU": 0.0}


# ---- frames --------------------------------------------------------------------------------------

CONFIG = ImageConfig(14, 2, 2, 28 * 28, 200 * 28 * 28, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("coords, frame", [("norm1000", (1000, 1000)), ("abs", (200, 100))])
def test_targets_are_written_in_the_frame_that_the_model_speaks(coords, frame):
    example = Example("a", (Image.new("RGB", (200, 100)),), "?", "[100, 50, 200, 100]")
    moved = in_frame(example, "abs", replace(SMALL, coords=coords, image_config=CONFIG))
    assert moved.frame == frame
    ((box,), _) = parse_boxes(moved.target, moved.frame)
    width, height = frame
    assert box[:4] == (width / 2, height / 2, width, height)


def test_resized_frames_are_those_of_the_vision_tower():
    example = Example("a", (Image.new("RGB", (200, 100)),), "?", "[100, 50, 200, 100]")
    moved = in_frame(example, "abs", replace(SMALL, coords="abs_resized", image_config=CONFIG))
    assert moved.frame == (196, 112)  # multiples of 28
    assert moved.target == "[98, 56, 196, 112]"


@pytest.mark.parametrize("coords", ["abs", "abs_resized"])
@pytest.mark.parametrize("name", ["det", "ovd", "ground"])
def test_a_box_task_in_another_frame_pays_the_exact_answer_in_that_frame(name, coords):
    settings = replace(SMALL, coords=coords, image_config=CONFIG)
    task, before = TASKS[name](settings), TASKS[name](SMALL)
    for example, normal in zip(task.train, before.train, strict=True):
        best = task.reward(said(example.target), example, 0.0)
        assert best.total == pytest.approx(2.5 if name != "ground" else 1.5)
        here, there = (parse_boxes(e.target, e.frame)[0] for e in (example, normal))
        assert len(here) == len(there)
        for a, b in zip(here, there, strict=True):
            width, height = example.frame
            back = [a.x1 / width, a.y1 / height, a.x2 / width, a.y2 / height]
            assert back == pytest.approx([v / 1000 for v in b[:4]], abs=0.006)
        if name == "ground":  # the same numbers in the wrong frame are another box
            wrong = task.reward(said(normal.target), example, 0.0).parts["iou"]
            assert wrong < 0.9


# ---- rows and annotations from disk --------------------------------------------------------------


def write_rows(folder, row: dict, count: int = 4):
    """The row `count` times, about another picture each time: 0.png, 1.png, ..."""
    for k in range(count):
        Image.new("RGB", (64, 48), (6 * k, 30, 90)).save(folder / f"{k}.png")
    path = folder / "rows.jsonl"
    lines = [json.dumps(row).replace("0.png", f"{k}.png") for k in range(count)]
    path.write_text("\n".join(lines))
    return path


ROWS = {
    "count": ({"image": "0.png", "problem": "How many?", "solution": "<answer> 3 </answer>"}, "3"),
    "measure": ({"id": "g1", "image": "0.png", "problem": "Angle?", "answer": "4.5"}, "4.5"),
    "change": (
        {
            "id": "t1",
            "image": ["0.png", "1.png"],
            "problem": "What happened?",
            "answer": "change_color(cube_1, 'red'), change_size(ball_2, small)",
        },
        "change_color(cube_1, red), change_size(ball_2, small)",
    ),
    "vqa": ({"images": ["0.png"], "problem": "<image>What is it?", "answer": "a Cat"}, "a cat"),
    "entail": ({"images": ["0.png"], "prompt": "Is it?", "answer": "Unknown"}, "unknown"),
    "order": ({"images": ["0.png", "1.png"], "prompt": "Order.", "answer": "B, A"}, "B, A"),
    "det": (
        {
            "image": "0.png",
            "problem": "Detect cats. Answer in <answer> </answer>.",
            "solution": "<answer>[{'Position': [1, 364, 98, 649], 'Confidence': 1}]</answer>",
        },
        '[{"Position": [1, 364, 98, 649], "Confidence": 1.0}]',
    ),
    "ground": (
        {
            "id": 1,
            "image": "0.png",
            "conversations": [
                {"from": "human", "value": "<image>Where is the cat?"},
                {"from": "gpt", "value": [8, 6, 32, 24]},  # pixels of the 64 x 48 image
            ],
        },
        "[125, 125, 500, 500]",
    ),
}


@pytest.mark.parametrize("name", list(ROWS))
def test_rows_in_the_schemas_of_the_field_become_a_task(tmp_path, name):
    row, answer = ROWS[name]
    path = write_rows(tmp_path, row)
    task = TASKS[name](replace(SMALL, data=str(path), train_size=2))
    assert len(task.train) == len(task.splits["held_out"]) == 2 and "ood" not in task.splits
    example = task.train[0]
    assert all(load_image(image).size == (64, 48) for image in example.images)
    assert len(example.images) == (2 if name in ("change", "order") else 1)
    best = task.reward(said(answer), example, 0.0)
    assert best.total == pytest.approx(2.5 if name == "det" else 1.5)
    assert task.scores(said(answer), example)["strict"] == 1.0
    if name == "det":  # Visual-RFT's prompts say how to answer, and are used as they are
        assert example.question == row["problem"]
    else:
        assert example.question.endswith(INSTRUCTIONS["think"])


@pytest.mark.parametrize("name", list(ROWS))
def test_rows_of_another_task_are_refused_with_their_solution(tmp_path, name, capsys):
    wrong = {"image": "0.png", "problem": "?", "solution": "<answer>-- nothing, of (this</answer>"}
    if name == "vqa":  # any text is an answer there, but not one of endless length
        wrong["solution"] = f"<answer>{'word ' * 300}</answer>"
    path = write_rows(tmp_path, wrong, 6)
    with pytest.raises(InputError, match="solution is no answer of this task"):
        TASKS[name](replace(SMALL, data=str(path)))


@pytest.mark.parametrize("coords", ["auto", "abs", "norm1000"])
def test_the_frame_of_the_datas_boxes_can_be_said(tmp_path, coords):
    row = {"image": "0.png", "problem": "Where?", "solution": "<answer>[8, 6, 32, 24]</answer>"}
    path = write_rows(tmp_path, row)
    task = TASKS["ground"](replace(SMALL, data=str(path), data_coords=coords))
    expected = "[125, 125, 500, 500]" if coords == "abs" else "[8, 6, 32, 24]"
    assert {e.target for e in task.train} == {expected}


@pytest.mark.case("I36")
def test_i36_all_questions_about_a_picture_are_on_one_side_even_of_a_copy(tmp_path):
    path = write_rows(tmp_path, {"image": "0.png", "problem": "How many?", "solution": "3"}, 10)
    Image.open(tmp_path / "3.png").save(tmp_path / "copy.png")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows += [row | {"problem": "How many, again?"} for row in rows]
    rows.append(rows[0] | {"image": "copy.png", "problem": "And here?"})
    path.write_text("\n".join(map(json.dumps, rows)))
    task = TASKS["count"](replace(SMALL, data=str(path), train_size=99, held_out_size=8))
    trained, judged = (
        {load_image(e.images[0]).tobytes() for e in examples}
        for examples in (task.train, task.splits["held_out"])
    )
    assert len(judged) >= 4 and len(trained) + len(judged) == 10 and not trained & judged
    assert len(task.splits["held_out"]) == 8


def test_rows_about_a_single_picture_cannot_be_split(tmp_path):
    row = {"image": "0.png", "problem": "How many?", "solution": "3"}
    path = write_rows(tmp_path, row, 1)
    path.write_text(path.read_text() + "\n" + path.read_text())
    with pytest.raises(InputError, match="2 usable rows about 1 pictures"):
        TASKS["count"](replace(SMALL, data=str(path)))


def test_one_question_for_all_is_refused_where_questions_differ():
    with pytest.raises(InputError, match="--question: the data asks"):
        TASKS["count"](replace(SMALL, question="How many?"))


def test_a_box_outside_of_its_image_names_the_example_and_the_flag(tmp_path):
    row = {"image": "0.png", "problem": "Where?", "solution": "<answer>[70, 6, 90, 24]</answer>"}
    path = write_rows(tmp_path, row)
    with pytest.raises(InputError, match=r"rows.jsonl:1.* outside of its image .*--data_coords"):
        TASKS["ground"](replace(SMALL, data=str(path), data_coords="abs"))


def coco_file(folder, categories=("cat", "dog", "horse")):
    images, annotations = [], []
    for k in range(12):
        Image.new("RGB", (200, 100), (20 * k, 99, 10)).save(folder / f"{k}.jpg")
        images.append({"id": k, "file_name": f"{k}.jpg", "width": 200, "height": 100})
        box = {"bbox": [10 + k, 20, 50, 40], "area": 2000, "iscrowd": 0}
        place = {"id": k + 1, "image_id": k, "category_id": 1 + k % len(categories)}
        annotations.append(place | box)
    names = [{"id": k, "name": name} for k, name in enumerate(categories, 1)]
    path = folder / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": names}))
    return path


def test_coco_annotations_become_few_shot_detection(tmp_path):
    path = coco_file(tmp_path)
    task = TASKS["det"](replace(SMALL, data=str(path), shots=2, held_out_size=8))
    asked = Counter(e.question.split(" Think")[0] for e in task.train)
    assert asked == {DET_PROMPT.format(category=c): 2 for c in ("cat", "dog", "horse")}
    assert not {e.id.split("-")[0] for e in task.train} & {
        e.id.split("-")[0] for e in task.splits["held_out"]
    }
    example = task.train[0]
    ((box,), _) = parse_boxes(example.target, example.frame)
    assert box.x2 - box.x1 == 250 and (box.y1, box.y2) == (200, 600)  # thousandths of 200 x 100
    absent = [e.target == "No Objects" for e in task.splits["held_out"]]
    assert sum(absent) == len(absent) // 4 and task.max_completion_length == 256


def test_more_shots_are_judged_on_the_same_images_less_those_trained_on(tmp_path):
    settings, judged = replace(SMALL, data=str(coco_file(tmp_path)), held_out_size=99), {}
    for shots in (1, 2):
        task = TASKS["det"](replace(settings, shots=shots))
        judged[shots] = [e.id.split("-")[0] for e in task.splits["held_out"]]
    assert set(judged[2]) < set(judged[1])
    both = [i for i in dict.fromkeys(judged[1]) if i in judged[2]]
    assert both == list(dict.fromkeys(judged[2]))  # and in the same order


def test_pixels_of_coco_cannot_be_called_something_else(tmp_path):
    settings = replace(SMALL, data=str(coco_file(tmp_path)), data_coords="norm1000")
    with pytest.raises(InputError, match="--data_coords norm1000: COCO's boxes are pixels"):
        TASKS["det"](settings)


def test_a_rare_category_is_left_out_by_name(tmp_path, capsys):
    path = coco_file(tmp_path)
    content = json.loads(path.read_text())
    content["categories"].append({"id": 9, "name": "yak"})
    content["annotations"][0]["category_id"] = 9
    path.write_text(json.dumps(content))
    task = TASKS["det"](replace(SMALL, data=str(path), shots=1))
    assert "1 categories have too few images and are left out: ['yak']" in capsys.readouterr().out
    assert not any("yak" in e.question for e in everything(task))


def test_coco_annotations_are_split_into_base_and_new_categories(tmp_path):
    path = coco_file(tmp_path)
    task = TASKS["ovd"](replace(SMALL, data=str(path), shots=1))

    def asked(examples):
        return {e.question.split()[2].rstrip(".") for e in examples}

    assert asked(task.train) == {"dog", "horse"} and asked(task.splits["ood"]) == {"cat"}
    with pytest.raises(InputError, match="NEW_COCO"):
        TASKS["ovd"](replace(SMALL, data=str(coco_file(tmp_path, ("dog", "horse")))))


@pytest.mark.parametrize(
    "name, box", [("det", "[[1200, 100, 1300, 200]]"), ("ground", "[9, 9, 2000, 99]")]
)
def test_boxes_beyond_a_thousandth_scale_are_refused_before_training(tmp_path, name, box):
    row = {"image": "0.png", "problem": "Where?", "solution": f"<answer>{box}</answer>"}
    with pytest.raises(InputError, match="outside of its image .*--data_coords"):
        TASKS[name](replace(SMALL, data=str(write_rows(tmp_path, row))))


def test_labels_of_boxes_are_kept_item_by_item(tmp_path):
    items = [{"bbox_2d": [1, 2, 30, 40], "label": "cat"}, {"bbox_2d": [5, 6, 50, 40]}]
    row = {"image": "0.png", "problem": "Find all.", "solution": json.dumps(items)}
    settings = replace(SMALL, data=str(write_rows(tmp_path, row)), data_coords="abs", coords="abs")
    example = TASKS["det"](settings).train[0]
    assert json.loads(example.target) == items and example.frame == (64, 48)


def test_referring_expressions_become_grounding(tmp_path):
    Image.new("RGB", (200, 100)).save(tmp_path / "0.jpg")
    Image.new("RGB", (200, 100), "red").save(tmp_path / "1.jpg")
    row = {"normal_caption": "left cat", "problem": "?", "solution": [10, 20, 60, 60]}
    rows = [{"image": f"{k}.jpg"} | row for k in (0, 1)]
    path = tmp_path / "rec.json"
    path.write_text(json.dumps(rows))
    task = TASKS["ground"](replace(SMALL, data=str(path)))
    assert len(task.train) == len(task.splits["held_out"]) == 1
    assert task.train[0].question.startswith("Where is left cat?")
    assert task.train[0].target == "[50, 200, 300, 600]"
