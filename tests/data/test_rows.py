"""What data/rows.py and data/files.py guarantee about rows from outside.

Rows of every published schema become the same records; whatever is wrong with a file or a row has
the one outcome that is documented, and never a hang, a recursion error or a lost neighbour. Ids
like "i24" are the cases of the list of bad inputs. Run: python -m pytest tests/data/test_rows.py
"""

import json
import os
import time
from pathlib import Path

import pytest

from data import files
from data.files import SkipLog, read_json, read_jsonl
from data.rows import Record, load_records, read_records, solution_text
from model.image import load_image
from runtime.errors import InputError
from tests.data.test_labelled import encoded, picture, write_saved, write_table

ROW = {"image": "0.png", "problem": "How many?", "solution": "<answer> 3 </answer>"}


@pytest.fixture
def folder(tmp_path) -> Path:
    for i in range(3):
        picture(i).save(tmp_path / f"{i}.png")
    return tmp_path


def write(path: Path, rows: list | dict) -> str:
    """Write rows as the suffix says; return the path as --data takes it."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))
    return str(path)


def load(folder: Path, *rows: dict, name: str = "set.json") -> list[Record]:
    return load_records(write(folder / name, list(rows)))[1]


# ------------------------------------------------------------------------------------------ schemas


@pytest.mark.parametrize(
    "schema, row, n_images, question, solution",
    [
        ("Visual-RFT", ROW, 1, "How many?", "3"),
        ("Visual-RFT", ROW | {"solution": "rose", "cot": "x"}, 1, "How many?", "rose"),
        ("Reason-RFT", ROW | {"id": "clevr-1"}, 1, "How many?", "3"),
        (
            "Reason-RFT",
            {"id": 4, "image": ["0.png", "1.png"], "problem": "What?", "answer": "f(1, red)"},
            2,
            "What?",
            "f(1, red)",
        ),
        ("Reason-RFT", ROW | {"id": 1, "answer": "4"}, 1, "How many?", "4"),
        ("Reason-RFT", ROW | {"id": 1, "answer": None}, 1, "How many?", "3"),
        (
            "EasyR1",
            {"problem": "<image><image>Which?", "answer": "B", "images": ["0.png", "1.png"]},
            2,
            "Which?",
            "B",
        ),
        (
            "EasyR1",
            {"problem": "Is <image> like it?", "answer": "B", "images": ["0.png"]},
            1,
            "Is <image> like it?",
            "B",
        ),
        ("TRL", {"prompt": "Which?", "image": "0.png", "solution": "A"}, 1, "Which?", "A"),
        (
            "TRL",
            {
                "prompt": [
                    {"role": "system", "content": "Be good."},
                    {"role": "user", "content": "Which?"},
                ],
                "images": ["0.png"],
                "answer": "A",
            },
            1,
            "Which?",
            "A",
        ),
        (
            "TRL",
            {
                "prompt": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image", "text": None},
                            {"type": "text", "text": "Which?"},
                        ],
                    }
                ],
                "image": "0.png",
                "answer": "A",
            },
            1,
            "Which?",
            "A",
        ),
        (
            "VLM-R1",
            {
                "image": ["0.png", "1.png"],
                "conversations": [
                    {"from": "human", "value": "<image>\n<image>\nWhich defect?"},
                    {"from": "gpt", "value": "No Defect"},
                ],
            },
            2,
            "Which defect?",
            "No Defect",
        ),
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_every_schema_is_recognised_and_read(
    folder, capsys, schema, row, n_images, question, solution, suffix
):
    path = folder / f"set{suffix}"
    if suffix == ".parquet":
        data = str(write_table(path, [row]))
    else:
        data = write(path, [row])
    found, (record,) = load_records(data)
    assert found == schema
    assert (record.question, record.solution) == (question, solution)
    assert record.images == tuple(folder / f"{i}.png" for i in range(n_images))
    assert f"read as {schema} rows" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_vlm_r1_answers_may_be_boxes_as_lists(folder, suffix):
    turns = [
        {"from": "human", "value": "<image>Where is the dog?"},
        {"from": "gpt", "value": [1, 2.5, 7, 9]},
    ]
    (record,) = load(folder, {"id": 1, "image": "0.png", "conversations": turns}, name="a" + suffix)
    assert (record.id, record.question) == ("1", "Where is the dog?")
    assert record.solution == "[1, 2.5, 7, 9]"


def test_r1v_tables_with_image_bytes_are_read_and_kept_undecoded(tmp_path):
    rows = [ROW | {"image": {"bytes": encoded(i), "path": "x"}} for i in range(3)]
    _, records = load_records(str(write_table(tmp_path / "a.parquet", rows)))
    assert [r.id for r in records] == ["a.parquet:0", "a.parquet:1", "a.parquet:2"]
    image = records[2].images[0]
    assert image._im is None  # not decoded: 70,000 decoded pictures would not fit in memory
    assert load_image(image).tobytes() == picture(2).tobytes()


def test_saved_arrow_sets_and_lists_of_image_bytes_are_read(tmp_path):
    rows = [
        {"images": [{"bytes": encoded(i), "path": None}] * 2, "problem": "?!", "answer": "B"}
        for i in range(3)
    ]
    schema, records = load_records(str(write_saved(tmp_path / "set", [rows[:2], rows[2:]])))
    assert schema == "EasyR1" and [len(r.images) for r in records] == [2, 2, 2]
    assert len({r.id for r in records}) == 3


def test_rows_may_lie_under_the_key_data(folder):
    _, records = load_records(write(folder / "set.json", {"data": [ROW, ROW], "version": 2}))
    assert [r.id for r in records] == ["set.json:0", "set.json:1"]


def test_image_paths_may_have_another_root(folder, tmp_path):
    (folder / "rows").mkdir()
    data = write(folder / "rows" / "set.json", [ROW])
    with pytest.raises(InputError, match="1 images missing"):
        load_records(data)
    _, (record,) = load_records(data, data_root=folder)
    assert record.images == (folder / "0.png",)


@pytest.mark.parametrize(
    "given, expected",
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
def test_ids_are_unique_whatever_the_rows_say(folder, given, expected):
    records = load(folder, *(ROW | {"id": value} for value in given))
    assert [r.id for r in records] == expected


# ------------------------------------------------------------------------------------ bad files


@pytest.mark.case("I20")
def test_i20_an_empty_set_is_refused(folder):
    for name, content in [("a.json", "[]"), ("b.json", '{"data": []}'), ("c.jsonl", "\n \r\n")]:
        (folder / name).write_text(content)
        with pytest.raises(InputError, match="has no row"):
            load_records(str(folder / name))
    with pytest.raises(InputError, match="no usable row"):
        load(folder, ROW | {"solution": ""})


@pytest.mark.case("I23")
def test_i23_bom_crlf_and_blank_lines_are_read(folder):
    line = json.dumps(ROW | {"problem": "Größe?"}, ensure_ascii=False).encode()
    (folder / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n  \n" + line)
    _, records = load_records(str(folder / "a.jsonl"))
    assert [(r.id, r.question) for r in records] == [
        ("a.jsonl:1", "Größe?"),
        ("a.jsonl:4", "Größe?"),
    ]
    (folder / "b.json").write_bytes(b"\xef\xbb\xbf[\r\n" + line + b"]\r\n")
    assert len(load_records(str(folder / "b.json"))[1]) == 1


GOOD = json.dumps(ROW).encode()


@pytest.mark.case("I23", "I24", "I25")
@pytest.mark.parametrize(
    "name, content, message",
    [
        pytest.param("a.jsonl", GOOD + b"\n{", "a.jsonl:2: is no JSON", id="i23-bad-line"),
        pytest.param(
            "a.jsonl", GOOD + b" " + GOOD, "a.jsonl:1: is no JSON", id="i23-two-in-a-line"
        ),
        pytest.param("a.json", b"[\n\n" + GOOD + b",]", "a.json:3: is no JSON", id="i23-bad-json"),
        pytest.param("a.json", GOOD + b"\n" + GOOD, "name it .jsonl", id="i23-jsonl-named-json"),
        pytest.param("a.json", b"", "a.json:1: is no JSON", id="i23-empty-file"),
        pytest.param(
            "a.jsonl", GOOD.decode().encode("utf-16"), "a.jsonl:1: is UTF-16", id="i23-utf-16"
        ),
        pytest.param(
            "a.json", GOOD.decode().encode("utf-16-be"), "a.json:1: is UTF-16", id="i23-utf-16-be"
        ),
        pytest.param("a.json", b'[\n"\xe9"]', "a.json:2: is not UTF-8", id="i23-latin-1"),
        pytest.param(
            "a.jsonl", GOOD + b'\n"\xe9"', "a.jsonl:2: is not UTF-8", id="i23-latin-1-line"
        ),
        pytest.param("a.json", b"[" * 100_000, "nested more than 100", id="i24-deep"),
        pytest.param("a.jsonl", b'{"a":' * 100_000, "nested more than 100", id="i24-deep-objects"),
        pytest.param(
            "a.json", b"[" * 101 + b"]" * 101, "nested more than 100", id="i24-deep-but-valid"
        ),
        pytest.param("a.json", b"[" + b"9" * 5000 + b"]", "cannot be parsed", id="i24-huge-int"),
        pytest.param(
            "a.json",
            b'[{"id": "q7", "solution": [1, NaN]}]',
            r"\[0\] \(id 'q7'\)\['solution'\]\[1\] is not a finite number",
            id="i25-nan",
        ),
        pytest.param(
            "a.jsonl",
            GOOD + b'\n{"id": 7, "solution": 1e999}',
            r"a.jsonl:2:  \(id 7\)\['solution'\] is not a finite",
            id="i25-1e999",
        ),
        pytest.param("a.json", b"[-Infinity", "a value is not a finite", id="i25-inf-and-cut-off"),
        pytest.param("a.json", b"3", "needs a list of rows", id="a-number"),
        pytest.param(
            "a.json",
            b'{"images": [], "annotations": []}',
            "has .'annotations', 'images'",
            id="coco",
        ),
        pytest.param("a.json", b"[3]", "a.json:0: is 3, not a row", id="row-of-no-columns"),
    ],
)
def test_bad_json_is_refused_with_file_and_line(folder, name, content, message):
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_records(str(folder / name))


@pytest.mark.parametrize(
    "text, depth",
    [
        (r'["[[[[", "\"[[", "]"]', 1),
        (r'["\\", "[[[["]', 1),
        (r'{"a\\\"[[[": ["}"], "\n\\": [{}]}', 3),
        ("[" * 100 + "]" * 100, 100),
        ("3", 0),
    ],
)
def test_brackets_count_as_nesting_unless_in_strings(tmp_path, text, depth, monkeypatch):
    (tmp_path / "a.json").write_text(text)
    monkeypatch.setattr(files, "MAX_NESTING", depth)
    assert read_json(tmp_path / "a.json") == json.loads(text)
    monkeypatch.setattr(files, "MAX_NESTING", depth - 1)
    with pytest.raises(InputError, match="nested more than"):
        read_json(tmp_path / "a.json")


@pytest.mark.case("I24")
def test_i24_a_line_of_more_than_the_limit_is_refused_without_reading_on(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 1000)
    path = tmp_path / "a.jsonl"
    longest = '"' + "x" * 997 + '"\n'
    path.write_text(longest + '{"a": 1}\n' + longest)
    assert [number for number, _ in read_jsonl(path)] == [1, 2, 3]
    path.write_text(longest + '"y' + longest)
    with pytest.raises(InputError, match="a.jsonl:2: line of more than 1000 bytes"):
        list(read_jsonl(path))


@pytest.mark.case("I24")
def test_i24_a_json_file_beyond_the_limit_is_refused_unread(tmp_path, monkeypatch):
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
    with pytest.raises(InputError, match="a.jsonl:1: line of more than"):
        load_records(str(path))
    assert time.process_time() - start < 2


@pytest.mark.case("I34")
@pytest.mark.parametrize(
    "name", ["a.pkl", "a.pth", "a.pt", "a.npy", "a.npz", "refs(unc).p", "a.csv", "a.txt", "a"]
)
def test_i34_pickles_and_arrays_are_refused_unopened(tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")
    (tmp_path / name).chmod(0)
    with pytest.raises(InputError, match=r"is a file of type .* not opened; accepted: a .json"):
        load_records(str(tmp_path / name))


@pytest.mark.case("I16")
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet", ""])
def test_i16_pipes_and_folders_are_refused_without_hanging(tmp_path, suffix):
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    with pytest.raises(InputError, match="not a regular file"):
        load_records(str(tmp_path / f"pipe{suffix}"))
    with pytest.raises(InputError, match="a folder without tables"):
        load_records(str(tmp_path / f"folder{suffix}"))
    with pytest.raises(InputError, match="no regular file"):
        read_json(tmp_path / f"pipe{suffix}")


@pytest.mark.case("I17")
@pytest.mark.parametrize("data", ["https://x.org/a.json", "file:///a.json", "s3://b/a.json"])
def test_i17_urls_are_refused(data):
    with pytest.raises(InputError, match="is a URL; download"):
        load_records(data)


@pytest.mark.case("I18")
def test_i18_a_missing_file_is_refused_with_a_hint(folder):
    write(folder / "Set.json", [ROW])
    with pytest.raises(InputError, match=r"does not exist \(did you mean 'Set.json'\?\)"):
        load_records(str(folder / "set.json"))
    with pytest.raises(InputError, match="does not exist"):
        load_records("a\0b.json")


# -------------------------------------------------------------------------------------- bad rows


@pytest.mark.case("I14")
def test_i14_missing_images_are_refused_with_the_first_five(folder):
    rows = [ROW | {"image": f"gone{i}.png"} for i in range(7)]
    with pytest.raises(InputError, match="7 images missing") as error:
        load(folder, ROW, *rows, name="set.jsonl")
    assert "set.jsonl:6: " in str(error.value) and "set.jsonl:7: " not in str(error.value)


@pytest.mark.case("I15", "I17")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("/etc/passwd", id="i15-absolute"),
        pytest.param("../secret.png", id="i15-parent"),
        pytest.param("link.png", id="i15-link"),
        pytest.param("http://a.b/c.png", id="i17-http"),
        pytest.param("data:image/png;base64,AA", id="i17-data"),
        pytest.param("null\0byte.png", id="null-byte"),
        pytest.param("\ud800.png", id="half-a-character"),
    ],
)
def test_image_paths_cannot_leave_the_folder(folder, name):
    (folder / "set").mkdir()
    picture(0).save(folder / "secret.png")
    (folder / "set" / "link.png").symlink_to(folder / "secret.png")
    with pytest.raises(InputError, match=r"set.json:0 \(id 5\): .*(leads out|no path below|half)"):
        load(folder / "set", {"id": 5} | ROW | {"image": name})


@pytest.mark.case("I15")
def test_i15_a_windows_path_is_a_missing_file(folder):
    with pytest.raises(InputError, match="1 images missing"):
        load(folder, ROW | {"image": r"C:\x.png"})


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
    with pytest.raises(InputError, match="no regular files|leads out"):
        load(folder, ROW | {"image": "odd.png"})


@pytest.mark.case("I9")
def test_i07_i08_i09_unreadable_images_cost_their_record_only(folder, capsys):
    whole = (folder / "0.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    rows = [ROW, ROW | {"image": ["1.png", "cut.png"]}, ROW | {"image": "empty.png"}, ROW]
    assert [r.id for r in load(folder, *rows)] == ["set.json:0", "set.json:3"]
    printed = capsys.readouterr().out
    assert "2 of 4 records skipped; unreadable: 'set.json:1'" in printed
    with pytest.raises(InputError, match="3 of 5 records skipped"):
        load(folder, *rows, rows[2])


@pytest.mark.case("I26")
@pytest.mark.parametrize(
    "row, missing",
    [
        ({"image": "0.png", "question": "?", "answer": "3"}, "'question'"),
        ({"problem": "?", "solution": "3"}, "'problem', 'solution'"),
        ({"image": "0.png", "problem": "?"}, "'image', 'problem'"),
        ({}, r"\[\]"),
    ],
)
def test_i26_columns_of_no_schema_are_refused_with_the_columns_found(folder, row, missing):
    with pytest.raises(
        InputError, match=rf"columns .*{missing}.* match none of: .*Visual-RFT rows"
    ):
        load(folder, row)


@pytest.mark.case("I26")
def test_i26_a_later_row_without_a_column_is_refused_by_id(folder):
    with pytest.raises(InputError, match=r"set.json:1 \(id 9\): needs column 'problem', has"):
        load(folder, ROW, {"id": 9, "image": "0.png", "solution": "3"})


@pytest.mark.case("I26")
def test_i26_doubled_columns_of_a_table_are_refused(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    names = ["image", "problem", "solution", "image"]
    table = pyarrow.Table.from_arrays([pyarrow.array(["x"])] * 4, names=names)
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match="two columns of one name"):
        load_records(str(tmp_path / "a.parquet"))


@pytest.mark.case("I27")
@pytest.mark.parametrize(
    "change, reason",
    [
        pytest.param({"solution": ""}, "empty solution", id="i27-empty"),
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
def test_rows_with_an_empty_cell_are_skipped_and_counted(folder, change, reason):
    path = Path(write(folder / "set.json", [ROW, ROW | change, ROW]))
    skips = SkipLog()
    _, records = read_records(path, skips)
    assert [r.id for r in records] == ["set.json:0", "set.json:2"]
    assert skips.counts.total() == 1 and reason in skips.first[0] and "set.json:1" in skips.first[0]


@pytest.mark.case("I32")
@pytest.mark.parametrize(
    "text",
    ["<|im_end|>", "<|image_pad|> and <|vision_start|>", "Is <image> a mark?", "a <img> b"],
)
def test_i32_marks_of_the_template_stay_plain_text(folder, text):
    assert load(folder, ROW | {"problem": text})[0].question == text


@pytest.mark.case("I32")
@pytest.mark.parametrize("question", ["<image><image> What?", "<image>a<image>", "<image>" * 99])
def test_i32_more_image_marks_than_images_are_refused(folder, question):
    with pytest.raises(InputError, match="marks for 1 images"):
        load(folder, ROW | {"problem": question})


@pytest.mark.case("I35")
@pytest.mark.parametrize(
    "value, text",
    [
        pytest.param(3, "3", id="i35-int"),
        pytest.param(0, "0", id="i35-zero"),
        pytest.param(-2, "-2", id="i35-negative"),
        pytest.param(3.0, "3", id="i35-whole-float"),
        pytest.param(0.1, "0.1", id="i35-float"),
        pytest.param(1e-7, "0.0000001", id="i35-small-float"),
        pytest.param(1e22, "10000000000000000000000", id="i35-large-float"),
        pytest.param(10**400, "1" + "0" * 400, id="i35-huge-int"),
        pytest.param("1e3", "1e3", id="i35-text"),
        pytest.param(None, "", id="i35-none"),
        pytest.param([], "[]", id="i35-empty-list-of-boxes"),
        pytest.param([1, 2.5, 3, 4], "[1, 2.5, 3, 4]", id="i35-box"),
        pytest.param([-1, 2], "[-1, 2]", id="i35-numbers"),
        pytest.param([[1, 2, 3, 4]], "[[1, 2, 3, 4]]", id="i35-boxes"),
        pytest.param(
            [{"bbox_2d": [1, 2, 3, 4], "label": "a"}],
            '[{"bbox_2d": [1, 2, 3, 4], "label": "a"}]',
            id="i35-labelled-boxes",
        ),
        pytest.param("<think>x</think><answer> dog </answer>", "dog", id="tags"),
        pytest.param(" dog\n", "dog", id="no-tags"),
    ],
)
def test_solutions_of_all_types_become_text(value, text):
    assert solution_text(value, "here") == text


@pytest.mark.case("I25", "I35")
@pytest.mark.parametrize(
    "value, message",
    [
        pytest.param(True, "is no text, number or box", id="i35-bool"),
        pytest.param(["a", "b"], "is no text, number or box", id="i35-names"),
        pytest.param([1, True], "is no text, number or box", id="i35-bool-in-list"),
        pytest.param({"a": 1}, "is no text, number or box", id="i35-dict"),
        pytest.param(b"a", "is no text, number or box", id="i35-bytes"),
        pytest.param(float("nan"), "is no text, number or box", id="i25-nan-in-a-table"),
        pytest.param(float("inf"), "is no text, number or box", id="i25-inf-in-a-table"),
        pytest.param([1, 2, float("nan"), 4], "repair it", id="i25-nan-in-a-box"),
        pytest.param([[1, float("inf")]], "repair it", id="i25-inf-in-a-box"),
        pytest.param([-5, 2, 3, 4], "negative coordinate", id="i25-negative-box"),
        pytest.param([{"a": b"x"}], "repair it", id="i35-bytes-in-list"),
        pytest.param("\ud800", "half a surrogate", id="half-a-character"),
    ],
)
def test_solutions_that_mean_nothing_are_refused_with_their_id(value, message):
    with pytest.raises(InputError, match=f"^row 7: .*{message}"):
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
    with pytest.raises(InputError, match=rf"set.json:0 \(id 'q'\): .*{message}"):
        load(folder, {"id": "q"} | ROW | change)


USER, BOT = {"from": "human", "value": "What?"}, {"from": "gpt", "value": "3"}


@pytest.mark.parametrize(
    "turns", [[], [USER], [BOT, USER], [USER, BOT, USER, BOT], "hi", [3], None]
)
def test_conversations_of_more_or_less_than_one_turn_each_are_refused(folder, turns):
    with pytest.raises(InputError, match="needs one human turn, then one gpt turn"):
        load(folder, {"image": "0.png", "conversations": turns})


@pytest.mark.parametrize(
    "prompt",
    [
        [],
        [{"role": "assistant", "content": "a"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        [{"role": "user", "content": 3}],
        [{"role": "user"}],
        [{"role": "user", "content": ["a"]}],
    ],
)
def test_prompts_of_other_than_one_user_message_are_refused(folder, prompt):
    with pytest.raises(InputError, match="needs one user message|holds"):
        load(folder, {"image": "0.png", "prompt": prompt, "answer": "3"})
