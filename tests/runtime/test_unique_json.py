"""JSON from outside: a key that occurs twice is an error that names it, wherever it is read."""

import json
import shutil

import pytest

import config
from model.processor import Processor
from runtime import unique_json
from runtime.errors import InputError
from runtime.run_directory import read_json_object
from train_grpo import GRPOConfig


@pytest.mark.parametrize(
    "text, key, where",
    [
        ('{"a": 1, "b": 2, "a": 3}', "a", ""),
        ('[{"x": {"id": 7, "bbox": [], "bbox": [1]}}]', "bbox", " (that with id 7)"),
        ('{"id": "' + "y" * 99 + '", "a": 1, "a": 1}', "a", "yyy"),
        ('{"": 1, "": 2}', "", ""),
        ('{"\\u0061": 1, "a": 2}', "a", ""),
    ],
)
def test_the_key_and_its_object_are_named(text, key, where):
    with pytest.raises(
        unique_json.DuplicateKeyError, match=f"the key '{key}' occurs twice"
    ) as error:
        unique_json.loads(text)
    assert where in str(error.value) and len(str(error.value)) < 150


@pytest.mark.parametrize("value", [{}, [], {"a": {"a": 1}}, [{"a": 1}, {"a": 2}], "a", 3, None])
def test_other_json_is_what_the_library_reads(value):
    assert unique_json.loads(json.dumps(value)) == value


def test_settings_of_models_and_runs_are_read_by_it(tiny_dir, tmp_path):
    directory = shutil.copytree(tiny_dir, tmp_path / "model")
    text = (directory / "config.json").read_text()
    (directory / "config.json").write_text(
        text.rstrip()[:-1] + ', "vocab_size": 1, "vocab_size": 2}'
    )
    with pytest.raises(InputError, match="config.json: .*the key 'vocab_size' occurs twice"):
        Processor(directory)
    config.save(GRPOConfig(), tmp_path / "config.json")
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.rstrip()[:-1] + ', "seed": 1}')
    with pytest.raises(InputError, match="config.json: .*the key 'seed' occurs twice"):
        config.load(GRPOConfig, tmp_path / "config.json")
    with pytest.raises(InputError, match="the key 'seed' occurs twice"):
        read_json_object(tmp_path / "config.json")
