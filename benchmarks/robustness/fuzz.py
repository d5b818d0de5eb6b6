"""Hostile input by the hundred thousand: do the reward parsers and the readers ever slip?

    python -m benchmarks.robustness.fuzz --cases 100000

A case is right if it ends within a second and gives what is allowed: for a completion, finite
numbers and no reward above that of the right answer; for a file, what it holds or an InputError.
Cases are edits of valid examples (cut, doubled, swapped, words of a dictionary put in) and free
text. Prints a row per target; the first wrong case of a target ends it and is printed.
"""

import contextlib
import hashlib
import io
import json
import math
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

import config
import report
from benchmarks.timing import Table, machine
from config import BASE_MODEL, TrainConfig
from data.coco import load_coco
from data.examples import Example, completion_text
from data.files import read_json
from data.grounding import load_grounding
from data.rows import load_records
from model.config import VLMConfig
from model.image import load_image
from model.processor import Processor
from model.weights import read_slots
from rewards import WEIGHTS
from runtime.errors import InputError
from tasks import TASKS, load_task, reads
from tasks.task import Task
from train_grpo import GRPOConfig
from train_sft import SFTConfig
from training.checkpoint import why_unusable

LIMIT = 1.0  # seconds of one case
SETTINGS = settings(deadline=None, database=None, phases=[Phase.generate])
SETTINGS = settings(SETTINGS, suppress_health_check=list(HealthCheck))
WORDS = (
    """
<think> </think> <answer> </answer> <summary> <caption> <reasoning> ```json ``` [ ] { } ( ) ' " \\ ,
nan NaN inf -Infinity 1e999 1e308 -0 0x10 1_000 ١٢ 99**98**97 \\boxed{7} \\u0000 <|im_end|> true
"bbox_2d" "label" "confidence" bbox Position position Change Add Remove yes no A B C or and cat dog
1 2 3 0.5 100 999 1000 10000 .. / - : ; "image" "problem" "solution" "images" "annotations" "size"
"categories" "refs" "bbox" "step" "sha256" "weight_map" "width" ../ /etc/passwd null false [[ ]]
""".split()
    + ["\x00", "\u202e", " ", "\n", "<script>", "\x1b[2J"]
)


class Wrong(AssertionError):
    """What must not happen, in one line."""


# ---- completions ---------------------------------------------------------------------------------


@cache
def examples() -> list[tuple[Task, Example, float]]:
    """Every task with some of its examples, and what the right answer earns."""
    processor, triples = Processor(BASE_MODEL), []
    for name in TASKS:
        flags = ("train_size", "held_out_size", "held_out_per_class")
        sizes = {flag: 3 for flag in flags if reads(name, flag)}
        task = load_task(GRPOConfig(task=name, **sizes), processor)
        for example in task.train[:3]:
            right = completion_text(example.target, "think", example.reasoning)
            triples.append((task, example, task.reward(right, example, WEIGHTS, 0.0).total))
    return triples


def check_completion(data: bytes) -> None:
    """Score a completion by the rules of every task, sparse and dense."""
    text = data.decode("utf-8", "replace")
    for task, example, best in examples():
        for dense in (0.0, 1.0):
            total = task.reward(text, example, WEIGHTS, dense).total
            if not math.isfinite(total) or total > best + 1e-9:
                raise Wrong(f"{task.name} pays {total} of {best} for {text[:300]!r}")
        scores = task.scores(text, example)
        if not all(math.isfinite(value) and -1 <= value <= 1 for value in scores.values()):
            raise Wrong(f"{task.name} scores {scores} for {text[:300]!r}")


def _completions() -> list[bytes]:
    return [
        completion_text(e.target, mode, e.reasoning).encode()
        for _, e, _ in examples()
        for mode in ("think", "direct", "steps")
    ]


# ---- files ---------------------------------------------------------------------------------------


@cache
def folder() -> Path:
    """A folder with a few pictures; files under test are written into it."""
    root = Path(tempfile.mkdtemp(prefix="fuzz-"))
    for i in range(3):
        Image.new("RGB", (40, 30), (80 * i, 90, 20)).save(root / f"{i}.png")
    for run in ("run", "run2"):  # with all that a reader wants beside the file under test
        (root / run / "images").mkdir(parents=True)
        config.save(GRPOConfig(), root / run / "config.json")
        Image.new("RGB", (40, 30)).save(root / run / "images" / "0.jpg")
        (root / run / "metrics.jsonl").write_bytes(_metrics()[0])
    for name, content in CHECKPOINT.items():
        (root / "step_1" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "step_1" / name).write_bytes(content)
    shutil.copytree(BASE_MODEL, root / "tokens")
    return root


def reading(name: str, read: Callable[[Path], object], data: bytes) -> None:
    """Write a file and read it. It may be refused; any other exception than an InputError reaches
    the fuzzer. That valid files are not refused is a test (tests/benchmarks/test_benchmarks.py)."""
    path = folder() / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    with contextlib.suppress(InputError), contextlib.redirect_stdout(io.StringIO()):
        read(path)


def _as_json(*values: object) -> list[bytes]:
    return [json.dumps(value).encode() for value in values]


BOX = [{"Position": [1, 2, 30, 20], "Confidence": 0.9}]
ROWS = [
    {"image": "0.png", "problem": "How many?", "solution": "3"},
    {"image": "1.png", "problem": "Where?", "solution": f"<answer>{BOX}</answer>"},
]
PAIR = {"images": ["0.png", "1.png"], "problem": "<image><image> Changed?", "solution": "no"}
PAIRS = [PAIR, PAIR | {"solution": "yes"}]
COCO = {
    "images": [{"id": 1, "file_name": "0.png", "width": 40, "height": 30}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 2, "bbox": [1, 2, 9, 9], "iscrowd": 0}],
    "categories": [{"id": 2, "name": "cat"}],
}
REF = {"ref_id": 1, "ann_id": 1, "image_id": 1, "split": "val", "sentences": [{"sent": "cat"}]}
EVALUATION = {"step": 0, "eval/strict": 0.25, "seconds/eval": 0.1}
STEP = {"step": 1, "reward": 0.5, "seconds/rollout": 0.1, "loss": 0.1}
COMPLETION = {
    "tokens": ["<answer>", "3", "</answer>"],
    "probabilities": [0.9, 0.5, 1.0],
    "reward": 1.5,
    "parts": {"correct": 1.0},
    "advantage": 0.7,
    "finish": "stop",
    "has_answer": True,
    "boxes": [[0.1, 0.2, 0.5, 0.6]],
}
VIEW = {
    "step": 0,
    "view": "held_out",
    "id": "a",
    "question": "How many?",
    "target": "3",
    "boxes": [[0.1, 0.2, 0.5, 0.6]],
    "images": ["images/0.jpg"],
    "completions": [COMPLETION, COMPLETION | {"heat": [[0.1, 1.0], [0.0, 0.2]]}],
}
CHECKPOINT = {
    "trainer/state.json": b'{"step": 1}',
    "trainer/optimizer.safetensors": b"",
    "hf/config.json": b"{}",
}
HEADER = _as_json({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})[0]


def _pictures() -> list[bytes]:
    files = []
    for kind, mode in (("PNG", "P"), ("JPEG", "RGB"), ("GIF", "P"), ("WEBP", "RGBA"), ("BMP", "1")):
        buffer = io.BytesIO()
        Image.new(mode, (9, 7)).save(buffer, kind)
        files.append(buffer.getvalue())
    return files


def _metrics() -> list[bytes]:
    rows = _as_json(EVALUATION, STEP, STEP | {"step": 2}, EVALUATION | {"step": 2})
    return [b"".join(row + b"\n" for row in rows)]


def _gallery() -> list[bytes]:
    return [b"\n".join(_as_json(VIEW, VIEW | {"step": 3}, VIEW | {"step": 3, "view": "best"}))]


def _manifest() -> list[bytes]:
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in CHECKPOINT.items()}
    return _as_json({n: {"bytes": len(CHECKPOINT[n]), "sha256": sums[n]} for n in sums})


def _report_page(path: Path) -> None:
    report.main([str(path.parent)])


Target = tuple[Callable[[], list[bytes]], Callable[[bytes], None]]  # valid inputs; the check


def _file_target(seeds: Callable[[], list[bytes]], name: str, read: Callable) -> Target:
    return seeds, partial(reading, name, read)


TARGETS: dict[str, Target] = {
    "completions": (_completions, check_completion),
    "rows, jsonl": _file_target(
        lambda: [b"\n".join(_as_json(*rows)) for rows in (ROWS, PAIRS)],
        "set.jsonl",
        lambda p: load_records(str(p), 1.0),
    ),
    "rows, json": _file_target(
        lambda: _as_json(ROWS, PAIRS), "set.json", lambda p: load_records(str(p), 1.0)
    ),
    "coco": _file_target(lambda: _as_json(COCO), "coco.json", lambda p: load_coco(p, None, 1.0)),
    "refer": _file_target(
        lambda: _as_json(COCO | {"refs": [REF]}),
        "refer.json",
        lambda p: load_grounding(str(p), None, 1.0),
    ),
    "pictures": _file_target(_pictures, "picture", load_image),
    "any json": _file_target(lambda: _as_json(ROWS, COCO), "any.json", read_json),
    "run settings": _file_target(
        lambda: _as_json(config.to_dict(GRPOConfig()), config.to_dict(SFTConfig())),
        "config.json",
        lambda p: config.load(TrainConfig, p, strict=False),
    ),
    "manifest": _file_target(_manifest, "step_1/manifest.json", lambda p: why_unusable(p.parent)),
    "metrics, page": _file_target(_metrics, "run/metrics.jsonl", _report_page),
    "gallery, page": _file_target(_gallery, "run2/gallery.jsonl", _report_page),
    "model config": _file_target(
        lambda: [(BASE_MODEL / "config.json").read_bytes()],
        "model/config.json",
        lambda p: VLMConfig.from_directory(p.parent),
    ),
    "tokenizer": _file_target(
        lambda: [(BASE_MODEL / "tokenizer.json").read_bytes()],
        "tokens/tokenizer.json",
        lambda p: Processor(p.parent),
    ),
    "safetensors": _file_target(
        lambda: [len(HEADER).to_bytes(8, "little") + HEADER + b"\0\0\0\0"],
        "weights/model.safetensors",
        lambda p: read_slots(p.parent),
    ),
}


# ---- generators ----------------------------------------------------------------------------------


def edited(data: bytes, rng: random.Random) -> bytes:
    """A valid input after a few edits."""
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        a, b = sorted(rng.randint(0, len(data)) for _ in range(2))
        b = min(b, a + rng.choice((1, 4, 40, 4000)))
        word = rng.choice(WORDS).encode("utf-8", "replace")
        data = rng.choice(
            (
                data[:a] + data[b:],
                data[:a] + data[a:b] * rng.choice((2, 3, 100)) + data[b:],
                data[:a] + word + data[a:],
                data[:a] + word + data[b:],
                data[:a] + word * rng.choice((2, 50, 5000)) + data[b:],
                data[:a] + bytes([rng.randrange(256)]) + data[a + 1 :],
                data[:a],
            )
        )[: 2**20]
    return data


@st.composite
def _cases(draw, seeds: list[bytes]):
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(st.binary(max_size=300))
    if kind == 1:
        return draw(st.text(max_size=300)).encode("utf-8", "replace")
    if kind == 2:
        return " ".join(draw(st.lists(st.sampled_from(WORDS), max_size=40))).encode()
    return edited(draw(st.sampled_from(seeds)), random.Random(draw(st.integers(0, 2**32))))


def timed(check: Callable[[bytes], None], data: bytes) -> float:
    """Seconds of one case; raises Wrong for what must not happen."""
    for _ in range(2):  # the machine may have been busy
        start = time.perf_counter()
        check(data)
        seconds = time.perf_counter() - start
        if seconds <= LIMIT:
            return seconds
    raise Wrong(f"{seconds:.1f} s for {data[:300]!r}")


def fuzz(name: str, count: int, number: int) -> dict:
    """`count` cases of a target: how many ended well, the longest in seconds, and what is wrong."""
    (seeds, check), result = TARGETS[name], {"cases": 0, "longest": 0.0, "wrong": ""}

    @seed(number)
    @settings(SETTINGS, max_examples=count)
    @given(_cases(seeds()))
    def run(data: bytes) -> None:
        result["longest"] = max(result["longest"], timed(check, data))
        result["cases"] += 1

    try:
        run()
    except Exception as error:  # whatever it is: this is what the search is for
        result["wrong"] = f"{type(error).__name__}: {error}"[:1000]
    return result


def main() -> None:
    parser = config.Parser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000, help="of each target")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start, wrong, total, table = time.time(), [], 0, Table()
    for name in args.targets:
        result = fuzz(name, args.cases, args.seed)
        total += result["cases"]
        table.add(target=name, **result | {"wrong": bool(result["wrong"])})
        wrong += [f"{name}: {result['wrong']}"] if result["wrong"] else []
    print(f"{machine()}; {time.time() - start:.0f} s; seed {args.seed}; {total} cases")
    print("\n".join(wrong) or "every one within a second, finite and handled")
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
