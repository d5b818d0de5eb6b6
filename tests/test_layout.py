"""The layout: what may import what, how much there is at the top, and what a file must have."""

import ast
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAYERS = (  # a file imports from layers above its own in this list, and from its own package
    ("runtime", "kernels", "answers"),
    ("model", "rewards", "config"),
    ("data",),
    ("sample",),
    ("acting",),
    ("tasks",),
    ("reporting",),
    ("training",),
    ("rating", "checks"),
    (
        *("train_grpo", "train_ppo", "train_sft", "train_verifier"),
        *("evaluate", "merge", "report", "rate"),
    ),
    ("preflight", "export"),  # about runs of train_grpo.py
    ("benchmarks",),
    ("tests",),
)
LAYER = {package: number for number, packages in enumerate(LAYERS) for package in packages}


def imports(source: str) -> set[str]:
    """Packages of this project that a source imports from."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.split(".")[0] for name in names} & LAYER.keys()


def sources() -> list[Path]:
    """All Python files of the project, relative to its root; not what a user put beside them."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        return [Path(name) for name in listed.stdout.split() if (ROOT / name).is_file()]
    folders = [p for package in LAYER for p in (ROOT / package).rglob("*.py")]
    files = [ROOT / f"{package}.py" for package in LAYER if (ROOT / f"{package}.py").is_file()]
    return [path.relative_to(ROOT) for path in files + folders]


def test_imports_run_one_way():
    wrong = []
    for path in sources():
        package = path.parts[0].removesuffix(".py")
        for other in imports((ROOT / path).read_text(encoding="utf-8")) - {package}:
            if LAYER[other] >= LAYER[package]:
                wrong.append(f"{path} imports {other}")
    assert wrong == []


def test_every_package_has_its_layer_and_few_files_are_at_the_top():
    packages = {path.parts[0].removesuffix(".py") for path in sources()}
    assert packages == LAYER.keys()
    assert len([path for path in sources() if len(path.parts) == 1]) <= 14


def test_the_algorithm_is_one_file_of_350_lines_at_most():
    lines = (ROOT / "train_grpo.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 350
    assert not {"garden", "tiny"} & set(" ".join(lines).split())  # nothing asks which model it is


def test_every_public_function_has_a_docstring():
    missing = []
    for path in sources():
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name[0] != "_"]
        for node in sum((n.body for n in [tree, *classes]), []):
            is_public = isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
            if is_public and node.name != "main" and not ast.get_docstring(node):
                missing.append(f"{path}: {node.name}")
    assert [line for line in missing if not line.startswith("tests/")] == []
