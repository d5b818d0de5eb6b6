"""What a rater does is in the file before the answer, taken back, continued and never lost."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from unittest.mock import Mock

import pytest

import rate as script
from config import BASE_MODEL
from data.examples import Example
from data.ratings import agreement, read_ratings
from rating.pairs import Item, pairs, read_completions, singles
from rating.ratings_file import RatingsFile
from rating.server import Server
from rating.session import Session
from reporting.page.rollouts import MAX_BOXES
from runtime.errors import InputError
from tests.helpers import rows
from tests.rating.helpers import ask, completions, examples, rate, serving, simulated_choice

ROOT = Path(__file__).resolve().parents[2]
ITEMS = pairs(completions(), seed=0, count=30)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "ratings.jsonl"


def test_every_act_is_a_line_and_a_restart_goes_on(path):
    with serving(path, ITEMS) as server:
        for choice in ("left", "right", "tie", "skip"):
            state = rate(server, choice)
        assert (state["done"], state["total"], state["can_undo"]) == (4, 30, True)
    assert [row["choice"] for row in rows(path)] == ["left", "right", "tie", "skip"]
    first = rows(path)[0]
    assert first["texts"] == list(ITEMS[0].texts) and first["rater"] == "simulated"
    assert (first["kind"], first["id"], first["step"]) == ("pair", ITEMS[0].id, ITEMS[0].step)
    assert 0 <= first["seconds"] < 60 and first["time"].endswith("+00:00")
    with serving(path, ITEMS) as server:
        _, state, _ = ask(server, "GET", "/state")
        assert state["texts"] == list(ITEMS[4].texts) and state["done"] == 4
        assert rate(server, "undo")["texts"] == list(ITEMS[3].texts)  # of the session before
        rate(server, "right")
    assert [row["kind"] for row in rows(path)] == ["pair"] * 4 + ["undo", "pair"]
    assert [rating.label for rating in read_ratings(path)] == [1.0, 0.0, 0.5, 0.0]


def test_undo_takes_back_own_acts_alone(path):
    with serving(path, ITEMS) as server:
        rate(server, "left")
    file = RatingsFile(path)
    other = Session(ITEMS, examples(["q"]), file, "another")
    assert other.current() == ITEMS[0] and not other.can_undo()  # starts anew, beside the first
    scores = Session(singles(completions(), 0, 9), examples(["q"]), file, "simulated", scale=5)
    assert not scores.can_undo()
    assert Session(ITEMS[1:], {}, file, "simulated").can_undo() is False  # would show another pair
    file.close()
    with serving(path, ITEMS) as server:
        assert not rate(server, "undo")["can_undo"]
        _, state, _ = ask(server, "GET", "/state")
        status, answer, _ = ask(server, "POST", "/rate", {"turn": state["turn"], "choice": "undo"})
        assert status == 409 and "nothing to take back" in answer["error"]
    assert [row["kind"] for row in rows(path)] == ["pair", "undo"]


def test_the_rater_is_told_nothing_of_rewards_steps_and_targets(path):
    with serving(path, ITEMS) as server:
        _, state, _ = ask(server, "GET", "/state")
    known = {"turn", "scale", "total", "done", "can_undo", "question", "pictures", "texts"}
    assert state.keys() == known | {"boxes"} and "secret" not in json.dumps(state)


def test_boxes_are_told_where_the_question_asks_for_boxes_and_the_target_is_not(path):
    boxed, other = "<answer>[0, 500, 250, 1000]</answer>", "<answer>[1, 2]</answer> [3, 4, 5, 6]"
    item = Item("q", 1, (boxed, other))
    for target, expected in (("[7, 7, 99, 99]", [[[0.0, 0.5, 0.25, 1.0]], []]), ("3", [[], []])):
        with serving(path, [item], target=target) as server:
            _, state, _ = ask(server, "GET", "/state")
        assert state["boxes"] == expected and "0.099" not in json.dumps(state)
    many = json.dumps([[0, 0, 9, 9]] * 200)
    with serving(path, [Item("q", 1, (f"<answer>{many}</answer>", ""))], target=many) as server:
        assert len(ask(server, "GET", "/state")[1]["boxes"][0]) == MAX_BOXES


def test_a_simulated_rater_agrees_with_itself_and_the_last_page_says_so(path):
    with serving(path, ITEMS) as server:
        _, state, _ = ask(server, "GET", "/state")
        while "summary" not in state:
            state = rate(server, simulated_choice(state))
        assert state["done"] == 30
        assert "30 pairs: " in state["summary"][0] and "0 skipped" in state["summary"][0]
        assert state["summary"][1] == "self-agreement: 100.0% [43.8%, 100.0%] of 3 judged twice"
        status, answer, _ = ask(server, "POST", "/rate", {"turn": 30, "choice": "left"})
        assert (status, answer) == (409, {"error": "everything is rated"})
        assert rate(server, "undo")["done"] == 29
    ratings = read_ratings(path)
    assert agreement(ratings) == (1.0, 2)
    longer = [r.label for r in ratings if len(r.texts[0]) > len(r.texts[1])]
    assert set(longer) == {1.0} and len(longer) > 5


def test_scores_of_single_completions(path):
    items = singles(completions(), seed=0, count=8)
    with serving(path, items, scale=5) as server:
        for choice in (3, 5, "skip", 1):
            state = rate(server, choice)
        assert state["done"] == 4 and len(state["texts"]) == 1
        for choice in (0, 6, "left", None, 2.5, True, [1]):
            status, _, _ = ask(server, "POST", "/rate", {"turn": 4, "choice": choice})
            assert status == 400, choice
        server.session.items = items[:4]
        _, state, _ = ask(server, "GET", "/state")
        what = "3 completions scored (1 x 1, 1 x 3, 1 x 5), 1 skipped"
        assert state["summary"] == [what, "3 comparisons follow from them"]
    assert [(row["score"], row["of"]) for row in rows(path)] == [(3, 5), (5, 5), (None, 5), (1, 5)]
    assert len(read_ratings(path)) == 3


def test_a_page_that_is_out_of_date_does_nothing(path):
    """A key pressed twice, or a second window."""
    with serving(path, ITEMS) as server:
        answers = []

        def press():
            answers.append(ask(server, "POST", "/rate", {"turn": 0, "choice": "left"})[0])

        threads = [threading.Thread(target=press) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answers) == [200] + [409] * 7
        for turn in (0, 2, True, "1", None):
            assert ask(server, "POST", "/rate", {"turn": turn, "choice": "left"})[0] == 409
    assert len(rows(path)) == 1


def test_a_full_disk_is_told_and_nothing_is_lost_or_half_written(path, monkeypatch):
    with serving(path, ITEMS) as server:
        rate(server, "left")
        before = path.read_bytes()
        monkeypatch.setattr("os.fsync", Mock(side_effect=OSError(28, "No space left on device")))
        status, answer, _ = ask(server, "POST", "/rate", {"turn": 1, "choice": "right"})
        assert status == 507 and "not saved" in answer["error"] and "No space" in answer["error"]
        assert path.read_bytes() == before and len(server.session.acts) == 1
        monkeypatch.undo()
        assert ask(server, "POST", "/rate", {"turn": 1, "choice": "right"})[0] == 200
    assert len(rows(path)) == 2


def test_a_line_is_on_the_disk_before_the_answer(path, monkeypatch):
    flushed = []
    real = os.fsync
    monkeypatch.setattr("os.fsync", lambda file: flushed.append(path.read_bytes()) or real(file))
    with serving(path, ITEMS) as server:
        rate(server, "left")
        assert flushed[-1] == path.read_bytes() != b"" and len(flushed) == 2  # file, directory


def test_a_last_line_that_was_never_finished_is_cut_and_told(path, capsys):
    with serving(path, ITEMS) as server:
        rate(server, "left")
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:40])
    with serving(path, ITEMS) as server:
        assert "never finished is cut off (40 bytes)" in capsys.readouterr().out
        assert path.read_bytes() == whole
        rate(server, "right")
    path.write_bytes(path.read_bytes()[:-1])  # a whole line without its end is kept
    with serving(path, ITEMS) as server:
        rate(server, "tie")
    assert [row["choice"] for row in rows(path)] == ["left", "right", "tie"]


def test_two_at_once_and_what_is_no_file_are_refused(path, tmp_path):
    with serving(path, ITEMS):
        with pytest.raises(InputError, match="--output .*another rate.py is writing there; end it"):
            RatingsFile(path)
    RatingsFile(path).close()
    path.write_text("{}\n")
    with pytest.raises(InputError, match="ratings.jsonl:1: kind None .*; repair or remove"):
        RatingsFile(path)
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe", tmp_path / "no" / "file"):
        with pytest.raises(InputError, match="--output .*(no regular file|cannot be written)"):
            RatingsFile(place)


def test_a_picture_that_is_gone_is_told_and_a_port_that_is_taken_is_refused(path, tmp_path):
    with serving(path, ITEMS) as server:
        gone = Example(ITEMS[0].id, (tmp_path / "gone.png",), "Which?", "x")
        server.session.examples[ITEMS[0].id] = gone
        _, state, _ = ask(server, "GET", "/state")
        assert state["pictures"] == [None]
        port = server.server_address[1]
        with pytest.raises(InputError, match=f"--port {port}: cannot be had"):
            Server(server.session, port)


# ---- the script ----------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path) -> Path:
    """A run's directory: its settings and its completions, some of a question that is gone."""
    directory = tmp_path / "run"
    directory.mkdir()
    settings = {"script": "train_grpo.py", "task": "cls", "model": str(BASE_MODEL)}
    (directory / "config.json").write_text(json.dumps(settings))
    ids = ["train-2503-solara-minor-0", "train-2503-violana-rara-0", "gone"]
    texts = [
        {"id": id, "step": s, "completion": f"t{n}"} for id in ids for s in (1, 2) for n in "ab"
    ]
    lines = [json.dumps(row | {"reward": 0.5, "target": "x"}) + "\n" for row in texts]
    (directory / "completions.jsonl").write_text("".join(lines))
    return directory


def test_kill_9_after_an_answer_loses_nothing(run):
    command = [sys.executable, str(ROOT / "rate.py"), str(run), "--rater", "simulated"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=run.parent)
    try:
        said = [process.stdout.readline() for _ in range(3)]
        assert "4 of 12 completions left out: the data lack their questions" in said[0]
        assert said[1].startswith("http://127.0.0.1:")
        url = said[1].strip()
        with pytest.raises(InputError, match="another rate.py"):
            RatingsFile(run / "ratings.jsonl")
        _, state, _ = ask(url, "GET", "/state")
        assert state["question"] == "Which species is this flower?"
        assert state["pictures"][0].startswith("data:image/jpeg;base64,")
        for turn, choice in enumerate(("left", "right")):
            assert ask(url, "POST", "/rate", {"turn": turn, "choice": choice})[0] == 200
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert [row["choice"] for row in rows(run / "ratings.jsonl")] == ["left", "right"]
    known = [c for c in read_completions(run) if c.id != "gone"]
    with serving(run / "ratings.jsonl", pairs(known, 0, 200)) as server:
        _, state, _ = ask(server, "GET", "/state")
        assert (state["done"], state["total"]) == (2, 4)


def test_ctrl_c_ends_with_a_summary_and_other_data_are_told(run, monkeypatch, capsys):
    about = {"data": {"train": {"examples": 30, "sha256": "0" * 16}}}
    (run / "run.json").write_text(json.dumps(about))
    monkeypatch.setattr(Server, "serve_forever", Mock(side_effect=KeyboardInterrupt))
    script.main([str(run), "--rater", "simulated"])
    said = capsys.readouterr()
    assert "0 pairs: 0 left better" in said.out and "no pair was judged twice yet" in said.out
    assert "the data are not those that the run was trained on" in said.err
    RatingsFile(run / "ratings.jsonl").close()  # unlocked


@pytest.mark.parametrize(
    "words, what",
    [
        ("", "--run .*: must be given"),
        ("RUN --scale 1", "--scale 1: must be in 2 .. 9"),
        ("RUN --scale 10", "--scale 10: must be in 2 .. 9"),
        ("RUN --count 0", "--count 0: must be"),
        ("RUN --port 70000", "--port 70000: must be"),
        ("RUN --seed -1", "--seed -1: must be"),
        ("RUN/no", "is no run"),
        ("RUN --model RUN/no", "--model .*no"),
    ],
)
def test_bad_flags_are_one_line(run, words, what):
    with pytest.raises(InputError, match=what):
        script.main(words.replace("RUN", str(run)).split())


def test_completions_of_other_data_and_of_equal_texts_are_refused():
    with pytest.raises(InputError, match="--data: has none of the run's questions"):
        script.known(completions(), {"other": None})
