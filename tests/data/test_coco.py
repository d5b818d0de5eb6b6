"""What data/coco.py and data/grounding.py guarantee about annotated boxes.

Every layout (COCO, LVIS, REC rows of VLM-R1, RefCOCO, ReasonSeg) gives boxes in pixels of the
upright image; a box that cannot be meant is refused with its id and a hint; few-shot sets are
exact, repeatable and nested; a negative is known not to show the category. Ids like "i30" are the
cases of the list of bad inputs. Run: pytest tests/data/test_coco.py
"""

import json
from pathlib import Path

import pytest
from PIL import Image

from data.coco import CocoImage, few_shot_categories, is_coco, lacks, load_coco
from data.grounding import is_grounding, load_grounding
from runtime.errors import InputError

SIZE = (100, 50)


def save_picture(path: Path, orientation: int = 1, size: tuple[int, int] = SIZE) -> None:
    """A picture that is stored so that it is `size` once its orientation is applied."""
    image = Image.new("RGB", size if orientation < 5 else size[::-1], "white")
    exif = image.getexif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, exif=exif)


@pytest.fixture
def folder(tmp_path) -> Path:
    for i in range(1, 7):
        save_picture(tmp_path / f"{i}.jpg")
    return tmp_path


def image(number: int, **more) -> dict:
    return {"id": number, "file_name": f"{number}.jpg", "width": 100, "height": 50} | more


def box(number: int, image_id, category_id=1, bbox=(10, 10, 20, 20), **more) -> dict:
    ids = {"id": number, "image_id": image_id, "category_id": category_id}
    return ids | {"bbox": list(bbox) if bbox else bbox, "iscrowd": 0} | more


CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "stop sign"}]
IMAGES = [image(i) for i in range(1, 7)]


def coco(folder: Path, annotations: list, images=IMAGES, categories=CATEGORIES) -> list[CocoImage]:
    data = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(data))
    return load_coco(folder / "instances.json", folder)


def ids(images: list) -> list[str]:
    return [image.id for image in images]


# -------------------------------------------------------------------------------------------- COCO


def test_instances_become_corner_boxes_by_category(folder, capsys):
    images = coco(folder, [box(1, 1), box(2, 1, 2, (0, 0, 100, 50.5)), box(3, 1), box(4, 3)])
    assert ids(images) == ["1", "2", "3", "4", "5", "6"]
    assert images[0].boxes == {
        "cat": [(10, 10, 30, 30), (10, 10, 30, 30)],
        "stop sign": [(0, 0, 100, 50)],
    }
    assert images[1].boxes == {} and images[0].path == folder / "1.jpg"
    assert images[0].size == SIZE
    assert "read as COCO instances: 6 images, 4 boxes" in capsys.readouterr().out
    assert load_coco(folder / "instances.json") == images  # pictures beside the file


@pytest.mark.case("I30")
def test_i30_annotations_without_image_category_or_area_are_skipped(folder, capsys):
    annotations = [box(1, 1), box(2, 99), box(3, 1), box(4, 1)]
    for wrong, reason in (
        (box(7, 2, 99), "unknown category"),
        (box(7, 2, bbox=(5, 5, 0, 9)), "box without area"),
    ):
        images = coco(folder, [*annotations, wrong])
        assert [image.boxes for image in images[:2]] == [{"cat": [(10, 10, 30, 30)] * 3}, {}]
        printed = capsys.readouterr().out
        assert "2 of 5 records skipped" in printed
        assert "unknown image: instances.json: annotation 2" in printed
        assert f"{reason}: instances.json: annotation 7" in printed
    with pytest.raises(InputError, match="3 of 6 records skipped"):
        coco(folder, [*annotations, wrong, box(8, None)])


@pytest.mark.case("I30")
def test_i30_crowds_are_no_boxes_and_neither_shots_nor_negatives(folder, capsys):
    crowds = [box(i, i, iscrowd=1) for i in range(1, 6)]  # more than the limit on skipped records
    images = coco(folder, [*crowds, box(6, 1), box(7, 6), box(8, 5, 2)])
    assert "5 crowd regions are no boxes" in capsys.readouterr().out
    assert images[0].boxes == {"cat": [(10, 10, 30, 30)]} and images[0].unsure == {"cat"}
    assert ids(few_shot_categories(images, ["cat"], 1, seed=0)["cat"]) == ["6"]
    with pytest.raises(InputError, match="2 images per category needed, but 'cat' has 1"):
        few_shot_categories(images, ["cat"], 2, seed=0)
    assert not any(lacks(image, "cat") for image in images if image.unsure)


@pytest.mark.parametrize("place", ["val2017", "images/val2017"])
def test_the_folder_of_the_pictures_of_a_single_file_is_named(tmp_path, place):
    save_picture(tmp_path / place / "1.jpg")
    (tmp_path / "annotations").mkdir()
    file = tmp_path / "annotations/instances_val2017.json"
    data = {"images": [image(1)], "annotations": [box(1, 1)], "categories": CATEGORIES}
    file.write_text(json.dumps(data))
    with pytest.raises(InputError, match=f"give --data_root .*/{place}\\)"):
        load_coco(file)


def test_sizes_may_be_whole_numbers_with_a_point(folder):
    images = coco(folder, [box(1, 1)], images=[image(1, width=100.0, height=50.0)])
    assert images[0].size == (100, 50) and type(images[0].size[0]) is int


@pytest.mark.parametrize("written", [None, 0, 0.0, False, "0"])
def test_what_is_no_crowd_is_a_box_however_that_is_written(folder, written, capsys):
    images = coco(folder, [box(1, 1, iscrowd=written), box(2, 2, iscrowd="1")])
    assert images[0].boxes and not images[1].boxes and images[1].unsure == {"cat"}
    assert "1 crowd regions are no boxes" in capsys.readouterr().out


@pytest.mark.case("I25", "I29")
@pytest.mark.parametrize(
    "bbox, message",
    [
        pytest.param((60, 20, 90, 45), "as x1, y1, x2, y2 they fit", id="i29-xyxy-as-xywh"),
        pytest.param((-5, 0, 9, 9), "name their frame", id="i25-negative"),
        pytest.param((1, 1, float("nan"), 1), "not four numbers", id="i25-nan"),
        pytest.param(None, "not four numbers", id="no-box"),
    ],
)
def test_boxes_that_cannot_be_meant_are_refused_by_annotation(folder, bbox, message):
    with pytest.raises(InputError, match=f"instances.json: annotation 77: .*{message}"):
        coco(folder, [box(1, 1), box(77, 1, bbox=bbox)])


@pytest.mark.case("I26")
@pytest.mark.parametrize(
    "content, message",
    [
        ([], "needs images, annotations and categories, has list"),
        ({"images": []}, r"needs images, .* has \['images'\]"),
        ({"images": 3, "annotations": [], "categories": []}, "needs a list 'images'"),
        ({"images": [{}], "annotations": [], "categories": []}, r"images\[0\] has no id"),
        ({"images": [{"id": [1]}], "annotations": [], "categories": []}, "has no id"),
    ],
)
def test_i26_other_json_files_are_refused_with_what_they_hold(folder, content, message):
    (folder / "a.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        load_coco(folder / "a.json", folder)


@pytest.mark.case("I15", "I20")
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"annotations": []}, "no image has a box; is it"),
        ({"annotations": [box(7, "1")]}, r"no image has a box \(unknown image: .*annotation 7"),
        ({"images": [image(1), image(1)]}, "two images have the id 1"),
        ({"images": [image(1, width=0)]}, "image 1: needs integers width and height"),
        ({"images": [image(1, width=99.5)]}, "image 1: needs integers width and height"),
        ({"images": [image(1, width=float("inf"))]}, "image 1: needs integers width and height"),
        ({"images": [image(1, height="50")]}, "image 1: needs integers width and height"),
        ({"images": [image(1, file_name=None)]}, "image 1: needs a file_name"),
        ({"images": [image(1, file_name="../1.jpg")]}, "leads out of"),
        ({"images": [image(1, file_name="gone.jpg")]}, "1 images missing"),
        ({"categories": [{"id": 1}]}, "None cannot be a class name"),
        (
            {
                "categories": [{"id": 1, "name": "Cat"}, {"id": 2, "name": "cat"}],
                "annotations": [box(1, 1), box(2, 1, 2)],
            },
            "'Cat' and 'cat' are the same answer",
        ),
    ],
)
def test_images_and_categories_that_are_not_usable_are_refused(folder, changes, message):
    with pytest.raises(InputError, match=message):
        coco(folder, **{"annotations": [box(1, 1)]} | changes)


@pytest.mark.case("I28")
def test_i28_pixel_boxes_that_look_normalised_are_doubted(folder, capsys):
    save_picture(folder / "1.jpg", size=(2400, 1600))
    for x2, warns in ((900, True), (1900, False)):
        coco(folder, [box(1, 1, bbox=(0, 0, x2, 1000))], [image(1, width=2400, height=1600)])
        assert ("are they thousandths" in capsys.readouterr().out) == warns
        ground(folder, [REC | {"solution": [1, 2, x2, 1000]}])
        assert ("are they thousandths" in capsys.readouterr().out) == warns


def test_a_folder_with_two_files_of_one_split_is_refused_by_their_names(folder):
    coco(folder, [box(1, 1)])
    for name in ("instances_train_a.json", "instances_train_b.json"):
        (folder / name).write_bytes((folder / "instances.json").read_bytes())
    with pytest.raises(InputError, match=r"--data .*_train_a.json.*of one split; name one file"):
        is_coco(str(folder))


@pytest.mark.parametrize("place", ["{}", "images/{}", "annotations/{}", "annotations/images/{}"])
def test_pictures_of_a_split_are_found_beside_the_annotations(tmp_path, place):
    (tmp_path / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        save_picture(tmp_path / place.format(split) / "1.jpg")
        data = {"images": [image(1)], "annotations": [box(1, 1)], "categories": CATEGORIES}
        (tmp_path / f"annotations/instances_{split}.json").write_text(json.dumps(data))
    assert [i.split for i in load_coco(tmp_path)] == ["train", "val"]


def test_lvis_negatives_are_only_the_images_that_say_so(folder):
    for i in range(1, 5):
        save_picture(folder / "train2017" / f"{i}.jpg")
    url = "http://images.cocodataset.org/train2017/{}.jpg"
    lvis = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    changes = ({}, {}, {"neg_category_ids": [1]}, {"not_exhaustive_category_ids": [1]})
    images = [
        image(i, file_name=None, coco_url=url.format(i)) | lvis | change
        for i, change in enumerate(changes, start=1)
    ]
    loaded = coco(folder, [box(1, 1), box(2, 4)], images)
    assert loaded[0].path == folder / "train2017" / "1.jpg"
    assert ids([image for image in loaded if lacks(image, "cat")]) == ["3"]
    assert ids(few_shot_categories(loaded, ["cat"], 1, seed=0)["cat"]) == ["1"]


# ----------------------------------------------------------------------------------- few-shot sets


@pytest.fixture
def many(tmp_path) -> list[CocoImage]:
    """Forty images: cats in the even ones, stop signs in every third."""
    save_picture(tmp_path / "x.jpg")
    b = [(0.0, 0.0, 9.0, 9.0)]
    boxes = [
        ({"cat": b} if i % 2 == 0 else {}) | ({"stop sign": b} if i % 3 == 0 else {})
        for i in range(40)
    ]
    return [CocoImage(str(i), tmp_path / "x.jpg", SIZE, named) for i, named in enumerate(boxes)]


def test_few_shots_are_exact_repeatable_and_nested(many):
    four = few_shot_categories(many, ["cat", "stop sign"], 4, seed=1)
    assert ids(four["cat"]) == ["26", "18", "4", "24"]
    assert ids(four["stop sign"]) == ["0", "39", "27", "12"]
    assert ids(few_shot_categories(many, ["cat"], 2, seed=1)["cat"]) == ids(four["cat"])[:2]
    nine = few_shot_categories(many, ["stop sign", "cat"], 9, seed=1)
    assert ids(nine["cat"])[:4] == ids(four["cat"])
    firsts = {few_shot_categories(many, ["cat"], 1, seed)["cat"][0].id for seed in range(40)}
    assert len(firsts) > 10


@pytest.mark.case("I22")
@pytest.mark.parametrize(
    "names, shots, message",
    [
        (["cat", "stop sign"], 15, r"15 images .* 'stop sign' has 14 \(1 categories\)"),
        (["stopsign"], 1, "category 'stopsign': no box has it; did you mean 'stop sign'"),
        (["zebra"], 1, "category 'zebra': no box has it; see"),
    ],
)
def test_i22_categories_that_are_rare_or_unknown_are_refused(many, names, shots, message):
    with pytest.raises(InputError, match=message):
        few_shot_categories(many, names, shots, seed=0)


def test_an_image_lacks_what_it_neither_shows_nor_leaves_open():
    image = CocoImage("1", Path("x"), SIZE, {"cat": []}, frozenset({"dog"}))
    assert [lacks(image, name) for name in ("cat", "dog", "bus")] == [False, False, True]
    image = CocoImage("1", Path("x"), SIZE, {}, ruled_out=frozenset({"bus"}))
    assert [lacks(image, name) for name in ("cat", "bus")] == [False, True]


def test_broken_and_resized_pictures_are_skipped_and_counted(folder, capsys):
    (folder / "1.jpg").write_bytes(b"")
    save_picture(folder / "2.jpg", size=(50, 100))
    images = coco(folder, [box(i, i) for i in range(1, 7)])
    capsys.readouterr()
    usable = few_shot_categories(images, ["cat"], 4, seed=0)["cat"]
    assert sorted(ids(usable)) == ["3", "4", "5", "6"]
    printed = capsys.readouterr().out
    assert "1.jpg': is empty" in printed and "annotated (100, 50), upright picture (50" in printed


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_refer_to_the_upright_picture(folder, orientation):
    save_picture(folder / "1.jpg", orientation)
    images = coco(folder, [box(1, 1)], [image(1)])
    assert ids(few_shot_categories(images, ["cat"], 1, seed=0)["cat"]) == ["1"]
    (example,) = ground(folder, [REC | {"solution": [50, 0, 100, 50]}])
    assert (example.target, example.canvas) == ("[50.0, 0.0, 100.0, 50.0]", SIZE)


# --------------------------------------------------------------------------------------- grounding


REC = {"image": "1.jpg", "problem": "Find the dog.", "normal_caption": "dog"}


def ground(folder: Path, content, name: str = "rec.json", **options):
    text = "\n".join(map(json.dumps, content)) if name.endswith("l") else json.dumps(content)
    (folder / name).write_text(text)
    return load_grounding(str(folder / name), **options)


@pytest.mark.parametrize("name", ["rec.json", "rec.jsonl"])
def test_vlm_r1_rows_are_read_as_corner_boxes(folder, name, capsys):
    rows = [REC | {"solution": [1, 2, 30.5, 50.4]}, REC | {"solution": [0, 0, 9, 9]}]
    del rows[1]["normal_caption"]
    first, second = ground(folder, rows, name)
    assert (first.question, first.target) == ("dog", "[1.0, 2.0, 30.5, 50.0]")
    assert (first.images, first.canvas) == ((folder / "1.jpg",), SIZE)
    assert first.box_format == "abs" and second.question == "Find the dog."
    assert first.id != second.id
    assert "read as VLM-R1 REC rows: 2 phrases" in capsys.readouterr().out


def ref_coco(**changes) -> dict:
    sentences = [{"sent": "left dog", "raw": "Left  dog!"}, {"raw": "brown one"}]
    return {
        "images": [image(1)],
        "annotations": [{"id": 5, "image_id": 1, "bbox": [10, 10, 20, 30]}],
        "refs": [{"ref_id": 3, "ann_id": 5, "sentences": sentences}],
    } | changes


def test_marks_of_pictures_in_phrases_are_dropped(folder):
    asked = {"normal_caption": "", "problem": "<image>\nFind it.", "solution": [1, 2, 30, 40]}
    (example,) = ground(folder, [REC | asked])
    assert example.question == "Find it."


def test_phrases_that_name_their_split_keep_it(folder):
    (folder / "2.jpg").write_bytes((folder / "1.jpg").read_bytes())
    rec = REC | {"solution": [1, 2, 30, 40]}
    content = [rec | {"split": "train"}, rec | {"image": "2.jpg", "split": "test"}, rec]
    assert [e.split for e in ground(folder, content)] == ["train", "test", ""]
    refs = ref_coco()["refs"]
    content = ref_coco(refs=[ref | {"split": "testA"} for ref in refs])
    assert {e.split for e in ground(folder, content)} == {"test"}


def test_reason_seg_in_fractions_is_refused_and_read_with_the_flag(folder):
    for stem in ("1", "2", "3"):
        reason_seg(folder, stem, [target([0.1, 0.2], [0.5, 0.2], [0.5, 0.6])])
    with pytest.raises(InputError, match="normalised.*--data_coords norm1"):
        load_grounding(str(folder))
    example, *_ = load_grounding(str(folder), data_coords="norm1")
    assert example.target == "[10.0, 10.0, 50.0, 30.0]"


def test_ref_coco_gives_one_phrase_per_sentence(folder, capsys):
    examples = ground(folder, ref_coco(), "refs.json")
    assert [e.question for e in examples] == ["left dog", "brown one"]
    assert {e.target for e in examples} == {"[10.0, 10.0, 30.0, 40.0]"}
    assert len(set(ids(examples))) == 2
    assert "read as RefCOCO: 2 phrases" in capsys.readouterr().out


def reason_seg(folder: Path, stem: str, shapes: list, text=("something to eat",)) -> None:
    content = {"text": list(text), "is_sentence": True, "shapes": shapes}
    (folder / f"{stem}.json").write_text(json.dumps(content))


def target(*points, label: str = "target") -> dict:
    return {"label": label, "points": [list(point) for point in points]}


def test_reason_seg_gives_the_extent_of_the_first_target_polygon(folder, capsys):
    first = target((10, 20), (40, 5), (30, 60.5))
    ignored = target((0, 0), (99, 49), label="ignore")
    reason_seg(folder, "1", [ignored, first, target((0, 0), (9, 9))], ["to eat", "a fruit"])
    reason_seg(folder, "2", [target((0, 0), (9, 9), label="flag")])
    examples = load_grounding(str(folder))
    assert [(e.id, e.question) for e in examples] == [("1/0", "to eat"), ("1/1", "a fruit")]
    # Cut at the edge of the picture.
    assert {e.target for e in examples} == {"[10.0, 5.0, 40.0, 50.0]"}
    printed = capsys.readouterr().out
    assert "read as ReasonSeg: 2 phrases" in printed and "no target: 2/0" in printed


def test_reason_seg_files_in_an_old_encoding_are_read(folder):
    reason_seg(folder, "1", [target((0, 0), (9, 9))], ["the café’s sign"])
    text = (folder / "1.json").read_text().encode().decode("unicode_escape")
    (folder / "1.json").write_bytes(text.encode("cp1252"))
    assert load_grounding(str(folder))[0].question == "the café’s sign"


NAN = float("nan")


@pytest.mark.parametrize(
    "points", [[], None, [[1]], [[1, "a"]], "ab", [[1, 2, 3]], [[1, 1], [NAN, 2], [3, 3]]]
)
def test_targets_of_no_points_are_refused_by_file(folder, points):
    reason_seg(folder, "1", [{"label": "target", "points": points}])
    with pytest.raises(InputError, match=r"1.json: a target's points"):
        load_grounding(str(folder))


@pytest.mark.case("I25", "I29")
@pytest.mark.parametrize(
    "solution, message",
    [
        pytest.param([60, 10, 30, 40], "ends before.*is it x, y, width", id="i29-xywh-as-xyxy"),
        pytest.param([60, 10, 300, 400], "they fit as norm1000", id="i29-normalised"),
        pytest.param([-5, 0, 9, 9], "lie outside", id="i25-negative"),
        pytest.param("[1, 2, 3, 4]", "not four numbers", id="text"),
    ],
)
def test_grounded_boxes_that_cannot_be_meant_are_refused_by_row(folder, solution, message):
    with pytest.raises(InputError, match=f"rec.json:1.*{message}|{message}.*rec.json:1"):
        ground(folder, [REC | {"solution": [1, 2, 3, 4]}, REC | {"solution": solution}])


GOOD = REC | {"solution": [1, 2, 3, 4]}


@pytest.mark.case("I26", "I34")
@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.json", [{"image": "1.jpg", "solution": [1, 2, 3, 4]}], r"has columns \['image', 'sol"),
        ("a.json", [{"image": "1.jpg", "problem": "dog"}], r"has columns \['image', 'problem'\]"),
        ("a.json", [3], "is 3, not a row"),
        ("a.json", [GOOD | {"image": ["1.jpg"]}], "must be text"),
        ("a.json", [GOOD | {"normal_caption": ["dog"]}], "must be text"),
        ("a.json", {"a": 1}, "needs a list of rows"),
        ("a.json", [], "no phrase with a box"),
        ("a.json", ref_coco(refs=3), "needs a list 'refs'"),
        ("a.json", ref_coco(refs=[{"ann_id": 6, "sentences": []}]), "ref 0: its ann_id"),
        ("a.json", ref_coco(images=[]), "ref 0: its ann_id, image"),
        ("refs(unc).p", [], "is never opened; accepted"),
        ("a.json", [GOOD | {"image": "../x.jpg"}], "leads out of"),
        ("a.json", [GOOD | {"image": "gone.jpg"}], "1 images missing"),
    ],
)
def test_i26_other_layouts_are_refused_with_what_is_accepted(folder, name, content, message):
    with pytest.raises(InputError, match=message):
        ground(folder, content, name)


@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("a.json", {"images": [], "annotations": [], "categories": []}, (True, False)),
        ("a.json", ref_coco(), (False, True)),
        ("a.json", ref_coco(categories=[]), (False, True)),
        ("a.json", [REC], (False, True)),
        ("a.json", [{"image": "x", "problem": "?", "solution": [1, 2, 3, 4]}], (False, False)),
        ("a.json", {"data": [REC]}, (False, True)),
        ("a.json", [], (False, False)),
        ("a.jsonl", [REC], (False, True)),
        ("a.parquet", [REC], (False, False)),
    ],
)
def test_layouts_are_told_apart_by_what_the_file_holds(tmp_path, name, content, expected):
    is_lines = name.endswith("l")
    text = "\n".join(map(json.dumps, content)) if is_lines else json.dumps(content)
    (tmp_path / name).write_text(text)
    data = str(tmp_path / name)
    assert (is_coco(data), is_grounding(data)) == expected


def test_folders_and_missing_files_are_told_apart(folder):
    assert not is_grounding(str(folder)) and not is_coco(str(folder))
    with pytest.raises(InputError, match="has no .json; accepted"):
        load_grounding(str(folder))
    reason_seg(folder, "1", [target((0, 0), (9, 9))])
    assert is_grounding(str(folder)) and not is_coco(str(folder))
    assert not is_grounding("digits") and not is_coco("gone.json")
    (folder / "empty.json").write_bytes(b"")
    assert not is_coco(str(folder / "empty.json"))


def test_rows_without_phrase_area_or_readable_picture_are_skipped_and_counted(folder, capsys):
    (folder / "2.jpg").write_bytes(b"<html>")
    bad = {
        "box without area": GOOD | {"solution": [5, 5, 5, 9]},
        "empty phrase": GOOD | {"normal_caption": " ", "problem": ""},
        "unreadable": GOOD | {"image": "2.jpg"},
    }
    for reason, row in bad.items():
        assert len(ground(folder, [GOOD, row, GOOD])) == 2
        assert f"1 of 3 records skipped; {reason}: rec.json:1" in capsys.readouterr().out
    with pytest.raises(InputError, match="3 of 4 records skipped"):
        ground(folder, [GOOD, *bad.values()])
