"""--report_to mirrors the metrics, and whatever goes wrong there, the run continues."""

import os
import sys
import types
from itertools import product

import pytest

import train_grpo
from reporting.trackers import Tracker


class Recorder(types.ModuleType):
    """Stands in for wandb and trackio, which have the same interface."""

    def __init__(self, name: str, fails_at: str = "", has_login: bool | None = False):
        super().__init__(name)
        self.calls, self.fails_at, self.has_login = [], fails_at, has_login

    def _call(self, what: str, *arguments):
        self.calls.append((what, *arguments))
        if what == self.fails_at:
            raise ConnectionError("no network\nat all")

    def login(self, prompt):
        assert prompt is False
        if self.has_login is None:
            raise ConnectionError("no network")
        return self.has_login

    def init(self, **settings):
        self._call("init", settings)
        return self

    def log(self, numbers, step):
        self._call("log", numbers, step)

    def finish(self):
        self._call("finish")


@pytest.fixture(autouse=True)
def no_wandb_settings(monkeypatch):
    for variable in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_SILENT"):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.case("F21")
@pytest.mark.parametrize("fails_at", ["", "log"])
def test_a_run_logs_its_rows_to_the_tracker_and_outlives_it(
    tiny_dir, tmp_path, monkeypatch, fails_at
):
    recorder = Recorder("trackio", fails_at)
    monkeypatch.setitem(sys.modules, "trackio", recorder)
    words = f"--model {tiny_dir} --output_dir {tmp_path / 'run'} --max_steps 2 --report_to trackio"
    words += " --prompts_per_step 2 --held_out_per_class 1 --max_completion_length 6"
    train_grpo.main(words.split())
    assert (tmp_path / "run" / "step_2" / "hf" / "model.safetensors").is_file()
    (_, settings), *logs = recorder.calls
    assert settings["config"]["num_generations"] == 8 and settings["name"] == "run"
    if not fails_at:
        assert logs.pop() == ("finish",)
        assert [step for _, _, step in logs] == [0, 1, 2, 2]  # evaluations have their own rows
        assert "eval/strict" in logs[0][1] and "eval/strict" in logs[3][1]
        assert {"reward", "grad_norm"} <= logs[1][1].keys()


@pytest.mark.case("I75")
@pytest.mark.parametrize(
    "has_login, mode", [(False, "offline"), (None, "offline"), (True, "online")]
)
def test_wandb_without_a_login_or_network_stays_offline_and_never_asks(
    tmp_path, monkeypatch, capsys, has_login, mode
):
    recorder = Recorder("wandb", has_login=has_login)
    monkeypatch.setitem(sys.modules, "wandb", recorder)
    Tracker("wandb", tmp_path, {})
    assert ("no login or no network" in capsys.readouterr().out) == (mode == "offline")
    assert recorder.calls[0][1]["mode"] == mode and os.environ["WANDB_SILENT"] == "true"
    # A version whose login has no `prompt` would wait for somebody to type.
    recorder.login, recorder.calls = lambda: pytest.fail("asked"), []
    Tracker("wandb", tmp_path, {})
    assert "training continues without it" in capsys.readouterr().err and not recorder.calls


@pytest.mark.case("I75", "F21")
@pytest.mark.parametrize(
    "name, fails_at",
    [
        *product(("wandb", "trackio"), ("import", "init", "log", "finish")),
        ("torch.utils.tensorboard", "import"),
    ],
)
def test_a_fault_of_the_tracker_is_one_line_and_then_it_is_left_alone(
    tmp_path, monkeypatch, capsys, name, fails_at
):
    recorder = Recorder(name, fails_at)
    monkeypatch.setitem(sys.modules, name, None if fails_at == "import" else recorder)
    tracker = Tracker(name.split(".")[-1], tmp_path, {})
    for step in (1, 2):
        tracker.log({"step": step, "reward": 1.0})
    tracker.close()
    (line,) = capsys.readouterr().err.splitlines()
    why = "ModuleNotFoundError" if fails_at == "import" else "ConnectionError: no network at all;"
    assert line.startswith(f"--report_to {tracker.name}: {why}")
    assert line.endswith("; training continues without it")
    calls = ["import", "init", "log", "log", "finish"]
    assert [call[0] for call in recorder.calls] == calls[1 : calls.index(fails_at) + 1]


def test_tensorboard_reads_the_metrics_back(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = Tracker("tensorboard", tmp_path, {"task": "cls"})
    for step, reward in enumerate((0.5, 0.75)):
        tracker.log({"step": step, "reward": reward})
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("reward")] == [(0, 0.5), (1, 0.75)]
