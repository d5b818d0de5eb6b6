"""Rows of questions and answers on disk: json, jsonl, parquet and saved arrow sets -> `Example`s.

    schema, examples = load_records("train.jsonl")

The public data sets for visual RL agree on what a row holds and on none of the names: see SCHEMAS.
The first row decides the schema. Columns not named there (Reason-RFT's `cot`) are not read.

A row with an empty or unreadable cell is skipped and counted; one with a wrong type, or a path that
leaves the folder, makes the whole set doubtful and raises `InputError` with file, row and id.

Next: data/coco.py, for annotations with boxes.
"""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from reprlib import repr as brief  # of values that may be long or deep
from typing import Any

from answers import parse_answer
from data.answer_forms import plain, say_rewritten
from data.examples import Example
from data.files import MAX_SKIP, SkipLog, read_json, read_jsonl
from data.paths import check_files, inside, local_path, named, shown
from data.pictures import readable
from data.splits import say_of_file, split_of
from data.tables import JSON, row_files, table_rows
from runtime.errors import InputError

ACCEPTED_ROWS = (
    "accepted: a .json or .jsonl file of rows, a .parquet file or a folder of them, a folder of "
    "train.jsonl, test.jsonl and the like or of metadata.jsonl, one of datasets.save_to_disk"
)
# The columns of a row: images (one or a list), question, answer, further ones that tell schemas
# apart. Of two names the first that is filled wins: Reason-RFT's own loader reads `answer` from
# files that its README describes with `solution`.
SCHEMAS = {
    "VLM-R1": (("image",), ("conversations",), ("conversations",)),  # one human, one gpt turn
    "TRL": (("images", "image"), ("prompt",), ("answer", "solution")),  # prompt: text or messages
    "EasyR1": (("images",), ("problem",), ("answer", "solution")),
    "Reason-RFT": (("image",), ("problem",), ("answer", "solution"), ("id",)),
    "Visual-RFT": (("image",), ("problem",), ("solution", "answer")),  # and R1-V
}


def columns_of(schema: str) -> str:
    """For messages: "Visual-RFT rows (image, problem, solution or answer)"."""
    roles = dict.fromkeys(" or ".join(names) for names in SCHEMAS[schema])
    return f"{schema} rows ({', '.join(roles)})"


def is_row_source(path: Path) -> bool:
    """Whether `read_rows` can read it: by its suffix, or by the tables in the folder."""
    return bool(row_files(path))


def read_rows(path: Path) -> Iterator[tuple[str, dict]]:
    """Yield (where, row) of a file: "set.jsonl:3" counts lines from 1, others rows from 0.

    A .json file is a list of rows, or an object with that list under "data".
    """
    if path.suffix.lower() == ".jsonl":
        rows = read_jsonl(path)
    elif path.suffix.lower() == ".json":
        rows = enumerate(_listed(read_json(path), path))
    else:
        rows = enumerate(table_rows(path))
    for number, row in rows:
        where = f"{path.name}:{number}"
        if not isinstance(row, dict):
            is_list = isinstance(row, list) and path.suffix.lower() == ".jsonl"
            fix = "; if the file is one list, name it .json" if is_list else ""
            raise InputError(f"{where}: is {brief(row)}, not a row with named columns{fix}")
        yield where, row


def _listed(content: Any, path: Path) -> list:
    listed = content.get("data") if isinstance(content, dict) else content
    if isinstance(listed, list):
        return listed
    keys = sorted(content)[:10] if isinstance(content, dict) else type(content).__name__
    hint = ""
    if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
        hint = "; COCO instances are for --task det or ovd, RefCOCO for ground"
        if "categories" not in content:
            hint = "; if it is COCO instances, its categories are missing: add them"
    raise InputError(f"{path}: needs a list of rows, or one under 'data'; has {keys}{hint}")


def load_records(
    data: str, max_skip: float = MAX_SKIP, data_root: str | Path | None = None
) -> tuple[str, list[Example]]:
    """Read the rows that `--data` names; print the schema and how many records were skipped.

    Args:
        data_root: what image paths are relative to and may not leave; default: the file's folder.

    Returns:
        a key of SCHEMAS, and the examples in the order of the rows: questions without leading
        `<image>` marks, targets without tags.

    Raises:
        InputError: no usable row, too many skipped, and what `read_records` raises.
    """
    skips = SkipLog()
    schema, examples = read_records(data, skips, data_root)
    say_of_file(Path(data), (*JSON, ".parquet"))
    skips.check(len(examples) + skips.counts.total(), max_skip)
    if not examples:
        raise InputError(f"--data {data!r} has no usable row; add rows")
    print(f"data: {data!r} read as {columns_of(schema)}: {len(examples)} records")
    return schema, examples


def read_records(
    data: str, skips: SkipLog, data_root: str | Path | None = None, accepted: str = ACCEPTED_ROWS
) -> tuple[str, list[Example]]:
    """Read rows of one of SCHEMAS. An id that is missing or taken is made from file and row.

    Rows without image, question or solution, or with an unreadable image, are skipped.

    Raises:
        InputError: no rows or an unreadable file, columns of no schema, values of a wrong type,
            more `<image>` marks than images, an image that is missing, a URL or outside the folder.
    """
    path = local_path(data, accepted)
    if not (files := row_files(path)):
        kind = "a folder without tables" if os.path.isdir(path) else "not a regular file"
        kind = f"a file of type {path.suffix!r}, not opened" if os.path.isfile(path) else kind
        raise InputError(f"--data {named(data)} is {kind}; {accepted}")
    schema, examples, ids, notes = "", [], set(), Notes()
    for file, split in files:
        paths: list[tuple[str, Path]] = []  # of this file: ids and pictures
        root = path if os.path.isdir(path) and file.suffix.lower() not in JSON else file.parent
        root = Path(data_root) if data_root is not None else root
        folder = "" if path == file else f"{file.parent.relative_to(path).as_posix()}/"
        for where, row in read_rows(file):
            where = f"{folder.removeprefix('./')}{where}"
            row_id = str(row["id"]) if type(row.get("id")) in (int, str) else ""
            has_id = 0 < len(row_id) <= 200 and row_id.isprintable()
            place = f"{where} (id {row['id']!r})" if has_id else where
            if "file_name" in row:  # as in a metadata.jsonl
                row = {"image": row["file_name"]} | row
            schema = schema or _match_schema(row, place)
            if example := _example(row, schema, place, root, skips, notes):
                unique = row_id if has_id else where
                unique = f"{unique}#{where}" if unique in ids else unique
                while unique in ids:  # only if another row's id looks like this one's replacement
                    unique += "#"
                ids.add(unique)
                own = split or split_of(str(row.get("split")))  # where a column says it
                examples.append(replace(example, id=unique, split=own))
                paths += [(unique, image) for image in example.images if isinstance(image, Path)]
        check_files(paths, root)
    if not schema:
        raise InputError(f"{path}: has no row; add rows")
    notes.say()
    return schema, readable(examples, skips)


class Notes:
    """What was read otherwise than it is written: counted for all rows, told in a line each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        self.solutions: list[tuple[str, str]] = []
        self.cells: dict[bytes, bytes] = {}  # pictures of several rows are kept once,
        self.paths: dict[tuple[Path, str], Path] = {}  # and their names are checked once

    def add(self, what: str, where: str) -> None:
        """Count a row."""
        self.counts[what] += 1
        self.first.setdefault(what, where)

    def say(self) -> None:
        """Print the lines."""
        for what, count in self.counts.items():
            print(f"data: {count} rows: {what}, first {self.first[what]}")
        say_rewritten(self.solutions)


INNER_MARKS = "<image> marks inside the question are dropped (pictures come first, in order)"
BACKSLASHES = "backslashes in the picture's name are read as slashes"
TOKENS = "warning: the question holds chat tokens such as <|image_pad|>, read as plain text"
LABELS = "warning: only the key 'label' of a box is read as its label, others are dropped"
IN_SOLUTION = "warning: the solution holds chat tokens, which the answer has to repeat literally"
LATEX = "warning: the solution is LaTeX, which the answer has to repeat literally"


def _match_schema(row: dict, where: str) -> str:
    for schema, roles in SCHEMAS.items():
        if all(any(name in row for name in names) for names in roles):
            return schema
    schemas = "; ".join(map(columns_of, SCHEMAS))
    raise InputError(f"{where}: columns {_columns(row)} match none of: {schemas}")


def _columns(row: dict) -> str:
    return f"[{', '.join(shown(name, 40) for name in list(row)[:20])}]"


def _example(
    row: dict, schema: str, where: str, root: Path, skips: SkipLog, notes: Notes
) -> Example | None:
    """Return the row as an example, its id and images not final; None: skipped and counted."""
    roles = SCHEMAS[schema]
    if missing := [names for names in roles if not any(name in row for name in names)]:
        raise InputError(f"{where}: needs column {missing[0][0]!r}, has {_columns(row)}")
    used = [next((n for n in names if row.get(n) not in (None, "")), names[0]) for names in roles]
    cell, question, answer = (row.get(name) for name in used[:3])
    if schema == "VLM-R1":
        question, answer = _two_turns(question, where)
    images = _images(cell, used[0], root, where, notes)
    asked = _prompt_text(question, used[1], where)
    question = _without_marks(asked, len(images), where)
    written = solution_text(answer, where)
    target = plain(written)
    if re.search("[\ud800-\udfff]", question + target):  # JSON can spell half a character
        raise InputError(f"{where}: question or answer has half a surrogate pair; repair it")
    for role, value in ("image", images), ("problem", question.strip()), ("solution", target):
        if not value:
            untagged = role == "solution" and isinstance(answer, str) and answer.strip()
            skips.add("solution without one <answer>" if untagged else f"empty {role}", where)
            return None
    if "<image>" in _without_leading_marks(asked):
        notes.add(INNER_MARKS, where)
    if re.search(r"<\|\w+\|>", question):
        notes.add(TOKENS, where)
    if re.search(r"<\|\w+\|>", target) and "<|box_start|>" not in target:
        notes.add(IN_SOLUTION, where)
    if re.search(r"""["'](?:category|class|name)(?:_name)?["']\s*:""", target):
        notes.add(LABELS, where)
    texts = [row[name] for name in roles[2] if isinstance(row.get(name), str)]
    if len({plain(solution_text(text, where)) for text in texts} - {""}) > 1:
        notes.add(f"columns {' and '.join(roles[2])} differ, {used[2]} is read", where)
    if re.search(r"\\[A-Za-z]{2}", target) and target[:1] not in "[{":
        notes.add(LATEX, where)
    notes.solutions.append((written, target))
    return Example(where, images, question, target, "abs" if schema == "VLM-R1" else "norm1000")


def _wrong_type(where: str, column: str, value: Any) -> InputError:
    return InputError(f"{where}: column {column!r} holds {brief(value)}; see data/rows.py")


def _images(
    cell: Any, column: str, root: Path, where: str, notes: Notes
) -> tuple[Path | bytes, ...]:
    """Return paths or encoded bytes; () if any is empty. A cell holds one image or a list."""
    images = []
    for item in cell if isinstance(cell, list) else [cell]:
        if isinstance(item, dict):  # as the datasets library stores an image
            item = item.get("bytes") or item.get("path")
        if not isinstance(item, str | bytes | None):
            raise _wrong_type(where, column, cell)
        if not item:
            return ()
        if isinstance(item, bytes):
            images.append(notes.cells.setdefault(item, item))
            continue
        if (root, item) not in notes.paths:
            notes.paths[root, item] = inside(root, item, where)
        images.append(notes.paths[root, item])
        if images[-1] != root / item:
            notes.add(BACKSLASHES, where)
    return tuple(images)


def _prompt_text(value: Any, column: str, where: str) -> str:
    """Return a prompt as text: a string, or messages with one user turn (system ones are ours)."""
    if isinstance(value, str | None):
        return value or ""
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise _wrong_type(where, column, value)
    turns = [turn for turn in value if turn.get("role") != "system"]
    if len(turns) != 1 or turns[0].get("role") != "user":
        raise InputError(f"{where}: {column!r} needs one user message, has {len(turns)} messages")
    content = turns[0].get("content")
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        texts = ["<image>" if p.get("type") == "image" else p.get("text") or "" for p in content]
        content = "".join(map(str, texts))
    if not isinstance(content, str):
        raise _wrong_type(where, column, value)
    return content


def _two_turns(turns: Any, where: str) -> tuple[Any, Any]:
    """Return (question, answer) of a LLaVA-style conversation with one turn each."""
    is_list = isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns)
    if not is_list or [turn.get("from") for turn in turns] != ["human", "gpt"]:
        raise InputError(f"{where}: 'conversations' needs one human turn, then one gpt turn")
    return turns[0].get("value"), turns[1].get("value")


def _without_marks(question: str, n_images: int, where: str) -> str:
    """Drop `<image>` marks, for the pictures come first, in order. One for each, or none."""
    marks = question.count("<image>")
    if marks not in (0, max(n_images, 1)):
        what = f"{marks} <image> marks for {n_images} images; write one for each, or none"
        raise InputError(f"{where}: {what}")
    question = _without_leading_marks(question)
    if "<image>" in question:
        question = re.sub(r"\s*<image>\s*", " ", question).strip()
    return question


def _without_leading_marks(question: str) -> str:
    while question.lstrip().startswith("<image>"):
        question = question.lstrip().removeprefix("<image>").lstrip()
    return question


def solution_text(value: Any, where: str) -> str:
    """Return an answer cell as the text that rewards compare with, "" where there is none.

    - text: the content of its one answer block if it has answer tags, else the text, stripped
    - numbers: plain decimals ("3", not "3.0" or "3e0"); lists of numbers or boxes: JSON

    Raises:
        InputError: true or false (write "yes" or "no"), any other type, a number that is not
            finite.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        has_tags = "<answer>" in value or "</answer>" in value
        return (parse_answer(value) or "") if has_tags else value.strip()
    if type(value) is int or type(value) is float and math.isfinite(value):
        return format(Decimal(repr(value)), "f").removesuffix(".0")
    # type(): True is an int but no number
    if isinstance(value, list) and all(type(v) in (int, float, list, dict) for v in value):
        try:
            return json.dumps(value, allow_nan=False)
        except (ValueError, TypeError, RecursionError) as error:
            what = f"solution {brief(value)} ({error}); repair it"
            raise InputError(f"{where}: {what}") from error
    what = f"solution {brief(value)} is no text, number or box; write it as text"
    raise InputError(f"{where}: {what}")
