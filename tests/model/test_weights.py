"""Checkpoint directories load and save without a loss, and damaged ones are refused by name.

Guaranteed: single and sharded safetensors in both key layouts load strictly; a saved directory has
exactly the source's files, keys, shapes, dtypes and companion bytes; what is saved loads bit-equal
here and with nothing missing, unexpected or mismatched in transformers, with the same logits.
Every damaged directory raises one InputError that names the file or key, and nothing is written.
The sources are written with safetensors directly, not by the code under test.
Run: python -m pytest tests/model/test_weights.py
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import Qwen2VLForConditionalGeneration

import model.weights
from model.config import VLMConfig
from model.load import load_processor, local_directory
from model.new_checkpoint import init_model, write_new_checkpoint
from model.vlm import VLM
from model.weights import (
    load_model,
    published_tensors,
    save_model,
    saved_bytes,
    single_file,
)
from runtime.errors import InputError
from tests.conftest import TINY
from tests.model.test_parity import inputs_of, our_forward

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
FIRST, SECOND, THIRD = (f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3))
EMBED, NORM = "model.embed_tokens.weight", "model.norm.weight"
SOURCES = [  # layout, sharded, head, dtype: every pair of values occurs
    ("hub", False, "tied", "float32"),
    ("hub", True, "tied, head repeated", "bfloat16"),
    ("hub", False, "untied", "bfloat16"),
    ("new", True, "untied", "float32"),
    ("new", False, "tied, head repeated", "float32"),
    ("new", True, "tied", "bfloat16"),
]


@pytest.fixture(scope="module")
def skeleton(tmp_path_factory) -> Path:
    """Everything but weights, plus files that this project never reads."""
    directory = tmp_path_factory.mktemp("weights") / "skeleton"
    write_new_checkpoint(directory, ["Which species is it?"] * 4, 290, max_side=64, **TINY)
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
    tensors = {
        in_layout(name, layout): tensor * (6 if tensor.ndim > 1 else 1)
        for name, tensor in published_tensors(random).items()
    }
    if head == "tied, head repeated":
        tensors["lm_head.weight"] = tensors[in_layout(EMBED, layout)].clone()
    files = {SINGLE: sorted(tensors)}
    if sharded:
        files = {file: sorted(tensors)[i::3] for i, file in enumerate((FIRST, SECOND, THIRD))}
        weight_map = {key: file for file, keys in files.items() for key in keys}
        size = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index))
    for file, keys in files.items():
        save_file({key: tensors[key] for key in keys}, directory / file, {"format": "pt"})
    return tensors


def snapshot(directory: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()
    }


def changed(m: VLM) -> VLM:
    """As training leaves it: every parameter moved."""
    generator = torch.Generator().manual_seed(5)
    for parameter in m.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return m


@torch.inference_mode()
def assert_same_logits(ours: VLM, theirs: Qwen2VLForConditionalGeneration) -> None:
    """The same question with one image through both models."""
    grids, pixels = [(1, 4, 6)], torch.randn(24, 96, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([9, 10, 3, *[ours.cfg.image_token_id] * 6, 4, 30, 31, 32])
    reference = theirs.eval()(**inputs_of(theirs, ids[None], pixels, grids)).logits[0]  # (T, V)
    logits = our_forward(ours, [ids], [grids], pixels)  # (T, V)
    assert reference.std() > 0.3
    assert (logits - reference).abs().max() < 1e-5 * reference.abs().max().clamp(min=1)


def assert_same_files(source: Path, saved: Path, dtype: torch.dtype) -> None:
    before, after = snapshot(source), snapshot(saved)
    assert before.keys() == after.keys() and "vocab.json" in after
    for file in before:
        if file.endswith(".safetensors"):
            with safe_open(saved / file, "pt") as tensors:
                assert tensors.metadata() == {"format": "pt"}
            old, new = load_file(source / file), load_file(saved / file)
            assert old.keys() == new.keys()
            for key in old:
                assert old[key].dtype == new[key].dtype == dtype
                assert torch.equal(old[key], new[key]), key
        elif file == INDEX:
            assert json.loads(before[file]) == json.loads(after[file])
        else:
            assert before[file] == after[file], file


@pytest.mark.case("O21")
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: "{}, {}, {}, {}".format(*source))
def test_saving_keeps_the_files_of_the_source_and_every_bit_of_the_weights(
    skeleton, tmp_path, source
):
    (layout, _, head, _), dtype = source, getattr(torch, source[-1])
    tensors = write_source(skeleton, tmp_path / "source", *source)
    m, before = load_model(tmp_path / "source"), snapshot(tmp_path / "source")
    parameters = published_tensors(m)
    assert ("lm_head.weight" in parameters) == (head == "untied")
    for name, parameter in parameters.items():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, tensors[in_layout(name, layout)].float()), name
    for name, parameter in published_tensors(
        load_model(tmp_path / "source", torch.bfloat16)
    ).items():
        assert torch.equal(parameter, tensors[in_layout(name, layout)].to(torch.bfloat16)), name
    save_model(m, tmp_path / "saved", companions=tmp_path / "source")
    assert_same_files(tmp_path / "source", tmp_path / "saved", dtype)

    save_model(changed(m), tmp_path / "saved", companions=tmp_path / "source")
    assert {path.name for path in tmp_path.iterdir()} == {"source", "saved"}
    assert snapshot(tmp_path / "source") == before  # the mapped source is never written
    saved = load_model(tmp_path / "saved")
    for name, tensor in published_tensors(saved).items():  # rounded once, to the source's dtype
        assert torch.equal(tensor, parameters[name].to(dtype).float()), name
    theirs, info = Qwen2VLForConditionalGeneration.from_pretrained(
        tmp_path / "saved", dtype=torch.float32, output_loading_info=True
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not info[problem], (problem, info[problem])
    assert_same_logits(saved, theirs)


def test_what_transformers_saves_in_its_own_layout_loads_and_saves_too(skeleton, tmp_path):
    write_source(skeleton, tmp_path / "source")
    theirs = Qwen2VLForConditionalGeneration.from_pretrained(tmp_path / "source")
    theirs.save_pretrained(tmp_path / "new", save_original_format=False, max_shard_size="60KB")
    weight_map = json.loads((tmp_path / "new" / INDEX).read_text())["weight_map"]
    assert "model.language_model.norm.weight" in weight_map and len(set(weight_map.values())) > 2
    save_model(load_model(tmp_path / "new"), tmp_path / "saved", companions=tmp_path / "new")
    assert json.loads((tmp_path / "saved" / INDEX).read_text())["weight_map"] == weight_map
    assert_same_logits(load_model(tmp_path / "saved"), theirs)


@pytest.mark.parametrize("sharded", [False, True])
def test_saving_over_the_directory_the_model_was_loaded_from(skeleton, tmp_path, sharded):
    # The parameters may still be views of the mapped file: written in place, they would be zeros.
    write_source(skeleton, tmp_path / "source", sharded=sharded)
    before = snapshot(tmp_path / "source")
    m = changed(load_model(tmp_path / "source"))
    expected = {name: p.clone() for name, p in published_tensors(m).items()}
    save_model(m, tmp_path / "source", companions=tmp_path / "source")
    for tensors in (published_tensors(m), published_tensors(load_model(tmp_path / "source"))):
        assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    after = snapshot(tmp_path / "source")
    assert before.keys() == after.keys() and [p.name for p in tmp_path.iterdir()] == ["source"]
    assert all(before[f] == after[f] for f in before if f != INDEX and "safetensors" not in f)


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
    save_model(m, tmp_path / "source", companions=tmp_path / "source")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_a_model_that_is_not_finite_is_never_saved(skeleton, tmp_path):
    write_source(skeleton, tmp_path / "source")
    m = load_model(tmp_path / "source")
    for value in (float("nan"), float("inf")):
        m.model.norm.weight.data[3] = value
        with pytest.raises(InputError, match="not saved, since model.norm.weight is not finite"):
            save_model(m, tmp_path / "out", companions=tmp_path / "source")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("sharded", [False, True])
def test_weights_that_are_not_finite_are_refused_as_they_are_read(
    skeleton, tmp_path, sharded, value
):
    """One number of the embedding, say, would show in the first checkpoint only."""
    write_source(skeleton, tmp_path / "source", sharded=sharded)
    for path in (tmp_path / "source").glob("*.safetensors"):
        tensors = load_file(path)
        if EMBED in tensors:
            tensors[EMBED][7, 3] = value
            save_file(tensors, path, {"format": "pt"})
    with pytest.raises(InputError, match=f"safetensors: {EMBED} is not finite; it is damaged"):
        load_model(tmp_path / "source")


# ---- damaged directories: a function damages a copy, the words must be in the message ----


def edit(name: str, changes: dict, part: str | None = None):
    """Set keys of a JSON or safetensors file, or of a part of it; None removes a key."""

    def damage(directory: Path) -> None:
        path = directory / name
        content = load_file(path) if path.suffix == ".safetensors" else json.loads(path.read_text())
        target = content[part] if part else content
        target |= changes
        for key in [key for key, value in changes.items() if value is None]:
            del target[key]
        if path.suffix == ".safetensors":
            save_file(content, path, {"format": "pt"})
        else:
            path.write_text(json.dumps(content))

    return damage


def edit_config(**changes):
    return edit("config.json", changes)


def cut(file: str, stop: int):
    return lambda d: (d / file).write_bytes((d / file).read_bytes()[:stop])


NEW_NORM = "model.language_model.norm.weight"
DAMAGED = {
    "no directory": (shutil.rmtree, "source: no such directory"),
    "only .bin": (lambda d: (d / SINGLE).rename(d / "pytorch_model.bin"), "pytorch_model.bin"),
    "only .gguf": (lambda d: (d / SINGLE).rename(d / "model.gguf"), "safetensors checkpoint"),
    "an adapter": (lambda d: (d / SINGLE).rename(d / "adapter_config.json"), "is an adapter"),
    "git-lfs pointer": (
        lambda d: (d / SINGLE).write_text("version https://git-lfs.github.com/spec/v1\noid x\n"),
        "run git lfs pull",
    ),
    "truncated data": (cut(SINGLE, -9), SINGLE),
    "empty file": (cut(SINGLE, 0), SINGLE),
    "extra key": (edit(SINGLE, {"score": torch.ones(2)}), "'score'"),
    "missing key": (edit(SINGLE, {NORM: None}), NORM),
    "wrong shape": (edit(SINGLE, {NORM: torch.ones(31)}), NORM),
    "wrong head": (edit(SINGLE, {"lm_head.weight": torch.ones(7, 32)}), "lm_head.weight"),
    "quantised": (
        edit(SINGLE, {f"{NORM}.qweight": torch.ones(3, dtype=torch.int32)}),
        "I32: the weights are quantised; take the original",
    ),
    "float8": (
        edit(SINGLE, {NORM: torch.ones(32).to(torch.float8_e4m3fn)}),
        "F8_E4M3: the weights are quantised",
    ),
    "shards without an index": (
        lambda d: (d / SINGLE).rename(d / "model-00001-of-00002.safetensors"),
        "without their model.safetensors.index.json; download it, too",
    ),
    "another name": (
        lambda d: (d / SINGLE).rename(d / "model.fp16.safetensors"),
        "if model.fp16.safetensors is the model, rename it to model.safetensors",
    ),
    "integers": (edit(SINGLE, {NORM: torch.ones(32, dtype=torch.int64)}), "I64"),
    "both layouts at once": (edit(SINGLE, {NEW_NORM: torch.ones(32)}), "both key layouts"),
}
DAMAGED_SHARDS = {
    "missing shard": (lambda d: (d / SECOND).unlink(), SECOND),
    "truncated header": (cut(SECOND, 40), SECOND),
    "a key in two shards": (edit(THIRD, {EMBED: torch.zeros(3)}), f"{EMBED} is in"),
    "index is no JSON": (cut(INDEX, 1), INDEX),
    "index is a list": (lambda d: (d / INDEX).write_text("[1]"), INDEX),
    "index without map": (edit(INDEX, {"weight_map": None}), INDEX),
    "map is a list": (edit(INDEX, {"weight_map": ["a"]}), INDEX),
    "a file is a list": (edit(INDEX, {NORM: ["a"]}, "weight_map"), INDEX),
    "map leaves the directory": (edit(INDEX, {NORM: "../x"}, "weight_map"), "'../x' is not"),
    "index without a key": (edit(INDEX, {NORM: None}, "weight_map"), NORM),
    "a pickle as a shard": (edit(INDEX, {NORM: "model.bin"}, "weight_map"), "no safetensors file"),
    "index with another key": (edit(INDEX, {"invented": SECOND}, "weight_map"), "'invented'"),
}


@pytest.mark.case("I74", "F8")
@pytest.mark.parametrize("case", [*DAMAGED, *DAMAGED_SHARDS])
def test_damaged_weights_are_refused_by_name_and_nothing_is_written(skeleton, tmp_path, case):
    damage, words = (DAMAGED | DAMAGED_SHARDS)[case]
    write_source(skeleton, tmp_path / "source", sharded=case in DAMAGED_SHARDS)
    m = load_model(tmp_path / "source")
    write_source(skeleton, tmp_path / "output")
    damage(tmp_path / "source")
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
        assert words in first_line or case == "no directory"  # another message in saving
        assert len(str(refusal.value)) < 600
    assert snapshot(tmp_path) == before


DAMAGED_CONFIGS = {
    "no file": (lambda d: (d / "config.json").unlink(), "config.json"),
    "not JSON": (cut("config.json", 20), "config.json"),
    "other model": (edit_config(model_type="llava"), "'llava'"),
    "no sizes": (edit_config(hidden_size=None), "hidden_size"),
    "no tower": (edit_config(vision_config={}), "hidden_size"),
    "no rope": (edit_config(rope_scaling=None), "mrope_section"),
    "infinite": (edit_config(vocab_size=float("inf")), "wrong type"),
    "1e30": (edit_config(vocab_size=1e30), "vocab_size is above 16777216, too large"),
    "1e10": (edit_config(vocab_size=10**10), "vocab_size is above"),
    "400 digits": (edit_config(vocab_size=10**400), "vocab_size is above"),
    "mlp_ratio": (edit("config.json", {"mlp_ratio": 1e300}, "vision_config"), "intermediate_size"),
    "patches": (
        edit("config.json", {"patch_size": 10**6}, "vision_config"),
        "patch_size is above 256",
    ),
    "merge": (edit("config.json", {"spatial_merge_size": 4096}, "vision_config"), "merge_size is"),
    "frames": (edit("config.json", {"temporal_patch_size": 4096}, "vision_config"), "patch_size"),
    "channels": (edit("config.json", {"in_chans": 4}, "vision_config"), "in_channels must be 3"),
    "all large": (
        edit(
            "config.json",
            dict(patch_size=256, spatial_merge_size=64, embed_dim=2**24, num_heads=2, mlp_ratio=1),
            "vision_config",
        ),
        "too large to be those of a model",
    ),
    "negative": (edit_config(num_hidden_layers=-1), "num_hidden_layers is -1"),
    "5 heads": (edit_config(num_attention_heads=5), "num_key_value_heads must divide"),
    "3 key heads": (edit_config(num_key_value_heads=3), "num_key_value_heads must divide"),
    "another width": (edit_config(intermediate_size=64), "model.layers.0.mlp"),
    "another depth": (edit_config(num_hidden_layers=3), "layers.2"),
}


@pytest.mark.case("I74")
@pytest.mark.parametrize("case", DAMAGED_CONFIGS)
def test_a_config_that_does_not_fit_is_refused_by_name(skeleton, tmp_path, case):
    damage, words = DAMAGED_CONFIGS[case]
    write_source(skeleton, tmp_path / "source")
    damage(tmp_path / "source")
    with pytest.raises(InputError, match="source") as refusal:
        load_model(tmp_path / "source")
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("names", "size"),
    [
        (("patch_size", "patch_size"), 128),
        (("spatial_merge_size", "merge_size"), 16),
        (("temporal_patch_size", "temporal_patch_size"), 32),
    ],
)
def test_sizes_unlike_the_weights_are_refused_before_a_picture_is_cut(
    skeleton, tmp_path, names, size
):
    """In both files, so that these fit together: a picture would take gigabytes."""
    write_source(skeleton, tmp_path / "source")
    edit("config.json", {names[0]: size}, "vision_config")(tmp_path / "source")
    edit("preprocessor_config.json", {names[1]: size})(tmp_path / "source")
    with pytest.raises(InputError, match=r"has shape .*, config.json asks for"):
        load_processor(tmp_path / "source")


def test_a_model_is_not_saved_with_the_files_of_another(skeleton, tmp_path):
    write_source(skeleton, tmp_path / "tied")
    write_source(skeleton, tmp_path / "untied", head="untied")
    before, m = snapshot(tmp_path), load_model(tmp_path / "untied")
    with pytest.raises(InputError, match="missing tensors, first 'lm_head.weight'"):
        save_model(m, tmp_path / "out", companions=tmp_path / "tied")
    with pytest.raises(InputError, match="gone: the source directory is gone"):
        save_model(m, tmp_path / "out", tmp_path / "gone", single_file(m, torch.float32))
    assert snapshot(tmp_path) == before


def test_a_repeated_head_with_other_values_is_refused(skeleton, tmp_path):
    tensors = write_source(skeleton, tmp_path / "source", head="tied, head repeated")
    save_file(tensors | {"lm_head.weight": tensors[EMBED] + 1}, tmp_path / "source" / SINGLE)
    with pytest.raises(InputError, match="differs from the embedding"):
        load_model(tmp_path / "source")


def test_the_prefixes_of_serving_engines_are_read_and_written_back(skeleton, tmp_path):
    tensors = write_source(skeleton, tmp_path / "source", head="untied")
    renamed = {
        key if key.startswith("visual.") else f"language_model.{key}": value
        for key, value in tensors.items()
    }
    save_file(renamed, tmp_path / "source" / SINGLE)
    save_model(load_model(tmp_path / "source"), tmp_path / "out", tmp_path / "source")
    saved = load_file(tmp_path / "out" / SINGLE)
    assert saved.keys() == renamed.keys()
    assert all(torch.equal(saved[key], renamed[key]) for key in saved)


def test_a_name_on_the_hub_is_looked_up_in_the_cache_and_never_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="hf download Qwen/Some-VL --local-dir Some-VL"):
        local_directory(Path("Qwen/Some-VL"))
    repository = tmp_path / "models--Qwen--Some-VL"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    with pytest.raises(InputError, match="--model Qwen/Some-VL: has no config.json"):
        local_directory(Path("Qwen/Some-VL"))
    (snapshot / "config.json").write_text("{}")
    assert local_directory(Path("Qwen/Some-VL")) == local_directory(snapshot) == snapshot
    assert local_directory(Path("no/such/place")) == Path("no/such/place")  # refused by its reader


LEFT_BY_TRAINERS = """pytorch_model.bin model.gguf pytorch_model.bin.index.json optimizer.pt
rng_state_0.pth scheduler.pt training_args.bin trainer_state.json zero_to_fp32.py latest notes.md
adapter_config.json consolidated.00.pth events.out.tfevents.1 global_step5/states.pt
original/model.pth""".split()
OF_THE_CHECKPOINT = """added_tokens.json merges.txt special_tokens_map.json tokenizer.model LICENSE
video_preprocessor_config.json processor_config.json chat_template.json README.md vocab.json
additional_chat_templates/tools.jinja""".split()


def test_companions_are_copied_by_list_and_what_trainers_leave_is_not(skeleton, tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    write_source(skeleton, source)
    before = {path.name for path in source.iterdir()}
    for name in (*LEFT_BY_TRAINERS, *OF_THE_CHECKPOINT):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("{}")
    model = load_model(source)
    save_model(model, out, source)
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert names == before | {*OF_THE_CHECKPOINT}
    sizes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    assert 0 <= sizes - saved_bytes(source) < 20_000  # but for the headers of the weights


@pytest.mark.parametrize("wrapper", ["module.", "base_model.model.", "_orig_mod.module."])
def test_the_prefixes_of_wrappers_are_read_and_written_back(skeleton, tmp_path, wrapper):
    tensors = write_source(skeleton, tmp_path / "source", layout="new")
    renamed = {wrapper + key: value for key, value in tensors.items()}
    save_file(renamed, tmp_path / "source" / SINGLE)
    model = load_model(tmp_path / "source")
    assert torch.equal(model.model.norm.weight, tensors[in_layout(NORM, "new")])
    save_model(model, tmp_path / "out", tmp_path / "source")
    assert load_file(tmp_path / "out" / SINGLE).keys() == renamed.keys()


def test_tensors_of_unknown_names_are_told_as_the_files_have_them(skeleton, tmp_path):
    tensors = write_source(skeleton, tmp_path / "source")
    save_file({f"student.{k}": v for k, v in tensors.items()}, tmp_path / "source" / SINGLE)
    with pytest.raises(InputError, match=r"missing tensors, .* first 'student\.model\.embed"):
        load_model(tmp_path / "source")


def test_a_companion_that_may_not_be_read_is_told_when_the_size_is_asked(
    skeleton, tmp_path, monkeypatch
):
    write_source(skeleton, tmp_path / "source")
    monkeypatch.setattr(model.weights.os, "access", lambda path, how: path.name != "README.md")
    with pytest.raises(InputError, match="README.md: cannot be read, .* check its rights"):
        saved_bytes(tmp_path / "source")


def test_weights_that_may_not_be_read_are_one_line(skeleton, tmp_path, monkeypatch):
    write_source(skeleton, tmp_path / "source")

    def refused(path, framework):  # what safetensors says then, whatever the reason
        raise FileNotFoundError(f"No such file or directory: {path}")

    monkeypatch.setattr(model.weights, "safe_open", refused)
    with pytest.raises(InputError, match="model.safetensors: cannot be opened; check its rights"):
        load_model(tmp_path / "source")


def test_mlx_files_are_named(skeleton, tmp_path):
    tensors = write_source(skeleton, tmp_path / "source")
    renamed = {key.replace("visual.", "vision_tower."): value for key, value in tensors.items()}
    save_file(renamed, tmp_path / "source" / SINGLE)
    with pytest.raises(InputError, match="an MLX checkpoint .* name the one that it was converted"):
        load_model(tmp_path / "source")


def test_a_single_file_wins_over_an_index_beside_it(skeleton, tmp_path):
    """As in transformers; the shards of the index may be stale, or gone."""
    tensors = write_source(skeleton, tmp_path / "source")
    index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00002.safetensors")}
    (tmp_path / "source" / INDEX).write_text(json.dumps(index))
    model = load_model(tmp_path / "source")
    save_model(model, tmp_path / "out", tmp_path / "source")
    assert load_file(tmp_path / "out" / SINGLE).keys() == tensors.keys()
    assert not (tmp_path / "out" / INDEX).exists()


def test_a_link_to_nothing_is_named(skeleton, tmp_path):
    write_source(skeleton, tmp_path / "source")
    (tmp_path / "source" / SINGLE).unlink()
    (tmp_path / "source" / SINGLE).symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match="model.safetensors is a link to nothing; download it"):
        load_model(tmp_path / "source")


@pytest.mark.parametrize(
    ("name", "words"),
    [("config.json", "is a file"), ("https://huggingface.co/a/b", "is a URL"), (".", "is a run")],
)
def test_what_is_no_model_is_named(tmp_path, name, words):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "run.json").write_text("{}")
    place = Path(name) if "http" in name else tmp_path / name
    with pytest.raises(InputError, match=words):
        local_directory(place)
