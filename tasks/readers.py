"""Real data sets as labelled images: class folders, Visual-RFT rows, scikit-learn's digits.

    items = load_labelled("my_photos/")          # or "digits", or a Visual-RFT parquet file
    train, held_out = few_shot_split(items, shots=4, seed=0)

Data comes from outside, so every bad record has one documented outcome. What makes the whole set
doubtful (missing columns, a path that leaves the folder, two folders with one name) raises
`InputError` before any weight changes. What spoils one record (a broken image, an empty solution)
is skipped and counted in a `SkipLog`, which refuses to go on when too many are lost. Data cannot
run code here: no pickle, no network. Visual-RFT (arXiv:2503.01785, hub sets
`laolao77/ViRFT_CLS_*`) has the columns `image`, `problem` and `solution`.
"""

import hashlib
import importlib
import io
import json
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from model.errors import InputError
from model.image import FORMATS, load_image
from rewards import MAX_NAME_CHARS, normalise_name, parse_answer

IMAGE_SUFFIXES = ".jpg .jpeg .png .webp .gif .bmp .tif .tiff .ppm .avif".split()
# Pictures that `load_image` refuses by name: listed, so that they are counted and not overlooked.
FOREIGN_SUFFIXES = ".heic .heif .svg .pdf .eps".split()
COLUMNS = ["image", "problem", "solution"]
DIGIT_NAMES = "zero one two three four five six seven eight nine".split()
ACCEPTED = (
    'accepted: "digits", a folder with one sub-folder of images per class, a Visual-RFT .parquet '
    "file or a folder of them, a folder written by datasets.save_to_disk"
)


@dataclass(frozen=True)
class LabelledImage:
    """One image and its class name; `question` only where the data set brings its own prompt."""

    id: str
    image: Image.Image | Path
    label: str
    question: str | None = None


@dataclass
class SkipLog:
    """Counts skipped records by reason and keeps the first five offenders."""

    counts: Counter[str] = field(default_factory=Counter)
    first: list[str] = field(default_factory=list)

    def add(self, reason: str, offender: str) -> None:
        self.counts[reason] += 1
        self.first = [*self.first, f"{reason}: {offender}"][:5]

    def check(self, total: int, max_skip: float = 0.01) -> None:
        """Print one line if any are lost; raise InputError for more than max(2, max_skip * total).

        `total` counts the records read, the skipped ones included.
        """
        skipped = self.counts.total()
        summary = "; ".join([f"{skipped} of {total} records skipped", *self.first])
        if skipped > max(2, max_skip * total):
            raise InputError(f"--data: too many lost, repair them: {summary}")
        if skipped:
            print(f"data: {summary}")


def load_labelled(data: str, max_skip: float = 0.01) -> list[LabelledImage]:
    """Read what `--data` names; print the schema that matched and how many records were skipped.

    "digits" always means the scans of scikit-learn (a folder of that name is "./digits"). Every
    image is opened once, so that a broken one is met now and not hours into training. Images that
    come as bytes in a table stay in memory, decoded.

    Raises:
        InputError: any other source, an empty set, one class only, or too many skipped records.
    """
    skips = SkipLog()
    path = Path(data)
    if data == "digits":
        schema, items = "scikit-learn digits, RL half", read_digits("rl")
    elif _is_url(data):
        raise InputError(f"--data {data!r} is a URL; download the data set and name its folder")
    elif not os.path.exists(path):
        raise InputError(f"--data {data!r} does not exist{_similar_name(path)}; {ACCEPTED}")
    elif _table_files(path):
        schema, items = f"Visual-RFT rows ({', '.join(COLUMNS)})", read_visual_rft(path, skips)
    elif path.is_dir():
        schema, items = "folder of class folders", read_image_folder(path)
    else:
        what = f"a file of type {path.suffix!r}" if path.is_file() else "not a regular file"
        raise InputError(f"--data {data!r} is {what}; {ACCEPTED}")
    total = len(items) + skips.counts.total()
    items = keep_readable(items, skips)
    skips.check(total, max_skip)
    classes = {normalise_name(item.label): item.label for item in items}
    _check_classes(classes.values(), data)
    print(f"data: {data!r} read as {schema}: {len(items)} images of {len(classes)} classes")
    return items


def keep_readable(items: list[LabelledImage], skips: SkipLog) -> list[LabelledImage]:
    """Return the items whose image `load_image` accepts; count the others as "unreadable"."""
    readable = []
    for item in items:
        try:
            load_image(item.image)
            readable.append(item)
        except InputError as error:
            skips.add("unreadable", f"{item.id!r}: {error}")
    return readable


def few_shot_split(
    items: list[LabelledImage],
    shots: int,
    seed: int,
    held_out_per_class: int | None = None,
    min_held_out: int = 1,
) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """Split into exactly `shots` training images per class and a held-out rest, capped if asked.

    Each class is shuffled once; shots come from the front, held-out images from the back. So fewer
    shots are a subset of more shots, and both are judged on the same images while the cap leaves
    room. A held-out image with the pixels of a training image, under whatever label, is dropped
    and counted: to know it by heart is no generalisation.

    Raises:
        InputError: a flag out of range, or a class with fewer than shots + min_held_out images.
    """
    if shots < 1 or min_held_out < 1 or not 0 <= seed < 2**64:
        bad = f"--shots {shots}, min_held_out {min_held_out}, --seed {seed}"
        raise InputError(f"{bad}: the first two must be at least 1, the seed in [0, 2**64)")
    if held_out_per_class is not None and held_out_per_class < min_held_out:
        raise InputError(f"held_out_per_class {held_out_per_class} must be >= {min_held_out}")
    classes = _shuffled_classes(items, seed)
    needed = shots + min_held_out
    if small := [f"{name!r} has {len(m)}" for name, m in classes.items() if len(m) < needed]:
        raise InputError(
            f"--shots {shots} needs {needed} images in every class ({min_held_out} held out), but "
            f"{', '.join(small[:10])} ({len(small)} classes); lower --shots or add images"
        )
    train = [item for members in classes.values() for item in members[:shots]]
    trained_on = {_pixel_hash(item) for item in train}
    held_out, n_overlap = [], 0
    for name, members in classes.items():
        kept = []
        for item in reversed(members[shots:]):
            if len(kept) == held_out_per_class:
                break
            if _pixel_hash(item) in trained_on:
                n_overlap += 1
            else:
                kept.append(item)
        if len(kept) < min_held_out:
            raise InputError(
                f"class {name!r} keeps {len(kept)} held-out images that differ from all training "
                f"images, {min_held_out} needed; lower --shots or add images"
            )
        held_out += kept
    if n_overlap:
        print(f"data: {n_overlap} held-out images dropped: their pixels equal a training image's")
    return train, held_out


def _shuffled_classes(items: list[LabelledImage], seed: int) -> dict[str, list[LabelledImage]]:
    """Group by normalised name, in order of the names, each class in its own random order.

    Class k is sorted by the raw 64-bit output of Philox under the key (seed, k): numpy promises
    never to change raw streams, while `permutation` may differ in another version.
    """
    classes = defaultdict(list)
    for item in sorted(items, key=lambda item: item.id):
        classes[normalise_name(item.label)].append(item)
    for k, name in enumerate(sorted(classes)):
        bits = np.random.Philox(key=np.array([seed, k], dtype=np.uint64))
        order = np.argsort(bits.random_raw(len(classes[name])), kind="stable")
        classes[name] = [classes[name][i] for i in order]
    return dict(sorted(classes.items()))


def _pixel_hash(item: LabelledImage) -> str:
    image = load_image(item.image)
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


def read_image_folder(root: Path) -> list[LabelledImage]:
    """Read `root/<class name>/<image>`: one sub-folder per class, its name as it is the label.

    Read are the files directly inside whose suffix, in any case, is in IMAGE_SUFFIXES (or in
    FOREIGN_SUFFIXES, for `keep_readable` to refuse). Other files, hidden ones and deeper folders
    are no part of the set.

    Raises:
        InputError: fewer than two class folders, one without images, two whose names count as the
            same answer, an image that is not a regular file or lies outside `root` (by a link).
    """
    visible = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    folders = [path for path in visible if path.is_dir()]
    if not folders:
        found = [path.name for path in visible[:5]] or "nothing"
        raise InputError(f"--data {str(root)!r} has no class folders, only {found}; {ACCEPTED}")
    _check_classes([folder.name for folder in folders], str(root))
    items = []
    for folder in folders:
        names = [f"{folder.name}/{p.name}" for p in sorted(folder.iterdir()) if p.name[0] != "."]
        names = [n for n in names if Path(n).suffix.lower() in IMAGE_SUFFIXES + FOREIGN_SUFFIXES]
        if not names:
            raise InputError(
                f"--data {str(root)!r}: class folder {folder.name!r} has no images directly inside "
                f"({' '.join(IMAGE_SUFFIXES)}); remove it, or name the folder of the class folders"
            )
        items += [LabelledImage(name, _inside(root, name, name), folder.name) for name in names]
    _check_files(items)
    return items


def _check_classes(labels: Iterable[str], source: str) -> None:
    """Raise unless these are two or more labels that differ after `normalise_name`."""
    spelling: dict[str, str] = {}
    for label in sorted(labels):
        name = normalise_name(label)
        if not name or len(label) > MAX_NAME_CHARS:
            raise InputError(f"--data {source!r}: {label[:80]!r} cannot be a class name; rename it")
        if name in spelling:
            pair = f"{spelling[name]!r} and {label!r}"
            raise InputError(f"--data {source!r}: {pair} are the same answer; rename one")
        spelling[name] = label
    if len(spelling) < 2:
        only = f"only one class, {list(spelling.values())}" if spelling else "no class"
        raise InputError(f"--data {source!r} has {only}: rewards would be constant; add classes")


def read_digits(split: Literal["pretrain", "rl"]) -> list[LabelledImage]:
    """Read scikit-learn's 1797 handwritten digits: 8x8 scans, bright on black, as RGB images.

    The split is by index in `load_digits`: even indices ("pretrain", 899 scans) may be seen by the
    embedded base model; odd ones ("rl", 898) are for the shots and the held-out set of RL.
    """
    parity = {"pretrain": 0, "rl": 1}[split]
    scans = _optional("sklearn.datasets", "scikit-learn").load_digits()
    items = []
    for index in range(parity, len(scans.target), 2):
        gray = np.rint(scans.images[index] * 255 / 16).astype(np.uint8)  # (8, 8), from 0..16
        image = Image.fromarray(gray).convert("RGB")
        items.append(LabelledImage(f"digits/{index}", image, DIGIT_NAMES[scans.target[index]]))
    return items


def read_visual_rft(path: Path, skips: SkipLog | None = None) -> list[LabelledImage]:
    """Read classification rows (`image`, `problem`, `solution`) from a local table.

    The table is a .parquet file, a folder of them (directly or in `data`, as hubs lay them out),
    or a folder written by `datasets.save_to_disk` (of a DatasetDict, its `train` split). `image`
    is a struct {bytes, path}, bytes, or a path below the table's folder. `problem` is the question
    as it is, less leading `<image>` marks. The one answer block of `solution` holds the label.
    Rows lacking one of the three are skipped: counted in `skips`, or in a log that is checked here.

    Raises:
        InputError: unreadable table, missing columns, wrong types, boxes for solutions, an image
            path that is missing, a URL or outside the folder; pyarrow is not installed.
    """
    log = SkipLog() if skips is None else skips
    root = path if path.is_dir() else path.parent
    items = []
    for file in _table_files(path):
        for index, row in enumerate(_table_rows(file)):
            item = _labelled_row(row, f"{file.relative_to(root).as_posix()}:{index}", root, log)
            items += [item] if item else []
    _check_files(items)
    if skips is None:
        log.check(len(items) + log.counts.total())
    return items


def _labelled_row(row: dict, row_id: str, root: Path, skips: SkipLog) -> LabelledImage | None:
    image, question, solution = ("" if row[name] is None else row[name] for name in COLUMNS)
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path") or ""
    types = isinstance(image, str | bytes), isinstance(question, str), isinstance(solution, str)
    if not all(types):
        wrong = COLUMNS[types.index(False)]
        raise InputError(
            f"{row_id}: column {wrong!r} holds {row[wrong]!r:.40}; see read_visual_rft"
        )
    while question.lstrip().startswith("<image>"):
        question = question.lstrip().removeprefix("<image>").lstrip()
    label = parse_answer(solution) or ""
    if label.startswith(("[", "{")):
        raise InputError(f"{row_id}: the solution is a box list; this reader takes class names")
    name = normalise_name(label[:MAX_NAME_CHARS])
    for column, value in zip(COLUMNS, (image, question.strip(), name), strict=True):
        if not value:
            untagged = column == "solution" and solution.strip()
            reason = "solution without <answer>name</answer>" if untagged else f"empty {column}"
            skips.add(reason, row_id)
            return None
    if isinstance(image, str):
        return LabelledImage(row_id, _inside(root, image, row_id), label, question)
    try:
        decoder = Image.open(io.BytesIO(image), formats=FORMATS)
    except Exception as error:  # Pillow's plugins raise almost anything on damaged bytes
        skips.add("unreadable", f"{row_id}: {error}")
        return None
    return LabelledImage(row_id, decoder, label, question)


def _table_files(path: Path) -> list[Path]:
    """Return the parquet or arrow files of a Visual-RFT set, [] where `path` holds none."""
    if path.is_file():
        return [path] if path.suffix.lower() == ".parquet" else []
    if parquet := sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet")):
        return parquet
    saved = next((d for d in (path, path / "train") if (d / "state.json").is_file()), None)
    if saved is None:
        if (path / "dataset_dict.json").exists():
            raise InputError(f"--data {str(path)!r} is a DatasetDict without a train split")
        return []
    try:  # only what state.json lists: cached results of map() lie beside it under similar names
        state = json.loads((saved / "state.json").read_text(encoding="utf-8"))
        names = [str(entry["filename"]) for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{saved}/state.json: unreadable ({error!r}); save it again") from error
    return [_inside(saved, name, "state.json") for name in names]


def _table_rows(file: Path) -> Iterator[dict]:
    pyarrow, parquet = _optional("pyarrow"), _optional("pyarrow.parquet", "pyarrow")
    try:
        with pyarrow.memory_map(str(file)) as source:
            if file.suffix.lower() == ".parquet":
                table = parquet.ParquetFile(source)
                schema, batches = table.schema_arrow, table.iter_batches(batch_size=64)
            else:
                batches = pyarrow.ipc.open_stream(source)
                schema = batches.schema
            if missing := [name for name in COLUMNS if schema.names.count(name) != 1]:
                raise InputError(f"{file}: needs columns {missing} once each, has {schema.names}")
            for batch in batches:
                yield from batch.select(COLUMNS).to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot read the table ({error}); download it again") from error


def _optional(module: str, package: str = ""):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = package or module
        raise InputError(f"--data needs {package}: pip install {package}") from error


def _is_url(name: str) -> bool:
    return "://" in name or name.lower().startswith(("data:", "file:", "http:", "https:"))


def _inside(root: Path, name: str, where: str) -> Path:
    """Return `root / name`, refusing URLs, `..`, absolute paths and links that lead out of root."""
    if _is_url(name) or "\0" in name:
        raise InputError(f"{where}: {name!r} is no path below {str(root)!r}; copy the file there")
    path = root / name
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise InputError(f"{where}: {name!r} leads out of {str(root)!r}; copy the file there")
    return path


def _check_files(items: list[LabelledImage]) -> None:
    """Raise for images that are no regular files: a whole set with wrong paths is no small loss."""
    paths = [(item.id, item.image) for item in items if isinstance(item.image, Path)]
    if strange := [i for i, _ in paths if not i.isprintable()]:
        raise InputError(f"--data: {strange[0]!r} is no printable name; rename the file or folder")
    if missing := [(i, path) for i, path in paths if not os.path.isfile(path)]:
        listed = "; ".join(f"{i}: {str(path)!r}{_similar_name(path)}" for i, path in missing[:5])
        raise InputError(f"--data: {len(missing)} images missing or no regular files: {listed}")


def _similar_name(path: Path) -> str:
    """Return a hint if a neighbour differs only in case or in its Unicode form, else ""."""
    siblings = sorted(os.listdir(path.parent)) if path.parent.is_dir() else []
    folded = [unicodedata.normalize("NFC", name).casefold() for name in [path.name, *siblings]]
    similar = [name for name, key in zip(siblings, folded[1:], strict=True) if key == folded[0]]
    return f" (did you mean {similar[0]!r}?)" if similar and path.name not in similar else ""
