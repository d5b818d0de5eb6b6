"""Annotated boxes of categories: COCO and LVIS instances.

    images = load_coco("instances_val2017.json", "val2017/")
    shots = few_shot_categories(images, ["bus", "cat"], shots=4, seed=0)     # {"bus": [...], ...}

The file's `bbox` is [x, y, width, height]; every box becomes (x1, y1, x2, y2) in pixels of the
upright image (format "abs" of data/box_formats.py). A box that leaves its image, or is negative,
raises `InputError` with its id: then no box of the file can be trusted.

Sources: COCO (arXiv:1405.0312), LVIS (arXiv:1908.03195). Next: data/grounding.py.
"""

import difflib
import hashlib
import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from answers import normalise_name
from data.box_formats import Box, Size, pixel_box, warn_if_normalised
from data.examples import shuffle
from data.files import MAX_SKIP, SkipLog, check_files, check_names, inside, local_path, read_json
from model.image import load_image
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
    """

    id: str
    path: Path
    size: Size
    boxes: dict[str, list[Box]] = field(default_factory=dict, hash=False)
    unsure: frozenset[str] = frozenset()
    ruled_out: frozenset[str] | None = None


def is_coco(data: str) -> bool:
    """Whether `data` names an instances file: by the keys that occur in it, without parsing."""
    return mentions(data, "images", "annotations", "categories") and not mentions(data, "refs")


def mentions(data: str, *keys: str) -> bool:
    """Whether a .json file holds an object in which all of these quoted words occur."""
    path = Path(data)
    if path.suffix.lower() != ".json" or not path.is_file() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        is_object = content[:64].removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")
        return is_object and all(content.find(f'"{key}"'.encode()) >= 0 for key in keys)


def load_coco(
    annotation_file: str | Path, image_root: str | Path | None = None, max_skip: float = MAX_SKIP
) -> list[CocoImage]:
    """Read an instances json (`images`, `annotations`, `categories`), images in order of their id.

    Crowd regions are no boxes: their category becomes `unsure` in that image. Annotations without
    image, category or area are skipped and counted. Images without annotations are the negatives.

    Args:
        image_root: what file names are relative to; default: the folder of the file.

    Raises:
        InputError: not such a file, ids or category names that are not unique, a box outside of
            its image, a missing picture, no boxes, more than `max_skip` of the annotations skipped.
    """
    path = local_path(str(annotation_file), "give a COCO instances .json")
    root = path.parent if image_root is None else Path(image_root)
    data = read_json(path)
    if not isinstance(data, dict) or not {"images", "annotations", "categories"} <= data.keys():
        keys = sorted(data)[:10] if isinstance(data, dict) else type(data).__name__
        raise InputError(f"{path}: needs images, annotations and categories, has {keys}")
    categories = rows_by_id(data["categories"], "categories", path)
    names = {key: row.get("name") for key, row in categories.items()}
    check_names(names.values(), f"{path}: categories")
    images = {}
    for key, row in rows_by_id(data["images"], "images", path).items():
        where = f"{path.name}: image {key!r}"
        unsure = _named(row.get("not_exhaustive_category_ids"), names)
        ruled_out = _named(row["neg_category_ids"], names) if "neg_category_ids" in row else None
        size, picture = image_size(row, where), image_path(row, root, where)
        images[key] = CocoImage(str(key), picture, size, {}, unsure, ruled_out)
    images = _add_boxes(images, data["annotations"], names, path, max_skip)
    boxes = [(b, i.size) for i in images for named_boxes in i.boxes.values() for b in named_boxes]
    if not boxes:
        raise InputError(f"{path}: no image has a box; is it an instances file?")
    check_files((f"{path.name}: image {image.id}", image.path) for image in images)
    warn_if_normalised(boxes)
    print(f"data: {str(path)!r} read as COCO instances: {len(images)} images, {len(boxes)} boxes")
    return images


def _named(keys: Any, names: dict) -> frozenset[str]:
    keys = keys if isinstance(keys, list) else []
    return frozenset(names[k] for k in keys if type(k) in (int, str) and k in names)


def _add_boxes(
    images: dict, annotations: Any, names: dict, path: Path, max_skip: float
) -> list[CocoImage]:
    """Return the images with their boxes, and with the categories that crowds leave unsure."""
    skips, n_crowds = SkipLog(), 0
    for key, row in rows_by_id(annotations, "annotations", path).items():
        where = f"{path.name}: annotation {key!r}"
        image, name = images.get(key_of(row, "image_id")), names.get(key_of(row, "category_id"))
        if image is None or name is None:
            skips.add("unknown image" if image is None else "unknown category", where)
        elif row.get("iscrowd"):
            n_crowds += 1
            images[row["image_id"]] = replace(image, unsure=image.unsure | {name})
        elif box := pixel_box(row.get("bbox"), image.size, where, "xywh"):
            image.boxes.setdefault(name, []).append(box)
        else:
            skips.add("box without area", where)
    skips.check(len(annotations), max_skip)
    if n_crowds:  # about 1 % of COCO: expected, so printed but not held against the data
        print(f"data: {n_crowds} crowd regions are no boxes")
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
    all_names = {name for image in images for name in image.boxes}
    selected, skips = {}, SkipLog()
    for name in categories:
        if name not in all_names:
            close = difflib.get_close_matches(name, sorted(all_names), n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "; see the file's categories"
            raise InputError(f"category {name!r}: no box has it{hint}")
        candidates = [image for image in images if name in image.boxes and name not in image.unsure]
        name_key = int.from_bytes(hashlib.sha256(normalise_name(name).encode()).digest()[:8])
        usable = usable_images(shuffle(candidates, seed, name_key), skips)
        selected[name] = list(islice(usable, shots))
    skips.check(skips.counts.total() + sum(map(len, selected.values())), max(REPLACED, max_skip))
    if few := [f"{name!r} has {len(m)}" for name, m in selected.items() if len(m) < shots]:
        raise InputError(
            f"--shots: {shots} images per category needed, but {', '.join(few[:10])} "
            f"({len(few)} categories); lower it"
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
            size = load_image(image.path).size
        except InputError as error:
            skips.add("unreadable", str(error))
            continue
        if size == image.size:
            yield image
        else:
            skips.add("size", f"image {image.id}: annotated {image.size}, upright picture {size}")


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
