"""report.html shows a run, stays small, and nothing in it can act.

The page is opened in a real browser where one is installed (chromium): it renders, the console
stays empty, and hostile text stays text.
"""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

import report
import train_sft
from reporting.page import render
from reporting.page.rollouts import distinct, pieces, snapshots, with_turns
from reporting.page.saved_run import Run, read_run
from runtime.errors import InputError, visible
from runtime.run_directory import lock_directory
from tasks import TASKS
from tasks.loose import RULES

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = [
    "<script>document.title='owned'</script>",
    "</bdi></section><img src=x onerror=\"document.title='owned'\">",
    "<a href='https://example.com'>&lt;&amp;&#x3C;script></a>",
    "--></style></title><!--",
    "{{ 7 * 7 }} {% for %} ${1} %d [/bold]",
    "\x00\x07\x1b[31m\u202eevil\u2066 \ud800 \ufeff \u200b\u00ad\U000e0041 end",
]


class Tags(HTMLParser):
    """The elements of a page, and its visible text."""

    def __init__(self, text: str):
        super().__init__()
        self.html, self.elements, self.attributes, self.text = text, [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data

    def values(self, *names: str) -> list[str]:
        return [value for name, value in self.attributes if name in names]


def page_of(directory: Path, **rows: list[dict]) -> Tags:
    """Write the page again, after replacing the rows of gallery.jsonl or metrics.jsonl."""
    for name, values in rows.items():
        text = "".join(json.dumps(row) + "\n" for row in values)
        (directory / f"{name}.jsonl").write_text(text)
    report.main([str(directory)])
    return Tags((directory / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def copied(run_dir, tmp_path) -> Path:
    """A copy of the run, to change."""
    return shutil.copytree(run_dir, tmp_path / "run")


@pytest.fixture
def hostile_dir(run_dir, tmp_path) -> Path:
    """The same run, whose texts are all hostile."""
    out, run = shutil.copytree(run_dir, tmp_path / "<b>run"), read_run(run_dir)
    (tmp_path / "secret.jpg").write_bytes(next((out / "images").iterdir()).read_bytes())
    for row in run.gallery:
        row["question"], row["target"], row["id"] = HOSTILE[0], HOSTILE[1], HOSTILE[2]
        row["images"] = ["images/../../secret.jpg", "/etc/passwd", "images/0123456789abcdef.jpg"]
        for completion in row["completions"]:
            completion["tokens"] = ["<think>", *HOSTILE, "</think><answer>", *HOSTILE, "</answer>"]
            completion["probabilities"] = [0.5] * len(completion["tokens"])
            completion["parts"] = {HOSTILE[0]: 1.0}
    texts = {"command": HOSTILE[0], "device": HOSTILE[1], "skipped": HOSTILE, "commit": HOSTILE[5]}
    (out / "run.json").write_text(json.dumps(run.about | texts))
    run.rows[-1] |= {f"rewards/{HOSTILE[0]}/mean": 1.0, f"rewards/{HOSTILE[3]}/mean": 1.0}
    page_of(out, gallery=run.gallery, metrics=run.rows)
    return out


def sampled(tokens: list[str], advantage: float, **more) -> dict:
    """A completion as gallery.jsonl has it."""
    completion = {"tokens": tokens, "probabilities": [0.5] * len(tokens), "reward": advantage}
    completion |= {"parts": {"correct": 1.0}, "advantage": advantage}
    return completion | {"finish": "stop", "has_answer": True} | more


# ---- what a page shows ---------------------------------------------------------------------------


def test_the_page_shows_everything_and_needs_nothing(run_dir):
    page = Tags((run_dir / "report.html").read_text(encoding="utf-8"))
    for words in (
        *("held-out mAP", "Zero-std groups", "Gradient norm", "Parts of the reward", "advantage A"),
        *("Peak memory", "start", "step 2", "target", "sha256", "num_generations"),
        *("Few-shot detection (det) on garden", "Find every", "6 held-out, 6 out-of-distribution"),
        *("--task det --shots 1", "python train_grpo.py --task det", "python sample.py --model"),
        "nats: units of the natural logarithm",
    ):
        assert words in page.text, words
    # What is right for boxes; the headline of det is mAP, and it has no loose rule.
    assert "strict: every box is found at IoU 0.5" in page.text and "Beside it" not in page.text
    assert "reward = iou + confidence + 0.5 x format" in page.text and "mAP: mean av" in page.text
    assert "Best groups" not in page.text  # a random model earns nothing
    assert "<title>det on garden · run</title>" in page.html and not {"script", "link"} & set(
        page.elements
    )
    links = page.values("src", "href")
    pictures = {link for link in links if re.fullmatch("data:image/jpeg;base64,[^,]+", link)}
    assert {len(link) % 4 for link in pictures} == {len("data:image/jpeg;base64,") % 4}  # whole
    assert set(links) - pictures == {f"#{name}" for name in page.values("id")}  # each stored once
    assert {"target-box", "heat"} <= set(page.values("class"))
    changed = set(re.findall(r'<tr class="set"><td>(\w+)</td>', page.html))  # bold
    words = "task model max_steps eval_steps prompts_per_step held_out_size report_attention"
    assert changed == {*words.split(), "max_completion_length", "groups_per_micro_batch"}


def test_a_run_without_run_json_gallery_and_pictures_has_a_page(copied):
    for name in ("run.json", "gallery.jsonl"):
        (copied / name).unlink()
    shutil.rmtree(copied / "images")
    rows = [{"step": s, "eval/strict": 0.5, "eval/loose": 0.9} for s in range(3)]
    text = page_of(copied, metrics=rows).text
    assert "None." in text and "run.json is missing" in text and "2 of 3 steps" in text
    # Words are explained where they appear.
    assert "strict: every box" in text and "loose: right by" in text
    assert "Beside it: loose" in text and "out of distribution: " not in text
    assert text.index("strict: every box") < text.index("A held-out question")  # before its use


def test_supervised_fine_tuning_has_a_page_too(tiny_dir, tmp_path, capsys):
    words = f"--task count --model {tiny_dir} --output_dir {tmp_path / 'run'} --max_steps 2"
    words += " --prompts_per_step 2 --held_out_size 4 --max_completion_length 6 --report_prompts 0"
    train_sft.main(words.split())
    path = tmp_path / "run" / "report.html"
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {path}"
    text = Tags(path.read_text(encoding="utf-8")).text
    assert "supervised fine-tuning" in text and "python train_sft.py" in text and "None." in text


def test_pieces_put_thought_answer_and_tags_apart():
    tokens = ["<think>", "a", " b", "</think>", "<answer>", "Solara", " minor", "</answer>", "!"]
    assert pieces(tokens, [0.05, 0.95, 0.999, 1.0, 0.5, 0.2, 0.9, 1.0, 0.0]) == [
        ("tag", [("<think>", 0)]),
        ("thought", [("a b", 9)]),  # neighbours of one tint
        ("tag", [("</think>", 9), ("<answer>", 5)]),
        ("answer", [("Solara", 2), (" minor", 9)]),
        ("tag", [("</answer>", 9)]),
        ("plain", [("!", 0)]),
    ]
    # Without an end or a beginning, and with a tag of several tokens.
    assert [kind for kind, _ in pieces(["<ans", "wer>", "x"], [1] * 3)] == ["tag", "answer"]
    kinds = [kind for kind, _ in pieces(["x", "</think>", "", ""], [1] * 4)]
    assert kinds == ["plain", "tag", "plain"] and pieces([], []) == []


def test_equal_completions_appear_once_with_every_score(copied):
    rare, often = sampled(["a"], -2.0), sampled(["b", "c"], 0.25)
    cut, other = sampled(["b", "c"], 0.25, finish="length"), sampled(["b", "c"], 0.75)
    parts = (("correct", 1.0),)
    assert distinct([rare, often, often, other, cut]) == [
        (often, [(2, 0.25, 0.25, parts), (1, 0.75, 0.75, parts)]),
        (rare, [(1, -2.0, -2.0, parts)]),
        (cut, [(1, 0.25, 0.25, parts)]),
    ]
    row = read_run(copied).gallery[0]
    row["completions"] = [sampled(["<answer>", "Solara minor"], 0.5, is_right=False)] * 5
    row["completions"] += [sampled(["<answer>", "Rosa"], -2.5, has_answer=False)] * 3
    page = page_of(copied, gallery=[row])
    assert page.text.count("Solara minor") == 1 and page.text.count("Rosa") == 1
    shown = ["5 × ✗ wrong 0.50 correct 1.00 A +0.50", "3 × ? answer block not closed -2.50"]
    assert page.text.index(shown[0]) < page.text.index(shown[1])
    classes = page.values("class")
    assert {"completion raised", "completion lowered"} <= set(classes)
    assert classes.count("answer") == 1  # of the readable one


@pytest.mark.parametrize("advantage, edge", [(0.9, "raised"), (-0.9, "lowered"), (0.0, "neutral")])
@pytest.mark.parametrize(
    "about, mark",
    [
        ({"is_right": True}, "✓ right"),
        ({"is_right": False}, "✗ wrong"),
        ({"is_right": False, "is_readable": False}, "? unreadable"),
        (
            {"is_right": False, "is_readable": False, "has_answer": False},
            "? answer block not closed",
        ),
        ({}, ""),  # the gallery of an older version
    ],
)
def test_the_edge_is_the_advantage_and_a_symbol_with_a_word_says_what_is_right(
    copied, advantage, edge, about, mark
):
    row = read_run(copied).gallery[0] | {
        "completions": [sampled(["<answer>", "x"], advantage, **about)]
    }
    page = page_of(copied, gallery=[row])
    (place,) = (value for value in page.values("class") if value.startswith("completion "))
    assert place == f"completion {edge}" and f"A {advantage:+.2f}" in page.text
    score = page.text.split("step 0")[-1].split("start")[-1].strip()
    assert score.startswith(mark or f"{advantage:.2f}")


def test_a_group_without_advantages_is_never_among_the_best(copied):
    row = read_run(copied).gallery[0]
    alike, differing = ([sampled(["a"], value), sampled(["b"], -value)] for value in (0.001, 0.7))
    rows = [row | {"view": "best", "step": 1, "completions": alike}]
    assert "Best groups" not in page_of(copied, gallery=rows).text
    rows += [row | {"view": "best", "step": 2, "completions": differing}]
    text = page_of(copied, gallery=rows).text
    assert "Best groups" in text and "A +0.70" in text and "A +0.00" not in text


def test_a_completion_without_a_reward_says_so_and_the_first_faults_are_shown(copied):
    row = read_run(copied).gallery[0]
    lost = sampled(["a"], 0.0, has_answer=True, is_right=True) | {"reward": None, "parts": {}}
    fault = {"step": 7, "kind": "exception", "what": f"OSError: judge is away {HOSTILE[0]}"}
    (copied / "reward_faults.jsonl").write_text(json.dumps(fault) + "\n")
    rows = [row | {"view": "lost", "completions": [lost]}]
    page = page_of(copied, gallery=rows)
    assert (
        "✓ right no reward, left out" in page.text
        and "A +0.00" not in page.text
        and "Lost rewards" in page.text
    )
    assert "exception, step 7" in page.text and "OSError: judge is away" in page.text
    assert "script" not in page.elements


def test_what_a_completion_was_shown_stands_where_it_was_shown(copied):
    """With the region that it asked for on the picture; of zoom, who looked, in a table."""
    path = copied / "gallery.jsonl"
    gallery = [json.loads(line) for line in path.read_text().splitlines()]
    (image,) = gallery[0]["images"]
    turn = {"at": 2, "outcome": "done", "region": [0.1, 0.2, 0.5, 0.6]}
    for row in gallery:
        for c in row["completions"]:
            c["turns"] = [turn | {"parts": ["<look>", {"image": image}, "<b>words</b>"]}]
    path.write_text("\n".join(map(json.dumps, gallery)))
    first = gallery[0]["completions"][0]
    shown = with_turns(first["tokens"], first["probabilities"], first["turns"], copied)
    kinds = [kind for kind, _ in shown]
    before = "".join(t for _, parts in shown[: kinds.index("shown")] for t, _ in parts)
    assert before == "".join(first["tokens"][:2]) and kinds.count("shown") == 1
    rows_of = {"eval/needs_look/strict": 0.25, "eval/needs_look/looked": 0.125}
    rows_of |= {"eval/at_sight/strict": 0.5, "eval/at_sight/looked": 0.0625}
    with (copied / "metrics.jsonl").open("a") as out:
        out.write(json.dumps({"step": 99} | rows_of) + "\n")
    text = render.page([read_run(copied)])
    assert "&lt;b&gt;words&lt;/b&gt;" in text and "<b>words</b>" not in text
    assert text.count('class="look"') == text.count('class="shown"') > 3
    assert '<rect class="box"' in text and "needs a look</td><td>12.5% -&gt; 12.5%" in text


def test_rollouts_come_before_the_curves_and_speed_is_folded_away(run_dir):
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    first, curves, folded, more = (
        text.index(words)
        for words in (
            '<section class="group">',
            "<h2>Curves",
            ">Speed and memory<",
            "<h2>More held",
        )
    )
    assert first < curves < folded < more
    details = text[folded:].split("</details>")[0]
    assert "Peak memory" in details and "Tokens per second" in details


def test_the_loose_rule_is_not_said_to_be_never_paid(copied):
    """A --reward may pay it."""
    about = json.loads((copied / "run.json").read_text()) | {"headline": "strict"}
    (copied / "run.json").write_text(json.dumps(about))
    rows = [{"step": s, "eval/strict": 0.5, "eval/loose": 0.9} for s in range(3)]
    text = page_of(copied, metrics=rows).text
    assert "which the task's own reward does not pay" in text and "never paid" not in text


@pytest.mark.parametrize(
    "about, words",
    [
        ({"started": "2026-11-30T19:28:06+01:00"}, "30 Nov 2026 18:28 UTC"),
        ({"started": "yesterday"}, "· yesterday"),
        ({"resumed_after": [2, 7]}, "· resumed after step 2, 7"),
        ({"resumed_after": "x"}, "GRPO"),
    ],
)
def test_the_line_above_the_verdict_says_when_the_run_began_and_was_resumed(copied, about, words):
    path = copied / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | about))
    page = page_of(copied)
    assert words in page.text
    # Marked in the curves of the steps 0 to 3.
    assert ('class="resumed"' in page.html) == (about.get("resumed_after") == [2, 7])


def test_a_reward_of_the_user_is_named_above_and_in_the_verdict(copied):
    settings = json.loads((copied / "config.json").read_text()) | {"reward": "/a/one.py:pay"}
    (copied / "config.json").write_text(json.dumps(settings | {"max_steps": 30}))
    row = read_run(copied).gallery[0] | {
        "completions": [sampled(["<answer>Solara minor</answer>"], 0.0)] * 5
    }
    shares = {"eval/top_answer_share": 1.0, "eval/top_target_share": 0.1, "eval/mAP": 0.0}
    rows = [{"step": s, "rewards/user/mean": 1.0} | shares for s in range(3)]
    text = page_of(copied, gallery=[row], metrics=rows).text
    assert "reward = one.py:pay" in text
    assert "Collapsed to one answer ('Solara minor'), given to 100.0%" in text
    assert "Stopped after 2 of 30 steps" in text  # nobody holds its lock
    with lock_directory(copied):
        assert "Stopped" not in page_of(copied).text


def test_a_rule_that_is_called_loose_is_said_in_words():
    tasks = {name for name, task in TASKS.items() if "loose" in task.__doc__}
    assert tasks - {"ground"} == RULES.keys()  # whose headline is no share of right answers


def test_two_runs_side_by_side(run_dir, copied, capsys):
    settings = json.loads((copied / "config.json").read_text()) | {"learning_rate": 1e-3}
    (copied / "config.json").write_text(json.dumps(settings))
    report.main([str(copied), str(run_dir)])
    assert capsys.readouterr().out.strip() == str(copied / "compare.html")
    text = Tags((copied / "compare.html").read_text(encoding="utf-8")).text
    for name in (f"1: {copied.parent.name}/run", f"2: {run_dir.parent.name}/run"):  # of one name
        assert f"{name}: reward" in text
        assert f"{name}, step 3" in text and f"{name}, step 2" not in text
    assert "learning_rate" in text and "freeze_vision" not in text  # only differences
    assert text.index("Settings that differ") < text.index("held-out mAP")  # what was compared


# ---- size ----------------------------------------------------------------------------------------


def test_evenly_spaced_snapshots_are_shown_the_last_and_the_first_among_them():
    shown = {(n, 4): list(range(n)) for n in (0, 1, 2, 4)} | {(5, 4): [0, 2, 3, 4]}
    shown |= {(21, 4): [0, 7, 14, 20], (21, 2): [0, 20], (21, 1): [20], (21, 0): []}
    for (count, at_most), steps in shown.items():
        rows = [{"view": view, "step": i} for i in range(count) for view in ("held_out", "best")]
        run = Run(Path("a"), {}, {}, [], rows)
        assert [row["step"] for row in snapshots(run, "held_out", at_most)] == steps


@pytest.mark.parametrize("much", ["tokens", "boxes", "completions", "questions"])
def test_a_huge_run_stays_below_the_limit_and_keeps_its_ends(copied, monkeypatch, much):
    monkeypatch.setattr(render, "MAX_BYTES", 1_000_000)
    rows = [row for row in read_run(copied).gallery if row["step"] == 2]
    rows += [rows[0] | {"view": view} for view in ("best", "worst")]
    if much == "questions":
        held_out = [row for row in rows if row["view"] == "held_out"]
        rows = [row | {"id": f"{row['id']}-{i}"} for row in held_out for i in range(5)]
    for row in rows:
        times = 3 if much == "completions" else 1
        row["completions"] = [dict(c) for c in row["completions"] * times]
        row["boxes"] = [[0.1, 0.2, 0.3, 0.4]] * (400 if much == "boxes" else 1)
        for number, completion in enumerate(row["completions"]):  # all different
            tokens = ["<think>", f"<b{number}>"] * {"boxes": 9, "tokens": 900}.get(much, 99)
            completion |= {"tokens": tokens, "probabilities": [0.5, 0.7] * (len(tokens) // 2)}
            completion["boxes"], completion["advantage"] = row["boxes"], 1.0 - number % 2
    page = page_of(copied, gallery=[r | {"step": s} for s in (0, 10, 20, 30, 40) for r in rows])
    assert 100_000 < len(page.html.encode()) <= render.MAX_BYTES
    assert "start" in page.text and "step 40" in page.text and "None." not in page.text
    assert "Shown: 2 of the 5 evaluations." in page.text
    assert (" more tokens" in page.text) == (much != "boxes")
    assert (" more completions" in page.text) == (much != "tokens")
    assert (" of the 20 questions." in page.text) == (much == "questions")
    monkeypatch.setattr(render, "MAX_BYTES", 40_000)  # the last limits leave all rollouts out
    page = page_of(copied)
    assert len(page.html.encode()) <= 40_000 and "num_generations" in page.text
    assert "Shown: 0 of the 5 evaluations." in page.text and "None." in page.text


# ---- files from outside --------------------------------------------------------------------------


@pytest.mark.case("I61", "I62")
def test_hostile_text_is_shown_and_does_nothing(hostile_dir):
    page = Tags((hostile_dir / "report.html").read_text(encoding="utf-8"))
    assert not {"script", "img", "a", "image"} & set(page.elements)  # no picture from elsewhere
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert all(visible(hostile) in page.text for hostile in HOSTILE)
    unseen = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2060-\u206f]"
    assert not re.search(unseen, page.html) and "default-src 'none'" in page.html


@pytest.mark.case("F22")
def test_a_run_that_is_being_written_can_be_read_and_its_page_is_replaced_whole(
    copied, monkeypatch
):
    for name in ("metrics.jsonl", "gallery.jsonl"):
        with (copied / name).open("a") as file:
            file.write('{"step": 4, "torn')
    assert "3 of 3 steps" in page_of(copied).text
    (copied / "report.html").write_text("old")

    monkeypatch.setattr("os.replace", Mock(side_effect=OSError("disk full")))
    with pytest.raises(InputError, match="report.html: cannot be written .disk full"):
        page_of(copied)
    assert (copied / "report.html").read_text() == "old"
    assert not [path for path in copied.iterdir() if path.name.startswith(".report")]


def test_what_is_no_run_is_one_line(tmp_path, run_dir, copied):
    with pytest.raises(InputError, match="config.json"):
        report.main([str(tmp_path)])
    for place in (tmp_path / "no" / "page.html", tmp_path, Path(".")):
        with pytest.raises(InputError, match="--output .*(cannot be written|is no page)"):
            report.main([str(run_dir), "--output", str(place)])
    for damage in ('{"step": "many"}', '{"step": null, "reward": 1}', "[1]", "null", "3", "{x"):
        (copied / "metrics.jsonl").write_text(f'{{"step": 0}}\n{damage}\n\n')
        with pytest.raises(
            InputError, match="row 2 is no row of metrics|metrics.jsonl:2: not a row"
        ):
            report.main([str(copied)])
    (copied / "run.json").write_text("[]")
    with pytest.raises(InputError, match="run.json"):
        report.main([str(copied)])


# ---- in a browser --------------------------------------------------------------------------------

needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium")


def browse(page: Path, *more: str) -> subprocess.CompletedProcess:
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += ["--window-size=1240,2000", "--dump-dom", *more, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@needs_browser
@pytest.mark.parametrize("kind", ["run_dir", "hostile_dir"])
def test_a_browser_renders_the_page_without_a_word_on_its_console(kind, request, tmp_path):
    directory, picture = request.getfixturevalue(kind), tmp_path / "page.png"
    done = browse(directory / "report.html", f"--screenshot={picture}")
    assert "CONSOLE" not in done.stderr
    pixels = np.asarray(Image.open(picture).convert("L"))
    assert pixels.shape == (2000, 1240) and (pixels < 100).mean() > 0.005  # there is ink
    title = html.unescape(re.search("<title>(.*?)</title>", done.stdout)[1])
    assert title == f"det on garden · {directory.name}"
    assert not {"script", "img", "a"} & set(Tags(done.stdout).elements)


# In a frame: chromium's own window is never narrower than 500.
MEASURE = """<meta charset="utf-8"><iframe width="WIDTH" height="9000" srcdoc="PAGE"></iframe>
<script>onload = () => {
  const page = document.querySelector("iframe").contentDocument, range = page.createRange();
  const boxes = selector => [...page.querySelectorAll(selector)].map(e => {
    range.selectNodeContents(e);
    const lines = new Set([...range.getClientRects()].map(r => r.top)).size;
    const {left, top, right} = e.getBoundingClientRect();
    return {text: e.textContent, lines, left, top, right}; });
  console.log("measured");
  document.title = JSON.stringify({
    words: boxes(".flag, td:first-child"), columns: boxes("body > .group:first-of-type .column"),
    end: Math.max(page.documentElement.scrollWidth, ...boxes("body *:not(svg *)").map(e => e.right))
  });
}</script>"""


@needs_browser
@pytest.mark.parametrize("width, grid", [(1300, (1, 4)), (420, (4, 1))])
def test_nothing_is_cut_off_in_a_wide_or_a_narrow_window(copied, tmp_path, width, grid):
    """All snapshots side by side, or below each other; flags and names on one line."""
    run = read_run(copied)
    run.rows[-2]["sampling/sampling_logp_difference/mean"] = 3.2e-7
    rows = [r | {"step": s} for s in range(4) for r in run.gallery if r["step"] == 2]
    text = page_of(copied, metrics=run.rows, gallery=rows).html.replace("<details", "<details open")
    text = re.sub("<meta http-equiv.*", "", text)  # our script may run
    outer = tmp_path / "outer.html"
    outer.write_text(MEASURE.replace("WIDTH", str(width)).replace("PAGE", html.escape(text)))
    done = browse(outer, "--window-size=1400,9000")
    assert "CONSOLE" in done.stderr  # the check above can fail
    seen = json.loads(html.unescape(re.search("<title>(.*?)</title>", done.stdout)[1]))
    tops, lefts = ({column[side] for column in seen["columns"]} for side in ("top", "left"))
    assert seen["end"] <= width and (len(tops), len(lefts)) == grid
    words = {word["text"]: word["lines"] for word in seen["words"]}
    assert {"--model", "commit", "max_completion_length", "3.2e-07"} <= words.keys()
    # A path may be too long for one line.
    assert all(lines == 1 or word.startswith("/") for word, lines in words.items() if word)
