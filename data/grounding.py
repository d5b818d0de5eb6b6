"""Phrases with one box each: referring and reasoning expressions in three file layouts.

    phrases = load_grounding("rec_jsons/refcoco_train.json", "coco/")

Every box becomes (x1, y1, x2, y2) in pixels of the upright image (format "abs" of
data/box_formats.py), whatever the file says it is (pixels, unless `--data_coords` differs):

- VLM-R1's REC rows: `image`, `normal_caption` or `problem`, `solution` [x1, y1, x2, y2];
- RefCOCO: `images`, `annotations` with `bbox` [x, y, width, height], `refs` with `sentences`;
- ReasonSeg (LISA): a folder, beside every picture a .json with `text` and target polygons.

A folder with `train` and `val` folders or files of one layout has its splits by name
(data/splits.py). RefCOCO's `refs(unc).p` is a pickle and is never opened.

Sources: lichengunc/refer, om-ai-lab/VLM-R1, dvlab-research/LISA (arXiv:2308.00692).
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from data.box_formats import BoxFormat, Shape, clipped, convert_box, raw_box
from data.coco import image_path, is_coco, key_of, mentions, rows_by_id
from data.examples import Example
from data.files import MAX_SKIP, SkipLog, read_json
from data.frames import Placed, decide, describe, fits, refuse_half, why_outside
from data.paths import check_files, entries, inside, local_path, named
from data.pictures import look, look_at_all
from data.rows import is_row_source, read_rows
from data.splits import is_split_folder, say_of_file, split_of
from data.tables import JSON
from runtime.errors import InputError

ACCEPTED_BOXES = (
    "accepted: VLM-R1 rows (image, normal_caption or problem, solution) as .json or .jsonl, a "
    "RefCOCO .json (images, annotations, refs), a ReasonSeg folder of .json beside the pictures"
)
REF_COCO = ("images", "annotations", "refs")


def is_grounding(data: str) -> bool:
    """Whether `data` has a layout of `load_grounding`; boxes as text are rows for data/rows.py."""
    return bool(grounding_parts(data))


def grounding_parts(data: str) -> list[tuple[Path, str]]:
    """The files or folders of phrases that `data` names and their splits, or []."""
    path = Path(data)
    if not os.path.isdir(path):
        return [(path, "")] if _is_phrases(path) else []
    if not is_row_source(path) and any(path.glob("*.json")):
        return [(path, "")]
    inner = [
        p for p in entries(path) if (os.path.isfile(p) and split_of(p.stem)) or os.path.isdir(p)
    ]
    inner = [p for p in inner if os.path.isfile(p) or is_split_folder(p.name)]
    parts = [(p, split_of(p.stem)) for p in inner if _is_phrases(p)]
    return parts if len(parts) > 1 else []


def _is_phrases(path: Path) -> bool:
    if os.path.isdir(path):
        return not is_row_source(path) and any(path.glob("*.json"))
    if mentions(str(path), *REF_COCO):
        return True
    if path.suffix.lower() not in JSON or not os.path.isfile(path) or is_coco(str(path)):
        return False
    return any("normal_caption" in row for _, row in islice(read_rows(path), 1))


def load_grounding(
    data: str,
    image_root: str | Path | None = None,
    max_skip: float = MAX_SKIP,
    data_coords: str = "auto",
) -> list[Example]:
    """Read phrases with one box each from any of the three layouts named at the top.

    Every picture is decoded once: its upright size is what boxes are checked against. Unreadable
    pictures, empty phrases and boxes without area or outside are skipped and counted.

    Args:
        image_root: what image paths are relative to; default: the folder of the file.
        data_coords: the frame of the boxes (data/frames.py); "auto": pixels.

    Returns:
        the phrase as question, the box [x1, y1, x2, y2] as target, the size as canvas.

    Raises:
        InputError: another layout, boxes in another frame, missing pictures, too many skipped.
    """
    path = local_path(data, ACCEPTED_BOXES)
    parts = grounding_parts(data) or [(path, "")]
    examples = []
    for part, split in parts:
        found = _load_part(part, image_root, max_skip, data_coords)
        prefix = f"{part.name}/" if len(parts) > 1 and part.is_dir() else ""  # else it has it
        examples += [replace(e, id=prefix + e.id, split=split or e.split) for e in found]
    say_of_file(path, JSON)
    return examples


def _load_part(
    path: Path, image_root: str | Path | None, max_skip: float, data_coords: str
) -> list[Example]:
    root = (
        Path(image_root) if image_root is not None else path if os.path.isdir(path) else path.parent
    )
    if os.path.isdir(path):
        layout, drafts = "ReasonSeg", list(_reason_seg(path, root))
    elif mentions(str(path), *REF_COCO):
        layout, drafts = "RefCOCO", list(_ref_coco(path, root))
    elif path.suffix.lower() in JSON:
        layout, drafts = "VLM-R1 REC rows", list(_rec_rows(path, root))
    else:
        raise InputError(f"--data {named(path)} is never opened; {ACCEPTED_BOXES}")
    check_files(((where, picture) for where, picture, *_ in drafts), root)
    look_at_all(dict.fromkeys(picture for _, picture, *_ in drafts))
    skips, placed = SkipLog(), []
    for where, picture, phrase, values, shape, split in drafts:
        if not isinstance(phrase, str):
            raise InputError(f"{where}: the phrase must be text; repair it")
        if values is None or not phrase.strip():
            skips.add("no target" if values is None else "empty phrase", where)
            continue
        try:
            box = Placed(where, raw_box(values, where, shape), look(picture).size, picture)
            placed.append((box, picture, phrase.strip(), shape, split))
        except InputError as error:
            is_box = str(error).startswith(where)
            reason = "no box" if is_box else "unreadable"
            skips.add(reason, str(error) if is_box else f"{where}: {error}")
    refuse_half(skips, len(drafts))
    if not placed:
        found = f" ({skips.first[0]})" if skips.first else ""
        what = f"has no phrase with a box{found}; {ACCEPTED_BOXES}"
        raise InputError(f"--data {named(path)} {what}")
    checked = [box for box, *_ in placed]
    if layout == "ReasonSeg":  # extents are cut wherever they end, and may yet be fractions
        cut = [box._replace(corners=clipped(box.corners, box.size)) for box in checked]
        checked = [box for box in cut if box.corners is not None and data_coords == "auto"]
    frame: BoxFormat = decide(checked, data_coords, "abs", layout, str(path), max_skip)
    examples = []
    for box, picture, phrase, shape, split in placed:
        pixels = clipped(convert_box(box.corners, frame, "abs", box.size, box.size), box.size)
        if shape != "extent" and not fits(box, frame):
            skips.add("box leaves its image", describe(box) + why_outside(box, frame))
        elif pixels is None:
            skips.add("box without area", box.where)
        else:
            target = str(list(pixels))
            placed_on = dict(box_format="abs", canvas=box.size, split=split)
            examples.append(Example(box.where, (picture,), phrase, target, **placed_on))
    skips.check(len(drafts), max_skip)
    if not examples:
        raise InputError(f"--data {named(path)} has no phrase with a box; {ACCEPTED_BOXES}")
    print(f"data: {named(path)} read as {layout}: {len(examples)} phrases")
    return examples


# where (becomes the id), picture, phrase, box, its shape, the split that it says itself
Draft = tuple[str, Path, Any, Any, Shape, str]


def _rec_rows(path: Path, root: Path) -> Iterator[Draft]:
    for where, row in read_rows(path):
        if not {"image", "solution"} <= set(row) or not {"normal_caption", "problem"} & set(row):
            raise InputError(f"{where}: has columns {sorted(row)[:10]}; {ACCEPTED_BOXES}")
        if not isinstance(row["image"], str):
            raise InputError(f"{where}: the image must be text; repair it")
        phrase = row.get("normal_caption") or row.get("problem") or ""
        if isinstance(phrase, str):  # the picture comes first
            phrase = phrase.replace("<image>", " ")
        picture, split = inside(root, row["image"], where), split_of(str(row.get("split")))
        yield where, picture, phrase, row["solution"], "xyxy", split


def _ref_coco(path: Path, root: Path) -> Iterator[Draft]:
    content = read_json(path)
    images = rows_by_id(content.get("images"), "images", path)
    annotations = rows_by_id(content.get("annotations"), "annotations", path)
    refs = content.get("refs")
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise InputError(f"{path}: needs a list 'refs' of objects")
    for index, ref in enumerate(refs):
        where = f"{path.name}: ref {index}"
        row = annotations.get(key_of(ref, "ann_id"))
        image = row and images.get(key_of(row, "image_id"))
        sentences = ref.get("sentences")
        if not image or not isinstance(sentences, list):
            raise InputError(f"{where}: its ann_id, image or sentences are missing; repair it")
        picture = image_path(image, root, where)
        for number, sentence in enumerate(sentences):
            sentence = sentence if isinstance(sentence, dict) else {}
            phrase = sentence.get("sent") or sentence.get("raw") or ""
            split = split_of(str(ref.get("split")))
            yield f"{where}/{number}", picture, phrase, row.get("bbox"), "xywh", split


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
        picture, extent = inside(root, name, str(file)), _target_extent(shapes, file)
        for number, text in enumerate(texts if isinstance(texts, list) else [texts]):
            yield f"{file.stem}/{number}", picture, text, extent, "extent", ""


def _target_extent(shapes: list, file: Path) -> list[float] | None:
    targets = (s for s in shapes if isinstance(s, dict) and s.get("label") == "target")
    if (target := next(targets, None)) is None:
        return None
    try:
        xs, ys = zip(*target.get("points"), strict=True)
        if not all(abs(v) < 1e9 for v in (*xs, *ys)):  # NaN is not
            raise ValueError("not finite")
        return [min(xs), min(ys), max(xs), max(ys)]
    except (TypeError, ValueError) as error:
        raise InputError(f"{file}: a target's points are no list of [x, y]; repair it") from error
