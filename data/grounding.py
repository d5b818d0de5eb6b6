"""Phrases with one box each: referring and reasoning expressions in three file layouts.

    phrases = load_grounding("rec_jsons/refcoco_train.json", "coco/")

Every box becomes (x1, y1, x2, y2) in pixels of the upright image (format "abs" of
data/box_formats.py), whatever the file says it is:

- VLM-R1's REC rows: `image`, `normal_caption` or `problem`, `solution` [x1, y1, x2, y2];
- RefCOCO: `images`, `annotations` with `bbox` [x, y, width, height], `refs` with `sentences`;
- ReasonSeg (LISA): a folder, beside every picture a .json with `text` and target polygons.

A box that leaves its image raises `InputError`, as in data/coco.py. RefCOCO's original
`refs(unc).p` is a pickle and is never opened.

Sources: RefCOCO (lichengunc/refer), VLM-R1 (om-ai-lab/VLM-R1), ReasonSeg (arXiv:2308.00692,
dvlab-research/LISA).
"""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.box_formats import Box, Shape, Size, pixel_box, warn_if_normalised
from data.coco import image_path, is_coco, key_of, mentions, rows_by_id
from data.files import MAX_SKIP, SkipLog, check_files, inside, local_path, read_json
from data.rows import is_row_source, json_rows, read_rows
from model.image import load_image
from runtime.errors import InputError

ACCEPTED_BOXES = (
    "accepted: VLM-R1 rows (image, normal_caption or problem, solution) as .json or .jsonl, a "
    "RefCOCO .json (images, annotations, refs), a ReasonSeg folder of .json beside the pictures"
)


@dataclass(frozen=True)
class Grounded:
    """One phrase and the box it refers to, in pixels of the upright image of (width, height)."""

    id: str
    path: Path
    size: Size
    phrase: str
    box: Box


def is_grounding(data: str) -> bool:
    """Whether `data` has a layout of `load_grounding`; boxes as text are rows for data/rows.py.

    Raises:
        InputError: a file of rows whose first row cannot be read.
    """
    path = Path(data)
    if path.is_dir():
        return not is_row_source(path) and any(path.glob("*.json"))
    if mentions(data, "images", "annotations", "refs"):
        return True
    if path.suffix.lower() not in (".json", ".jsonl") or not path.is_file() or is_coco(data):
        return False
    first = next((row for _, row in read_rows(path)), {})
    return "normal_caption" in first


def load_grounding(
    data: str, image_root: str | Path | None = None, max_skip: float = MAX_SKIP
) -> list[Grounded]:
    """Read phrases with one box each from any of the three layouts named at the top.

    Every picture is decoded once: its upright size is what boxes are checked against and what
    `Grounded.size` says. Unreadable pictures, empty phrases and boxes without area are skipped.

    Args:
        image_root: what image paths are relative to; default: the folder of the file.

    Raises:
        InputError: another layout, a box outside of its image, missing pictures, too many skipped.
    """
    path = local_path(data, ACCEPTED_BOXES)
    root = Path(image_root) if image_root is not None else path if path.is_dir() else path.parent
    if path.is_dir():
        layout, drafts = "ReasonSeg", _reason_seg(path, root)
    elif path.suffix.lower() == ".jsonl":
        layout, drafts = "VLM-R1 REC rows", _rec_rows(read_rows(path), root)
    elif path.suffix.lower() == ".json":
        content = read_json(path)
        if isinstance(content, dict) and "refs" in content:
            layout, drafts = "RefCOCO", _ref_coco(content, path, root)
        else:
            layout, drafts = "VLM-R1 REC rows", _rec_rows(json_rows(content, path), root)
    else:
        raise InputError(f"--data {data!r} is never opened; {ACCEPTED_BOXES}")
    drafts, skips = list(drafts), SkipLog()
    check_files((where, picture) for where, picture, *_ in drafts)
    sizes = _upright_sizes({picture for _, picture, *_ in drafts})
    found = []
    for where, picture, phrase, values, shape in drafts:
        size = sizes[picture]
        if isinstance(size, InputError):
            skips.add("unreadable", f"{where}: {size}")
        elif values is None or not phrase.strip():
            skips.add("no target" if values is None else "empty phrase", where)
        elif box := pixel_box(values, size, where, shape):
            found.append(Grounded(where, picture, size, phrase.strip(), box))
        else:
            skips.add("box without area", where)
    skips.check(len(drafts), max_skip)
    if not found:
        raise InputError(f"--data {data!r} has no phrase with a box; {ACCEPTED_BOXES}")
    warn_if_normalised((item.box, item.size) for item in found)
    print(f"data: {data!r} read as {layout}: {len(found)} phrases")
    return found


Draft = tuple[str, Path, str, Any, Shape]  # where (becomes the id), picture, phrase, box, shape


def _rec_rows(rows: Iterable[tuple[str, dict]], root: Path) -> Iterator[Draft]:
    for where, row in rows:
        columns = set(row) if isinstance(row, dict) else set()
        if not {"image", "solution"} <= columns or not {"normal_caption", "problem"} & columns:
            raise InputError(f"{where}: has columns {sorted(columns)[:10]}; {ACCEPTED_BOXES}")
        phrase = row.get("normal_caption") or row.get("problem") or ""
        if not isinstance(row["image"], str) or not isinstance(phrase, str):
            raise InputError(f"{where}: image and phrase must be text; repair it")
        yield where, inside(root, row["image"], where), phrase, row["solution"], "xyxy"


def _ref_coco(content: dict, path: Path, root: Path) -> Iterator[Draft]:
    images = rows_by_id(content.get("images"), "images", path)
    annotations = rows_by_id(content.get("annotations"), "annotations", path)
    refs = content["refs"]
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise InputError(f"{path}: needs a list 'refs' of objects")
    for index, ref in enumerate(refs):
        where = f"{path.name}: ref {index}"
        row = annotations.get(key_of(ref, "ann_id"))
        image = row and images.get(key_of(row, "image_id"))
        sentences = ref.get("sentences")
        if not image or not isinstance(sentences, list):
            raise InputError(f"{where}: its ann_id, image or sentences are missing; repair it")
        for number, sentence in enumerate(sentences):
            sentence = sentence if isinstance(sentence, dict) else {}
            phrase = sentence.get("sent") or sentence.get("raw") or ""
            picture = image_path(image, root, where)
            yield f"{where}/{number}", picture, str(phrase), row.get("bbox"), "xywh"


def _reason_seg(folder: Path, root: Path) -> Iterator[Draft]:
    """As in Visual-RFT, the box is the extent of the first target polygon, cut at the edge."""
    files = sorted(folder.glob("*.json"))
    if not files:
        raise InputError(f"--data {str(folder)!r} has no .json; {ACCEPTED_BOXES}")
    for file in files:
        row = read_json(file, fallback_encoding="cp1252")  # some published ones are
        texts, shapes = (row.get("text"), row.get("shapes")) if isinstance(row, dict) else (0, 0)
        if not isinstance(texts, list | str) or not isinstance(shapes, list):
            raise InputError(f"{file}: needs 'text' and 'shapes'; {ACCEPTED_BOXES}")
        names = [file.stem + suffix for suffix in (".jpg", ".jpeg", ".png")]
        name = next((name for name in names if (root / name).exists()), names[0])
        picture = inside(root, name, str(file))
        extent = _target_extent(shapes, file)
        for number, text in enumerate(texts if isinstance(texts, list) else [texts]):
            yield f"{file.stem}/{number}", picture, str(text), extent, "extent"


def _target_extent(shapes: list, file: Path) -> list[float] | None:
    for shape in shapes:
        if isinstance(shape, dict) and shape.get("label") == "target":
            points = shape.get("points")
            if not isinstance(points, list) or not points or not all(map(_is_point, points)):
                raise InputError(f"{file}: a target's points are no list of [x, y]; repair it")
            xs, ys = zip(*points, strict=True)
            return [min(xs), min(ys), max(xs), max(ys)]
    return None


def _is_point(point: Any) -> bool:
    is_pair = isinstance(point, list) and len(point) == 2
    return is_pair and all(type(v) in (int, float) and abs(v) < 1e9 for v in point)


def _upright_sizes(pictures: Iterable[Path]) -> dict[Path, Size | InputError]:
    def size_of(picture: Path) -> Size | InputError:
        try:
            return load_image(picture).size
        except InputError as error:
            return error

    ordered = sorted(pictures)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(ordered, pool.map(size_of, ordered), strict=True))
