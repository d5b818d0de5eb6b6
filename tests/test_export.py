"""Exported questions and rewards are this project's own, in the form of other engines.

Run: pytest tests/test_export.py
"""

import importlib.util
import io
import json
import subprocess
import sys

import numpy as np
import pytest

import export
from config import BASE_MODEL, TaskConfig
from export import ExportConfig, Rule, settings_of, truth_of
from model.image import load_image
from model.processor import Processor
from rewards import WEIGHTS
from runtime.errors import InputError
from tasks import NAMES, load_task, reads

pyarrow = pytest.importorskip("pyarrow")
ANSWERING = [name for name in NAMES if name not in ("zoom", "lookup", "walk")]


@pytest.fixture(scope="module")
def processor():
    return Processor(BASE_MODEL)


def flags_of(task):
    small = {"shots": 2, "train_size": 12, "held_out_per_class": 1, "held_out_size": 4}
    return {name: value for name, value in small.items() if reads(task, name)}


def exported(folder, task, engine, *more):
    words = [f"--{name}={value}" for name, value in flags_of(task).items()]
    export.main(["--task", task, "--to", engine, "--output", str(folder / "out"), *words, *more])
    from pyarrow import parquet

    return folder / "out", parquet.read_table(folder / "out" / "train.parquet").to_pylist()


def loaded(path):
    spec = importlib.util.spec_from_file_location("exported_reward", path / "reward.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("task", ANSWERING)
def test_the_rule_pays_as_the_task_does(task, processor):
    cfg = ExportConfig(task=task, **flags_of(task))
    own, rule = load_task(cfg, processor), Rule(settings_of(cfg))
    for example, other in zip(own.train, own.train[1:], strict=False):
        for answer in (example.target, other.target, "", "[1, 2, 3, 4]"):
            for text in (
                f"<think>so</think><answer>{answer}</answer>",
                f"<answer>{answer}",
                answer,
            ):
                expected = own.reward(text, example, WEIGHTS, 0.0).total
                assert rule(text, truth_of(example)) == pytest.approx(expected)
                assert rule.parts(text, truth_of(example))["accuracy"] in (0.0, 1.0)


def test_weights_and_tolerance_are_kept(processor):
    cfg = ExportConfig(task="measure", tolerance=0.2, format_weight=0.1, train_size=4, dense=0.0)
    rule = Rule(json.loads(json.dumps(settings_of(cfg))))
    truth = json.dumps({"target": "10", "box_format": "norm1000", "canvas": [1000, 1000]})
    assert rule("<think>a</think><answer>11.5</answer>", truth) == pytest.approx(1.1)
    assert rule("<answer>13</answer>", truth) == 0.0


def test_rows_for_trl_hold_prompt_pictures_and_truth(tmp_path, processor):
    folder, rows = exported(tmp_path, "change", "trl")
    own = load_task(TaskConfig(task="change", **flags_of("change")), processor).train
    assert sorted(p.name for p in folder.iterdir()) == [
        "ood.parquet", "reward.py", "test.parquet", "train.parquet", "val.parquet",
    ]  # fmt: skip
    for row, e in zip(rows, own, strict=True):
        assert row["prompt"] == [{"role": "user", "content": e.question}]
        for stored, image in zip(row["images"], e.images, strict=True):
            shown = np.asarray(load_image(io.BytesIO(stored["bytes"]).getvalue()))
            assert np.array_equal(shown, np.asarray(load_image(image)))
    module = loaded(folder)
    good = [f"<think>x</think><answer>{e.target}</answer>" for e in own]
    truths = [row["truth"] for row in rows]
    assert module.reward(good, truth=truths, prompts=None) == pytest.approx([1.5] * len(own))
    messages = [[{"role": "assistant", "content": text}] for text in good]
    assert module.reward(messages, truth=truths) == pytest.approx([1.5] * len(own))


# What verl's RLHFDataset and its reward managers read, and EasyR1's data set.
VERL = {"data_source": str, "prompt": list, "images": list, "ability": str, "reward_model": dict}
VERL |= {"extra_info": dict, "problem": str, "answer": str}


def test_rows_for_verl_have_its_columns_and_a_place_for_every_picture(tmp_path, processor):
    folder, rows = exported(tmp_path, "order", "verl")
    module = loaded(folder)
    own = load_task(TaskConfig(task="order", **flags_of("order")), processor).train
    for row, e in zip(rows, own, strict=True):
        assert {name: type(value) for name, value in row.items()} == VERL
        (message,) = row["prompt"]
        assert message["content"].count("<image>") == len(row["images"]) == len(e.images)
        assert message["content"].endswith(e.question) and row["problem"] == message["content"]
        assert row["reward_model"]["style"] == "rule" and row["extra_info"]["split"] == "train"
        truth = row["reward_model"]["ground_truth"]
        text = f"<think>x</think><answer>{e.target}</answer>"
        given = (row["data_source"], text, truth, row["extra_info"])
        assert module.compute_score(*given) == 1.5
        named = dict(zip(("data_source", "solution_str", "ground_truth"), given, strict=False))
        assert module.compute_score(**named, extra_info={}) == 1.5
        (parts,) = module.compute_score([{"response": text, "ground_truth": row["answer"]}])
        assert parts["overall"] == 1.5 and parts["accuracy"] == 1.0 and parts["format"] == 1.0


def own_reward(folder):
    path = folder / "mine.py"
    path.write_text(
        "def pay(completions, example):\n"
        "    known = f'{example.id} {example.question} {example.target}'\n"
        "    return [None if 'nothing' in c else float(c == known) for c in completions]\n"
    )
    return f"{path}:pay"


@pytest.mark.parametrize("engine, lost", [("trl", None), ("verl", 0.0)])
def test_the_users_own_reward_is_exported_with_the_questions(
    tmp_path, processor, capsys, engine, lost
):
    folder, rows = exported(tmp_path, "count", engine, "--reward", own_reward(tmp_path))
    assert "reward.py: pays as --reward" in capsys.readouterr().out
    (tmp_path / "mine.py").unlink()  # it has a copy of its own
    pay, own = loaded(folder), load_task(TaskConfig(**flags_of("count"), task="count"), processor)
    e, row = own.train[0], rows[0]
    texts = [f"{e.id} {e.question} {e.target}", e.target, "nothing"]
    if engine == "trl":
        assert pay.reward(texts, truth=[row["truth"]] * 3) == [1.0, 0.0, lost]
        return
    truth = row["reward_model"]["ground_truth"]
    assert [pay.compute_score("", text, truth, {}) for text in texts] == [1.0, 0.0, lost]
    asked = [{"response": text, "ground_truth": truth} for text in texts]
    assert [parts["overall"] for parts in pay.compute_score(asked)] == [1.0, 0.0, lost]
    right = f"<think>x</think><answer>{e.target}</answer>"
    assert pay.compute_score([{"response": right, "ground_truth": truth}])[0]["accuracy"] == 1.0


def test_a_reward_that_cannot_be_used_is_refused_before_anything_is_written(tmp_path):
    reward = own_reward(tmp_path)
    for words, message in (
        (["--reward", f"{tmp_path / 'gone.py'}:pay"], "gone.py"),
        (["--reward", reward.replace(":pay", ":other")], "has no function 'other'"),
        (["--reward", reward, "--format_weight", "1"], "left out with --reward"),
    ):
        with pytest.raises(InputError, match=message):
            export.main(["--task", "count", "--output", str(tmp_path / "x"), *words])
    assert not (tmp_path / "x").exists()


def test_the_frame_of_boxes_is_said(tmp_path, capsys):
    exported(tmp_path, "ground", "trl")
    assert "boxes: thousandths of the picture, as asked of --model" in capsys.readouterr().out


def test_the_reward_runs_in_a_process_of_its_own_from_any_folder(tmp_path):
    folder, rows = exported(tmp_path, "cls", "trl")
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); from reward import reward; "
        "print(reward(['<think>a</think><answer>' + json.loads(sys.argv[2])['target'] "
        "+ '</answer>'], truth=[sys.argv[2]]))"
    )
    words = [sys.executable, "-c", code, str(folder), rows[0]["truth"]]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[-2] == "[1.5]"


def test_what_cannot_be_exported_is_refused(tmp_path):
    for task in ("zoom", "lookup", "walk"):
        with pytest.raises(InputError, match="its completions act"):
            words = ["--train_size", "2", "--held_out_size", "2"]
            export.main(["--task", task, "--output", str(tmp_path / "x"), *words])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("kept")
    with pytest.raises(InputError, match="a folder that is new or empty"):
        export.main(["--output", str(tmp_path / "full")])
    with pytest.raises(InputError, match="'colour' is no flag of this version"):
        Rule({"task": "cls", "colour": 1})


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed")
def test_trl_trains_on_the_exported_questions(tmp_path):
    from datasets import Image, List, load_dataset
    from trl import GRPOConfig, GRPOTrainer

    folder, _ = exported(tmp_path, "cls", "trl")
    data = load_dataset("parquet", data_files=str(folder / "train.parquet"), split="train")
    args = GRPOConfig(
        str(tmp_path / "out"),
        per_device_train_batch_size=8,
        num_generations=8,
        max_completion_length=40,
        learning_rate=5e-5,
        max_steps=3,
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
    )
    data = data.cast_column("images", List(Image()))
    trainer = GRPOTrainer(str(BASE_MODEL), loaded(folder).reward, args, data)
    trainer.train()
    logged = [row for row in trainer.state.log_history if "reward" in row]
    assert len(logged) == 3 and all(0.0 <= row["reward"] <= 1.5 for row in logged)
    assert max(row["reward"] for row in logged) > 0.4, "the base writes the format, and is paid"
