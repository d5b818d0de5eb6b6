"""What data/labelled.py guarantees about data from outside.

Class folders, rows and digits become the same sorted list of labelled images; every bad record has
the one outcome that is documented; no link leads out of a folder; the few-shot split is exact,
repeatable and without overlap. What holds for rows of any kind is in tests/data/test_rows.py.
All data sets are made on the fly. Run: pytest tests/data/test_labelled.py
"""

import json
import os
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.examples import Example
from data.files import SkipLog
from data.labelled import (
    ANY_PROMPT,
    few_shot_split,
    load_labelled,
    read_digits,
    read_image_folder,
)
from data.pictures import readable
from runtime.errors import InputError


def picture(number: int) -> Image.Image:
    """A 12x10 image that differs from that of every other number."""
    noise = np.random.Generator(np.random.Philox(number)).integers(0, 256, (10, 12, 3))
    return Image.fromarray(noise.astype(np.uint8))


def class_folders(root: Path, **counts: int) -> Path:
    number = 0
    for label, count in counts.items():
        (root / label).mkdir(parents=True)
        for i in range(count):
            picture(number).save(root / label / f"{i}.png")
            number += 1
    return root


def one(id: str, image, name: str) -> Example:
    return Example(id, (image,), "Which?", name)


def labelled(**counts: int) -> list[Example]:
    """Items in memory: `labelled(a=3)` has the images a/0, a/1, a/2."""
    names = [(label, i) for label, count in counts.items() for i in range(count)]
    return [one(f"{c}/{i}", picture(n), c) for n, (c, i) in enumerate(names)]


def ids(items: list[Example]) -> list[str]:
    return [item.id for item in items]


def test_class_folders_give_sorted_items_labelled_by_folder_name(tmp_path, capsys):
    root = class_folders(tmp_path / "set", Rose_dog=2, **{"737-800": 1})
    picture(9).save(root / "737-800" / "Z.JPG")
    (root / ".hidden").mkdir()
    (root / "Rose_dog" / ".thumb.png").write_bytes(b"")
    (root / "Rose_dog" / "notes.txt").write_text("no image")
    (root / "Rose_dog" / "deeper").mkdir()
    picture(8).save(root / "Rose_dog" / "deeper" / "read.png")
    (root / "Rose_dog" / "link.png").symlink_to(root / "Rose_dog" / "0.png")
    items = read_image_folder(root)
    files = ["737-800/0.png", "737-800/Z.JPG"]
    names = ("0", "1", "link", "deeper/read")
    assert ids(items) == files + [f"Rose_dog/{name}.png" for name in names]
    assert [item.target for item in items] == ["737-800"] * 2 + ["Rose_dog"] * 4
    printed = capsys.readouterr().out
    assert "1 files are no pictures of a class and not read: .txt 1" in printed
    assert "1 of 6 pictures are in sub-folders of their class" in printed
    assert [item.images[0] for item in items] == [root / item.id for item in items]
    assert all(item.question == ANY_PROMPT for item in items)
    assert items == read_image_folder(root)


@pytest.mark.parametrize(
    "pair",
    [
        ("dog rose", "Dog_Rose"),
        ("pansy", "pansy."),
        (unicodedata.normalize("NFC", "rosé"), unicodedata.normalize("NFD", "rosé")),
    ],
)
def test_two_folders_that_are_one_answer_are_refused_by_name(tmp_path, pair):
    class_folders(tmp_path, **dict.fromkeys(pair, 1))
    with pytest.raises(InputError, match="same answer") as error:
        read_image_folder(tmp_path)
    assert all(repr(name) in str(error.value) for name in pair)


@pytest.mark.case("I31")
def test_i31_similar_names_stay_different_classes(tmp_path):
    class_folders(tmp_path, **{"cat": 1, "cathedral": 1, "737": 1, "737-800": 1})
    assert len({item.target for item in load_labelled(str(tmp_path))}) == 4


@pytest.mark.case("I20", "I37")
@pytest.mark.parametrize(
    "names, message",
    [
        ([], "no class folders, only nothing"),
        (["a.png"], r"no class folders, only \['a.png'\].*one sub-folder of images per class"),
        (["rose/a.png"], r"only one class, \['rose'\]: rewards would be constant"),
        (["other/a.png", "train/rose/a.png"], "class folder 'train' has no images directly inside"),
        (["rose/a.png", "_/a.png"], "'_' cannot be a class name"),
    ],
)
def test_folders_that_are_no_classes_are_refused(tmp_path, names, message):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(0).save(tmp_path / name)
    with pytest.raises(InputError, match=message):
        load_labelled(str(tmp_path))


@pytest.mark.case("I15", "I16")
@pytest.mark.parametrize(
    "kind", ["link out", "folder link out", "folder", "fifo", "broken link", "device"]
)
def test_images_that_are_no_regular_files_inside_are_refused_without_hanging(tmp_path, kind):
    root = class_folders(tmp_path / "set", a=1, b=1)
    outside = class_folders(tmp_path / "outside", c=1) / "c"
    path = root / "b" / "odd.jpg"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder link out":
        (root / "c").symlink_to(outside)
    else:
        targets = {"link out": outside / "0.png", "broken link": root / "gone.jpg"}
        path.symlink_to(targets.get(kind, "/dev/zero"))
    with pytest.raises(InputError, match="leads out of" if "out" in kind else "no regular|leads"):
        read_image_folder(root)


@pytest.mark.case("I13")
def test_unreadable_images_are_skipped_counted_and_listed(tmp_path, capsys):
    root = class_folders(tmp_path, a=3, b=3)
    whole = (root / "a" / "0.png").read_bytes()
    (root / "a" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "b" / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    assert len(load_labelled(str(root))) == 6
    printed = capsys.readouterr().out
    assert "2 of 8 records skipped" in printed
    assert "a/cut.png" in printed and "b/drawing.svg" in printed
    assert "read as folder of class folders: 6 images of 2 classes" in printed
    (root / "a" / "page.jpg").write_text("<html>not found</html>")
    with pytest.raises(InputError, match="3 of 9 records skipped.*a/cut.png"):
        load_labelled(str(root))
    assert len(load_labelled(str(root), max_skip=0.5)) == 6


def test_readable_leaves_the_neighbours_of_a_bad_image_alone(tmp_path):
    items = labelled(a=3)
    bad = one("bad", tmp_path / "missing.png", "a")
    skips = SkipLog()
    assert readable([items[0], bad, *items[1:]], skips) == items
    assert skips.counts == {"unreadable": 1} and "bad" in skips.first[0]


def test_digit_halves_are_disjoint_complete_balanced_scans_with_names(capsys, monkeypatch):
    scans = pytest.importorskip("sklearn.datasets").load_digits()
    pretrain, rl = read_digits("pretrain"), read_digits("rl")
    assert ids(pretrain) == [f"digits/{i}" for i in range(0, 1797, 2)]
    assert ids(rl) == [f"digits/{i}" for i in range(1, 1797, 2)]
    assert not {p.images[0].tobytes() for p in pretrain} & {r.images[0].tobytes() for r in rl}
    for half in (pretrain, rl):
        assert min(sum(item.target == name for item in half) for name in ("zero", "nine")) > 80
    pixels = np.asarray(rl[0].images[0])  # (8, 8, 3)
    assert rl[0].target == "one" and rl[0].images[0].mode == "RGB" and pixels.shape == (8, 8, 3)
    assert (pixels == np.rint(scans.images[1] * 255 / 16)[:, :, None]).all()
    assert ids(load_labelled("digits")) == ids(rl)
    assert "RL half: 898 images of 10 classes" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match="pip install scikit-learn"):
        read_digits("rl")


@pytest.fixture
def rows(tmp_path) -> list[dict]:
    """Three rows of one schema, with four pictures beside them."""
    for i in range(4):
        picture(i).save(tmp_path / f"{i}.png")
    return [
        {"id": "a", "image": "0.png", "problem": "<image>Which?", "solution": "rose"},
        {"id": "b", "image": "1.png", "problem": "Which?", "answer": "<answer>daisy</answer>"},
        {"id": "c", "image": ["2.png"], "problem": "Which?", "answer": 737},
    ]


def load_rows(folder: Path, rows: list[dict]) -> list[Example]:
    (folder / "set.json").write_text(json.dumps(rows))
    return load_labelled(str(folder / "set.json"))


def test_rows_give_classes_questions_and_images(tmp_path, rows, capsys):
    items = load_rows(tmp_path, rows)
    assert [(i.id, i.target) for i in items] == [("a", "rose"), ("b", "daisy"), ("c", "737")]
    assert {i.question for i in items} == {"Which?"} and items[2].images[0] == tmp_path / "2.png"
    schema = "Reason-RFT rows (image, problem, answer or solution, id)"
    assert f"read as {schema}: 3 images of 3 classes" in capsys.readouterr().out


@pytest.mark.case("I27")
def test_i27_rows_without_a_name_are_skipped_and_counted_with_all_others(tmp_path, rows, capsys):
    rows += [rows[0] | {"id": "x", "solution": "<answer>._</answer>"}, rows[0] | {"solution": ""}]
    assert len(load_rows(tmp_path, rows)) == 3
    printed = capsys.readouterr().out
    assert "2 of 5 records skipped" in printed and "solution is no name: x" in printed
    (tmp_path / "3.png").write_bytes(b"")  # of another row that is lost
    with pytest.raises(InputError, match="3 of 6 records skipped"):
        load_rows(tmp_path, [*rows, rows[0] | {"image": "3.png"}])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"image": ["0.png", "1.png"], "problem": "?"}, "a: has 2 images; a class needs one"),
        ({"solution": "[{'Position': [1, 2, 3, 4]}]"}, "a: the solution is a box list, no class"),
        ({"solution": "x" * 5000}, "cannot be a class name"),
    ],
)
def test_rows_of_other_tasks_are_refused(tmp_path, rows, change, message):
    with pytest.raises(InputError, match=message):
        load_rows(tmp_path, [rows[0] | change, *rows[1:]])


@pytest.mark.case("I37")
def test_i37_one_class_only_is_refused_and_spellings_of_one_name_are_one_class(tmp_path, rows):
    spellings = [rows[0], rows[0] | {"solution": "Rose", "image": "3.png"}]
    with pytest.raises(InputError, match="only one class"):
        load_rows(tmp_path, spellings)
    items = load_rows(tmp_path, [*spellings, rows[1], rows[1] | {"id": "d", "image": "2.png"}])
    train, held_out = few_shot_split(items, 1, seed=0)
    assert len(train) == len(held_out) == 2


@pytest.mark.case("I16", "I17", "I34")
def test_other_files_and_urls_are_refused_unopened_with_what_is_accepted(tmp_path):
    for name in ("a.pkl", "a.pth", "a.npy", "a.csv", "a.jpg", "a"):
        (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")
        with pytest.raises(InputError, match=r"is a file of type .*accepted: .*\.parquet.*digits"):
            load_labelled(str(tmp_path / name))
    for data in ("https://x.org/set", "file:///tmp", "data:text/plain,x", "s3://b/c"):
        with pytest.raises(InputError, match="is a URL; download"):
            load_labelled(data)
    os.mkfifo(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="is not a regular file"):
        load_labelled(str(tmp_path / "a.parquet"))


@pytest.mark.case("I18")
def test_i18_a_missing_path_is_refused_with_a_hint_for_another_case(tmp_path):
    class_folders(tmp_path / "Flowers", a=1, b=1)
    with pytest.raises(InputError, match=r"does not exist \(did you mean 'Flowers'\?\)"):
        load_labelled(str(tmp_path / "flowers"))
    (tmp_path / unicodedata.normalize("NFD", "rosé")).mkdir()
    with pytest.raises(InputError, match="did you mean 'ros"):
        load_labelled(str(tmp_path / unicodedata.normalize("NFC", "rosé")))
    with pytest.raises(InputError, match="does not exist; accepted"):
        load_labelled(str(tmp_path / "birds" / "x"))


@pytest.mark.parametrize(
    "name, is_said",
    [("0_mask.png", True), ("0_mask_1.png", True), ("0-seg.png", True), ("7_mask.png", False)],
)
def test_pictures_that_are_named_as_masks_of_others_are_said(tmp_path, capsys, name, is_said):
    class_folders(tmp_path, rose=2, tulip=2)
    picture(9).save(tmp_path / "rose" / name)
    load_labelled(str(tmp_path))
    printed = capsys.readouterr().out
    assert (f"1 pictures are named as masks of others, as '{name}'" in printed) == is_said


def test_pictures_in_several_classes_are_said(tmp_path, capsys):
    class_folders(tmp_path, rose=2, tulip=2)
    load_labelled(str(tmp_path))
    assert "several classes" not in capsys.readouterr().out
    picture(0).save(tmp_path / "tulip" / "copy.bmp")
    load_labelled(str(tmp_path))
    printed = capsys.readouterr().out
    assert "warning: " in printed and "1 pictures are in several classes, one in ['rose'" in printed


def test_a_jpeg_may_be_called_jfif(tmp_path):
    class_folders(tmp_path, rose=2, tulip=2)
    picture(9).save(tmp_path / "rose" / "9.jfif", "JPEG")
    assert "rose/9.jfif" in ids(load_labelled(str(tmp_path)))


@pytest.mark.parametrize("shots", [1, 2, 4])
def test_split_has_exactly_the_shots_and_loses_nothing(shots):
    items = labelled(a=5, b=7)
    train, held_out = few_shot_split(items, shots, seed=0)
    assert [sum(i.target == c for i in train) for c in "ab"] == [shots, shots]
    assert sorted(ids(train) + ids(held_out)) == sorted(ids(items))


def test_split_depends_on_the_seed_only_and_that_of_seed_0_is_published():
    items = labelled(a=9, b=9)
    train, held_out = few_shot_split(items, 3, seed=0)
    assert ids(train) == ["a/0", "a/2", "a/1", "b/5", "b/3", "b/7"]
    again = few_shot_split(items[::-1], 3, seed=0)
    assert (ids(train), ids(held_out)) == (ids(again[0]), ids(again[1]))


def test_every_image_is_equally_likely_to_be_the_shot():
    items = labelled(a=4, b=2)
    shots = [few_shot_split(items, 1, seed)[0][0].id for seed in range(400)]
    assert all(70 < shots.count(f"a/{i}") < 130 for i in range(4))  # 100 +- 3.5 std


def test_fewer_shots_are_a_subset_and_are_evaluated_on_the_same_images():
    splits = [few_shot_split(labelled(a=10, b=10), k, 3, held_out_per_class=5) for k in (1, 4)]
    (one, held_1), (four, held_4) = splits
    assert set(ids(one)) < set(ids(four))
    assert ids(held_1) == ids(held_4) and len(held_1) == 10


@pytest.mark.case("I22")
def test_i22_a_class_with_too_few_images_is_refused_by_name_and_count():
    items = labelled(rose=4, daisy=2, iris=9)
    with pytest.raises(InputError, match="--shots 4 needs 5 images") as error:
        few_shot_split(items, 4, seed=0)
    assert "'daisy' has 2, 'rose' has 4 (2 classes); lower --shots" in str(error.value)


@pytest.mark.case("I36")
def test_i36_held_out_copies_of_training_images_are_dropped_with_a_count(tmp_path, capsys):
    items = labelled(a=6, b=6)
    train, held_out = few_shot_split(items, 1, seed=0)
    copy = tmp_path / "renamed.bmp"  # another container, the same pixels, and another label
    train[0].images[0].save(copy)
    doubled = [one(i.id, copy, i.target) if i is held_out[-1] else i for i in items]
    assert held_out[-1].target != train[0].target
    capsys.readouterr()
    new_train, new_held_out = few_shot_split(doubled, 1, seed=0)
    assert ids(new_train) == ids(train) and ids(new_held_out) == ids(held_out)[:-1]
    assert "1 held-out images dropped" in capsys.readouterr().out
    same = [one(f"a/{i}", picture(0), "a") for i in range(4)]
    with pytest.raises(InputError, match="class 'a' has no held-out image"):
        few_shot_split(same + labelled(b=4), 1, seed=0)
