"""Phrases with one box each: referring and reasoning expressions in three file layouts.

    phrases = load_grounding("rec_jsons/refcoco_train.json", "coco/")

Every box becomes (x1, y1, x2, y2) in pixels of the upright image (format "abs" of
data/box_formats.py), whatever the file says it is:

- VLM-R1's REC rows: `image`, `normal_caption` or `problem`, `solution` [x1, y1, x2, y2];
- RefCOCO: `images`, `annotations` with `bbox` [x, y, width, height], `refs` with `sentences`;
- ReasonSeg (LISA): a folder, beside every picture a .json with `text` and target polygons.

A box that leaves its image raises `InputError`. RefCOCO's `refs(unc).p` is a pickle and is never
opened. Sources: lichengunc/refer, om-ai-lab/VLM-R1, dvlab-research/LISA (arXiv:2308.00692).
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from data.box_formats import Shape, pixel_box, warn_if_normalised
from data.coco import image_path, is_coco, key_of, mentions, rows_by_id
from data.examples import Example
from data.files import MAX_SKIP, SkipLog, check_files, inside, local_path, read_json, try_each
from data.rows import is_row_source, read_rows
from model.image import load_image
from runtime.errors import InputError

ACCEPTED_BOXES = (
    "accepted: VLM-R1 rows (image, normal_caption or problem, solution) as .json or .jsonl, a "
    "RefCOCO .json (images, annotations, refs), a ReasonSeg folder of .json beside the pictures"
)
REF_COCO = ("images", "annotations", "refs")


def is_grounding(data: str) -> bool:
    """Whether `data` has a layout of `load_grounding`; boxes as text are rows for data/rows.py."""
    path = Path(data)
    if path.is_dir():
        return not is_row_source(path) and any(path.glob("*.json"))
    if mentions(data, *REF_COCO):
        return True
    if path.suffix.lower() not in (".json", ".jsonl") or not path.is_file() or is_coco(data):
        return False
    return any("normal_caption" in row for _, row in islice(read_rows(path), 1))


def load_grounding(
    data: str, image_root: str | Path | None = None, max_skip: float = MAX_SKIP
) -> list[Example]:
    """Read phrases with one box each from any of the three layouts named at the top.

    Every picture is decoded once: its upright size is what boxes are checked against. Unreadable
    pictures, empty phrases and boxes without area are skipped and counted.

    Args:
        image_root: what image paths are relative to; default: the folder of the file.

    Returns:
        the phrase as question, the box [x1, y1, x2, y2] as target, the size as canvas.

    Raises:
        InputError: another layout, a box outside of its image, missing pictures, too many skipped.
    """
    path = local_path(data, ACCEPTED_BOXES)
    root = Path(image_root) if image_root is not None else path if path.is_dir() else path.parent
    if path.is_dir():
        layout, drafts = "ReasonSeg", list(_reason_seg(path, root))
    elif mentions(data, *REF_COCO):
        layout, drafts = "RefCOCO", list(_ref_coco(path, root))
    elif path.suffix.lower() in (".json", ".jsonl"):
        layout, drafts = "VLM-R1 REC rows", list(_rec_rows(path, root))
    else:
        raise InputError(f"--data {data!r} is never opened; {ACCEPTED_BOXES}")
    check_files((where, picture) for where, picture, *_ in drafts)
    pictures = sorted({picture for _, picture, *_ in drafts})
    sizes = dict(zip(pictures, try_each(lambda p: load_image(p).size, pictures), strict=True))
    examples, boxes, skips = [], [], SkipLog()
    for where, picture, phrase, values, shape in drafts:
        size = sizes[picture]
        if not isinstance(phrase, str):
            raise InputError(f"{where}: the phrase must be text; repair it")
        if isinstance(size, InputError):
            skips.add("unreadable", f"{where}: {size}")
        elif values is None or not phrase.strip():
            skips.add("no target" if values is None else "empty phrase", where)
        elif box := pixel_box(values, size, where, shape):
            target = str(list(box))
            examples.append(Example(where, (picture,), phrase.strip(), target, "abs", size))
            boxes.append((box, size))
        else:
            skips.add("box without area", where)
    skips.check(len(drafts), max_skip)
    if not examples:
        raise InputError(f"--data {data!r} has no phrase with a box; {ACCEPTED_BOXES}")
    warn_if_normalised(boxes)
    print(f"data: {data!r} read as {layout}: {len(examples)} phrases")
    return examples


Draft = tuple[str, Path, Any, Any, Shape]  # where (becomes the id), picture, phrase, box, its shape


def _rec_rows(path: Path, root: Path) -> Iterator[Draft]:
    for where, row in read_rows(path):
        if not {"image", "solution"} <= set(row) or not {"normal_caption", "problem"} & set(row):
            raise InputError(f"{where}: has columns {sorted(row)[:10]}; {ACCEPTED_BOXES}")
        if not isinstance(row["image"], str):
            raise InputError(f"{where}: the image must be text; repair it")
        phrase = row.get("normal_caption") or row.get("problem") or ""
        yield where, inside(root, row["image"], where), phrase, row["solution"], "xyxy"


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
            yield f"{where}/{number}", picture, phrase, row.get("bbox"), "xywh"


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
            yield f"{file.stem}/{number}", picture, text, extent, "extent"


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
