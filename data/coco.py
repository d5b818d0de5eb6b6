"""Annotated boxes of categories: COCO and LVIS instances.

    images = load_coco("instances_val2017.json", "val2017/")
    shots = few_shot_categories(images, ["bus", "cat"], shots=4, seed=0)     # {"bus": [...], ...}

The file's `bbox` is [x, y, width, height]; every box becomes (x1, y1, x2, y2) in pixels of the
upright image (format "abs" of data/box_formats.py). A box that leaves its image, or is negative,
raises `InputError` with its id: then the file holds another convention, or belongs to other
pictures, and no box in it can be trusted.

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

import numpy as np

from answers import normalise_name
from data.box_formats import Box, Size, pixel_box, warn_if_normalised
from data.files import MAX_SKIP, SkipLog, check_files, inside, local_path, read_json
from model.image import load_image
from runtime.errors import InputError

REPLACED = 0.1  # share of the chosen pictures that may be unusable: others take their places


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


# ----------------------------------------------------------------------------------- COCO instances


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
    image, category or area are skipped, counted, and held against `max_skip`. Images without
    annotations stay: they are the negatives. The pictures are not opened here, only looked for.

    Args:
        image_root: what file names are relative to; default: the folder of the file.

    Raises:
        InputError: not such a file, ids or category names that are not unique, a box outside of
            its image, a missing picture, nothing left, too many skipped.
    """
    path = local_path(str(annotation_file), "give a COCO instances .json")
    root = path.parent if image_root is None else Path(image_root)
    data = read_json(path)
    if not isinstance(data, dict) or not {"images", "annotations", "categories"} <= data.keys():
        found = sorted(data)[:10] if isinstance(data, dict) else type(data).__name__
        raise InputError(f"{path}: needs images, annotations and categories, has {found}")
    names = _category_names(data["categories"], path)
    images = {}
    for key, row in rows_by_id(data["images"], "images", path).items():
        where = f"{path.name}: image {key!r}"
        unsure = _named(row.get("not_exhaustive_category_ids"), names)
        known = _named(row["neg_category_ids"], names) if "neg_category_ids" in row else None
        size, picture = image_size(row, where), image_path(row, root, where)
        images[key] = CocoImage(str(key), picture, size, {}, unsure, known)
    images = _add_boxes(images, data["annotations"], names, path, max_skip)
    if not any(image.boxes for image in images):
        raise InputError(f"{path}: no image has a box; is it an instances file?")
    check_files((f"{path.name}: image {image.id}", image.path) for image in images)
    warn_if_normalised((b, i.size) for i in images for boxes in i.boxes.values() for b in boxes)
    n_boxes = sum(len(boxes) for image in images for boxes in image.boxes.values())
    print(f"data: {str(path)!r} read as COCO instances: {len(images)} images, {n_boxes} boxes")
    return images


def _category_names(rows: Any, path: Path) -> dict[int | str, str]:
    names, spelling = {}, {}
    for key, row in rows_by_id(rows, "categories", path).items():
        name = row.get("name")
        folded = normalise_name(name) if isinstance(name, str) else ""
        if not folded or folded in spelling:
            why = f"the same answer as {spelling[folded]!r}" if folded else "no name"
            raise InputError(f"{path}: category {key!r}: {name!r:.60} is {why}; rename it")
        names[key] = spelling[folded] = name
    return names


def _named(keys: Any, names: dict) -> frozenset[str]:
    keys = keys if isinstance(keys, list) else []
    return frozenset(names[k] for k in keys if type(k) in (int, str) and k in names)


def _add_boxes(
    images: dict, annotations: Any, names: dict, path: Path, max_skip: float
) -> list[CocoImage]:
    """Return the images with their boxes, and with the categories that crowds leave unsure."""
    skips, crowds = SkipLog(), {}
    for key, row in rows_by_id(annotations, "annotations", path).items():
        where = f"{path.name}: annotation {key!r}"
        image, name = images.get(key_of(row, "image_id")), names.get(key_of(row, "category_id"))
        if image is None or name is None:
            skips.add("unknown image" if image is None else "unknown category", where)
        elif row.get("iscrowd"):
            crowds.setdefault(row["image_id"], []).append(name)
        elif box := pixel_box(row.get("bbox"), image.size, where, "xywh"):
            image.boxes.setdefault(name, []).append(box)
        else:
            skips.add("box without area", where)
    skips.check(len(annotations), max_skip)
    if crowds:  # about 1 % of COCO: expected, so said but not held against the data
        n_crowds = sum(map(len, crowds.values()))
        print(f"data: {n_crowds} crowd regions in {len(crowds)} images are no boxes")
    for key, categories in crowds.items():
        images[key] = replace(images[key], unsure=images[key].unsure | set(categories))
    return [images[key] for key in sorted(images, key=lambda key: (str(type(key)), key))]


def few_shot_categories(
    images: list[CocoImage],
    categories: Iterable[str],
    shots: int,
    seed: int,
    max_skip: float = MAX_SKIP,
) -> dict[str, list[CocoImage]]:
    """Return `shots` images with each category, in an order that depends on seed and name alone.

    Fewer shots are the beginning of more, whatever other categories are asked for, so one call for
    K + M images gives K to train on and M to be judged on (an image may serve two categories: take
    those of all training lists out). Pictures that cannot be read, or whose upright size is not
    the annotated one, are passed over and counted.

    Raises:
        InputError: an unknown category, or categories with fewer images, all listed.
    """
    if shots < 1:
        raise InputError(f"--shots {shots}: must be at least 1")
    known = {name for image in images for name in image.boxes}
    chosen: dict[str, list[CocoImage]] = {}
    skips = SkipLog()
    for name in categories:
        if name not in known:
            close = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "; see the file's categories"
            raise InputError(f"category {name!r}: no box has it{hint}")
        having = [image for image in images if name in image.boxes and name not in image.unsure]
        chosen[name] = list(islice(usable_images(_shuffled(having, name, seed), skips), shots))
    skips.check(skips.counts.total() + sum(map(len, chosen.values())), max(REPLACED, max_skip))
    if few := [f"{name!r} has {len(m)}" for name, m in chosen.items() if len(m) < shots]:
        listed = f"{', '.join(few[:10])} ({len(few)} categories)"
        raise InputError(f"--shots: {shots} images per category needed, but {listed}; lower it")
    return chosen


def lacks(image: CocoImage, category: str) -> bool:
    """Whether the image is known not to show the category."""
    is_open = category in image.boxes or category in image.unsure
    return not is_open and (image.ruled_out is None or category in image.ruled_out)


def _shuffled(images: list[CocoImage], category: str, seed: int) -> list[CocoImage]:
    """Sort by raw 64-bit output of Philox (as few_shot_split), keyed by seed and category."""
    if not 0 <= seed < 2**64:
        raise InputError(f"--split_seed {seed}: must be in [0, 2**64)")
    name_key = int.from_bytes(hashlib.sha256(normalise_name(category).encode()).digest()[:8])
    bits = np.random.Philox(key=np.array([seed, name_key], dtype=np.uint64))
    order = np.argsort(bits.random_raw(len(images)), kind="stable")
    return [images[i] for i in order]


def usable_images(images: Iterable[CocoImage], skips: SkipLog) -> Iterator[CocoImage]:
    """Those whose picture can be read and has, upright, the annotated size; others are counted."""
    for image in images:
        try:
            found = load_image(image.path).size
        except InputError as error:
            skips.add("unreadable", str(error))
            continue
        if found == image.size:
            yield image
        else:
            skips.add("size", f"image {image.id}: annotated {image.size}, upright picture {found}")


# ------------------------------------------------------------------- what COCO and RefCOCO share


def rows_by_id(rows: Any, what: str, path: Path) -> dict[int | str, dict]:
    """Index a list of objects by their `id`, which must be there once each."""
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
    width, height = image.get("width"), image.get("height")
    if type(width) is not int or type(height) is not int or min(width, height) < 1:
        raise InputError(f"{where}: needs integers width and height, has {width!r}, {height!r}")
    return width, height


def image_path(image: dict, root: Path, where: str) -> Path:
    """COCO names the file; LVIS gives a URL whose last two parts are its folder and file."""
    name, url = image.get("file_name"), image.get("coco_url")
    name = "/".join(url.split("/")[-2:]) if name is None and isinstance(url, str) else name
    if not isinstance(name, str) or not name:
        raise InputError(f"{where}: needs a file_name, has {sorted(image)[:10]}")
    return inside(root, name, where)
