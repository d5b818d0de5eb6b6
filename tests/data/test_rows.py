"""What data/rows.py and data/files.py guarantee about files and rows from outside.

Rows of every published schema become the same examples; whatever is wrong with a file or a row has
the one outcome that is documented, and never a hang, a recursion error or a lost neighbour. Ids
like "i24" are the cases of the list of bad inputs. Run: pytest tests/data/test_rows.py
"""

import io
import json
import os
import sys
import time
from pathlib import Path

import pytest

from data import files
from data.examples import Example
from data.files import SkipLog, read_json, read_jsonl
from data.rows import load_records, solution_text
from model.image import load_image
from runtime.errors import InputError
from tests.data.test_labelled import picture

ROW = {"image": "0.png", "problem": "Which?", "solution": "<answer> 3 </answer>"}
GOOD = json.dumps(ROW).encode()


@pytest.fixture
def folder(tmp_path) -> Path:
    for i in range(3):
        picture(i).save(tmp_path / f"{i}.png")
    return tmp_path


def encoded(number: int, file_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture(number).save(buffer, file_format)
    return buffer.getvalue()


def write(path: Path, rows: list | dict) -> str:
    """Write rows as the suffix says (.arrow: as datasets does); return the path for --data."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        table = pyarrow.Table.from_pylist(rows)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            parquet.write_table(table, path)
        else:
            with pyarrow.ipc.new_stream(path, table.schema) as writer:
                writer.write_table(table, max_chunksize=2)
    return str(path)


def write_saved(root: Path, shards: list[list[dict]]) -> str:
    """The layout of datasets.save_to_disk: shards, state.json, dataset_info.json."""
    names = [f"data-{i:05d}-of-{len(shards):05d}.arrow" for i in range(len(shards))]
    for name, rows in zip(names, shards, strict=True):
        write(root / name, rows)
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    (root / "state.json").write_text(json.dumps(state))
    (root / "dataset_info.json").write_text("{}")
    return str(root)


def load(folder: Path, *rows: dict, name: str = "set.json") -> list[Example]:
    return load_records(write(folder / name, list(rows)))[1]


def refused(data: str | Path, message: str) -> str:
    with pytest.raises(InputError, match=message) as error:
        load_records(str(data))
    return str(error.value)


# ------------------------------------------------------------------------------------------ schemas

USER, BOT = {"from": "human", "value": "Which?"}, {"from": "gpt", "value": "3"}
SYSTEM, ASK = {"role": "system", "content": "Hi."}, {"role": "user", "content": "Which?"}
PARTS = [{"type": "image", "text": None}, {"type": "text", "text": "Which?"}]
TWO = ["0.png", "1.png"]
MARKS = "<image>\n<image>\n"


@pytest.mark.parametrize(
    "schema, row, n_images",
    [
        ("Visual-RFT", ROW, 1),
        ("Visual-RFT", ROW | {"solution": "3", "cot": "x"}, 1),
        ("Visual-RFT", ROW | {"image": {"bytes": None, "path": "0.png"}}, 1),
        ("Reason-RFT", ROW | {"id": "clevr-1"}, 1),
        ("Reason-RFT", {"id": 4, "image": TWO, "problem": "Which?", "answer": "3"}, 2),
        ("Reason-RFT", ROW | {"id": 1, "solution": "4", "answer": "3"}, 1),
        ("Reason-RFT", ROW | {"id": 1, "answer": None}, 1),
        ("EasyR1", {"problem": "<image><image>Which?", "answer": "3", "images": TWO}, 2),
        ("TRL", {"prompt": "Which?", "image": "0.png", "solution": "3"}, 1),
        ("TRL", {"prompt": [SYSTEM, ASK], "images": ["0.png"], "answer": "3"}, 1),
        ("TRL", {"prompt": [ASK | {"content": PARTS}], "image": "0.png", "answer": "3"}, 1),
        ("VLM-R1", {"image": TWO, "conversations": [USER, BOT]}, 2),
        ("VLM-R1", {"image": TWO, "conversations": [USER | {"value": MARKS + "Which?"}, BOT]}, 2),
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_every_schema_is_recognised_and_read(folder, capsys, schema, row, n_images, suffix):
    name, (example,) = load_records(write(folder / f"set{suffix}", [row]))
    assert name == schema
    assert (example.question, example.target) == ("Which?", "3")
    assert example.images == tuple(folder / f"{i}.png" for i in range(n_images))
    assert example.box_format == ("abs" if schema == "VLM-R1" else "norm1000")
    assert f"read as {schema} rows" in capsys.readouterr().out


def test_vlm_r1_answers_may_be_boxes_as_lists(folder):
    turns = [USER, BOT | {"value": [1, 2.5, 7, 9]}]
    (example,) = load(folder, {"id": 1, "image": "0.png", "conversations": turns})
    assert (example.id, example.target) == ("1", "[1, 2.5, 7, 9]")


def test_images_of_tables_are_kept_undecoded(tmp_path):
    cells = [{"bytes": encoded(i), "path": None} for i in range(3)]
    data = write(tmp_path / "a.parquet", [ROW | {"image": cell} for cell in cells])
    examples = load_records(data)[1]
    assert [e.id for e in examples] == ["a.parquet:0", "a.parquet:1", "a.parquet:2"]
    image = examples[2].images[0]
    assert image == encoded(2)  # 70,000 decoded pictures would not fit in memory
    assert load_image(image).tobytes() == picture(2).tobytes()
    rows = [{"images": [cell] * 2, "problem": "?!", "answer": "B"} for cell in cells]
    schema, examples = load_records(write_saved(tmp_path / "set", [rows[:2], rows[2:]]))
    assert schema == "EasyR1" and [len(e.images) for e in examples] == [2, 2, 2]
    assert len({e.id for e in examples}) == 3


def test_rows_may_be_under_the_key_data_and_images_in_another_folder(folder):
    (folder / "rows").mkdir()
    data = write(folder / "rows" / "set.json", {"data": [ROW, ROW], "version": 2})
    refused(data, "2 images missing")
    examples = load_records(data, data_root=folder)[1]
    assert [e.id for e in examples] == ["set.json:0", "set.json:1"]
    assert examples[0].images == (folder / "0.png",)


@pytest.mark.parametrize(
    "row_ids, expected",
    [
        ([7, 8], ["7", "8"]),
        (["a", "a", "a"], ["a", "a#set.json:1", "a#set.json:2"]),
        (["a#set.json:1", "a", "a"], ["a#set.json:1", "a", "a#set.json:2"]),
        (["a#set.json:2", "a", "a"], ["a#set.json:2", "a", "a#set.json:2#"]),
        ([None, "", ["x"], 1.5], [f"set.json:{i}" for i in range(4)]),
        ([True, "x" * 201, "a\nb"], [f"set.json:{i}" for i in range(3)]),
        ([1, "1"], ["1", "1#set.json:1"]),
    ],
)
def test_ids_are_unique_whatever_the_rows_say(folder, row_ids, expected):
    examples = load(folder, *(ROW | {"id": value} for value in row_ids))
    assert [e.id for e in examples] == expected


# ------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("written", [["train", "test"], ["train2017", "val2017"], [None, 3]])
def test_rows_that_name_their_split_keep_it(folder, written):
    examples = load(folder, *(ROW | {"split": name} for name in written))
    expected = {"train2017": "train", "val2017": "val", None: "", 3: ""}
    assert [e.split for e in examples] == [expected.get(name, name) for name in written]


@pytest.mark.parametrize("subfolder", ["", "data"])
def test_a_folder_of_parquet_files_is_read_in_order_of_their_names(tmp_path, subfolder):
    for i in (2, 0, 1):
        row = ROW | {"image": {"bytes": encoded(i)}, "problem": f"{i}?"}
        write(tmp_path / subfolder / f"train-{i}.parquet", [row])
    examples = load_records(str(tmp_path))[1]
    assert [e.question for e in examples] == ["0?", "1?", "2?"]
    assert examples[-1].id == str(Path(subfolder) / "train-2.parquet:0")


@pytest.mark.parametrize("split", ["", "train"])
def test_a_saved_data_set_or_its_train_split_is_read_without_datasets(tmp_path, split, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    rows = [ROW | {"image": {"bytes": encoded(i)}, "problem": f"{i}?"} for i in range(4)]
    write_saved(tmp_path / split, [rows[:3], rows[3:]])
    write(tmp_path / split / "cache-0123.arrow", [rows[0] | {"problem": "cached by map()"}])
    if split:
        (tmp_path / "dataset_dict.json").write_text('{"splits": ["test", "train"]}')
        write_saved(tmp_path / "test", [[rows[0] | {"problem": "test"}]])
    examples = [e for e in load_records(str(tmp_path))[1] if e.split in ("", "train")]
    assert [e.question for e in examples] == ["0?", "1?", "2?", "3?"]


@pytest.mark.case("I15", "I24")
@pytest.mark.parametrize(
    "state",
    ["", "{", "[]", "null", '{"_data_files": [{}]}', "[" * 100_000, "\xff\xfe"]
    + ['{"_data_files": [{"filename": "../other.arrow"}]}'],
)
def test_a_broken_state_file_is_refused_by_name(tmp_path, state):
    (tmp_path / "set").mkdir()
    (tmp_path / "other.arrow").write_bytes(b"")
    (tmp_path / "set" / "state.json").write_bytes(state.encode("latin-1"))
    refused(tmp_path / "set", "state.json.*(leads out of)?")


@pytest.mark.parametrize("name", ["a.parquet", "data-00000-of-00001.arrow"])
@pytest.mark.parametrize("content", [b"", b"PAR1", b"<html>404</html>" * 20, None])
def test_a_table_that_is_none_or_cut_off_is_refused_by_name(tmp_path, name, content):
    write_saved(tmp_path, [[ROW]])
    path = tmp_path / name
    if name == "a.parquet":
        write(path, [ROW])
    path.write_bytes(path.read_bytes()[:-300] if content is None else content)
    refused(tmp_path, f"{name}: cannot read the table")


def test_what_tables_need_is_named(tmp_path, monkeypatch):
    data = write(tmp_path / "a.parquet", [ROW])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(data, "pip install pyarrow")
    (tmp_path / "a.parquet").unlink()
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["test"]}')
    refused(tmp_path, "without any of its splits")


# ------------------------------------------------------------------------------------ bad files


@pytest.mark.case("I20")
def test_i20_an_empty_set_is_refused(folder):
    for name, content in [("a.json", "[]"), ("b.json", '{"data": []}'), ("c.jsonl", "\n \r\n")]:
        (folder / name).write_text(content)
        refused(folder / name, "has no row")
    refused(write(folder / "a.json", [ROW | {"solution": ""}]), "no usable row")
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    schema = pyarrow.schema([(name, pyarrow.string()) for name in ROW])
    parquet.write_table(schema.empty_table(), folder / "a.parquet")
    refused(folder / "a.parquet", "has no row")


@pytest.mark.case("I23")
def test_i23_bom_crlf_and_blank_lines_are_read(folder):
    line = json.dumps(ROW | {"problem": "Größe?"}, ensure_ascii=False).encode()
    (folder / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n  \n" + line)
    examples = load_records(str(folder / "a.jsonl"))[1]
    assert [e.id for e in examples] == ["a.jsonl:1", "a.jsonl:4"]
    assert {e.question for e in examples} == {"Größe?"}
    (folder / "b.json").write_bytes(b"\xef\xbb\xbf[\r\n" + line + b"]\r\n")
    assert len(load_records(str(folder / "b.json"))[1]) == 1


@pytest.mark.case("I23", "I24")
@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", GOOD + b"\n{", "a.jsonl:2: is no JSON"),
        ("a.jsonl", GOOD + b" " + GOOD, "a.jsonl:1: is no JSON"),
        ("a.jsonl", b"{\n" + GOOD[1:], "a.jsonl:1: is no JSON .*each line of a .jsonl is one row"),
        ("a.jsonl", GOOD + b",\n" + GOOD, "a.jsonl:1: is no JSON .*without commas between"),
        ("a.jsonl", b"[" + GOOD + b"]", "a.jsonl:1: is .*one list, name it .json"),
        ("a.json", b"[\n\n" + GOOD + b",]", "a.json:3: is no JSON"),
        ("a.json", GOOD + b"\n" + GOOD, "name it .jsonl"),
        ("a.json", b"", "a.json:1: is no JSON"),
        ("a.jsonl", GOOD.decode().encode("utf-16"), "a.jsonl:1: is UTF-16"),
        ("a.json", GOOD.decode().encode("utf-16-be"), "a.json:1: is UTF-16"),
        ("a.json", b'[\n"\xe9"]', "a.json:2: is not UTF-8"),
        ("a.jsonl", GOOD + b'\n"\xe9"', "a.jsonl:2: is not UTF-8"),
        ("a.json", b"[" * 100_000, "a.json:1: cannot be parsed .*recursion"),
        ("a.jsonl", GOOD + b'\n{"a":' + b'{"a":' * 100_000, "a.jsonl:2: cannot be .*recursion"),
        ("a.json", b"[" * 500 + b"]" * 500, r"a.json:0: is \[\[.*, not a row"),
        ("a.json", b"[" + b"9" * 5000 + b"]", "cannot be parsed"),
        ("a.json", b"3", "needs a list of rows"),
        ("a.json", b'{"images": [], "annotations": []}', "has .'annotations', 'images'"),
        ("a.json", b"[3]", "a.json:0: is 3, not a row"),
    ],
    ids=lambda value: value[:40].decode("latin-1") if isinstance(value, bytes) else None,
)
def test_i23_i24_bad_json_is_refused_with_file_and_line(folder, name, content, message):
    (folder / name).write_bytes(content)
    refused(folder / name, message)


@pytest.mark.case("I24")
def test_i24_more_than_the_limit_is_refused_without_reading_on(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 1000)
    path = tmp_path / "a.jsonl"
    longest = '"' + "x" * 997 + '"\n'
    path.write_text(longest + '{"a": 1}\n' + longest)
    assert [number for number, _ in read_jsonl(path)] == [1, 2, 3]
    path.write_text(longest + '"y' + longest)
    with pytest.raises(InputError, match="a.jsonl:2: line of more than 1000 bytes"):
        list(read_jsonl(path))
    monkeypatch.setattr(files, "MAX_JSON_BYTES", 10)
    (tmp_path / "a.json").write_text('["0123456"]')
    with pytest.raises(InputError, match="larger than 10 bytes"):
        read_json(tmp_path / "a.json")


@pytest.mark.case("I24")
def test_i24_200_mb_in_one_line_are_refused_at_once(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.truncate(200 * 2**20)  # a sparse file: no newline anywhere
    start = time.process_time()
    refused(path, "a.jsonl:1: line of more than")
    assert time.process_time() - start < 2


@pytest.mark.case("I34")
@pytest.mark.parametrize(
    "name", ["a.pkl", "a.pth", "a.pt", "a.npy", "a.npz", "refs(unc).p", "a.csv", "a.txt", "a"]
)
def test_i34_pickles_and_arrays_are_refused_unopened(tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")
    (tmp_path / name).chmod(0)
    refused(tmp_path / name, r"is a file of type .* not opened; accepted: a .json")


@pytest.mark.case("I16")
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet", ""])
def test_i16_pipes_and_folders_are_refused_without_hanging(tmp_path, suffix):
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    refused(tmp_path / f"pipe{suffix}", "not a regular file")
    refused(tmp_path / f"folder{suffix}", "a folder without tables")
    with pytest.raises(InputError, match="no regular file"):
        read_json(tmp_path / f"pipe{suffix}")


@pytest.mark.case("I17", "I18")
def test_i17_i18_urls_and_missing_files_are_refused(folder):
    for data in ("https://x.org/a.json", "file:///a.json", "data:text/plain,x", "s3://b/a.json"):
        refused(data, "is a URL; download")
    write(folder / "Set.json", [ROW])
    refused(folder / "set.json", r"does not exist \(did you mean 'Set.json'\?\)")
    refused("a\0b.json", "does not exist")


# -------------------------------------------------------------------------------------- bad rows


@pytest.mark.case("I14")
def test_i14_missing_images_are_refused_with_the_first_five_and_a_hint(folder):
    picture(0).save(folder / "Rose.png")
    names = ["0.png", "rose.png", *(f"gone{i}.png" for i in range(5)), r"C:\x.png"]
    rows = [ROW | {"image": name} for name in names]
    error = refused(write(folder / "set.jsonl", rows), "7 images missing")
    assert "set.jsonl:6: " in error and "set.jsonl:7: " not in error
    assert "did you mean 'Rose.png'?" in error


@pytest.mark.case("I15", "I17")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("/etc/passwd", id="i15-absolute"),
        pytest.param("x/../../secret.png", id="i15-parent"),
        pytest.param("link.png", id="i15-link"),
        pytest.param("http://a.b/c.png", id="i17-http"),
        pytest.param("file:///etc/passwd", id="i17-file"),
        pytest.param("data:image/png;base64,AA", id="i17-data"),
        pytest.param("null\0byte.png", id="null-byte"),
        pytest.param("\ud800.png", id="half-a-character"),
    ],
)
def test_image_paths_cannot_leave_the_folder(folder, name):
    (folder / "set").mkdir()
    picture(0).save(folder / "secret.png")
    (folder / "set" / "link.png").symlink_to(folder / "secret.png")
    data = write(folder / "set" / "set.json", [{"id": 5} | ROW | {"image": name}])
    refused(data, r"set.json:0 \(id 5\): .*(leads out|no path below|no file name|in base64)")


@pytest.mark.case("I16")
@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_i16_images_that_are_no_regular_files_are_refused_without_hanging(folder, kind):
    path = folder / "odd.png"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    refused(write(folder / "a.json", [ROW | {"image": "odd.png"}]), "no regular files|leads out")


@pytest.mark.case("I9")
def test_unreadable_images_cost_their_record_only(folder, capsys):
    whole = (folder / "0.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    rows = [ROW, ROW | {"image": ["1.png", "cut.png"]}, ROW | {"image": "empty.png"}, ROW]
    assert [e.id for e in load(folder, *rows)] == ["set.json:0", "set.json:3"]
    printed = capsys.readouterr().out
    assert "2 of 4 records skipped; unreadable: 'set.json:1'" in printed
    refused(write(folder / "set.json", [*rows, rows[2]]), "3 of 5 records skipped")


@pytest.mark.parametrize(
    "cell",
    [
        b"<html>",
        encoded(5, "PCX"),  # Pillow could read it, but is not asked to
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        encoded(5)[:-40],
    ],
)
def test_undecodable_images_of_tables_are_skipped_and_counted(tmp_path, cell, capsys):
    cells = [encoded(0), cell, encoded(1)]
    examples = load(tmp_path, *(ROW | {"image": {"bytes": c}} for c in cells), name="a.parquet")
    assert [e.id for e in examples] == ["a.parquet:0", "a.parquet:2"]
    assert "1 of 3 records skipped; unreadable: 'a.parquet:1'" in capsys.readouterr().out


@pytest.mark.case("I26")
@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"image": "0.png", "question": "?", "answer": "3"}], "columns .*'question'.* match none"),
        ([{"problem": "?", "solution": "3"}], "columns .*'problem', 'solution'.* match none of"),
        ([{"image": "0.png", "problem": "?"}], r"match none of: .*Visual-RFT rows \(image, prob"),
        ([{}], r"columns \[\] match none"),
        (
            [ROW, {"id": 9, "image": "0.png", "solution": "3"}],
            r"json:1 \(id 9\): needs column 'prob",
        ),
    ],
)
def test_i26_columns_of_no_schema_are_refused_with_the_columns_of_the_row(folder, rows, message):
    refused(write(folder / "set.json", rows), message)


@pytest.mark.case("I26")
def test_i26_doubled_columns_of_a_table_are_refused(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    names = ["image", "problem", "solution", "image"]
    table = pyarrow.Table.from_arrays([pyarrow.array(["x"])] * 4, names=names)
    parquet.write_table(table, tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "two columns of one name")


@pytest.mark.case("I27")
@pytest.mark.parametrize(
    "change, reason",
    [
        pytest.param({"solution": " \n"}, "empty solution", id="i27-blank"),
        pytest.param({"solution": None}, "empty solution", id="i27-null"),
        pytest.param(
            {"solution": "<answer></answer>"}, "without one <answer>", id="i27-empty-tags"
        ),
        pytest.param(
            {"solution": "<answer>a</answer> <answer>b</answer>"}, "without one", id="two-answers"
        ),
        pytest.param({"solution": "3 </answer>"}, "without one <answer>", id="unopened"),
        pytest.param({"problem": "<image>\n"}, "empty problem", id="no-question"),
        pytest.param({"problem": None}, "empty problem", id="null-question"),
        pytest.param({"image": None}, "empty image", id="no-image"),
        pytest.param({"image": []}, "empty image", id="empty-list"),
        pytest.param({"image": ["0.png", None]}, "empty image", id="one-of-two-missing"),
        pytest.param({"image": {"bytes": None, "path": ""}}, "empty image", id="empty-struct"),
    ],
)
def test_rows_with_an_empty_cell_are_skipped_and_counted(folder, change, reason, capsys):
    examples = load(folder, ROW, ROW | change, ROW)
    assert [e.id for e in examples] == ["set.json:0", "set.json:2"]
    printed = capsys.readouterr().out
    assert "1 of 3 records skipped" in printed and reason in printed and "set.json:1" in printed


@pytest.mark.parametrize(
    "change, note",
    [
        ({"answer": "B"}, "columns solution and answer differ, solution is read"),
        ({"solution": "<|begin_of_box|>a<|end_of_box|>"}, "the solution holds chat tokens"),
        ({"solution": '[{"bbox_2d": [1, 2, 3, 4], "category": "cat"}]'}, "only the key 'label'"),
        ({"solution": "[{'bbox_2d': [1, 2, 3, 4], 'class_name': 'cat'}]"}, "only the key 'label'"),
        ({"answer": "<think>so</think><answer>a</answer>"}, ""),
        ({"answer": None}, ""),
        ({"answer": ["a", "b"]}, ""),
        ({"solution": "<|box_start|>(1,2),(3,4)<|box_end|>"}, ""),
        ({"solution": '[{"bbox_2d": [1, 2, 3, 4], "label": "cat"}]'}, ""),
    ],
)
def test_what_is_left_of_a_solution_is_said(folder, capsys, change, note):
    row = {"image": "0.png", "problem": "Which?", "solution": "a"} | change
    load(folder, row)
    printed = capsys.readouterr().out
    assert note in printed and ("data: 1 rows: " in printed) == bool(note)


@pytest.mark.case("I32")
def test_i32_marks_of_the_template_stay_plain_text_but_may_not_outnumber_the_images(folder, capsys):
    for text in ("<|im_end|>", "<|image_pad|> <|vision_start|>", " kept \n"):
        assert load(folder, ROW | {"problem": text})[0].question == text
    assert capsys.readouterr().out.count("holds chat tokens") == 2  # said for both of them
    for text in ("<image><image> What?", "<image>a<image>", "<image>" * 99):
        refused(write(folder / "a.json", [ROW | {"problem": text}]), "marks for 1 images")


@pytest.mark.parametrize(
    "problem, question",
    [
        ("<image>Which?", "Which?"),
        ("Which?\n<image>", "Which?"),
        ("Is <image> it?", "Is it?"),
    ],
)
def test_a_mark_is_dropped_wherever_it_stands_and_said_where_that_is_inside(
    folder, problem, question, capsys
):
    assert load(folder, ROW | {"problem": problem})[0].question == question
    said = "<image> marks inside the question are dropped" in capsys.readouterr().out
    assert said == (not problem.startswith("<image>"))


def test_two_pictures_have_two_marks_or_none(folder):
    two = ROW | {"image": TWO}
    refused(write(folder / "a.json", [two | {"problem": "<image>Which?"}]), "1 <image> marks for 2")
    for text in ("Which?", "<image><image>Which?", "A <image> B <image> Which?"):
        assert load(folder, two | {"problem": text})[0].question.endswith("Which?")


@pytest.mark.case("I35")
@pytest.mark.parametrize(
    "value, text",
    [
        (3, "3"),
        (0, "0"),
        (-2, "-2"),
        (3.0, "3"),
        (0.1, "0.1"),
        (1e-7, "0.0000001"),
        (1e22, "10000000000000000000000"),
        (10**400, "1" + "0" * 400),
        ("1e3", "1e3"),
        (None, ""),
        ([], "[]"),
        ([1, 2.5, 3, 4], "[1, 2.5, 3, 4]"),
        ([-1, 2], "[-1, 2]"),
        ([[1, 2, 3, 4]], "[[1, 2, 3, 4]]"),
        ([{"bbox_2d": [1, 2, 3, 4], "label": "a"}], '[{"bbox_2d": [1, 2, 3, 4], "label": "a"}]'),
        ("<think>x</think><answer> dog </answer>", "dog"),
        (" dog\n", "dog"),
    ],
)
def test_i35_solutions_of_all_types_become_text(value, text):
    assert solution_text(value, "here") == text


@pytest.mark.case("I25", "I35")
@pytest.mark.parametrize(
    "value, message",
    [
        pytest.param(True, "is no text, number or box", id="i35-bool"),
        pytest.param(["a", "b"], "is no text, number or box", id="i35-names"),
        pytest.param([1, True], "is no text, number or box", id="i35-bool-in-list"),
        pytest.param({"a": 1}, "is no text, number or box", id="i35-dict"),
        pytest.param(float("nan"), "is no text, number or box", id="i25-nan"),
        pytest.param(float("-inf"), "is no text, number or box", id="i25-inf"),
        pytest.param([1, 2, float("nan"), 4], "repair it", id="i25-nan-in-a-box"),
        pytest.param([[1, float("inf")]], "repair it", id="i25-inf-in-a-box"),
        pytest.param("\ud800", "half a surrogate", id="half-a-character"),
    ],
)
def test_solutions_that_mean_nothing_are_refused_with_their_id(folder, value, message):
    data = write(folder / "set.json", [ROW, {"id": "q7"} | ROW | {"solution": value}])
    refused(data, rf"^set.json:1 \(id 'q7'\): .*{message}")
    text = Path(data).read_text()
    if "Infinity" in text:  # the same by another spelling
        Path(data).write_text(text.replace("Infinity", "1e999"))
        refused(data, rf"^set.json:1 \(id 'q7'\): .*{message}")


@pytest.mark.parametrize("value", [b"a", [{"a": b"x"}]])
def test_bytes_of_tables_are_no_solutions(value):
    with pytest.raises(InputError, match="row 7: solution .*; (repair|write)"):
        solution_text(value, "row 7")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"problem": 3}, "column 'problem' holds 3"),
        ({"problem": ["a"]}, "column 'problem' holds"),
        ({"problem": "\ud800"}, "half a surrogate"),
        ({"image": 3}, "column 'image' holds 3"),
        ({"image": [["0.png"]]}, "column 'image' holds"),
        ({"image": False}, "column 'image' holds"),
        ({"image": {"bytes": [1]}}, "column 'image' holds"),
    ],
)
def test_values_of_a_wrong_type_are_refused_with_id_and_column(folder, change, message):
    data = write(folder / "set.json", [{"id": "q"} | ROW | change])
    refused(data, rf"set.json:0 \(id 'q'\): .*{message}")


@pytest.mark.parametrize(
    "column, turns",
    [
        *[("conversations", t) for t in ([], [USER], [BOT, USER], [USER, BOT] * 2)],
        *[("conversations", t) for t in ("hi", [3], None)],
        ("prompt", []),
        ("prompt", [ASK | {"role": "assistant"}]),
        ("prompt", [ASK, ASK | {"role": "assistant"}]),
        ("prompt", [ASK | {"content": 3}]),
        ("prompt", [ASK | {"content": ["a"]}]),
        ("prompt", [{"role": "user"}]),
    ],
)
def test_dialogues_of_other_than_one_turn_each_are_refused(folder, column, turns):
    row = {"image": "0.png", "answer": "3", column: turns}
    refused(write(folder / "a.json", [row]), "needs one human turn|needs one user message|holds")


# --------------------------------------------------------------------------------------- skip log


@pytest.mark.parametrize(
    "skipped, total, ok",
    [(0, 5, True), (2, 5, True), (3, 5, False), (9, 900, True), (10, 900, False)],
)
def test_skip_log_tolerates_two_records_or_one_percent(skipped, total, ok, capsys):
    skips, line = SkipLog(), f"{skipped} of {total} records skipped"
    for i in range(skipped):
        skips.add("unreadable", f"record {i}")
    if ok:
        skips.check(total)
        assert (line in capsys.readouterr().out) == (skipped > 0)  # nothing skipped, no line
    else:
        with pytest.raises(InputError, match=line):
            skips.check(total)


def test_skip_log_counts_all_reasons_and_keeps_the_first_five_offenders():
    skips = SkipLog()
    for i in range(4):
        skips.add("unreadable", f"u{i}")
        skips.add("empty solution", f"e{i}")
    assert skips.counts == {"unreadable": 4, "empty solution": 4}
    assert [line.split(": ")[1] for line in skips.first] == ["u0", "e0", "u1", "e1", "u2"]
