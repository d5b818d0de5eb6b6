"""--report_to mirrors the metrics, and whatever goes wrong there, the run goes on."""

import os
import sys
import types

import pytest

import train_grpo
from reporting.trackers import Tracker


class Recorder(types.ModuleType):
    """Stands in for wandb and trackio, which have the same interface."""

    def __init__(self, name: str, fails_at: str = ""):
        super().__init__(name)
        self.calls, self.fails_at, self.has_login = [], fails_at, False

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


@pytest.fixture(params=["wandb", "trackio"])
def name(request, monkeypatch):
    for variable in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_SILENT"):
        monkeypatch.delenv(variable, raising=False)
    return request.param


def short_run(tiny_dir, out, name):
    words = f"--model {tiny_dir} --output_dir {out} --max_steps 2 --report_to {name}"
    words += " --prompts_per_step 2 --held_out_per_class 1 --max_completion_length 6"
    return train_grpo.main(words.split())


def test_the_same_numbers_go_to_the_tracker(tiny_dir, tmp_path, monkeypatch, name):
    recorder = Recorder(name)
    monkeypatch.setitem(sys.modules, name, recorder)
    short_run(tiny_dir, tmp_path / "run", name)
    kinds = [call[0] for call in recorder.calls]
    assert kinds == ["init", "log", "log", "log", "finish"]
    settings, logs = recorder.calls[0][1], recorder.calls[1:4]
    assert settings["config"]["num_generations"] == 8 and settings["name"] == "run"
    assert [step for _, _, step in logs] == [0, 1, 2]
    assert "eval/strict" in logs[0][1] and {"reward", "grad_norm"} <= logs[1][1].keys()


@pytest.mark.case("I75")
@pytest.mark.parametrize(
    "has_login, mode", [(False, "offline"), (None, "offline"), (True, "online")]
)
def test_wandb_without_a_login_or_network_stays_offline_and_never_asks(
    tmp_path, monkeypatch, capsys, has_login, mode
):
    recorder = Recorder("wandb")
    recorder.has_login = has_login
    monkeypatch.setitem(sys.modules, "wandb", recorder)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_SILENT", raising=False)
    Tracker("wandb", tmp_path, {})
    said = capsys.readouterr().out
    assert ("no login or no network" in said) == (mode == "offline")
    assert recorder.calls[0][1]["mode"] == mode and os.environ["WANDB_SILENT"] == "true"


@pytest.mark.case("I75")
def test_a_wandb_that_would_ask_is_not_used(tmp_path, monkeypatch, capsys):
    """Versions whose login has no `prompt` would wait for somebody to type."""
    recorder = Recorder("wandb")
    recorder.login = lambda: pytest.fail("asked")
    monkeypatch.setitem(sys.modules, "wandb", recorder)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    Tracker("wandb", tmp_path, {})
    assert "training goes on without it" in capsys.readouterr().err and not recorder.calls


@pytest.mark.case("I75", "F21")
@pytest.mark.parametrize("fails_at", ["init", "log", "finish"])
def test_a_fault_of_the_tracker_is_one_line_and_the_run_goes_on(
    tiny_dir, tmp_path, monkeypatch, capsys, name, fails_at
):
    recorder = Recorder(name, fails_at)
    monkeypatch.setitem(sys.modules, name, recorder)
    short_run(tiny_dir, tmp_path / "run", name)
    err = [line for line in capsys.readouterr().err.splitlines() if "--report_to" in line]
    assert err == [
        f"--report_to {name}: ConnectionError: no network at all; training goes on without it"
    ]
    assert [call[0] for call in recorder.calls].count(fails_at) == 1  # then it is left alone
    assert (tmp_path / "run" / "step_2" / "hf" / "model.safetensors").is_file()


@pytest.mark.case("I75", "F21")
@pytest.mark.parametrize("missing", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_one_line(tmp_path, monkeypatch, capsys, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    tracker = Tracker(missing, tmp_path, {})
    tracker.log({"step": 1, "reward": 1.0})
    tracker.close()
    assert capsys.readouterr().err.count("training goes on without it") == 1


def test_tensorboard_reads_the_metrics_back(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = Tracker("tensorboard", tmp_path, {"task": "cls"})
    for step, reward in enumerate((0.5, 0.75)):
        tracker.log({"step": step, "reward": reward})
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("reward")] == [(0, 0.5), (1, 0.75)]
