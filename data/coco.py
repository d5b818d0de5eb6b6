"""Annotated boxes of categories: COCO and LVIS instances.

    images = load_coco("instances_val2017.json", "val2017/")
    shots = few_shot_categories(images, ["bus", "cat"], shots=4, seed=0)     # {"bus": [...], ...}

The file's `bbox` is [x, y, width, height], in pixels unless `--data_coords` says otherwise; every
box becomes (x1, y1, x2, y2) in pixels of the upright image (format "abs" of data/box_formats.py).
An annotation without a usable box is skipped and counted, and its image is no negative of its
category. Boxes in another frame: data/frames.py. A folder of several splits: data/splits.py.

Sources: COCO (arXiv:1405.0312), LVIS (arXiv:1908.03195). Next: data/grounding.py.
"""

import difflib
import hashlib
import mmap
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from answers import normalise_name
from data.box_formats import Box, BoxFormat, Size, clipped, convert_box, raw_box
from data.examples import shuffle
from data.files import MAX_SKIP, SkipLog, read_json
from data.frames import Placed, decide, describe, fits, refuse_half
from data.labels import check_names
from data.paths import check_files, entries, inside, local_path, named
from data.pictures import look, look_at_all, why_other_size
from data.splits import is_split_folder, say_of_file, split_of_path
from runtime.errors import InputError

REPLACED = 0.1  # share of the sampled pictures that may be unusable: others take their places


@dataclass(frozen=True)
class CocoImage:
    """One image and its boxes by category name.

    Attributes:
        size: (width, height) as annotated; `few_shot_categories` compares it with the picture.
        boxes: of each category seen, format "abs".
        unsure: categories with regions that are marked as crowd or not exhaustively annotated: the
            image serves neither as an example of them nor as one without them.
        ruled_out: categories known to be absent, where only some were looked for (LVIS); None
            where all were (COCO).
        split: of several annotation files, the name of its own (data/splits.py).
    """

    id: str
    path: Path
    size: Size
    boxes: dict[str, list[Box]] = field(default_factory=dict, hash=False)
    unsure: frozenset[str] = frozenset()
    ruled_out: frozenset[str] | None = None
    split: str = ""


def is_coco(data: str) -> bool:
    """Whether `data` names instances files: by the keys that occur in them, without parsing."""
    return bool(coco_files(data))


def coco_files(data: str) -> list[tuple[Path, str]]:
    """The instances files that `data` names and their splits: a file, or one a split in a folder.

    Raises InputError for several files of one split.
    """
    path = Path(data)
    if os.path.isfile(path):
        return [(path, "")] if _is_instances(path) else []
    if not os.path.isdir(path):
        return []
    folders = [path, *(p for p in entries(path) if os.path.isdir(p))]
    read = [p for p in folders if p == path or is_split_folder(p.name) or p.name == "annotations"]
    files = [file for folder in read for file in entries(folder) if _is_instances(file)]
    files = [f for f in files if f.name.startswith("instances")] or files  # COCO's captions, ...
    found = [(file, split_of_path(file, path)) for file in files]
    splits = [split for _, split in found]
    if twice := [file.name for file, split in found if splits.count(split) > 1]:
        raise InputError(f"--data {named(data)} holds {twice[:5]} of one split; name one file")
    return found


def _is_instances(path: Path) -> bool:
    keys = "images", "annotations", "categories"
    return mentions(str(path), *keys) and not mentions(str(path), "refs")


def mentions(data: str, *keys: str) -> bool:
    """Whether a .json file holds an object in which all of these quoted words occur."""
    path = Path(data)
    if path.suffix.lower() != ".json" or not os.path.isfile(path) or path.stat().st_size == 0:
        return False
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its rights") from None
    with file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        is_object = content[:64].removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")
        return is_object and all(content.find(f'"{key}"'.encode()) >= 0 for key in keys)


def load_coco(
    data: str | Path,
    image_root: str | Path | None = None,
    max_skip: float = MAX_SKIP,
    data_coords: str = "auto",
) -> list[CocoImage]:
    """Read an instances json (`images`, `annotations`, `categories`), images in order of their id.

    Crowd regions are no boxes: their category becomes `unsure` in that image. Annotations without
    image, category or usable box are skipped and counted. Images without annotations are the
    negatives. Categories that no annotation has do not count. A missing size is the picture's.

    Args:
        data: a file, or a folder (`coco_files`). image_root: what file names are relative to;
            default: the folder of each file. data_coords: frame of the boxes; "auto": pixels.

    Raises:
        InputError: not such a file, ids or category names that are not unique, boxes in another
            frame, a missing picture, no boxes, more than `max_skip` of the annotations skipped.
    """
    local_path(str(data), "give a COCO instances .json")
    files = coco_files(str(data)) or [(Path(data), "")]
    images: list[CocoImage] = []
    for file, split in files:
        root = file.parent if image_root is None else Path(image_root)
        root = _root_of(file, root) if len(files) > 1 else root
        part = _load_file(file, root, max_skip, data_coords)
        taken = {image.id for image in images}  # ids are unique in a file, but not in all
        for image in part:
            unique = f"{split}/{image.id}" if image.id in taken else image.id
            images.append(replace(image, id=unique, split=split))
    say_of_file(Path(data), (".json",))
    boxes = sum(len(named) for image in images for named in image.boxes.values())
    print(f"data: {named(data)} read as COCO instances: {len(images)} images, {boxes} boxes")
    return images


def _root_of(file: Path, root: Path) -> Path:
    """The folder of the pictures of one file among several: COCO's train2017 beside annotations."""
    name = file.stem.rpartition("_")[2]
    for folder in (base / inner / name for base in (root, root.parent) for inner in ("", "images")):
        if name and os.path.isdir(folder):
            print(f"data: pictures of {file.name!r} are in {named(folder)}")
            return folder
    return root


def _load_file(path: Path, root: Path, max_skip: float, data_coords: str) -> list[CocoImage]:
    content = read_json(path)
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= set(content):
        keys = sorted(content)[:10] if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{path}: needs images, annotations and categories, has {keys}")
    annotations = rows_by_id(content["annotations"], "annotations", path)
    used = {key_of(row, "category_id") for row in annotations.values()}
    categories = rows_by_id(content["categories"], "categories", path).items()
    names = {key: row.get("name") for key, row in categories if key in used}
    check_names(names.values(), f"{path}: categories")
    rows = rows_by_id(content["images"], "images", path)
    pictures = {
        key: image_path(row, root, f"{path.name}: image {key!r}") for key, row in rows.items()
    }
    check_files(((f"{path.name}: image {key!r}", file) for key, file in pictures.items()), root)
    without = [pictures[key] for key, row in rows.items() if _has_no_size(row)]
    look_at_all(without)
    if without:
        print(f"data: {path.name}: {len(without)} images have no size, taken from the pictures")
    skips, images = SkipLog(), {}
    for key, row in rows.items():
        where = f"{path.name}: image {key!r}"
        unsure = _named(row.get("not_exhaustive_category_ids"), names)
        ruled_out = _named(row["neg_category_ids"], names) if "neg_category_ids" in row else None
        try:
            size = look(pictures[key]).size if _has_no_size(row) else image_size(row, where)
        except InputError as error:
            if not _has_no_size(row):
                raise
            skips.add("unreadable", f"{where}: {error}")
            continue
        images[key] = CocoImage(str(key), pictures[key], size, {}, unsure, ruled_out)
    skips.check(len(rows), max_skip)
    return _add_boxes(images, annotations, names, path, max_skip, data_coords)


def _has_no_size(row: dict) -> bool:
    return row.get("width") is None and row.get("height") is None


def _named(keys: Any, names: dict) -> frozenset[str]:
    keys = keys if isinstance(keys, list) else []
    return frozenset(names[k] for k in keys if type(k) in (int, str) and k in names)


def _add_boxes(
    images: dict, annotations: dict, names: dict, path: Path, max_skip: float, data_coords: str
) -> list[CocoImage]:
    """Return the images with their boxes, and with the categories that crowds leave unsure."""
    skips, n_crowds, placed = SkipLog(), 0, {}

    def leave_open(key: Any, name: str) -> None:
        """There is something of this category that has no box here: no negative."""
        images[key] = replace(images[key], unsure=images[key].unsure | {name})

    for key, row in annotations.items():
        where = f"{path.name}: annotation {key!r}"
        image, name = images.get(key_of(row, "image_id")), names.get(key_of(row, "category_id"))
        if image is None or name is None:
            skips.add("unknown image" if image is None else "unknown category", where)
        elif row.get("iscrowd") not in (None, 0, "0"):  # some write text
            n_crowds += 1
            leave_open(row["image_id"], name)
        else:
            try:
                corners = raw_box(row.get("bbox"), where, "xywh")
                placed[key] = Placed(where, corners, image.size)
            except InputError as error:
                skips.add("no box", str(error))
                leave_open(row["image_id"], name)
    refuse_half(skips, len(annotations))
    if not placed:
        first = "".join(f" ({reason})" for reason in skips.first[:1])
        raise InputError(f"{path}: no image has a box{first}; is it an instances file?")
    as_corners = [
        box._replace(
            corners=(*box.corners[:2], *(box.corners[k + 2] - box.corners[k] for k in (0, 1)))
        )
        for box in placed.values()
    ]
    hint = "as x1, y1, x2, y2 they fit: convert them to x, y, width, height"
    hint = hint if all(fits(box, "abs") for box in as_corners) else ""
    frame: BoxFormat = decide(
        [*placed.values()], data_coords, "abs", "COCO", str(path), max_skip, hint=hint
    )
    for key, box in placed.items():
        row = annotations[key]
        image, name = images[row["image_id"]], names[row["category_id"]]
        pixels = clipped(convert_box(box.corners, frame, "abs", box.size, box.size), box.size)
        if not fits(box, frame):
            reason = "box leaves its image"
        elif pixels is None:
            reason = "box without area"
        else:
            image.boxes.setdefault(name, []).append(pixels)
            continue
        skips.add(reason, describe(box))
        leave_open(row["image_id"], name)
    skips.check(len(annotations), max_skip)
    if n_crowds:  # about 1 % of COCO: expected, so printed but not held against the data
        print(f"data: {n_crowds} crowd regions are no boxes")
    if not any(image.boxes for image in images.values()):
        raise InputError(f"{path}: no image has a box; is it an instances file?")
    return [images[key] for key in sorted(images, key=lambda key: (str(type(key)), key))]


def few_shot_categories(
    images: list[CocoImage], categories: Iterable[str], shots: int, seed: int, max_skip=MAX_SKIP
) -> dict[str, list[CocoImage]]:
    """Return `shots` images with each category, in an order that depends on seed and name alone.

    Fewer shots are the beginning of more, whatever the other categories are. An image may serve two
    categories. Pictures that cannot be read, or whose upright size is not the annotated one, are
    skipped and counted.

    Raises:
        InputError: an unknown category, or categories with fewer images, all listed.
    """
    showing: dict[str, list[CocoImage]] = {}
    for image in images:
        for name in image.boxes:
            showing.setdefault(name, []).append(image)
    selected, skips = {}, SkipLog()
    for name in categories:
        if name not in showing:
            close = difflib.get_close_matches(name, sorted(showing), n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "; see the file's categories"
            raise InputError(f"category {name!r}: no box has it{hint}")
        candidates = [image for image in showing[name] if name not in image.unsure]
        name_key = int.from_bytes(hashlib.sha256(normalise_name(name).encode()).digest()[:8])
        usable = usable_images(shuffle(candidates, seed, name_key), skips)
        selected[name] = list(islice(usable, shots))
    skips.check(skips.counts.total() + sum(map(len, selected.values())), max(REPLACED, max_skip))
    if few := [f"{name!r} has {len(m)}" for name, m in selected.items() if len(m) < shots]:
        fix = "lower it" if shots > 1 else "add images"
        raise InputError(
            f"--shots: {shots} images per category needed, but {', '.join(few[:10])} "
            f"({len(few)} categories); {fix}"
        )
    return selected


def lacks(image: CocoImage, category: str) -> bool:
    """Whether the image is known not to show the category."""
    is_open = category in image.boxes or category in image.unsure
    return not is_open and (image.ruled_out is None or category in image.ruled_out)


def usable_images(images: Iterable[CocoImage], skips: SkipLog) -> Iterator[CocoImage]:
    """Yield those whose picture can be read and has, upright, the annotated size; count others."""
    for image in images:
        try:
            size = look(image.path).size
        except InputError as error:
            skips.add("unreadable", str(error))
            continue
        if size == image.size:
            yield image
        else:
            what = f"image {image.id}: annotated {image.size}, upright picture {size}"
            skips.add("size", what + why_other_size(image.path, image.size))


def rows_by_id(rows: Any, what: str, path: Path) -> dict[int | str, dict]:
    """Index a list of objects by their `id`, which must be there once each; for RefCOCO, too."""
    index: dict[int | str, dict] = {}
    if not isinstance(rows, list):
        raise InputError(f"{path}: needs a list {what!r}; has {type(rows).__name__}")
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or type(row.get("id")) not in (int, str):
            raise InputError(f"{path}: {what}[{number}] has no id; repair it")
        if row["id"] in index:
            raise InputError(f"{path}: two {what} have the id {row['id']!r}; rename one")
        index[row["id"]] = row
    return index


def key_of(row: dict, name: str) -> int | str | None:
    """Return a reference to another row's id, None if it can be no id."""
    return row.get(name) if type(row.get(name)) in (int, str) else None


def image_size(image: dict, where: str) -> Size:
    """Width and height in pixels; InputError unless both are whole numbers."""
    size = image.get("width"), image.get("height")
    size = tuple(int(s) if type(s) is float and s.is_integer() else s for s in size)  # pandas
    if not all(type(side) is int and side >= 1 for side in size):
        raise InputError(f"{where}: needs integers width and height, has {size!r:.60}")
    return size


def image_path(image: dict, root: Path, where: str) -> Path:
    """COCO names the file; LVIS gives a URL whose last two parts are its folder and file."""
    name, url = image.get("file_name"), image.get("coco_url")
    name = "/".join(url.split("/")[-2:]) if name is None and isinstance(url, str) else name
    if not isinstance(name, str) or not name:
        raise InputError(f"{where}: needs a file_name, has {sorted(image)[:10]}")
    return inside(root, name, where)
