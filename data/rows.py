"""Rows of questions and answers on disk: json, jsonl, parquet and saved arrow sets -> `Record`s.

    schema, records = load_records("train.jsonl")

The public data sets for visual RL agree on what a row holds and on none of the names:

| schema     | images              | question                   | answer                 |
|------------|---------------------|----------------------------|------------------------|
| VLM-R1     | `image` (or a list) | `conversations`: human     | `conversations`: gpt   |
| TRL        | `images`, `image`   | `prompt`: text or messages | `answer`, `solution`   |
| EasyR1     | `images`            | `problem`                  | `answer`, `solution`   |
| Reason-RFT | `image` (or a list) | `problem`; also has `id`   | `answer`, `solution`   |
| Visual-RFT | `image`             | `problem`; so does R1-V    | `solution`, `answer`   |

Where two names are given, the first that is filled wins: Reason-RFT's own loader reads `answer`
from files that its README describes with `solution`. The first row decides the schema.

A row with a fault has one of two outcomes: it is skipped and counted (an empty or unreadable cell:
one record lost), or it raises `InputError` with file, row and id (a wrong type, a path that leaves
the folder: the whole set is doubtful). One row never changes what happens to its neighbours.

Next: data/coco.py, for annotations with boxes.
"""

import io
import json
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from PIL import Image

from answers import parse_answer
from data.files import (
    MAX_SKIP,
    SkipLog,
    check_files,
    inside,
    local_path,
    read_json,
    read_jsonl,
    table_files,
    table_rows,
)
from model.image import FORMATS, load_image
from runtime.errors import InputError

ACCEPTED_ROWS = (
    "a .json or .jsonl file of rows, a .parquet file or a folder of them, a folder written by "
    "datasets.save_to_disk"
)
# What a row must have, in the order images, question, answer, further: one of each tuple.
SCHEMAS = {
    "VLM-R1": (("image",), ("conversations",), ("conversations",)),
    "TRL": (("images", "image"), ("prompt",), ("answer", "solution")),
    "EasyR1": (("images",), ("problem",), ("answer", "solution")),
    "Reason-RFT": (("image",), ("problem",), ("answer", "solution"), ("id",)),
    "Visual-RFT": (("image",), ("problem",), ("solution", "answer")),
}


@dataclass(frozen=True)
class Record:
    """One question about one or more images.

    `question` is the row's own, less leading `<image>` marks; `solution` the right answer without
    tags. Columns not named here (Reason-RFT's `cot`, for example) are not read.
    """

    id: str
    images: tuple[Image.Image | Path, ...]
    question: str
    solution: str


def is_row_source(path: Path) -> bool:
    """Whether `read_rows` can read it: by its suffix, or by the tables in the folder."""
    if path.is_file() and path.suffix.lower() in (".json", ".jsonl"):
        return True
    return (path.is_file() or path.is_dir()) and bool(table_files(path))


def read_rows(path: Path) -> Iterator[tuple[str, dict]]:
    """Yield (where, row): "set.jsonl:3" counts lines from 1, "set.json:2" and tables rows from 0.

    A .json file is a list of rows, or an object with that list under "data".
    """
    if path.suffix.lower() == ".jsonl" and path.is_file():
        numbered = ((f"{path.name}:{number}", row) for number, row in read_jsonl(path))
    elif path.suffix.lower() == ".json" and path.is_file():
        numbered = json_rows(read_json(path), path)
    else:
        root = path if path.is_dir() else path.parent
        names = ((file, file.relative_to(root).as_posix()) for file in table_files(path))
        numbered = ((f"{n}:{i}", row) for f, n in names for i, row in enumerate(table_rows(f)))
    for where, row in numbered:
        if not isinstance(row, dict):
            raise InputError(f"{where}: is {row!r:.40}, not a row with named columns")
        yield where, row


def json_rows(content: Any, path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (where, row) of a parsed .json file; see `read_rows`."""
    rows = content.get("data") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        found = sorted(content)[:10] if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{path}: needs a list of rows, or one under 'data'; has {found}")
    yield from ((f"{path.name}:{index}", row) for index, row in enumerate(rows))


def load_records(
    data: str, max_skip: float = MAX_SKIP, data_root: str | Path | None = None
) -> tuple[str, list[Record]]:
    """Read the rows that `--data` names; print the schema and how many records were skipped.

    Args:
        data_root: the folder that image paths are relative to and may not leave; default: the
            folder of the file.

    Returns:
        the schema's name (a key of SCHEMAS) and the records, in the order of the rows.

    Raises:
        InputError: any other source, an empty set, too many skipped records, and what
            `read_records` raises.
    """
    path = local_path(data, f"accepted: {ACCEPTED_ROWS}")
    if not is_row_source(path):
        kind = "a folder without tables" if path.is_dir() else "not a regular file"
        kind = f"a file of type {path.suffix!r}, not opened" if path.is_file() else kind
        raise InputError(f"--data {data!r} is {kind}; accepted: {ACCEPTED_ROWS}")
    skips = SkipLog()
    schema, records = read_records(path, skips, data_root)
    skips.check(len(records) + skips.counts.total(), max_skip)
    if not records:
        raise InputError(f"--data {data!r} has no usable row; add rows")
    print(f"data: {data!r} read as {columns_of(schema)}: {len(records)} records")
    return schema, records


def columns_of(schema: str) -> str:
    """For messages: "Visual-RFT rows (image, problem, solution or answer)"."""
    roles = dict.fromkeys(" or ".join(names) for names in SCHEMAS[schema])
    return f"{schema} rows ({', '.join(roles)})"


def read_records(
    path: Path, skips: SkipLog, data_root: str | Path | None = None
) -> tuple[str, list[Record]]:
    """Read rows of one of SCHEMAS. An id that is missing or taken is made from file and row.

    Every image is decoded once, so that a broken one is met now and not hours into training; those
    that come as bytes in a table are kept undecoded. Rows without image, question or solution, and
    those with an unreadable image, are skipped and counted in `skips`.

    Raises:
        InputError: an unreadable file, columns of no schema, values of a wrong type, more `<image>`
            marks than images, an image path that is missing, a URL or outside the folder.
    """
    root = Path(data_root) if data_root is not None else path if path.is_dir() else path.parent
    schema, records, seen = "", [], set()
    for where, row in read_rows(path):
        row_id = row.get("id")
        has_id = type(row_id) in (int, str) and 0 < len(str(row_id)) <= 200
        has_id = has_id and str(row_id).isprintable()
        place = f"{where} (id {row_id!r})" if has_id else where
        schema = schema or _match_schema(row, place)
        if record := _record(row, SCHEMAS[schema], place, root, skips):
            unique = str(row_id) if has_id else where
            unique = f"{unique}#{where}" if unique in seen else unique
            while unique in seen:  # only if another row's id looks like this one's replacement
                unique += "#"
            seen.add(unique)
            records.append(replace(record, id=unique))
    if not schema:
        raise InputError(f"{path}: has no row; add rows")
    check_files((r.id, path) for r in records for path in r.images if isinstance(path, Path))
    return schema, _decodable(records, skips)


def _match_schema(row: dict, where: str) -> str:
    for schema, roles in SCHEMAS.items():
        if all(any(name in row for name in names) for names in roles):
            return schema
    known = "; ".join(columns_of(schema) for schema in SCHEMAS)
    raise InputError(f"{where}: columns {list(row)[:20]} match none of: {known}")


def _record(row: dict, roles: tuple, where: str, root: Path, skips: SkipLog) -> Record | None:
    """Return the row as a record without a unique id, or None with the reason counted."""
    if missing := [names for names in roles if not any(name in row for name in names)]:
        raise InputError(f"{where}: needs column {missing[0][0]!r}, has {list(row)[:20]}")
    used = [next((n for n in names if row.get(n) not in (None, "")), names[0]) for names in roles]
    cell, question, answer = (row.get(name) for name in used[:3])
    if used[1] == "conversations":
        question, answer = _two_turns(question, where)
    pictures = _pictures(cell, used[0], root, where)
    question = _without_marks(_prompt_text(question, used[1], where), len(pictures), where)
    solution = solution_text(answer, where)
    for what, value in ("image", pictures), ("problem", question.strip()), ("solution", solution):
        if not value:
            untagged = what == "solution" and isinstance(answer, str) and answer.strip()
            skips.add("solution without one <answer>" if untagged else f"empty {what}", where)
            return None
    return Record(where, pictures, question, solution)


def _wrong_type(where: str, column: str, value: Any) -> InputError:
    return InputError(f"{where}: column {column!r} holds {value!r:.40}; see data/rows.py")


def _checked_text(text: str, where: str) -> str:
    """Return the text, refusing what cannot be encoded: JSON can spell half a character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: {text!r:.60} has half a surrogate pair; repair it") from error
    return text


def _pictures(cell: Any, column: str, root: Path, where: str) -> tuple[Path | bytes, ...]:
    """Return paths or encoded bytes; () if any is empty. A cell holds one image or a list."""
    pictures = []
    for item in cell if isinstance(cell, list) else [cell]:
        if isinstance(item, dict):  # as the datasets library stores an image
            item = item.get("bytes") or item.get("path")
        if not isinstance(item, str | bytes | None):
            raise _wrong_type(where, column, cell)
        if not item:
            return ()
        is_path = isinstance(item, str)
        pictures.append(inside(root, _checked_text(item, where), where) if is_path else item)
    return tuple(pictures)


def _prompt_text(value: Any, column: str, where: str) -> str:
    """Return a prompt as text: a string, or messages with one user turn (system ones are ours)."""
    if value is None or isinstance(value, str):
        return _checked_text(value or "", where)
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise _wrong_type(where, column, value)
    turns = [turn for turn in value if turn.get("role") != "system"]
    if len(turns) != 1 or turns[0].get("role") != "user":
        raise InputError(f"{where}: {column!r} needs one user message, has {len(turns)} messages")
    parts = turns[0].get("content")
    if isinstance(parts, list) and all(isinstance(part, dict) for part in parts):
        texts = ["<image>" if p.get("type") == "image" else p.get("text") or "" for p in parts]
        parts = "".join(map(str, texts))
    if not isinstance(parts, str):
        raise _wrong_type(where, column, value)
    return _checked_text(parts, where)


def _two_turns(turns: Any, where: str) -> tuple[Any, Any]:
    """Return (question, answer) of a LLaVA-style conversation with one turn each."""
    is_list = isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns)
    if not is_list or [turn.get("from") for turn in turns] != ["human", "gpt"]:
        raise InputError(f"{where}: 'conversations' needs one human turn, then one gpt turn")
    return turns[0].get("value"), turns[1].get("value")


def _without_marks(question: str, n_images: int, where: str) -> str:
    """Drop leading `<image>` marks, for images come first anyway; later ones stay plain text."""
    if question.count("<image>") > max(n_images, 1):
        marks = question.count("<image>")
        raise InputError(f"{where}: {marks} <image> marks for {n_images} images; add or drop some")
    while question.lstrip().startswith("<image>"):
        question = question.lstrip().removeprefix("<image>").lstrip()
    return question


def solution_text(value: Any, where: str) -> str:
    """Return an answer cell as the text that rewards compare with, "" where there is none.

    - text: the content of its one answer block if it has answer tags, else the text, stripped
    - numbers: plain decimals ("3", not "3.0" or "3e0"); lists of numbers or boxes: JSON

    Raises:
        InputError: true or false (write "yes" or "no"), any other type, a number that is not
            finite, a negative coordinate in a list of four.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        tagged = "<answer>" in value or "</answer>" in value
        return _checked_text((parse_answer(value) or "") if tagged else value.strip(), where)
    if type(value) is int or type(value) is float and math.isfinite(value):
        return format(Decimal(repr(value)), "f").removesuffix(".0")
    if isinstance(value, list) and all(_is_number(v) or isinstance(v, list | dict) for v in value):
        if len(value) == 4 and all(map(_is_number, value)) and min(value) < 0:
            raise InputError(f"{where}: the box {value} has a negative coordinate; repair it")
        try:
            return json.dumps(value, allow_nan=False)
        except (ValueError, TypeError) as error:
            raise InputError(f"{where}: solution {value!r:.60} ({error}); repair it") from error
    raise InputError(f"{where}: solution {value!r:.60} is no text, number or box; write it as text")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)  # type(): True is an int but no number


def _decodable(records: list[Record], skips: SkipLog) -> list[Record]:
    """Decode every image once and drop the records for which that fails."""

    def opened(record: Record) -> Record | InputError:
        try:
            return replace(record, images=tuple(map(_open_picture, record.images)))
        except InputError as error:
            return error

    readable = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for record, result in zip(records, pool.map(opened, records), strict=True):
            if isinstance(result, InputError):
                skips.add("unreadable", f"{record.id!r}: {result}")
            else:
                readable.append(result)
    return readable


def _open_picture(picture: Path | bytes) -> Path | Image.Image:
    """Return the path, or an image over the bytes that is decoded only when it is needed."""
    if isinstance(picture, Path):
        load_image(picture)
        return picture
    try:
        trial, kept = (Image.open(io.BytesIO(picture), formats=FORMATS) for _ in range(2))
    except Exception as error:  # Pillow's plugins raise almost anything on damaged bytes
        raise InputError(f"cannot be decoded ({error})") from error
    load_image(trial)
    return kept
