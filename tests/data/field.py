"""Data sets as people bring them, made on the fly: rows, class folders, COCO files, tables."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from config import TaskConfig
from model.image import ImageConfig
from tasks import TASKS, check_flags
from tasks.task import Task

IMAGE_CONFIG = ImageConfig(14, 2, 2, 28 * 28, 200 * 28 * 28, (0.5,) * 3, (0.5,) * 3)
SIZE = (96, 72)


def picture(path: Path, number: int = 0, size=SIZE, orientation: int = 1) -> None:
    """A picture of one colour, another one for every number below 200."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (number * 7 % 256, number * 31 % 256, 90))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif) if orientation > 1 else image.save(path)


def lines(path: Path, rows: list[dict]) -> Path:
    """Rows as jsonl, or as json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_lines = path.suffix == ".jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) if is_lines else json.dumps(rows))
    return path


def row(number: int, solution, **more) -> dict:
    """A row of Visual-RFT about the picture of this number."""
    return {"image": f"{number}.png", "problem": "What is it?", "solution": solution} | more


def rows(folder: Path, make, count: int = 12, name: str = "rows.jsonl", size=SIZE) -> Path:
    """`make(number)` for every row, and their pictures."""
    for number in range(count):
        picture(folder / f"{number}.png", number, size)
    return lines(folder / name, [make(number) for number in range(count)])


def solutions(*values, size=SIZE, count: int = 12):
    """A builder of rows with these solutions in turn."""
    return lambda folder: rows(folder, lambda n: row(n, values[n % len(values)]), count, size=size)


def table(path: Path, numbers, solution: str = "3") -> None:
    """A parquet file whose pictures are in it."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    cells = []
    for number in numbers:
        buffer = io.BytesIO()
        Image.new("RGB", (20, 20), (number * 7 % 256, number * 31 % 256, 3)).save(buffer, "PNG")
        cells.append({"bytes": buffer.getvalue(), "path": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist([row(0, solution, image=c) for c in cells]), path)


def classes(folder: Path, counts: dict[str, int], first: int = 0) -> None:
    """Class folders with so many pictures each."""
    for name, count in counts.items():
        for number in range(count):
            picture(folder / name / f"{number}.png", first + number)
        first += count


def coco(
    folder: Path,
    box=lambda n: [10, 10, 30, 30],
    count: int = 12,
    size=SIZE,
    names=("cat", "dog"),
    file: str = "instances.json",
    images: str = "",
    file_name=lambda n: f"{n}.jpg",
    first: int = 0,
    edit=lambda content: None,
) -> Path:
    """A COCO file of one box an image, changed by `edit`, and its pictures."""
    content = {"images": [], "annotations": []}
    for n in range(count):
        picture(folder / images / f"{n}.jpg", first + n, size)
        about = {"id": n, "file_name": file_name(n), "width": size[0], "height": size[1]}
        content["images"].append(about)
        named = {"id": n, "image_id": n, "category_id": n % len(names), "bbox": box(n)}
        content["annotations"].append(named | {"iscrowd": 0})
    content["categories"] = [{"id": k, "name": name} for k, name in enumerate(names)]
    edit(content)
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def load(data: Path, task: str, **flags) -> Task:
    """The task on this data, with thousandths as the model's boxes unless a flag says otherwise."""
    flags = ({"coords": "norm1000"} if "coords" in TASKS[task].FLAGS else {}) | flags
    cfg = TaskConfig(task=task, data=str(data), **flags)
    check_flags(cfg)
    return TASKS[task].load(cfg, IMAGE_CONFIG)
