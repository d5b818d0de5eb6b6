"""What data/labelled.py guarantees about data from outside.

Every source becomes the same sorted list of labelled images; every bad record has the one outcome
its docstring names (refused as a whole, or skipped and counted, never silently lost); no path in
a data set can reach outside its folder; the few-shot split is exact, repeatable and without
overlap. All data sets are made on the fly. Run: python -m pytest tests/data/test_labelled.py
"""

import io
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
    LabelledImage,
    few_shot_split,
    keep_readable,
    load_labelled,
    read_digits,
    read_image_folder,
    read_labelled_records,
)
from runtime.errors import InputError


def read_rows(path: Path, skips: SkipLog | None = None) -> list[LabelledImage]:
    return read_labelled_records(path, skips or SkipLog())[1]


def picture(number: int) -> Image.Image:
    """A 12x10 image that differs from that of every other number."""
    noise = np.random.Generator(np.random.Philox(number)).integers(0, 256, (10, 12, 3))
    return Image.fromarray(noise.astype(np.uint8))


def encoded(number: int, file_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture(number).save(buffer, file_format)
    return buffer.getvalue()


def class_folders(root: Path, **counts: int) -> Path:
    number = 0
    for label, count in counts.items():
        (root / label).mkdir(parents=True)
        for i in range(count):
            picture(number).save(root / label / f"{i}.png")
            number += 1
    return root


def labelled(**counts: int) -> list[LabelledImage]:
    """Items in memory: `labelled(a=3)` has the images a/0, a/1, a/2."""
    names = [(label, i) for label, count in counts.items() for i in range(count)]
    return [LabelledImage(f"{c}/{i}", picture(n), c) for n, (c, i) in enumerate(names)]


def ids(items: list[LabelledImage]) -> list[str]:
    return [item.id for item in items]


# ------------------------------------------------------------------------------------ class folders


def test_class_folders_give_sorted_items_labelled_by_folder_name(tmp_path):
    root = class_folders(tmp_path / "set", Rose_dog=2, **{"737-800": 1})
    picture(9).save(root / "737-800" / "Z.JPG")
    (root / ".hidden").mkdir()
    (root / "Rose_dog" / ".thumb.png").write_bytes(b"")
    (root / "Rose_dog" / "notes.txt").write_text("no image")
    (root / "Rose_dog" / "deeper").mkdir()
    picture(8).save(root / "Rose_dog" / "deeper" / "not_read.png")
    items = read_image_folder(root)
    assert ids(items) == ["737-800/0.png", "737-800/Z.JPG", "Rose_dog/0.png", "Rose_dog/1.png"]
    assert [item.label for item in items] == ["737-800", "737-800", "Rose_dog", "Rose_dog"]
    assert [item.image for item in items] == [root / item.id for item in items]
    assert all(item.question is None for item in items)
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
def test_similar_names_stay_different_classes(tmp_path):
    class_folders(tmp_path, **{"cat": 1, "cathedral": 1, "737": 1, "737-800": 1})
    assert len({item.label for item in read_image_folder(tmp_path)}) == 4


@pytest.mark.case("I20")
def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="no class folders, only nothing"):
        read_image_folder(tmp_path)


def test_a_folder_of_loose_images_is_refused_and_told_what_is_accepted(tmp_path):
    picture(0).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"no class folders, only \['a.png'\].*one sub-folder"):
        load_labelled(str(tmp_path))


@pytest.mark.case("I37")
def test_a_single_class_is_refused(tmp_path):
    class_folders(tmp_path, rose=3)
    with pytest.raises(InputError, match=r"only one class, \['rose'\]"):
        read_image_folder(tmp_path)


def test_a_class_folder_without_images_is_refused_by_name(tmp_path):
    class_folders(tmp_path / "train", rose=1, daisy=1)
    class_folders(tmp_path, other=1)
    with pytest.raises(InputError, match="class folder 'train' has no images directly inside"):
        read_image_folder(tmp_path)


def test_a_folder_name_that_normalises_to_nothing_is_refused(tmp_path):
    class_folders(tmp_path, rose=1, _=1)
    with pytest.raises(InputError, match="'_' cannot be a class name"):
        read_image_folder(tmp_path)


@pytest.mark.case("I15")
@pytest.mark.parametrize("link_folder", [False, True])
def test_a_symbolic_link_out_of_the_folder_is_refused(tmp_path, link_folder):
    root = class_folders(tmp_path / "set", a=1, b=1)
    class_folders(tmp_path / "outside", c=1)
    if link_folder:
        (root / "c").symlink_to(tmp_path / "outside" / "c")
    else:
        (root / "b" / "1.png").symlink_to(tmp_path / "outside" / "c" / "0.png")
    with pytest.raises(InputError, match="leads out of"):
        read_image_folder(root)


def test_a_symbolic_link_inside_the_folder_is_read(tmp_path):
    root = class_folders(tmp_path, a=1, b=1)
    (root / "b" / "1.png").symlink_to(root / "a" / "0.png")
    assert "b/1.png" in ids(read_image_folder(root))


@pytest.mark.case("I16")
@pytest.mark.parametrize("kind", ["folder", "fifo", "broken link", "device"])
def test_an_image_name_that_is_no_regular_file_is_refused_without_hanging(tmp_path, kind):
    root = class_folders(tmp_path, a=1, b=1)
    path = root / "b" / "odd.jpg"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(root / "gone.jpg" if kind == "broken link" else "/dev/zero")
    with pytest.raises(InputError, match="no regular file|leads out of"):
        read_image_folder(root)


# ------------------------------------------------------------------------- unreadable images, skips


def test_unreadable_images_are_skipped_counted_and_listed(tmp_path, capsys):
    root = class_folders(tmp_path, a=3, b=3)
    whole = (root / "a" / "0.png").read_bytes()
    (root / "a" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "b" / "page.jpg").write_text("<html>not found</html>")
    items = load_labelled(str(root))
    printed = capsys.readouterr().out
    assert len(items) == 6
    assert (
        "2 of 8 records skipped" in printed and "a/cut.png" in printed and "b/page.jpg" in printed
    )
    assert "read as folder of class folders: 6 images of 2 classes" in printed


@pytest.mark.case("I13")
def test_pictures_in_foreign_formats_are_counted_not_overlooked(tmp_path, capsys):
    root = class_folders(tmp_path, a=2, b=2)
    (root / "a" / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    assert len(load_labelled(str(root))) == 4
    assert "1 of 5 records skipped" in capsys.readouterr().out


def test_too_many_unreadable_images_stop_the_run(tmp_path):
    root = class_folders(tmp_path, a=3, b=3)
    for i in range(3):
        (root / "a" / f"empty{i}.png").write_bytes(b"")
    with pytest.raises(InputError, match="3 of 9 records skipped.*a/empty0.png"):
        load_labelled(str(root))
    assert len(load_labelled(str(root), max_skip=0.5)) == 6


def test_keep_readable_leaves_the_neighbours_of_a_bad_image_alone(tmp_path):
    items = labelled(a=3)
    bad = LabelledImage("bad", tmp_path / "missing.png", "a")
    skips = SkipLog()
    assert keep_readable([items[0], bad, *items[1:]], skips) == items
    assert skips.counts == {"unreadable": 1} and "bad" in skips.first[0]


@pytest.mark.parametrize(
    "skipped, total, ok",
    [(0, 5, True), (2, 5, True), (3, 5, False), (9, 900, True), (10, 900, False)],
)
def test_skip_log_tolerates_two_records_or_one_percent(skipped, total, ok, capsys):
    skips = SkipLog()
    for i in range(skipped):
        skips.add("unreadable", f"record {i}")
    if ok:
        skips.check(total)
        line = f"{skipped} of {total} records skipped"
        assert (line in capsys.readouterr().out) == (skipped > 0)  # nothing lost, nothing said
    else:
        with pytest.raises(InputError, match=f"{skipped} of {total} records skipped"):
            skips.check(total)


def test_skip_log_counts_all_reasons_and_keeps_the_first_five_offenders():
    skips = SkipLog()
    for i in range(4):
        skips.add("unreadable", f"u{i}")
        skips.add("empty solution", f"e{i}")
    assert skips.counts == {"unreadable": 4, "empty solution": 4}
    assert [line.split(": ")[1] for line in skips.first] == ["u0", "e0", "u1", "e1", "u2"]


# ------------------------------------------------------------------------------------------- digits


def test_digit_halves_are_disjoint_complete_and_balanced():
    pytest.importorskip("sklearn")
    pretrain, rl = read_digits("pretrain"), read_digits("rl")
    assert (len(pretrain), len(rl)) == (899, 898)
    assert {int(i.split("/")[1]) for i in ids(pretrain)} == set(range(0, 1797, 2))
    assert not set(ids(pretrain)) & set(ids(rl))
    assert not {p.image.tobytes() for p in pretrain} & {r.image.tobytes() for r in rl}
    for half in (pretrain, rl):
        assert min(sum(item.label == name for item in half) for name in ("zero", "nine")) > 80


def test_digits_are_rgb_scans_with_named_labels():
    datasets = pytest.importorskip("sklearn.datasets")
    scans = datasets.load_digits()
    item = read_digits("rl")[0]
    assert (item.id, item.label) == ("digits/1", "one")
    pixels = np.asarray(item.image)  # (8, 8, 3)
    assert item.image.mode == "RGB" and pixels.shape == (8, 8, 3)
    assert (pixels[:, :, 0] == np.rint(scans.images[1] * 255 / 16)).all()
    assert (pixels == pixels[:, :, :1]).all() and pixels.max() == 255


def test_digits_flag_reads_the_rl_half(capsys):
    pytest.importorskip("sklearn")
    assert len(load_labelled("digits")) == 898
    assert "RL half: 898 images of 10 classes" in capsys.readouterr().out


def test_digits_without_scikit_learn_name_the_package_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match="pip install scikit-learn"):
        read_digits("rl")


# ------------------------------------------------------------------------------------ rows as names


def row(number: int, label: str = "rose", **changes) -> dict:
    return {
        "image": {"bytes": encoded(number), "path": "whatever.png"},
        "problem": "Which plant is this? Answer in <answer> </answer>.",
        "solution": f"<answer>{label}</answer>",
    } | changes


def write_table(path: Path, rows: list[dict]) -> Path:
    """A .parquet file, or else the arrow stream that datasets.save_to_disk writes."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.Table.from_pylist(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(table, path)
    else:
        with pyarrow.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    return path


def write_saved(root: Path, shards: list[list[dict]]) -> Path:
    """The layout of datasets.save_to_disk: shards, state.json, dataset_info.json."""
    names = [f"data-{i:05d}-of-{len(shards):05d}.arrow" for i in range(len(shards))]
    for name, rows in zip(names, shards, strict=True):
        write_table(root / name, rows)
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    (root / "state.json").write_text(json.dumps(state))
    (root / "dataset_info.json").write_text("{}")
    return root


ROWS = [row(0, "garden phlox"), row(1, "\n rose "), row(2, "rose"), row(3, "fox glove")]
LABELS = ["garden phlox", "rose", "rose", "fox glove"]


def test_a_parquet_file_gives_labels_questions_and_images(tmp_path, capsys):
    path = write_table(tmp_path / "train.parquet", ROWS)
    items = load_labelled(str(path))
    assert [item.label for item in items] == LABELS
    assert ids(items) == [f"train.parquet:{i}" for i in range(4)]
    assert {item.question for item in items} == {ROWS[0]["problem"]}
    assert items[3].image.tobytes() == picture(3).tobytes()
    assert (
        "Visual-RFT rows (image, problem, solution or answer): 4 images of 3 cl"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("folder", ["", "data"])
def test_a_folder_of_parquet_files_is_read_in_order_of_their_names(tmp_path, folder):
    for i in (2, 0, 3, 1):
        write_table(tmp_path / folder / f"train-{i}.parquet", [ROWS[i]])
    items = load_labelled(str(tmp_path))
    assert [item.label for item in items] == LABELS
    assert ids(items)[-1] == str(Path(folder) / "train-3.parquet:0")


@pytest.mark.parametrize("split", ["", "train"])
def test_a_saved_data_set_or_its_train_split_is_read_without_datasets(tmp_path, split, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    write_saved(tmp_path / split, [ROWS[:3], ROWS[3:]])
    write_table(tmp_path / split / "cache-0123.arrow", [row(7, "cached by map()")])
    if split:
        (tmp_path / "dataset_dict.json").write_text('{"splits": ["test", "train"]}')
        write_saved(tmp_path / "test", [[row(9, "test image")]])
    items = load_labelled(str(tmp_path))
    assert [item.label for item in items] == LABELS
    assert len(set(ids(items))) == 4


def test_a_saved_dict_without_train_split_is_refused(tmp_path):
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["test"]}')
    with pytest.raises(InputError, match="without a train split"):
        load_labelled(str(tmp_path))


@pytest.mark.parametrize(
    "state", ["", "{", "[]", "null", '{"_data_files": [{}]}', "[" * 100_000, "\xff\xfe"]
)
def test_a_broken_state_file_is_refused_by_name(tmp_path, state):
    (tmp_path / "state.json").write_bytes(state.encode("latin-1"))
    with pytest.raises(InputError, match="state.json"):
        load_labelled(str(tmp_path))


def test_a_state_file_cannot_name_a_table_outside_its_folder(tmp_path):
    root = write_saved(tmp_path / "set", [ROWS])
    write_table(tmp_path / "other.arrow", ROWS)
    (root / "state.json").write_text('{"_data_files": [{"filename": "../other.arrow"}]}')
    with pytest.raises(InputError, match="leads out of"):
        load_labelled(str(root))


@pytest.mark.parametrize("name", ["a.parquet", "data-0.arrow"])
@pytest.mark.parametrize("content", [b"", b"PAR1", b"<html>404</html>" * 20])
def test_a_table_that_is_none_is_refused_by_name(tmp_path, name, content):
    pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    if name.endswith(".arrow"):
        (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "data-0.arrow"}]}')
    with pytest.raises(InputError, match=f"{name}: cannot read the table"):
        load_labelled(str(tmp_path))


def test_a_truncated_arrow_stream_is_refused(tmp_path):
    root = write_saved(tmp_path, [ROWS])
    shard = next(root.glob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[:-300])
    with pytest.raises(InputError, match="cannot read the table"):
        load_labelled(str(root))


@pytest.mark.case("I26")
def test_missing_columns_are_refused_with_the_columns_found(tmp_path):
    path = write_table(tmp_path / "a.parquet", [{"image": b"", "text": "?", "solution": ""}])
    with pytest.raises(InputError, match=r"columns \['image', 'text', 'solution'\] match none of"):
        read_rows(path)


@pytest.mark.case("I27")
@pytest.mark.parametrize(
    "solution, reason",
    [
        ("", "empty solution"),
        (None, "empty solution"),
        ("<answer> </answer>", "solution without one <answer>"),
        ("<answer>a</answer><answer>b</answer>", "solution without one <answer>"),
        ("<answer>._</answer>", "solution is no name"),
    ],
)
def test_rows_without_an_answer_are_skipped_and_counted(tmp_path, solution, reason):
    path = write_table(tmp_path / "a.parquet", [*ROWS, row(5, solution=solution)])
    skips = SkipLog()
    assert len(read_rows(path, skips)) == 4
    assert skips.counts == {reason: 1} and skips.first == [f"{reason}: a.parquet:4"]


@pytest.mark.parametrize(
    "image, reason",
    [
        (None, "empty image"),
        ({"bytes": None, "path": None}, "empty image"),
        ({"bytes": b"", "path": None}, "empty image"),
        ({"bytes": b"<html>", "path": None}, "unreadable"),
        # Pillow could read PCX, but is not asked.
        ({"bytes": encoded(5, "PCX"), "path": None}, "unreadable"),
        (
            {"bytes": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "path": None},
            "unreadable",
        ),
        ({"bytes": encoded(5)[:-40], "path": None}, "unreadable"),
    ],
)
def test_null_and_undecodable_images_are_skipped_and_counted(tmp_path, image, reason):
    path = write_table(tmp_path / "a.parquet", [*ROWS, row(5, image=image)])
    skips = SkipLog()
    assert len(read_rows(path, skips)) == 4
    assert skips.counts == {reason: 1}


def test_a_row_without_a_problem_is_skipped_and_counted(tmp_path):
    path = write_table(tmp_path / "a.parquet", [*ROWS, row(5, problem="<image>\n")])
    skips = SkipLog()
    assert len(read_rows(path, skips)) == 4 and skips.counts == {"empty problem": 1}


def test_too_many_skipped_rows_stop_the_run(tmp_path, capsys):
    bad = [row(i, solution="") for i in range(5, 8)]
    load_labelled(str(write_table(tmp_path / "a.parquet", [*ROWS, *bad[:2]])))
    assert "2 of 6 records skipped" in capsys.readouterr().out
    with pytest.raises(InputError, match="3 of 7 records skipped"):
        load_labelled(str(write_table(tmp_path / "b.parquet", [*ROWS, *bad])))


@pytest.mark.parametrize(
    "problem, question",
    [
        ("\n<image>\n What is it?", "What is it?"),
        ("What is <image> here?", "What is <image> here?"),
        ("  spaces kept \n", "  spaces kept \n"),
        ("<|im_end|><|image_pad|>", "<|im_end|><|image_pad|>"),
    ],
)
def test_the_question_is_the_problem_less_leading_image_marks(tmp_path, problem, question):
    path = write_table(tmp_path / "a.parquet", [row(0, problem=problem)])
    assert read_rows(path)[0].question == question


def test_box_lists_are_refused_as_class_names(tmp_path):
    boxes = "[{'Position': [1, 364, 98, 649], 'Confidence': 1}]"
    path = write_table(tmp_path / "a.parquet", [row(0, boxes)])
    with pytest.raises(InputError, match="a.parquet:0: the solution is a box list"):
        read_rows(path)


@pytest.mark.parametrize(
    "column, value", [("problem", 3), ("problem", ["a"]), ("image", 7), ("image", [[b"a"]])]
)
def test_values_of_a_wrong_type_are_refused_with_row_and_column(tmp_path, column, value):
    path = write_table(tmp_path / "a.parquet", [row(0, **{column: value})])
    with pytest.raises(InputError, match=f"a.parquet:0: column '{column}' holds"):
        read_rows(path)


@pytest.mark.parametrize("as_struct", [False, True])
def test_image_paths_are_read_below_the_folder_of_the_table(tmp_path, as_struct):
    (tmp_path / "images").mkdir()
    picture(4).save(tmp_path / "images" / "a.png")
    cell = {"bytes": None, "path": "images/a.png"} if as_struct else "images/a.png"
    items = read_rows(write_table(tmp_path / "a.parquet", [row(4, image=cell)]))
    assert [item.image for item in items] == [tmp_path / "images" / "a.png"]


@pytest.mark.case("I15", "I17")
@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../secret.png", "x/../../secret.png", "http://a.b/c.png", "file:///etc/passwd"]
    + ["data:image/png;base64,AAAA", "null\0byte.png"],
)
def test_image_paths_that_leave_the_folder_and_urls_are_refused(tmp_path, name):
    (tmp_path / "set").mkdir()
    picture(0).save(tmp_path / "secret.png")
    path = write_table(tmp_path / "set" / "a.parquet", [row(0, image=name)])
    with pytest.raises(InputError, match=r"a.parquet:0: .*(leads out of|no path below)"):
        read_rows(path)


@pytest.mark.case("I14")
def test_missing_images_are_refused_with_the_first_five_rows_and_a_hint(tmp_path):
    picture(0).save(tmp_path / "Rose.png")
    names = ["rose.png", *(f"gone{i}.png" for i in range(6)), r"C:\x.png"]
    path = write_table(tmp_path / "a.parquet", [row(0, image=name) for name in names])
    with pytest.raises(InputError, match="8 images missing") as error:
        read_rows(path)
    assert "did you mean 'Rose.png'?" in str(error.value)
    assert "a.parquet:4" in str(error.value) and "a.parquet:5" not in str(error.value)


@pytest.mark.case("I37")
def test_one_class_only_is_refused_and_spellings_of_one_name_are_one_class(tmp_path, capsys):
    path = write_table(tmp_path / "a.parquet", [row(0, "Rose"), row(1, "rose")])
    with pytest.raises(InputError, match="only one class"):
        load_labelled(str(path))
    load_labelled(str(write_table(tmp_path / "b.parquet", [row(0, "Rose"), *ROWS])))
    assert "5 images of 3 classes" in capsys.readouterr().out


@pytest.mark.case("I20")
def test_an_empty_table_is_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    schema = pyarrow.schema([(name, pyarrow.string()) for name in ("image", "problem", "solution")])
    parquet.write_table(schema.empty_table(), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="no row"):
        load_labelled(str(tmp_path))


def test_classes_are_read_from_json_and_from_untagged_and_numeric_solutions(tmp_path, capsys):
    for i in range(3):
        picture(i).save(tmp_path / f"{i}.png")
    rows = [
        {"id": "a", "image": "0.png", "problem": "<image>Which?", "solution": "rose"},
        {"id": "b", "image": "1.png", "problem": "Which?", "answer": "<answer>daisy</answer>"},
        {"id": "c", "image": ["2.png"], "problem": "Which?", "answer": 737},
    ]
    (tmp_path / "set.json").write_text(json.dumps(rows))
    items = load_labelled(str(tmp_path / "set.json"))
    assert [(i.id, i.label) for i in items] == [("a", "rose"), ("b", "daisy"), ("c", "737")]
    assert {i.question for i in items} == {"Which?"} and items[2].image == tmp_path / "2.png"
    assert "Reason-RFT rows" in capsys.readouterr().out


def test_a_row_of_two_images_is_refused_for_classification(tmp_path):
    picture(0).save(tmp_path / "0.png")
    row = {"images": ["0.png", "0.png"], "problem": "Which?", "answer": "rose"}
    (tmp_path / "set.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match="set.jsonl:1: has 2 images; a class needs one"):
        load_labelled(str(tmp_path / "set.jsonl"))


def test_tables_without_pyarrow_name_the_package_to_install(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match="pip install pyarrow"):
        read_rows(path)


# -------------------------------------------------------------------------------- the data flag


@pytest.mark.case("I34")
@pytest.mark.parametrize("name", ["a.pkl", "a.pth", "a.npy", "a.csv", "a.jpg", "a"])
def test_other_files_are_refused_unopened_with_what_is_accepted(tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")
    with pytest.raises(InputError, match=r"is a file of type .*accepted: .*\.parquet"):
        load_labelled(str(tmp_path / name))


@pytest.mark.case("I17")
@pytest.mark.parametrize(
    "data", ["https://x.org/set", "file:///tmp", "data:text/plain,x", "s3://b/c"]
)
def test_urls_are_refused(data):
    with pytest.raises(InputError, match="is a URL; download"):
        load_labelled(data)


@pytest.mark.case("I18")
def test_a_missing_path_is_refused_with_a_hint_for_another_case(tmp_path):
    class_folders(tmp_path / "Flowers", a=1, b=1)
    with pytest.raises(InputError, match=r"does not exist \(did you mean 'Flowers'\?\)"):
        load_labelled(str(tmp_path / "flowers"))
    (tmp_path / unicodedata.normalize("NFD", "rosé")).mkdir()
    with pytest.raises(InputError, match="did you mean 'ros"):
        load_labelled(str(tmp_path / unicodedata.normalize("NFC", "rosé")))
    with pytest.raises(InputError, match="does not exist; accepted"):
        load_labelled(str(tmp_path / "birds" / "x"))


def test_a_fifo_is_refused_without_hanging(tmp_path):
    os.mkfifo(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="is not a regular file"):
        load_labelled(str(tmp_path / "a.parquet"))


# ---------------------------------------------------------------------------- the few-shot split


@pytest.mark.parametrize("shots", [1, 2, 4])
def test_split_has_exactly_the_shots_and_loses_nothing(shots):
    items = labelled(a=5, b=7)
    train, held_out = few_shot_split(items, shots, seed=0)
    assert [sum(i.label == c for i in train) for c in "ab"] == [shots, shots]
    assert sorted(ids(train) + ids(held_out)) == sorted(ids(items))


def test_split_depends_on_the_seed_only():
    items = labelled(a=20, b=20)
    train, held_out = few_shot_split(items, 2, seed=0)
    again = few_shot_split(items[::-1], 2, seed=0)
    assert (ids(train), ids(held_out)) == (ids(again[0]), ids(again[1]))
    assert len({tuple(ids(few_shot_split(items, 2, seed)[0])) for seed in range(20)}) > 15


def test_split_of_seed_0_is_published():
    train, _ = few_shot_split(labelled(a=9, b=9), 3, seed=0)
    assert ids(train) == ["a/0", "a/2", "a/1", "b/5", "b/3", "b/7"]


def test_every_image_is_equally_likely_to_be_the_shot():
    items = labelled(a=4, b=2)
    picked = [few_shot_split(items, 1, seed)[0][0].id for seed in range(400)]
    assert all(70 < picked.count(f"a/{i}") < 130 for i in range(4))  # 100 +- 3.5 std


def test_fewer_shots_are_a_subset_and_are_judged_on_the_same_images():
    items = labelled(a=10, b=10)
    (one, held_1), (four, held_4) = (
        few_shot_split(items, k, 3, held_out_per_class=5) for k in (1, 4)
    )
    assert set(ids(one)) < set(ids(four))
    assert ids(held_1) == ids(held_4) and len(held_1) == 10


@pytest.mark.case("I22")
def test_a_class_with_too_few_images_is_refused_by_name_and_count():
    items = labelled(rose=4, daisy=2, iris=9)
    with pytest.raises(InputError, match="--shots 4 needs 5 images") as error:
        few_shot_split(items, 4, seed=0)
    assert "'daisy' has 2, 'rose' has 4 (2 classes); lower --shots" in str(error.value)
    with pytest.raises(InputError, match="'daisy' has 2"):
        few_shot_split(items, 1, seed=0, min_held_out=2)


def test_spellings_of_one_name_share_one_class():
    items = labelled(**{"Rose": 2, "rose": 2, "iris": 4})
    assert len(few_shot_split(items, 1, seed=0)[0]) == 2


@pytest.mark.parametrize(
    "arguments",
    [(0, 0), (-1, 0), (1, -1), (1, 2**64), (1, 0, 0), (1, 0, 3, 4), (1, 0, None, 0)],
)
def test_split_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(InputError, match="shots|held_out"):
        few_shot_split(labelled(a=9, b=9), *arguments)


@pytest.mark.case("I36")
def test_held_out_copies_of_training_images_are_dropped_with_a_count(tmp_path, capsys):
    items = labelled(a=6, b=6)
    train, held_out = few_shot_split(items, 1, seed=0)
    copy = tmp_path / "renamed.bmp"  # another container, the same pixels, and another label
    train[0].image.save(copy)
    doubled = [LabelledImage(i.id, copy, i.label) if i is held_out[-1] else i for i in items]
    assert held_out[-1].label != train[0].label
    capsys.readouterr()
    new_train, new_held_out = few_shot_split(doubled, 1, seed=0)
    assert ids(new_train) == ids(train) and ids(new_held_out) == ids(held_out)[:-1]
    assert "1 held-out images dropped" in capsys.readouterr().out


def test_a_class_that_only_repeats_its_shot_is_refused():
    same = [LabelledImage(f"a/{i}", picture(0), "a") for i in range(4)]
    with pytest.raises(InputError, match="class 'a' keeps 0 held-out images"):
        few_shot_split(same + labelled(b=4), 1, seed=0)


def test_an_example_is_frozen_and_hashable_by_its_fields():
    example = Example("a", (Path("a.png"),), "Which?", "rose")
    with pytest.raises(AttributeError):
        example.target = "tulip"
    assert example == Example("a", (Path("a.png"),), "Which?", "rose")
