"""Nothing is silently wrong in the data that people bring: each is read, said, or refused.

One table for every kind of input that went wrong somewhere. A case says how the data is made, and
what the console or the error must hold: which frame of boxes, which splits, which form of answers,
where missing pictures are. Run: pytest tests/data/test_field_inputs.py
"""

import json
import re

import pytest

from data.answer_forms import (
    BOXES,
    CALLS,
    NUMBER_OR_CHOICE,
    ONE_BOX,
    SEQUENCE,
    WORD,
    plain,
)
from runtime.errors import InputError
from tests.data.field import (
    classes,
    coco,
    lines,
    load,
    picture,
    row,
    rows,
    solutions,
    table,
)
from tests.data.test_rows import write_saved
from tests.test_answers import takes_under


def vlm_r1(box):
    """Rows of VLM-R1 with this box in the n-th."""
    return lambda n: {
        "image": f"{n}.png",
        "conversations": [
            {"from": "human", "value": "<image>Where?"},
            {"from": "gpt", "value": box(n)},
        ],
    }


def rec(box):
    """REC rows of VLM-R1."""
    return lambda n: {"image": f"{n}.png", "normal_caption": "it", "problem": "?", "solution": box}


def pixels(n):  # of a picture of 96 x 72, up to its borders
    return f"[{5 + n}, 6, {50 + 2 * n}, {40 + n}]"


def without(*keys):
    """An edit that takes keys of the images, or of the whole file, away."""

    def edit(content):
        for key in keys:
            content.pop(key, None)
            for image in content.get("images", []):
                image.pop(key, None)

    return edit


def turned_coco(folder):
    path = coco(folder, lambda n: [60, 10, 30, 30], size=(96, 72))
    for n in range(12):
        picture(folder / f"{n}.jpg", n, (96, 72), orientation=6)
    return path


def turned_rec(folder):
    path = rows(folder, rec([60, 10, 90, 40]))
    for n in range(12):
        picture(folder / f"{n}.png", n, (96, 72), orientation=6)
    return path


LARGE, WIDE, VGA = dict(size=(1400, 1310)), dict(size=(1280, 720)), dict(size=(640, 480))


def half_pixels(is_thousandths):
    """Rows about pictures of 640 x 480 in two frames, every third box up to the border."""

    def make(n):
        right, bottom = (1000, 990) if is_thousandths(n) else (640, 470)
        return row(n, [9, 9, right - 20 * (n % 3), bottom - n])

    return make


# name: (task, builder, flags, what is printed (read) or said (refused), a target or None: refused)
FRAMES = {
    "rows say their frame": (
        "det", solutions("[[100, 200, 300, 900]]"), {},
        "boxes of 'rows.jsonl': thousandths .*by default of Visual-RFT rows; --data_coords to",
        "[100, 200, 300, 900]",
    ),
    "fractions among thousandths": (
        "det", solutions("[[0.1, 0.2, 0.5, 0.9]]", "[[100, 200, 300, 900]]"), {},
        "6 of 12 boxes end at or below 1, others do not.*give --data_coords norm1000", None,
    ),
    "the same, but the flag says so": (
        "det", solutions("[[0.1, 0.2, 0.5, 0.9]]", "[[100, 200, 300, 900]]"),
        {"data_coords": "norm1000"}, "thousandths of the picture", "[100, 200, 300, 900]",
    ),
    "points of COCO keypoints are no fractions": (
        "det", lambda d: coco(d, lambda n: [0, 0, 0, 0]), {}, "too many lost.*without area", None,
    ),
    "a flag is said": (
        "det", solutions("[[10, 20, 30, 60]]"), {"data_coords": "abs"},
        r"pixels of the original picture \(abs\), by --data_coords", "[104, 278, 313, 833]",
    ),
    "few pixel boxes of small pictures": (
        "ground", lambda d: rows(d, lambda n: row(n, pixels(n))), {},
        "warning.*12 of 12 boxes end inside their pictures if they are pixels.*--data_coords abs",
        "]",
    ),
    "pixel boxes of large pictures that all end below 1000": (
        "ground",
        lambda d: rows(d, lambda n: row(n, [9 * n, 5, 500 + 18 * n, 400 + 12 * n]), 25, **WIDE),
        {}, "warning.*all 25 boxes end inside their.*if they are pixels.*--data_coords abs", "]",
    ),
    "thousandths of large pictures": (
        "ground",
        lambda d: rows(d, lambda n: row(n, [9 * n, 5, 500 + 18 * n, 400 + 22 * n]), 25, **WIDE),
        {}, "(?s)^(?!.*warning).*by default", "]",
    ),
    "the second half in pixels": (
        "ground", lambda d: rows(d, half_pixels(lambda n: n < 24), 48, **VGA), {},
        "warning.*of the second half of the boxes, 24 of 24 boxes end inside.*coords abs", "]",
    ),
    "the first half in pixels": (
        "ground", lambda d: rows(d, half_pixels(lambda n: n >= 24), 48, **VGA), {},
        "warning.*of the first half of the boxes, 24 of 24 boxes end inside.*coords abs", "]",
    ),
    "every second row in pixels": (
        "ground", lambda d: rows(d, half_pixels(lambda n: n % 2), 48, **VGA), {},
        "warning.* of 48 boxes end exactly at the border of their picture if they are pixels", "]",
    ),
    "every second row of pixels in thousandths": (
        "ground",
        lambda d: rows(d, vlm_r1(lambda n: [9, 9, 1000 if n % 6 == 0 else 900, 700 + n % 2 * 400]),
                       48, **LARGE),
        {}, "warning.*8 of 48 boxes end exactly at the border.*thousandths", "]",
    ),
    "all in thousandths, some up to the border": (
        "ground",
        solutions(*([9, 9, 60 * k, 1000 if k % 3 else 700] for k in range(1, 17)), count=44, **VGA),
        {}, "(?s)^(?!.*warning).*by default", "]",
    ),
    "EasyR1 pixels": (
        "ground",
        lambda d: rows(d, lambda n: {"images": [f"{n}.png"], "problem": "?", "answer": pixels(n)}),
        {}, "warning.*end inside their pictures if they are pixels.*--data_coords abs", "]",
    ),
    "many pixel boxes up to the borders": (
        "ground", lambda d: rows(d, lambda n: row(n, pixels(n)), 24), {},
        "24 of 24 boxes end inside their pictures if they are pixels.*--data_coords abs", None,
    ),
    "the same, but the flag says thousandths": (
        "ground", lambda d: rows(d, lambda n: row(n, pixels(n)), 24), {"data_coords": "norm1000"},
        "thousandths of the picture", "]",
    ),
    "fractions": (
        "det", solutions("[[0.1, 0.2, 0.5, 0.75]]"), {}, "normalised.*--data_coords norm1", None
    ),
    "fractions with the flag": (
        "det", solutions("[[0.1, 0.2, 0.5, 0.75]]"), {"data_coords": "norm1"},
        "fractions of the picture", "[100, 200, 500, 750]",
    ),
    "VLM-R1 thousandths on small pictures": (
        "ground", lambda d: rows(d, vlm_r1(lambda n: [100, 200, 500 + n, 600])), {},
        "12 of 12 boxes lie outside.*read as pixels.*they fit as norm1000: --data_coords", None,
    ),
    "VLM-R1 thousandths on large pictures": (
        "ground", lambda d: rows(d, vlm_r1(lambda n: [9, 9, 700 + 10 * n, 950]), 24, **LARGE), {},
        "end below 1000: are they thousandths.*--data_coords norm1000", None,
    ),
    "REC rows as x, y, width, height": (
        "ground", lambda d: rows(d, rec([60, 50, 20, 15])), {},
        "12 of 12 boxes cannot be read.*is it x, y, width, height", None,
    ),
    "COCO fractions": (
        "det", lambda d: coco(d, lambda n: [0.1, 0.2, 0.3, 0.5]), {},
        "normalised.*--data_coords norm1", None,
    ),
    "COCO fractions with the flag": (
        "det", lambda d: coco(d, lambda n: [0.1, 0.2, 0.4, 0.3]), {"data_coords": "norm1"},
        "fractions of the picture", "[100, 200, 500, 500]",
    ),
    "COCO thousandths": (
        "det", lambda d: coco(d, lambda n: [100, 200, 300, 400]), {},
        "outside.*they fit as norm1000: --data_coords", None,
    ),
    "COCO per cent": (
        "det", lambda d: coco(d, lambda n: [9, 9, 80, 80 - n], size=(640, 480)), {},
        "warning.*are they per cent of the picture.*--data_coords norm100", "]",
    ),
    "COCO as corners": (
        "det", lambda d: coco(d, lambda n: [50, 40, 90, 70]), {},
        "as x1, y1, x2, y2 they fit: convert", None,
    ),
    "a wrong flag": (
        "det", solutions("[[50, 10, 300, 400]]"), {"data_coords": "abs"},
        "lie outside.*they fit as norm1000", None,
    ),
    "one negative box in text": (
        "det", lambda d: rows(d, lambda n: row(n, f"[[{-50 if n == 3 else 50}, 9, 300, 400]]")), {},
        r"1 of 12 records skipped.*rows.jsonl:4: \[-50, 9, 300, 400\]", "]",
    ),
    "one negative box in a list": (
        "det", lambda d: rows(d, lambda n: row(n, [[-50 if n == 3 else 50, 9, 300, 400]])), {},
        r"1 of 12 records skipped.*rows.jsonl:4: \[-50, 9, 300, 400\]", "]",
    ),
    "one COCO box outside": (
        "det", lambda d: coco(d, lambda n: [80, 9, 60, 20] if n == 3 else [9, 9, 9, 9]), {},
        "1 of 12 records skipped; box leaves its image: instances.json: annotation 3", "]",
    ),
    "one COCO annotation without a box": (
        "det", lambda d: coco(d, lambda n: None if n == 3 else [9, 9, 9, 9]), {},
        "1 of 12 records skipped; no box: instances.json: annotation 3", "]",
    ),
    "COCO without sizes": (
        "det", lambda d: coco(d, edit=without("width", "height")), {},
        "12 images have no size, taken from the pictures", "[104, 139, 417, 556]",
    ),
    "COCO without categories": (
        "det", lambda d: coco(d, edit=without("categories")), {}, "its categories are missing", None
    ),
    "an unused category of the same name": (
        "det",
        lambda d: coco(d, edit=lambda c: c["categories"].insert(0, {"id": 9, "name": "cat"})),
        {}, "12 images, 12 boxes", "]",
    ),
    "COCO of pictures that EXIF turns": (
        "det", turned_coco, {}, r"annotated \(96, 72\).*EXIF orientation turns it", None
    ),
    "boxes of pictures that EXIF turns": (
        "ground", turned_rec, {}, "lie outside.*EXIF orientation turns it", None
    ),
    "COCO under the default task": ("cls", coco, {}, "COCO instances are for --task det", None),
    "a folder of COCO under the default task": (
        "cls", lambda d: roboflow(d), {}, "holds COCO instances, which are for --task det", None
    ),
    "COCO under another task": ("count", coco, {}, "COCO instances are for --task det", None),
}  # fmt: skip


def named_tables(folder, *parts):
    for k, name in enumerate(parts):
        table(folder / f"{name}.parquet", range(12 * k, 12 * k + 12 - 4 * k))


def split_classes(folder):
    for k, name in enumerate(("train", "val", "test")):
        classes(folder / name, {"rose": 3, "tulip": 3}, 50 * k)


def with_metadata(*columns):
    def build(folder):
        for k, name in enumerate(("train", "test")):
            found = []
            for n in range(6):
                picture(folder / name / f"{n}.png", n + 20 * k)
                values = dict(zip(columns, ("Which?", ("rose", "tulip")[n % 2]), strict=False))
                found.append({"file_name": f"{n}.png"} | values)
            lines(folder / name / "metadata.jsonl", found)

    return build


def bare_splits(folder):
    classes(folder, {"train": 3, "test": 3})


def overlapping_files(folder):
    rows(folder, lambda n: row(n, "3"))
    (folder / "rows.jsonl").unlink()
    lines(folder / "train.jsonl", [row(n, "3") for n in range(8)])
    lines(folder / "test.jsonl", [row(n, "3") for n in range(6, 12)])


def roboflow(folder):
    for k, name in enumerate(("train", "valid")):
        coco(folder / name, file="_annotations.coco.json", first=20 * k)


def coco_2017(folder):
    for k, name in enumerate(("train2017", "val2017")):
        coco(folder / name, first=20 * k)
        (folder / "annotations").mkdir(exist_ok=True)
        place = folder / "annotations" / f"instances_{name}.json"
        (folder / name / "instances.json").rename(place)


def saved_dict(folder):
    for k, name in enumerate(("test", "train")):
        numbers = range(20 * k, 20 * k + 4 + 2 * k)
        for n in numbers:
            picture(folder / f"{n}.png", n)
        write_saved(folder / name, [[row(n, "3", id=f"{name}-{n}") for n in numbers]])
    (folder / "dataset_dict.json").write_text('{"splits": ["test", "train"]}')


def reason_seg(folder):
    for name, numbers in (("train", range(8)), ("val", range(8, 12))):
        for n in numbers:
            picture(folder / name / f"{n}.jpg", n)
            shapes = [{"label": "target", "points": [[1, 2], [30, 40]]}]
            content = {"text": ["the cat"], "shapes": shapes}
            (folder / name / f"{n}.json").write_text(json.dumps(content))


def ref_files(folder):
    rows(folder, rec([6, 5, 20, 15]))
    found = [rec([6, 5, 20, 15])(n) for n in range(12)]
    (folder / "rows.jsonl").unlink()
    lines(folder / "refcoco_train.json", found[:8])
    lines(folder / "refcoco_testA.json", found[8:])


# name: (task, builder, what is said, sizes of the splits (train, held_out, val) or None: refused)
SPLITS = {
    "hub shards": (
        "count", lambda d: named_tables(d, "data/train-0", "data/test-0", "data/validation-0"),
        r"trained on 'train' \(12\), evaluated on 'test' \(8\), .*--split val 'val' \(4\)",
        (12, 8, 4),
    ),
    "folders of configs": (
        "count", lambda d: named_tables(d, "en/train-0", "en/dev-0"), "evaluated on 'val'", (12, 8)
    ),
    "folders of splits": (
        "count", lambda d: named_tables(d, "train/0", "test/0"), "evaluated on 'test'", (12, 8)
    ),
    "a table of no split beside them": (
        "count", lambda d: named_tables(d, "train-0", "test-0", "more"),
        "4 of no split not used", (12, 8),
    ),
    "a test split alone": (
        "count", lambda d: named_tables(d, "test-0"),
        "warning.*holds only test, no train.*a part of them is trained on", (6, 6),
    ),
    "class folders in splits": ("cls", split_classes, "trained on 'train' \\(6\\)", (2, 6, 6)),
    "pictures of train among those of test": (
        "count", overlapping_files, "2 left out: their pictures are in train", (8, 4)
    ),
    "a file named test": (
        "count", lambda d: overlapping_files(d) or d / "test.jsonl",
        "warning: 'test.jsonl' is named a test split", (3, 3),
    ),
    "a file with others beside it": (
        "count", lambda d: overlapping_files(d) or d / "train.jsonl",
        "'test.jsonl' lies beside 'train.jsonl' and is not read", (4, 4),
    ),
    "metadata.jsonl": ("cls", with_metadata("problem", "solution"), "evaluated on 'test'", (2, 6)),
    "metadata.jsonl of other columns": (
        "cls", with_metadata("caption", "label"), "columns .*'label'.* match none of", None
    ),
    "pictures without classes in splits": (
        "cls", bare_splits, "are names of splits, without class folders in them", None
    ),
    "a class named train": (
        "cls", lambda d: classes(d, {"train": 3, "bus": 3, "car": 3}), "9 images of 3 classes",
        (3, 6),
    ),
    "Roboflow's COCO folders": ("det", roboflow, "evaluated on 'val' \\(12\\)", (3, 16)),
    "a saved DatasetDict": (
        "count", saved_dict, "trained on 'train' \\(6\\), evaluated on 'test' \\(4\\)", (6, 4)
    ),
    "COCO's own folders": ("det", coco_2017, "pictures of .* are in '.*train2017'", (3, 16)),
    "a folder of one file": (
        "cls", lambda d: solutions("a", "b")(d) and d, "name the file itself: --data .*rows.jsonl",
        None,
    ),
    "ReasonSeg": ("ground", reason_seg, "evaluated on 'val' \\(4\\)", (8, 4)),
    "refcoco_train and refcoco_testA": ("ground", ref_files, "evaluated on 'test'", (8, 4)),
}  # fmt: skip

# name: (task, builder, what is said)
FOLDERS = {
    "pictures in sub-folders of a class": (
        lambda d: classes(d, {"a": 3, "b": 3, "a/more": 3}, 1), "3 of 9 pictures are in sub-folders"
    ),
    "other files": (
        lambda d: classes(d, {"a": 3, "b": 3}) or (d / "a" / "x.csv").write_text(""),
        "1 files are no pictures of a class and not read: .csv 1",
    ),
    "files beside the class folders": (
        lambda d: classes(d, {"a": 3, "b": 3}) or picture(d / "c.png"), "not read: .png 1"
    ),
    "numbers of CUB": (
        lambda d: classes(d, {"001.Black_footed_Albatross": 3, "007.Laysan_Albatross": 3}),
        "the numbers in front .*'001.Black_footed_Albatross' is the class 'Black_footed_Albatross'",
    ),
    "ids of ImageNet": (
        lambda d: classes(d, {"n02085620-Chihuahua": 3, "n02085782-Japanese_spaniel": 3}),
        "is the class 'Chihuahua'",
    ),
    "a scan of 56 megapixels": (
        lambda d: classes(d, {"a": 3, "b": 3}) or picture(d / "a" / "scan.png", 9, (7600, 7400)),
        "7 images of 2 classes",
    ),
}  # fmt: skip


def built(tmp_path, build):
    """What `--data` is given: what the builder returns, or the folder."""
    data = build(tmp_path)
    return data if hasattr(data, "suffix") else tmp_path


def refusal(data, task, **flags) -> str:
    with pytest.raises(InputError) as error:
        load(data, task, **flags)
    message = str(error.value)
    assert message.isprintable() and len(message) < 2500, message
    return message


@pytest.mark.parametrize("name", FRAMES)
def test_the_frame_of_boxes_is_said_and_doubted_where_the_data_contradict_it(
    tmp_path, capsys, name
):
    task, build, flags, said, target = FRAMES[name]
    data = built(tmp_path, build)
    if target is None:
        assert re.search(said, refusal(data, task, **flags))
        return
    examples = load(data, task, **flags).train
    assert re.search(said, capsys.readouterr().out)
    assert any(target in example.target for example in examples)


@pytest.mark.parametrize(
    "question, coords, is_said",
    [
        ("Give the bbox in [0, 1000].", "abs_resized", True),
        ("Give the bbox, normalized to 0-1000.", "abs", True),
        ("Give the bbox, normalized to 0-1000.", "norm1000", False),
        ("Give the bbox of the car with number 1000.", "abs_resized", False),
    ],
)
def test_a_question_that_asks_for_another_frame_than_is_paid_is_said(
    tmp_path, capsys, question, coords, is_said
):
    data = rows(tmp_path, lambda n: row(n, "[100, 200, 300, 900]", problem=question))
    load(data, "ground", coords=coords)
    assert ("questions seem to ask for thousandths" in capsys.readouterr().out) == is_said


@pytest.mark.parametrize("name", SPLITS)
def test_names_of_splits_are_honoured_and_said(tmp_path, capsys, name):
    task, build, said, sizes = SPLITS[name]
    data = built(tmp_path, build)
    if sizes is None:
        assert re.search(said, refusal(data, task))
        return
    loaded = load(data, task)
    assert re.search(said, capsys.readouterr().out)
    splits = (loaded.splits[name] for name in ("held_out", "val") if name in loaded.splits)
    assert (len(loaded.train), *map(len, splits)) == sizes
    if "evaluated on" in said:
        assert all("train" in f"{e.id} {e.images[0]!s:.999}" for e in loaded.train)


@pytest.mark.parametrize("name", FOLDERS)
def test_nothing_in_class_folders_is_overlooked_without_a_count(tmp_path, capsys, name):
    build, said = FOLDERS[name]
    load(built(tmp_path, build), "cls")
    assert re.search(said, capsys.readouterr().out)


def test_names_that_begin_with_numbers_of_their_own_stay(tmp_path, capsys):
    classes(tmp_path, {"737-800": 3, "747-400": 3})
    assert {e.target for e in load(tmp_path, "cls").train} == {"737-800", "747-400"}
    assert "numbers" not in capsys.readouterr().out


def test_coco_asks_for_what_its_pictures_lack_in_training_as_in_evaluation(tmp_path):
    task = load(coco(tmp_path, count=40), "det", shots=10)
    for examples in (task.train, task.splits["held_out"]):
        assert 0 < sum(e.target == "No Objects" for e in examples) < len(examples) / 2


def test_a_coco_box_without_area_makes_its_image_no_negative(tmp_path):
    def flat(content):
        content["annotations"].append(
            {"id": 99, "image_id": 11, "category_id": 0, "bbox": [9, 9, 0, 5], "iscrowd": 0}
        )

    task = load(coco(tmp_path, edit=flat), "det", held_out_size=200)
    assert "11-cat" not in [e.id for e in (*task.train, *task.splits["held_out"])]


POSITION = '[{"position": [100, 200, 300, 400], "label": "cat"}]'
TOKENS = "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(100,200),(300,400)<|box_end|>"
FENCED = f"```json\n{POSITION.replace('position', 'bbox_2d')}\n```"
CAT = '[{"bbox_2d": [100, 200, 300, 400], "label": "cat"}]'
# (task, solution, target)
READ = [
    ("vqa", r"$\boxed{\text{blue}}$", "blue"),
    ("vqa", r"So the answer is \boxed{dark blue}.", "dark blue"),
    ("vqa", r"<answer>$\text{blue}$</answer>", "blue"),
    ("vqa", r"\boxed{\text{dog} \& cat}", "dog & cat"),
    ("cls", r"\boxed{\text{blue}}", "blue"),
    ("count", r"$$\boxed{12}$$", "12"),
    ("count", "$5", "5"),
    ("count", "1,250", "1,250"),
    ("count", "3 apples", "3"),
    ("measure", "<answer> 145° </answer>", "145"),
    ("measure", r"\boxed{90^\circ}", "90"),
    ("measure", "12 cm²", "12"),
    ("measure", "12.5cm", "12.5"),
    ("measure", "50 %", "50"),
    ("vqa", "[1] STOP", "[1] STOP"),
    ("vqa", "E. coli", "E. coli"),
    ("measure", "1,250 km/h", "1,250"),
    ("measure", "300 K", "300"),
    ("measure", "5 m", "5"),
    ("measure", "C. 5 cm", "C"),
    ("measure", "(D) red", "D"),
    ("entail", "Yes.", "Yes."),
    ("order", "B > A > C", "B > A > C"),
    ("det", POSITION, CAT),
    ("det", TOKENS, CAT),
    ("det", "<ref>cat</ref><box>[[100, 200, 300, 400]]</box>", CAT),
    ("det", FENCED, CAT),
    ("ground", "<|box_start|>(100,200),(300,400)<|box_end|>", "[100, 200, 300, 400]"),
]
# (task, solution, the form that the refusal names)
REFUSED = [
    ("count", "three", "'3', '1,250', '145°' or '12 cm'"),
    ("count", "3 or 4", "read is a number"),
    ("count", "1e3", "read is a number"),
    *(("count", text, "read is a number") for text in ("12 thousand", "1.5 Million", "2 dozen")),
    *(("measure", text, "'145°'") for text in ("$5M", "3 hundred", "10 k", "7bn", "2 B")),
    ("measure", "1.000,5", "'B. 5 cm'"),
    ("measure", r"\frac{1}{2}", "'145°'"),
    ("measure", "x = 5", "'145°'"),
    ("entail", "True", "'yes', 'no' or 'unknown'"),
    ("order", "first B", "'B, A, C'"),
    ("change", "it is red now", "'change_color(cube_1, red), remove(ball_2)'"),
    ("vqa", "<think>rose", "'in the shade'"),
    *(("vqa", text, "a short text") for text in ("['red', 'crimson']", '["red"]', '{"a": 1}')),
    ("det", '[{"bbox": [1, 2, 3, 4]}]', "keys bbox_2d, Position or position"),
    ("det", '{"box_2d": [1, 2, 3, 4]}', "keys bbox_2d, Position or position"),
    ("det", "[[30, 40, 10, 20]]", "x1 < x2"),
    ("ground", "[[1, 2, 3, 4], [5, 6, 7, 8]]", "one box"),
    ("count", "x" * 5000, "read is a number"),
]


@pytest.mark.parametrize("task, solution, target", READ)
def test_the_fields_forms_of_answers_are_read_and_the_rewriting_is_said(
    tmp_path, capsys, task, solution, target
):
    examples = load(solutions(solution, *["red"] * (task == "cls"))(tmp_path), task).train
    got = {e.target for e in examples}
    if task in ("det", "ground"):
        assert [b for t in got for b in re.findall(r"\[\d[^]]*\]", t)] == ["[100, 200, 300, 400]"]
    else:
        assert target in got
    if solution.removeprefix("<answer>") == solution and target != solution and task != "ground":
        printed = capsys.readouterr().out
        assert ("solutions are read by their form" in printed) == ("```" not in solution)


@pytest.mark.parametrize("task, solution, form", REFUSED)
def test_a_refusal_says_what_would_be_read_and_cuts_the_value(tmp_path, task, solution, form):
    message = refusal(solutions(solution)(tmp_path), task)
    assert "solution is no answer of this task: rows.jsonl:1: " in message and form in message
    assert "x" * 100 not in message


@pytest.mark.parametrize(
    "text",
    [r"\boxed{" * 20_000, r"\text{" * 20_000 + "}" * 20_000, "<box>" * 20_000, "$" * 90_000]
    + ["(" * 50_000, "1 " * 40_000, "<ref>a</ref>" * 9000, "A." + " " * 90_000, "\ufdfa" * 30_000],
    ids=lambda text: text[:7],
)
def test_no_solution_takes_long_to_read(text):
    forms = [NUMBER_OR_CHOICE, BOXES, ONE_BOX, CALLS, SEQUENCE, WORD]
    assert takes_under(0.5, lambda: [form.read(plain(text)) for form in forms])


def test_latex_that_stays_is_said(tmp_path, capsys):
    load(solutions(r"\alpha-helix")(tmp_path), "vqa")
    assert "12 rows: warning: the solution is LaTeX" in capsys.readouterr().out


def backslashes(folder):
    return coco(folder, images="img", file_name=lambda n: f"img\\{n}.jpg")


def pointers(folder):
    path = solutions("3")(folder)
    for n in range(12):
        (folder / f"{n}.png").write_text("version https://git-lfs.github.com/spec/v1\noid 1\n")
    return path


def renamed(name, asked):
    def build(folder):
        picture(folder / name)
        return rows(folder, lambda n: row(n, "3", image=asked))

    return build


# name: (task, builder, what is said)
MISSING = {
    "another root": (
        "det", lambda d: coco(d, file="annotations/instances.json", images="images"),
        r"12 images missing .*they are in '.*images': give --data_root",
    ),
    "folders that are not there": (
        "count", lambda d: rows(d, lambda n: row(n, "3", image=f"img/{n}.png")),
        "without the folders in front, are in",
    ),
    "a path of Windows": (
        "det", lambda d: coco(d, file_name=lambda n: f"C:\\pictures\\{n}.jpg"), "path of Windows"
    ),
    "URL encoding": ("count", renamed("a b.png", "a%20b.png"), "in URL encoding; the file is 'a b"),
    "another case": ("count", renamed("Rose.PNG", "rose.png"), "did you mean 'Rose.PNG'"),
    "a data URI": (
        "count",
        lambda d: rows(d, lambda n: row(n, "3", image="data:image/png;base64," + "iVBOR" * 900)),
        "rows.jsonl:1: .{40,90} is a picture in base64.*save it as a file",
    ),
    "bare base64": (
        "count", lambda d: rows(d, lambda n: row(n, "3", image="/9j/4AAQSk" + "Zz09" * 900)),
        "rows.jsonl:1: .{40,60} is a picture in base64.*save it as a file",
    ),
    "a long URL": (
        "count", lambda d: rows(d, lambda n: row(n, "3", image="https://x.org/" + "a" * 3000)),
        "is a URL, no path below .*download",
    ),
    "an absolute path": (
        "count", lambda d: rows(d, lambda n: row(n, "3", image=f"/data/{n}.png")),
        "leads out of .*--data_root",
    ),
    "pointers of git-lfs": ("count", pointers, "git-lfs pointer, not a picture: run git lfs pull"),
    "a pointer in place of the rows": (
        "count", lambda d: _pointer(d / "rows.jsonl"), "a git-lfs pointer; run git lfs pull"
    ),
    "a pointer in place of a table": (
        "count", lambda d: _pointer(d / "rows.parquet"), "a git-lfs pointer; run git lfs pull"
    ),
    "a long column": (
        "count", lambda d: rows(d, lambda n: {"image": "0.png", "q" * 3000: 1}), "match none of: V"
    ),
}  # fmt: skip


def _pointer(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 12\n")
    return path


@pytest.mark.parametrize("name", MISSING)
def test_a_picture_that_is_not_there_is_explained_and_long_values_are_cut(tmp_path, name):
    task, build, said = MISSING[name]
    message = refusal(built(tmp_path, build), task)
    assert re.search(said, message) and not re.search(r"(.)\1{100}|(iVBOR){30}", message)


def test_backslashes_in_names_are_read_as_slashes(tmp_path, capsys):
    assert load(backslashes(tmp_path), "det").train
    picture(tmp_path / "r" / "img" / "0.png")
    path = rows(tmp_path / "r", lambda n: row(n, "3", image=f"img\\{n}.png"))
    for n in range(12):
        picture(tmp_path / "r" / "img" / f"{n}.png", n)
    assert load(path, "count").train
    assert "12 rows: backslashes in the picture's name" in capsys.readouterr().out


@pytest.mark.parametrize(
    "names, said",
    [
        (["rose", "ro\u200bse"], "'rose' and 'ro⟨U\\+200B⟩se' differ in hidden characters only"),
        (["rose", "rose\ufe0f"], "hidden characters only"),
        (["Rose", "rose"], "only one class, .*these spellings are the same answer"),
        (["<think>rose", "tulip"], "holds a tag of the answer format"),
        (["rose</answer>", "tulip"], "holds a tag of the answer format"),
        (["x" * 5000, "tulip"], "'x{79}\\.\\.\\. cannot be a class name"),
    ],
)
def test_labels_that_are_one_or_that_no_answer_can_say_are_refused(tmp_path, names, said):
    data = rows(tmp_path, lambda n: row(n, names[n % 2]))
    assert re.search(said, refusal(data, "cls")) or "without one <answer>" in refusal(data, "cls")


def test_spellings_of_one_class_are_said(tmp_path, capsys):
    load(solutions("Rose", "rose", "tulip")(tmp_path), "cls")
    assert "1 classes are written in several ways: 'Rose' and 'rose'" in capsys.readouterr().out


@pytest.mark.parametrize(
    "task, name, text",
    [
        ("count", "r.jsonl", '{"image": "0.png", "problem": "?", "solution": "3", "KEY": "4"}'),
        ("count", "r.json", '[{"image": "0.png", "problem": "?", "solution": "3", "KEY": "4"}]'),
        ("det", "r.json", '{"images": [], "annotations": [], "categories": [], "KEY": []}'),
        ("ground", "1.json", '{"text": "it", "shapes": [], "KEY": []}'),
        (
            "count", "state.json", '{"_data_files": [], "KEY": []}'
        ),
    ],
)  # fmt: skip
def test_a_key_that_occurs_twice_is_refused_by_name(tmp_path, task, name, text):
    key = {"det": "annotations", "ground": "shapes"}.get(task, "solution")
    key = "_data_files" if name == "state.json" else key
    (tmp_path / name).write_text(text.replace("KEY", key))
    data = tmp_path if name in ("1.json", "state.json") else tmp_path / name
    assert f"the key '{key}' occurs twice in one object" in refusal(data, task)


def test_a_solution_with_a_doubled_key_is_refused(tmp_path):
    twice = '[{"bbox_2d": [1, 2, 3, 4], "bbox_2d": [2, 2, 5, 5]}]'
    assert "the key 'bbox_2d' occurs twice" in refusal(solutions(twice)(tmp_path), "det")


@pytest.mark.parametrize("shots, fix", [(1, "add images"), (3, "lower")])
def test_nobody_is_told_to_lower_one_shot(tmp_path, shots, fix):
    classes(tmp_path / "a", {"rose": shots, "tulip": shots})
    data = coco(tmp_path / "b", count=2 * shots)
    for place, task in ((tmp_path / "a", "cls"), (data, "det")):
        message = refusal(place, task, shots=shots)
        assert fix in message and ("lower" in message) == (shots > 1)


@pytest.mark.parametrize("task", ["vqa", "zoom"])
def test_letters_before_the_text_of_a_choice_are_read_where_the_questions_offer_it(
    tmp_path, capsys, task
):
    flags, given = {"max_pixels": 28 * 28} if task == "zoom" else {}, ("A. red", "(B) blue", "C")
    asked = {"problem": "Which? A. red (B) blue C) green"}
    data = rows(tmp_path, lambda n: row(n, given[n % 3], **asked))
    examples = load(data, task, **flags).train
    assert {e.target for e in examples} == {"A", "B", "C"}
    assert "8 solutions are read by their form" in capsys.readouterr().out


def test_names_with_an_initial_are_no_choices(tmp_path):
    species = ("E. coli", "A. thaliana", "D. melanogaster")
    assert {e.target for e in load(solutions(*species)(tmp_path), "vqa").train} == set(species)
