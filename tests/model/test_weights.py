"""Checkpoint directories go in and come out unharmed, and the damaged ones are refused by name.

Guaranteed: single and sharded safetensors in both key layouts load strictly; a saved directory has
exactly the source's files, keys, shapes, dtypes and companion bytes; what is saved loads bit-equal
here and with nothing missing, unexpected or mismatched in transformers, with the same logits.
Every damaged directory raises one InputError that names the file or key, and nothing is written.
The sources are written with safetensors directly, not by the code under test.
Run: python -m pytest tests/model/test_weights.py
"""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import Qwen2VLForConditionalGeneration

import model.weights
from model.attention import PackLayout
from model.config import VLMConfig
from model.new_checkpoint import init_model, write_scratch_directory
from model.vlm import VLM, Prompt, rope_positions
from model.weights import load_model, plan_slots, published_tensors, save_model
from runtime.errors import InputError
from tests.conftest import TINY

INDEX = "model.safetensors.index.json"
EMBED, NORM = "model.embed_tokens.weight", "model.norm.weight"
HEADS = ("tied", "tied, head repeated", "untied")
SOURCES = [
    pytest.param(layout, sharded, head, id=f"{layout}, {'shards' if sharded else 'single'}, {head}")
    for layout, sharded, head in itertools.product(("hub", "new"), (False, True), HEADS)
]


@pytest.fixture(scope="module")
def skeleton(tmp_path_factory) -> Path:
    """Everything but weights, plus files that this project never reads."""
    directory = tmp_path_factory.mktemp("weights") / "skeleton"
    write_scratch_directory(directory, ["Which species is it?"] * 4, 290, max_side=64, **TINY)
    (directory / "vocab.json").write_text('{"a":0,\r\n "b":1}')
    (directory / "README.md").write_bytes(b"\xff\x00 not even UTF-8\n")
    return directory


def in_layout(name: str, layout: str) -> str:
    if layout == "new" and name.startswith("visual."):
        return "model." + name
    if layout == "new" and name.startswith("model."):
        return "model.language_model." + name.removeprefix("model.")
    return name


def write_source(skeleton, directory, layout="hub", sharded=False, head="tied", dtype="float32"):
    """A checkpoint as others publish it; returns its tensors by key."""
    shutil.copytree(skeleton, directory)
    raw = json.loads((directory / "config.json").read_text())
    raw["tie_word_embeddings"] = head != "untied"
    (directory / "config.json").write_text(json.dumps(raw))
    random = init_model(VLMConfig.from_directory(directory), seed=1, dtype=getattr(torch, dtype))
    named = {
        name: tensor * (6 if tensor.ndim > 1 else 1)
        for name, tensor in published_tensors(random).items()
    }
    if head == "tied, head repeated":
        named["lm_head.weight"] = named[EMBED].clone()
    tensors = {in_layout(name, layout): t for name, t in named.items()}
    files = {"model.safetensors": sorted(tensors)}
    if sharded:
        parts = {f"model-0000{i + 1}-of-00003.safetensors": sorted(tensors)[i::3] for i in range(3)}
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        weight_map = {key: file for file, keys in parts.items() for key in keys}
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index))
        files = parts
    for file, keys in files.items():
        save_file({key: tensors[key] for key in keys}, directory / file, {"format": "pt"})
    return tensors


def snapshot(directory: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()
    }


def is_weights(name: str) -> bool:
    return name.endswith(".safetensors") or name == INDEX


def changed(m: VLM) -> VLM:
    """As training leaves it: every parameter moved."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in m.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return m


def logits_of_both(ours: VLM, theirs: Qwen2VLForConditionalGeneration):
    """The same question with one image through both models: two (T, V)."""
    cfg, grid = ours.cfg, (1, 4, 6)
    ids = torch.tensor([9, 10, 3, *[cfg.image_token_id] * 6, 4, 30, 31, 32])
    pixels = torch.randn(24, 3 * 2 * 4 * 4, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        prompt = Prompt("", ids, rope_positions(ids, [grid], cfg), pixels, [grid])
        layout = PackLayout([len(ids)], [[]])
        hidden = ours(ids, prompt.positions, layout, [prompt])
        reference = theirs(
            input_ids=ids[None],
            attention_mask=torch.ones_like(ids)[None],
            mm_token_type_ids=(ids == cfg.image_token_id).int()[None],
            pixel_values=pixels,
            image_grid_thw=torch.tensor([grid]),
        )
        return ours.logits(hidden), reference.logits[0]


@pytest.mark.case("O21")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("layout", "sharded", "head"), SOURCES)
def test_saving_an_unchanged_model_writes_the_source_again(
    skeleton, tmp_path, layout, sharded, head, dtype
):
    tensors = write_source(skeleton, tmp_path / "source", layout, sharded, head, dtype)
    m = load_model(tmp_path / "source")
    parameters = published_tensors(m)
    assert ("lm_head.weight" in parameters) == (head == "untied")
    for name, parameter in parameters.items():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, tensors[in_layout(name, layout)].float()), name

    save_model(m, tmp_path / "saved", companions=tmp_path / "source")
    before, after = snapshot(tmp_path / "source"), snapshot(tmp_path / "saved")
    assert before.keys() == after.keys() and "vocab.json" in after
    for file in before:
        if file.endswith(".safetensors"):
            with safe_open(tmp_path / "saved" / file, "pt") as saved:
                assert saved.metadata() == {"format": "pt"}
            old, new = load_file(tmp_path / "source" / file), load_file(tmp_path / "saved" / file)
            assert old.keys() == new.keys()
            for key in old:
                assert old[key].dtype == new[key].dtype == getattr(torch, dtype)
                assert torch.equal(old[key], new[key]), key
        elif file == INDEX:
            assert json.loads(before[file]) == json.loads(after[file])
        else:
            assert before[file] == after[file], file
    assert [p.name for p in tmp_path.iterdir() if p.name not in ("source", "saved")] == []


@pytest.mark.case("O21")
@pytest.mark.parametrize(("layout", "sharded", "head"), SOURCES)
def test_a_changed_model_loads_bit_equal_here_and_completely_in_transformers(
    skeleton, tmp_path, layout, sharded, head
):
    write_source(skeleton, tmp_path / "source", layout, sharded, head)
    before = snapshot(tmp_path / "source")
    m = changed(load_model(tmp_path / "source"))
    save_model(m, tmp_path / "saved", companions=tmp_path / "source")
    assert snapshot(tmp_path / "source") == before  # training never writes into the mapped source

    again = load_model(tmp_path / "saved")
    parameters, reloaded = published_tensors(m), published_tensors(again)
    assert parameters.keys() == reloaded.keys()
    assert all(torch.equal(parameters[name], reloaded[name]) for name in parameters)

    theirs, info = Qwen2VLForConditionalGeneration.from_pretrained(
        tmp_path / "saved", dtype=torch.float32, output_loading_info=True
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not info[problem], (problem, info[problem])
    ours, reference = logits_of_both(m, theirs.eval())
    assert reference.std() > 0.3
    assert (ours - reference).abs().max() < 1e-5 * reference.abs().max().clamp(min=1)


def test_what_transformers_saves_in_its_own_layout_loads_and_saves_too(skeleton, tmp_path):
    write_source(skeleton, tmp_path / "source")
    theirs = Qwen2VLForConditionalGeneration.from_pretrained(tmp_path / "source")
    theirs.save_pretrained(tmp_path / "new", save_original_format=False, max_shard_size="60KB")
    weight_map = json.loads((tmp_path / "new" / INDEX).read_text())["weight_map"]
    assert "model.language_model.norm.weight" in weight_map and len(set(weight_map.values())) > 2
    save_model(load_model(tmp_path / "new"), tmp_path / "saved", companions=tmp_path / "new")
    assert json.loads((tmp_path / "saved" / INDEX).read_text())["weight_map"] == weight_map
    ours, reference = logits_of_both(load_model(tmp_path / "saved"), theirs.eval())
    assert (ours - reference).abs().max() < 1e-5 * reference.abs().max().clamp(min=1)


def test_a_float32_model_is_rounded_once_when_its_source_is_bfloat16(skeleton, tmp_path):
    write_source(skeleton, tmp_path / "source", dtype="bfloat16")
    m = changed(load_model(tmp_path / "source"))
    save_model(m, tmp_path / "saved", companions=tmp_path / "source")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    for name, parameter in published_tensors(m).items():
        assert torch.equal(saved[name], parameter.to(torch.bfloat16)), name


def test_the_model_is_loaded_in_the_asked_dtype(skeleton, tmp_path):
    tensors = write_source(skeleton, tmp_path / "source")
    m = load_model(tmp_path / "source", torch.bfloat16)
    for name, tensor in published_tensors(m).items():
        assert torch.equal(tensor, tensors[name].to(torch.bfloat16))
    assert all(parameter.requires_grad for parameter in m.parameters())


def test_planned_slots_cut_shards_at_the_limit_and_count_every_byte(skeleton, tmp_path):
    m = init_model(VLMConfig.from_directory(skeleton), seed=2)
    save_model(m, tmp_path / "cut", skeleton, plan_slots(m, torch.bfloat16, 50_000))
    index = json.loads((tmp_path / "cut" / INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2 and files[-1] == f"model-{len(files):05d}-of-{len(files):05d}.safetensors"
    assert index["metadata"]["total_size"] == sum(2 * p.numel() for p in m.parameters())
    for file in files:
        assert sum(2 * t.numel() for t in load_file(tmp_path / "cut" / file).values()) <= 50_000
    loaded = published_tensors(load_model(tmp_path / "cut"))
    for name, parameter in published_tensors(m).items():
        assert torch.equal(loaded[name], parameter.to(torch.bfloat16).float()), name


@pytest.mark.parametrize("sharded", [False, True])
def test_saving_over_the_directory_the_model_was_loaded_from_keeps_it_whole(
    skeleton, tmp_path, sharded
):
    # The parameters may still be views of the mapped file: written in place, they would be zeros.
    write_source(skeleton, tmp_path / "source", sharded=sharded)
    before = snapshot(tmp_path / "source")
    m = changed(load_model(tmp_path / "source"))
    expected = {name: p.detach().clone() for name, p in published_tensors(m).items()}
    save_model(m, tmp_path / "source", companions=tmp_path / "source")
    reloaded = published_tensors(load_model(tmp_path / "source"))
    for name, parameter in published_tensors(m).items():
        assert torch.equal(reloaded[name], expected[name]), name
        assert torch.equal(parameter, expected[name]), name
    after = snapshot(tmp_path / "source")
    assert before.keys() == after.keys() and [p.name for p in tmp_path.iterdir()] == ["source"]
    assert all(before[f] == after[f] for f in before if not is_weights(f))


@pytest.mark.case("F6")
def test_a_disk_that_fills_up_while_saving_leaves_the_old_checkpoint_as_it_was(
    skeleton, tmp_path, monkeypatch
):
    write_source(skeleton, tmp_path / "source", sharded=True)
    m, before = changed(load_model(tmp_path / "source")), snapshot(tmp_path / "source")

    def full_disk(tensors, path, metadata):
        if "00002" in path.name:
            raise OSError(28, "No space left on device")
        save_file(tensors, path, metadata)

    monkeypatch.setattr(model.weights, "save_file", full_disk)
    with pytest.raises(InputError, match="cannot be saved .*No space left"):
        save_model(m, tmp_path / "source", companions=tmp_path / "source")
    assert snapshot(tmp_path / "source") == before
    assert [p.name for p in tmp_path.iterdir()] == ["source"]
    monkeypatch.undo()
    save_model(m, tmp_path / "source", companions=tmp_path / "source")  # what was left is no hurdle
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_is_not_finite_is_never_saved(skeleton, tmp_path, value):
    write_source(skeleton, tmp_path / "source")
    m = load_model(tmp_path / "source")
    with torch.no_grad():
        m.model.norm.weight[3] = value
    with pytest.raises(InputError, match="not saved, since model.norm.weight is not finite"):
        save_model(m, tmp_path / "out", companions=tmp_path / "source")
    assert not (tmp_path / "out").exists()


# ---- Damaged directories. Each function spoils a copy; the words must be in the message. ----


def edit_json(name: str, change):
    def spoil(directory: Path) -> None:
        raw = json.loads((directory / name).read_text())
        change(raw)
        (directory / name).write_text(json.dumps(raw))

    return spoil


def edit_tensors(change, file="model.safetensors"):
    def spoil(directory: Path) -> None:
        tensors = load_file(directory / file)
        change(tensors)
        save_file(tensors, directory / file, {"format": "pt"})

    return spoil


def only_bin(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def cut(file: str, keep):
    def spoil(directory: Path) -> None:
        content = (directory / file).read_bytes()
        (directory / file).write_bytes(content[: keep(len(content))])

    return spoil


SECOND = "model-00002-of-00003.safetensors"
SPOILED_WEIGHTS = {
    "no directory": (False, shutil.rmtree, "source: no such directory"),
    "only .bin": (False, only_bin, "pytorch_model.bin"),
    "missing shard": (True, lambda d: (d / SECOND).unlink(), SECOND),
    "truncated data": (False, cut("model.safetensors", lambda n: n - 9), "model.safetensors"),
    "truncated header": (True, cut(SECOND, lambda n: 40), SECOND),
    "empty file": (False, cut("model.safetensors", lambda n: 0), "model.safetensors"),
    "not JSON": (True, lambda d: (d / INDEX).write_text("{"), INDEX),
    "index without map": (True, edit_json(INDEX, lambda j: j.pop("weight_map")), INDEX),
    "index is a list": (True, lambda d: (d / INDEX).write_text("[1]"), INDEX),
    "map is a list": (True, edit_json(INDEX, lambda j: j.update(weight_map=["a"])), INDEX),
    "map leaves the directory": (
        True,
        edit_json(INDEX, lambda j: j["weight_map"].update({NORM: "../other.safetensors"})),
        "../other.safetensors",
    ),
    "index forgets a key": (True, edit_json(INDEX, lambda j: j["weight_map"].pop(NORM)), NORM),
    "index invents a key": (
        True,
        edit_json(INDEX, lambda j: j["weight_map"].update(invented=SECOND)),
        "'invented'",
    ),
    "a key in two shards": (
        True,
        edit_tensors(
            lambda t: t.update({EMBED: torch.zeros(3)}), "model-00003-of-00003.safetensors"
        ),
        EMBED,
    ),
    "extra key": (False, edit_tensors(lambda t: t.update(score=torch.ones(2))), "'score'"),
    "missing key": (False, edit_tensors(lambda t: t.pop(NORM)), NORM),
    "wrong shape": (False, edit_tensors(lambda t: t.update({NORM: torch.ones(31)})), NORM),
    "wrong shape of a repeated head": (
        False,
        edit_tensors(lambda t: t.update({"lm_head.weight": torch.ones(7, 32)})),
        "lm_head.weight",
    ),
    "integers": (
        False,
        edit_tensors(lambda t: t.update({NORM: torch.ones(32, dtype=torch.int64)})),
        "I64",
    ),
    "both layouts at once": (
        False,
        edit_tensors(lambda t: t.update({"model.language_model.norm.weight": torch.ones(32)})),
        "both key layouts",
    ),
}


@pytest.mark.case("I74", "F8")
@pytest.mark.parametrize("case", SPOILED_WEIGHTS)
def test_damaged_weights_are_refused_by_name_and_nothing_is_written(skeleton, tmp_path, case):
    sharded, spoil, words = SPOILED_WEIGHTS[case]
    write_source(skeleton, tmp_path / "source", sharded=sharded)
    m = load_model(tmp_path / "source")
    write_source(skeleton, tmp_path / "output")
    spoil(tmp_path / "source")
    before = snapshot(tmp_path)
    for refused in (
        lambda: load_model(tmp_path / "source"),
        lambda: save_model(m, tmp_path / "output", companions=tmp_path / "source"),
        lambda: save_model(m, tmp_path / "fresh", companions=tmp_path / "source"),
    ):
        with pytest.raises(InputError) as refusal:
            refused()
        first_line = str(refusal.value).splitlines()[0]
        assert "source" in first_line
        if case != "no directory":  # saving words it differently
            assert words in first_line
        assert len(str(refusal.value)) < 600
    assert snapshot(tmp_path) == before


SPOILED_CONFIGS = {
    "no file": (lambda d: (d / "config.json").unlink(), "config.json"),
    "not JSON": (lambda d: (d / "config.json").write_text('{"model_type": '), "config.json"),
    "other model": (edit_json("config.json", lambda j: j.update(model_type="llava")), "'llava'"),
    "no sizes": (edit_json("config.json", lambda j: j.pop("hidden_size")), "hidden_size"),
    "no tower": (edit_json("config.json", lambda j: j["vision_config"].pop("depth")), "depth"),
    "no rope": (edit_json("config.json", lambda j: j.pop("rope_scaling")), "mrope_section"),
    "5 heads": (
        edit_json("config.json", lambda j: j.update(num_attention_heads=5)),
        "num_attention_heads",
    ),
    "3 key heads": (
        edit_json("config.json", lambda j: j.update(num_key_value_heads=3)),
        "num_key_value_heads",
    ),
    "another width": (
        edit_json("config.json", lambda j: j.update(intermediate_size=64)),
        "model.layers.0.mlp",
    ),
    "another depth": (
        edit_json("config.json", lambda j: j.update(num_hidden_layers=3)),
        "layers.2",
    ),
}


@pytest.mark.case("I74")
@pytest.mark.parametrize("case", SPOILED_CONFIGS)
def test_a_config_that_cannot_be_meant_is_refused_by_name(skeleton, tmp_path, case):
    spoil, words = SPOILED_CONFIGS[case]
    write_source(skeleton, tmp_path / "source")
    spoil(tmp_path / "source")
    with pytest.raises(InputError, match="source") as refusal:
        load_model(tmp_path / "source")
    assert words in str(refusal.value)


def test_a_model_is_not_saved_into_the_form_of_another(skeleton, tmp_path):
    write_source(skeleton, tmp_path / "tied")
    write_source(skeleton, tmp_path / "untied", head="untied")
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match="missing tensors, first 'lm_head.weight'"):
        save_model(load_model(tmp_path / "untied"), tmp_path / "out", companions=tmp_path / "tied")
    with pytest.raises(InputError, match="gone: the source directory is gone"):
        m = load_model(tmp_path / "tied")
        save_model(m, tmp_path / "out", tmp_path / "gone", plan_slots(m, torch.float32))
    assert snapshot(tmp_path) == before
