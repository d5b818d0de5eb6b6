"""What data/pictures.py guarantees: a file is decoded once at the start, however many rows name it.

Nothing decoded is kept; a file that is written anew is looked at anew; a bad picture is told each
time; and places that another user owns end in one line. Run: pytest tests/data/test_pictures.py
"""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

import data.pictures
from config import TaskConfig
from data.examples import Example
from data.files import SkipLog
from data.pictures import content_hash, look, pixel_hash, readable, size_of
from model.image import load_image
from model.processor import Processor
from reporting.provenance import data_hash
from runtime.errors import InputError
from tests.data.field import classes, coco, lines, load, picture, row, rows, table
from training.evaluation import usable_splits


@pytest.fixture
def decoded(monkeypatch) -> Counter:
    """How often each picture was decoded by the readers."""
    counts: Counter = Counter()

    def counting(source, *options):
        counts[source if isinstance(source, bytes) else str(source)] += 1
        return load_image(source, *options)

    monkeypatch.setattr(data.pictures, "load_image", counting)
    monkeypatch.setattr(data.pictures, "_seen", {})
    return counts


def many_questions(folder: Path, solution="3", count: int = 60) -> Path:
    """Sixty rows about six pictures."""
    for number in range(6):
        picture(folder / f"{number}.png", number)
    found = [row(n % 6, solution, problem=f"{n}?") for n in range(count)]
    return lines(folder / "rows.jsonl", found)


@pytest.mark.parametrize(
    "task, solution",
    [("count", "3"), ("vqa", "red"), ("det", "[[1, 2, 900, 900]]"), ("ground", "[1, 2, 900, 900]")],
)
def test_each_file_is_decoded_once_until_the_run_begins(
    tmp_path, decoded, monkeypatch, tiny_dir, task, solution
):
    loaded = load(many_questions(tmp_path, solution), task)
    processor = Processor(tiny_dir)
    monkeypatch.setattr("model.processor.load_image", lambda source: pytest.fail("decoded again"))
    splits = {"train": loaded.train} | loaded.splits
    usable = usable_splits(splits, processor, TaskConfig())
    assert {name: len(part) for name, part in usable.items()} == {"train": 30, "held_out": 30}
    data_hash(loaded.train)
    assert len(decoded) == 6 and set(decoded.values()) == {1}


def test_class_folders_and_coco_decode_each_file_once(tmp_path, decoded):
    classes(tmp_path / "a", {"rose": 4, "tulip": 4})
    load(tmp_path / "a", "cls")
    assert len(decoded) == 8 and set(decoded.values()) == {1}
    decoded.clear()
    load(coco(tmp_path / "b"), "det", shots=3)
    assert 6 <= len(decoded) <= 12 and set(decoded.values()) == {1}


def test_pictures_of_tables_stay_encoded_and_equal_ones_are_kept_once(tmp_path, decoded):
    table(tmp_path / "a.parquet", [0, 1, 2, 3] * 5)
    loaded = load(tmp_path / "a.parquet", "count")
    cells = [e.images[0] for e in (*loaded.train, *loaded.splits["held_out"])]
    assert all(isinstance(cell, bytes) for cell in cells)
    assert len({id(cell) for cell in cells}) == len(set(cells)) == len(decoded) == 4
    assert set(decoded.values()) == {1}


def test_a_picture_that_is_written_anew_is_looked_at_again(tmp_path, decoded):
    path = tmp_path / "a.bmp"  # whose size does not depend on its colours
    picture(path, 1)
    first = data.pictures.look(path)
    size = path.stat().st_size
    picture(path, 2)
    os.utime(path, ns=(1, 1))
    assert path.stat().st_size == size and data.pictures.look(path).pixels != first.pixels


def test_a_copy_of_a_training_picture_is_not_evaluated(tmp_path, decoded, capsys):
    file = coco(tmp_path, count=12)
    first, *others = sorted(tmp_path.rglob("*.jpg"))
    for other in others:
        shutil.copy(first, other)
    with pytest.raises(InputError, match="no image is left to evaluate"):
        load(file, "det", shots=1)
    assert "images dropped: copies of training images" in capsys.readouterr().out


def test_rows_of_named_splits_are_taken_in_the_order_of_the_split_seed(tmp_path, decoded):
    for name, numbers in (("train", range(12)), ("test", range(20, 26))):
        for number in numbers:
            picture(tmp_path / f"{number}.png", number)
        lines(tmp_path / f"{name}.jsonl", [row(n, f"{n}") for n in numbers])
    chosen = {
        seed: [e.target for e in load(tmp_path, "count", train_size=4, split_seed=seed).train]
        for seed in range(3)
    }
    assert len({tuple(targets) for targets in chosen.values()}) > 1
    assert all(len(targets) == 4 for targets in chosen.values())


def test_named_splits_of_class_folders_are_cut_to_their_size(tmp_path, decoded):
    for split in ("train", "test"):
        classes(tmp_path / split, {"rose": 4, "tulip": 4}, first=10 * (split == "test"))
    loaded = load(tmp_path, "cls", held_out_per_class=1)
    assert len(loaded.splits["held_out"]) == 2


@pytest.mark.parametrize(
    "frame, box",
    [("norm1000", "[100, 200, 500, 600]"), ("norm1", "[0.1, 0.2, 0.5, 0.6]")],
)
def test_rec_rows_may_be_in_another_frame(tmp_path, decoded, frame, box):
    def make(n):
        return {"image": f"{n}.png", "normal_caption": "it", "problem": "?", "solution": box}

    numbers = json.loads(box)
    file = rows(tmp_path, lambda n: make(n) | {"solution": numbers}, name="rec.json")
    found = load(file, "ground", data_coords=frame).train[0].target
    assert json.loads(found) == [100, 200, 500, 600]


def test_a_prompt_is_as_long_as_its_sizes_say(tmp_path, tiny_dir):
    processor = Processor(tiny_dir)
    for size in ((40, 32), (96, 72), (64, 12)):
        picture(tmp_path / "a.png", 1, size)
        images = (tmp_path / "a.png",) * 2
        length = len(processor.prompt("a", images, "Which?").ids)
        processor.check_prompt("a", [size, size], "Which?", length)
        with pytest.raises(InputError, match=f"prompt a: {length} tokens, .*--max_prompt_length"):
            processor.check_prompt("a", [size, size], "Which?", length - 1)


def test_a_file_that_is_written_anew_is_looked_at_anew(tmp_path, decoded):
    path = tmp_path / "a.png"
    picture(path, 1)
    first = look(path)
    assert look(path) == first and decoded[str(path)] == 1
    picture(path, 2, (50, 40))
    assert look(path).size == (50, 40) and look(path).pixels != first.pixels
    path.write_bytes(b"<html>")
    for _ in range(2):
        with pytest.raises(InputError, match="is an HTML page"):
            look(path)
    assert decoded[str(path)] == 3
    path.unlink()
    with pytest.raises(InputError, match="cannot open the picture"):
        look(path)


def test_copies_in_other_files_have_the_same_pixels_and_other_contents(tmp_path):
    picture(tmp_path / "a.png", 1)
    Image.open(tmp_path / "a.png").save(tmp_path / "b.bmp")
    encoded = (tmp_path / "a.png").read_bytes()
    original, copy = tmp_path / "a.png", tmp_path / "b.bmp"
    examples = [Example("x", (p,), "?", "") for p in (original, copy, encoded)]
    assert len({pixel_hash(e) for e in examples}) == 1
    assert content_hash(original) == content_hash(encoded) != content_hash(copy)
    assert {size_of(e.images[0]) for e in examples} == {(96, 72)}
    assert data_hash(examples[:1]) == data_hash(examples[2:]) != data_hash(examples[1:2])


def test_a_bad_picture_costs_every_row_that_shows_it(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    names = ["a", "b", "a", "b"]
    examples = [Example(str(k), (tmp_path / f"{n}.png",), "?", "") for k, n in enumerate(names)]
    skips = SkipLog()
    assert [e.id for e in readable(examples, skips)] == ["0", "2"]
    assert skips.counts == {"unreadable": 2} and "is empty" in skips.first[1]


def test_a_long_read_shows_a_bar_on_a_terminal(tmp_path, monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(data.pictures, "tqdm", lambda items, **how: shown.append(how) or items)
    load(many_questions(tmp_path), "count")
    (how,) = shown
    assert how["total"] == 6 and how["disable"] is None and how["desc"] == "data: pictures"


@pytest.mark.parametrize("place", ["data folder", "class folder", "COCO file", "rows", "picture"])
def test_what_another_user_owns_ends_in_one_line(tmp_path, monkeypatch, place):
    classes(tmp_path / "photos", {"rose": 3, "tulip": 3})
    files = {"COCO file": coco(tmp_path / "coco"), "rows": rows(tmp_path, lambda n: row(n, "3"))}
    wanted = {
        "data folder": tmp_path / "photos",
        "class folder": tmp_path / "photos" / "rose",
        "picture": tmp_path / "photos" / "rose" / "0.png",
    }.get(place) or files[place]

    def refusing(original):
        def attempt(path, *rest, **more):
            if os.fspath(path) == str(wanted):
                raise PermissionError(13, "Permission denied")
            return original(path, *rest, **more)

        return attempt

    for name in ("iterdir", "open"):
        monkeypatch.setattr(Path, name, refusing(getattr(Path, name)))
    task = {"COCO file": "det", "rows": "count"}.get(place, "cls")
    if place == "picture":
        assert load(tmp_path / "photos", "cls").train  # one record, counted
        return
    with pytest.raises(InputError, match="cannot be read .Permission denied.; check its rights"):
        load(wanted.parent if place == "class folder" else wanted, task)
