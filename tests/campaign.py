"""The campaign: every bad input, fault and numerical oracle, and what has to become of it.

    python -m pytest -m campaign

Tests name the cases that they show: `@pytest.mark.case("F12")`. A case passes if all of its tests
pass and at least one of them ran here; a case without a test fails the campaign. The table is
printed at the end of the run (tests/conftest.py).
"""

from collections import defaultdict

CASES = {
    # ---- bad inputs
    "I1": "CMYK JPEG: read in its true colours",
    "I2": "palette and colour-key transparency: composited on white",
    "I3": "modes 1, L, LA, PA: read, alpha toward white",
    "I4": "float or 32-bit TIFF: skipped, counted, the mode named",
    "I5": "mode La and the like: skipped, counted, the mode named",
    "I6": "invalid EXIF or XMP: read, unrotated",
    "I7": "file cut in half or short of its end: skipped and counted",
    "I8": "empty file: skipped and counted",
    "I9": "HTML page named .jpg: skipped and counted, named as such",
    "I10": "18 KB of 144 megapixels: skipped by its header, undecoded",
    "I11": "201:1 and 4 000 000 x 1: skipped with the ratio",
    "I12": "animation: its first frame",
    "I13": "SVG, HEIC, PDF: skipped, named, never handed to a program",
    "I14": "missing images: error with the first five and their lines",
    "I15": "paths out of the folder, by .., root, link or drive: error with the record",
    "I16": "directory, pipe, device as an image or a data set: error, no hang",
    "I17": "http, file and data URLs: error",
    "I18": "a name in another case or Unicode form: error with a hint",
    "I19": "picture lost during a run: one line, last step saved; exact resume once it is back",
    "I20": "empty set: error",
    "I21": "fewer records than a step asks: repeated, with a warning",
    "I22": "more shots than a class has images: error listing the classes",
    "I23": "BOM, CRLF, blank lines: read; bad JSON, UTF-16: error with file and line",
    "I24": "a line of 200 MB, nesting of 100 000: error at once",
    "I25": "NaN, 1e999, a negative box in the truth: error with the id",
    "I26": "missing column: error listing the columns",
    "I27": "empty solution: skipped and counted, and no target of a reward",
    "I28": "pixel boxes that all end below 1000 on large images: doubted",
    "I29": "xywh given as xyxy and the other way round: error with a hint",
    "I30": "COCO crowds, unknown categories and images: skipped",
    "I31": "labels inside labels: exact match only",
    "I32": "control tokens in a question: plain text",
    "I33": "prompt over the limit: skipped and counted, never cut",
    "I34": "pickles and arrays as data: refused unopened",
    "I35": "solutions of all types: normalised, or error",
    "I36": "a picture in train and test, by hash: dropped from the test, or kept on one side",
    "I37": "one class only: error, since all rewards would be equal",
    "I38": "nothing: 0, format 0",
    "I39": "the end token alone: 0, one token in the mask, a finite loss",
    "I40": "no end at the limit: scored on what is there, counted in clipped_ratio",
    "I41": "empty answer block: 0, format 0",
    "I42": "a list of answers: 0",
    "I43": "one letter or a prefix of the label: 0",
    "I44": "nested or unclosed tags: 0, format 0",
    "I45": "an answer only in the thoughts: 0",
    "I46": "NaN, Infinity, 1e999 in boxes: a false box; -0 is 0",
    "I47": "an integer of 5000 digits: 0",
    "I48": "coordinates as strings: a false box",
    "I49": "3 or 5 coordinates: a false box",
    "I50": "box without area: a false box, no division by zero",
    "I51": "1e308: cut to the image, finite",
    "I52": "10 000 boxes: under 50 ms, almost nothing",
    "I53": "box of the whole image: its plain IoU",
    "I54": "label missing, null or a list: a false box",
    "I55": "fence, single dict, Python's quotes: read; anything else: 0",
    "I56": "nan, inf, -inf as a number: 0",
    "I57": "power towers, 3000 braces, factorials: 0 in under 50 ms, nothing is evaluated",
    "I58": "text that looks like code: 0, never run",
    "I59": "control tokens: cannot be sampled",
    "I60": "invalid UTF-8: U+FFFD, the ids survive",
    "I61": "markup: inert in the report, under a policy that forbids scripts",
    "I62": "[/bold], {x}, %d: console and logs show them as they are",
    "I63": "=cmd|... in a spreadsheet: there is no CSV export, and there must be none",
    "I64": "raises: left out, counted, first traceback shown; over a fifth of a step: error, saved",
    "I65": "None: out of the group's mean, advantage 0, no fault",
    "I66": "wrong number of values: the group is left out and counted; over a fifth: error",
    "I67": "NaN, inf: left out and counted, never paid; in a task's own reward an error",
    "I68": "endless loop in Python or C: killed at the deadline, left out and counted",
    "I69": "10 MB of print: swallowed, its end shown with a fault",
    "I70": "unknown flag: error with the nearest one",
    "I71": "impossible values: error naming the flag",
    "I72": "output directory in use, unwritable, on a full disk: error",
    "I73": "resuming a missing, empty or foreign directory: error",
    "I74": "model directory that cannot be used, adapters too: error naming file or key",
    "I75": "no GPU, no such dtype: error; a tracker without login or network: a warning",
    "I76": "no stdin, dumb terminal, ASCII locale, spaces in paths, no home: works",
    # ---- faults
    "F1": "kill -9 in a rollout: resumed from the last save, exactly",
    "F2": "kill -9 in a backward: resumed from the last save, exactly",
    "F3": "kill -9 in the optimizer's step: the same, half an update is never seen",
    "F4": "kill after the rename of a checkpoint: it is found by number and sha256, never skipped",
    "F5": "kill while an old checkpoint is removed: one that verifies stays, a half one is ignored",
    "F6": "disk full in a checkpoint: reported in MB, old one whole, retried, exit 2 at the end",
    "F7": "disk full in logs, report and stdout: training goes on, one warning",
    "F8": "cut or altered shard: named, the checkpoint before is used; asked for itself, an error",
    "F9": "optimizer state or manifest missing: the same",
    "F10": "empty or garbled JSON in a checkpoint: the same",
    "F11": "read-only directory, EIO on flush, reading back or rename: named, old checkpoint whole",
    "F12": "SIGTERM, SIGUSR1 in a step or an evaluation: saved, exit 143, 138, exact resume",
    "F13": "SIGINT once: saved, exit 130, exact resume",
    "F14": "SIGINT twice: ends at once, without saving",
    "F15": "out of memory: half the micro-batch, same gradient; else one line naming the flags",
    "F16": "one rank of two raises: both end within 10 s and name rank and exception",
    "F17": "one rank is killed: the others end, the checkpoint is whole",
    "F18": "one rank is slow: waited for and reported, none is killed",
    "F19": "a reward's process dies: replaced and counted, its completions left out",
    "F20": "a loader's process dies: there is none, pictures are read in training itself",
    "F21": "the tracker raises: left alone with one warning",
    "F22": "logs and report read while written: whole; half a last row is skipped, cut on resume",
    "F23": "power loss: files and directory are flushed before the rename; cut files are skipped",
    "F24": "the clock jumps back: checkpoints are ordered by step",
    "F25": "a pickle planted in a run: never opened",
    # ---- numerical oracles
    "O1": "loss and its gradient to the logits: Python loops, float64 1e-10, float32 1e-5",
    "O2": "the same tensors through TRL's loss: equal to 1e-10 (skipped where trl is missing)",
    "O3": "identities: reinforce at ratio 1, zero-std groups exactly 0, K3, sums, shift and scale",
    "O4": "finite differences in float64 on 50 random logits",
    "O5": "a step cut into micro-batches of any size and order: one gradient, float64 1e-12",
    "O6": "two ranks and one: parameters 1e-6, metrics, completions; sharded; a zero-std rank",
    "O7": "transformers' Qwen2-VL: logits, every gradient, positions, prompt ids, pixels bit-equal",
    "O8": "sampler and training log-probabilities: float32 1e-4, bfloat16 mean 2e-2, T 0.7 1 1.3",
    "O9": "cached decoding and full forwards, rows that end apart, and again after another batch",
    "O10": "shared prefix and separate forwards: log-probabilities and gradients",
    "O11": "another picture in one question changes that group alone",
    "O12": "completions hold no prompt token and end with the first end token",
    "O13": "recomputed, cut, padded or not: 30 steps are the same",
    "O14": "the reference is the starting model and stays it",
    "O15": "kernels and float64, forward and backward: odd sizes, 151,936 words, 1e4, strides, NaN",
    "O16": "chi-square of drawn tokens, rows of a group independent, any batch draws the same",
    "O17": "optimizer and torch.optim.AdamW, table of learning rates, clipping and clip_grad_norm_",
    "O18": "rewards: painted boxes, pycocotools, assignments, order, extra boxes, exact is best",
    "O19": "500 random sizes: patches put together again, boxes there and back, upright pictures",
    "O20": "stopped or killed and resumed is the straight run, bit for bit, with any threads",
    "O21": "saved and loaded bit-equal, files and keys of the source, complete in transformers",
    "O22": "planted bugs: the classic ones are in a table, and one turns a test red",
    "O23": "the bundled base learns cls, count, ground in a few steps; wrong labels teach nothing",
}

KINDS = {"I": "bad inputs", "F": "faults", "O": "oracles"}


class Campaign:
    """The outcomes of the tests of every case."""

    def __init__(self):
        self.outcomes: dict[str, list[str]] = defaultdict(list)  # case -> of its tests

    def add(self, cases: list[str], outcome: str) -> None:
        """Note the outcome of a test ("passed", "failed", "skipped"). KeyError: unknown case."""
        for case in cases:
            CASES[case]  # noqa: B018
            self.outcomes[case].append(outcome)

    def verdict(self, case: str) -> str:
        """passed, failed, skipped (nothing ran here) or missing (no test shows it)."""
        outcomes = self.outcomes.get(case, [])
        for verdict in ("failed", "passed", "skipped"):
            if verdict in outcomes:
                return verdict
        return "missing"

    def table(self) -> tuple[list[str], bool]:
        """Lines to print, and whether every case passed or could not run here."""
        lines = [f"{'':12}{'cases':>7}{'tests':>7}{'passed':>8}{'other':>7}"]
        verdicts = {case: self.verdict(case) for case in CASES}
        for letter, kind in KINDS.items():
            cases = [case for case in CASES if case[0] == letter]
            tests = sum(len(self.outcomes[case]) for case in cases)
            others = [case for case in cases if verdicts[case] != "passed"]
            passed = len(cases) - len(others)
            lines.append(f"{kind:12}{len(cases):7}{tests:7}{passed:8}{len(others):7}")
            lines += [f"    {case} {verdicts[case]}: {CASES[case]}" for case in others]
        is_fine = not {"failed", "missing"} & set(verdicts.values())
        lines.append("nothing lost" if is_fine else "NOT all passed")
        return lines, is_fine
