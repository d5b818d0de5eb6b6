"""The house: what may import what, how much there is at the top, and how long a file may be."""

import ast
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLOORS = (  # a file imports from floors below its own, and from its own room
    ("runtime", "kernels", "answers"),
    ("model", "rewards", "config"),
    ("data",),
    ("tasks", "sample"),
    ("reporting",),
    ("training",),
    ("train_grpo", "train_sft", "evaluate", "report"),
    ("benchmarks",),
    ("tests",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def imports(source: str) -> set[str]:
    """Rooms of this project that a source imports from."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.split(".")[0] for name in names} & FLOOR.keys()


def sources() -> list[Path]:
    """All Python files of the project, relative to its root; not what a user put beside them."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        return [Path(name) for name in listed.stdout.split() if (ROOT / name).is_file()]
    folders = [p for room in FLOOR for p in (ROOT / room).rglob("*.py")]
    files = [ROOT / f"{room}.py" for room in FLOOR if (ROOT / f"{room}.py").is_file()]
    return [path.relative_to(ROOT) for path in files + folders]


def test_imports_run_one_way():
    wrong = []
    for path in sources():
        room = path.parts[0].removesuffix(".py")
        for other in imports((ROOT / path).read_text(encoding="utf-8")) - {room}:
            if FLOOR[other] >= FLOOR[room]:
                wrong.append(f"{path} imports {other}")
    assert wrong == []


def test_every_room_has_its_floor_and_few_files_are_at_the_top():
    rooms = {path.parts[0].removesuffix(".py") for path in sources()}
    assert rooms == FLOOR.keys()
    assert len([path for path in sources() if len(path.parts) == 1]) <= 9


def test_the_algorithm_is_one_file_of_350_lines_at_most():
    lines = (ROOT / "train_grpo.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 350
    assert not {"garden", "tiny"} & set(" ".join(lines).split())  # nothing asks which model it is
