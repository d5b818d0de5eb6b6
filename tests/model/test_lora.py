"""LoRA adapters: y = x W^T + scale (x A^T) B^T, the same in trainer, sampler, files and PEFT."""

import json
from copy import deepcopy
from pathlib import Path
from shutil import copy

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from config import BASE_MODEL
from model.load import load_model
from model.lora import (
    AdapterReference,
    LoRAConfig,
    linears,
    load_adapter,
    merge,
    new_adapter,
    read_adapter,
    reference_in_use,
    save_adapter,
)
from model.pack import completion_logps, make_pack
from model.processor import Processor
from model.weights import published_tensors
from runtime.errors import InputError
from sample import generate_group
from tests.model.families import CLASSES
from tests.model.test_shared_prefix import separate_logps, some_groups

FAMILIES = list(CLASSES)
SECOND_LINE = "base_model.model.model.language_model.layers.1.mlp.down_proj"  # as PEFT writes it


def randomise(model, size=0.05):
    """Give B values, as training would."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora.B." in name:
            parameter.data = size * torch.randn(parameter.shape, generator=generator)


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request, tiny_dirs):
    """A model with a trained-looking adapter, its processor and its base."""
    directory = tiny_dirs[request.param]
    model = load_model(directory)
    new_adapter(model, rank=3, alpha=6.0, seed=0)
    randomise(model)
    return model, Processor(directory), directory


def logps_of(model, processor):
    pack = make_pack(*some_groups(processor))
    return completion_logps(model, pack, 1.0, processor.suppressed_tokens)[0]


def test_an_adapter_equals_weights_with_its_product_added(tiny):
    model, processor, directory = tiny
    base = load_model(directory)
    with torch.no_grad():
        for (_, module, rows), (_, plain, _) in zip(linears(model), linears(base), strict=True):
            deltas = [module.lora.scale * B @ A for A, B in module.lora.pairs().values()]
            assert [len(delta) for delta in deltas] == [*rows.values()]
            plain.weight += torch.cat(deltas)
    with torch.no_grad():
        ours, expected = logps_of(model, processor), logps_of(base, processor)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    assert (ours - logps_of(load_model(directory), processor)).abs().max() > 0.01


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 5e-6), (torch.float64, 1e-6)],  # the oracle's logits are float32
)
def test_packed_equals_separate_in_every_gradient(tiny, dtype, tolerance):
    model, processor = deepcopy(tiny[0]).to(dtype), tiny[1]
    prompts, completions = some_groups(processor)
    packed = logps_of(model, processor)
    weights = torch.randn(len(packed), generator=torch.Generator().manual_seed(2))
    rows = [
        separate_logps(model, prompt, ids, 1.0, processor.suppressed_tokens)
        for prompt, group in zip(prompts, completions, strict=True)
        for ids in group
    ]
    torch.testing.assert_close(packed.float(), torch.cat(rows), atol=5e-6, rtol=0)
    gradients = []
    for logps in (packed, torch.cat(rows)):
        (logps * weights).sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    packed, separate = gradients
    adapted = {name for name, _ in model.named_parameters() if ".lora." in name}
    assert packed.keys() == separate.keys() == adapted
    for name, gradient in packed.items():
        scale = separate[name].abs().max()
        assert scale > 0 and (gradient - separate[name]).abs().max() < tolerance * scale, name


def test_a_new_adapter_is_the_base_bit_for_bit(tiny):
    _, processor, directory = tiny
    model = load_model(directory)
    before = logps_of(model, processor)
    greedy = generate_group(model, processor, some_groups(processor)[0], 2, 8, seed=3)
    new_adapter(model, rank=4, alpha=32.0, seed=0)
    assert torch.equal(logps_of(model, processor), before)
    after = generate_group(model, processor, some_groups(processor)[0], 2, 8, seed=3)
    assert [ids.tolist() for ids in after.ids] == [ids.tolist() for ids in greedy.ids]
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert names == {name for name, _ in model.named_parameters() if ".lora." in name}
    another = load_model(directory)
    new_adapter(another, rank=4, alpha=32.0, seed=1)
    A, other = (next(linears(m))[1].lora.A["q_proj"] for m in (model, another))
    assert A.abs().max() <= A.shape[1] ** -0.5 and not torch.equal(A, other)


def test_the_sampler_draws_from_the_trained_distribution(tiny):
    model, processor, _ = tiny
    prompts, _ = some_groups(processor)
    rollout = generate_group(model, processor, prompts, 3, 12, temperature=0.7)
    groups = [[ids.clone() for ids in rollout.ids[3 * n : 3 * n + 3]] for n in range(3)]
    pack = make_pack(prompts, groups)
    logps, _ = completion_logps(model, pack, 0.7, processor.suppressed_tokens)
    torch.testing.assert_close(logps, torch.cat(rollout.logps), atol=1e-5, rtol=0)


def test_the_reference_is_the_base_or_the_adapter_of_the_start(tiny, tmp_path):
    model, processor, directory = tiny
    base = logps_of(load_model(directory), processor)
    with reference_in_use(model):
        assert torch.equal(logps_of(model, processor), base)
    reference = AdapterReference(model, None)
    assert torch.equal(logps_of(reference, processor), base)
    save_adapter(model, tmp_path / "start", directory)
    moved = load_model(directory, adapter=tmp_path / "start")
    started = logps_of(moved, processor)
    reference = AdapterReference(moved, tmp_path / "start")
    for parameter in moved.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1
    assert torch.equal(logps_of(reference, processor), started)
    assert not torch.equal(logps_of(moved, processor), started)


def test_an_adapter_is_saved_and_loaded_bit_for_bit(tiny, tmp_path):
    model, processor, directory = tiny
    save_adapter(model, tmp_path / "adapter", directory)
    again = load_model(directory, adapter=tmp_path / "adapter")
    assert torch.equal(logps_of(again, processor), logps_of(model, processor))
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert f"{SECOND_LINE}.lora_A.weight" in tensors
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    assert not any("lora" in name for name in published_tensors(model))  # a model's files have none


PREFIXES = {
    "of PEFT": "base_model.model.model.language_model.",
    "of transformers before 4.52": "base_model.model.model.",
    "of serving engines": "base_model.model.language_model.model.",
    "none": "model.language_model.",
    "of one in training": "base_model.model.model.language_model.",
}


@pytest.mark.parametrize("form", PREFIXES)
def test_every_prefix_in_the_wild_is_read(tiny, tmp_path, form):
    model, processor, directory = tiny
    save_adapter(model, tmp_path, directory)
    path = tmp_path / "adapter_model.safetensors"
    renamed = {
        key.replace(PREFIXES["of PEFT"], PREFIXES[form]): tensor
        for key, tensor in load_file(path).items()
    }
    if form == "of one in training":
        renamed = {key.replace(".weight", ".default.weight"): t for key, t in renamed.items()}
    save_file(renamed, path)
    again = load_model(directory, adapter=tmp_path)
    assert torch.equal(logps_of(again, processor), logps_of(model, processor))


def test_an_adapter_of_some_layers_only(tiny, tmp_path):
    model, processor, directory = tiny
    save_adapter(model, tmp_path, directory)
    path, keep = tmp_path / "adapter_model.safetensors", ("q_proj", "v_proj", "down_proj")
    tensors = load_file(path)
    save_file({k: t for k, t in tensors.items() if k.split(".")[-3] in keep}, path)
    part = load_model(directory, adapter=tmp_path)
    names = {name for _, module, _ in linears(part) if module.lora for name in module.lora.pairs()}
    assert names == {*keep}
    for _, module, rows in linears(model):  # the same by hand: B of all others is 0
        for name in {*rows} - {*keep}:
            module.lora.B[name].data.zero_()
    torch.testing.assert_close(logps_of(part, processor), logps_of(model, processor))
    rollout = generate_group(part, processor, some_groups(processor)[0], 2, 6)
    torch.testing.assert_close(
        torch.cat(rollout.logps),
        torch.cat(generate_group(model, processor, some_groups(processor)[0], 2, 6).logps),
    )
    randomise(model)


# ---- merging -------------------------------------------------------------------------------------


def test_merging_says_what_the_weights_keep_of_the_update(tiny, tmp_path):
    model, processor, directory = tiny
    save_adapter(model, tmp_path, directory)
    expected = logps_of(model, processor).detach()
    merged = load_model(directory, adapter=tmp_path)
    error, cosine = merge(merged)
    assert error < 1e-4 and cosine > 0.9999
    torch.testing.assert_close(logps_of(merged, processor), expected, atol=1e-4, rtol=0)
    for size, worst in ((0.05, 0.1), (1e-4, 2.0)):  # a small update is lost in bfloat16
        randomise(model, size)
        save_adapter(model, tmp_path, directory)
        rounded = load_model(directory, torch.bfloat16, adapter=tmp_path)
        before = {n: p.clone() for n, p in published_tensors(rounded).items()}
        wanted = [m.lora.scale * (B.float() @ A.float()).detach() for _, m, _ in linears(rounded)
                  for A, B in m.lora.pairs().values()]  # fmt: skip
        error, cosine = merge(rounded)
        after = published_tensors(rounded)
        names = [parent + name + ".weight" for parent, _, rows in linears(rounded) for name in rows]
        held = [after[name].float() - before[name].float() for name in names]
        by_hand = sum(float((h - w).square().sum()) for h, w in zip(held, wanted, strict=True))
        by_hand /= sum(float(w.square().sum()) for w in wanted)
        assert error == pytest.approx(by_hand**0.5, rel=1e-3) and error < worst
        assert cosine > 0.99 if size == 0.05 else error > 0.5
    randomise(model)


@pytest.fixture
def with_outside(tiny, tmp_path):
    """An adapter with pairs of the tower, and of the output layer where it is untied, as other
    programs write them; its model without them, and these weights with their products."""
    model, _, directory = tiny
    save_adapter(model, tmp_path / "adapter", directory)
    path, generator = tmp_path / "adapter" / "adapter_model.safetensors", torch.Generator()
    tensors, expected = load_file(path), {}
    keys = {"visual.blocks.0.attn.qkv": "model.visual.blocks.0.attn.qkv"}
    if not model.cfg.tie_word_embeddings:
        keys["lm_head"] = "lm_head"
    for name, key in keys.items():
        weight = published_tensors(model)[f"{name}.weight"]
        A = 0.1 * torch.randn(3, weight.shape[1], generator=generator)
        B = 0.1 * torch.randn(weight.shape[0], 3, generator=generator)
        tensors |= {f"base_model.model.{key}.lora_{n}.weight": t for n, t in (("A", A), ("B", B))}
        expected[name] = weight + model.lora_config.scale * (B @ A)
    save_file(tensors, path)
    return tmp_path / "adapter", model, directory, expected


def test_pairs_of_tower_and_output_layer_are_added_to_their_weights(with_outside, capsys):
    adapter, model, directory, expected = with_outside
    loaded = load_model(directory, adapter=adapter)
    assert f"{len(expected)} pairs of tower or output layer added" in capsys.readouterr().out
    tensors = published_tensors(loaded)
    for name, weight in published_tensors(model).items():
        wanted = expected.get(name.removesuffix(".weight"), weight)
        torch.testing.assert_close(tensors[name], wanted)
    error, cosine = merge(loaded)
    assert error < 1e-4 and cosine > 0.9999
    rounded = load_model(directory, torch.bfloat16, adapter=adapter)
    assert rounded.outside.wanted > 0  # what they lose to rounding is counted
    held = rounded.outside.held.clone()
    assert merge(rounded)[0] < 0.1 and rounded.outside.held > held


def test_pairs_of_tower_and_output_layer_are_not_trained(with_outside):
    adapter, _, directory, expected = with_outside
    with pytest.raises(InputError, match=f"{len(expected)} of its pairs, first .* merge.py"):
        load_adapter(load_model(directory), adapter, trains=True)


# ---- PEFT ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_peft_loads_ours_and_we_load_pefts(tiny, tmp_path):
    peft = pytest.importorskip("peft")
    model, processor, directory = tiny
    kind = getattr(transformers, f"{CLASSES[model.cfg.model_type]}ForConditionalGeneration")
    ids = torch.arange(20, 60)
    layout = make_pack([processor.assemble("p", ids.tolist(), [])], [[torch.tensor([7])]])

    def ours(with_adapter):
        hidden = with_adapter(layout.ids, layout.positions, layout.layout, layout.prompts)
        return with_adapter.logits(hidden)[: len(ids)]

    save_adapter(model, tmp_path / "ours", directory)
    theirs = peft.PeftModel.from_pretrained(kind.from_pretrained(directory), tmp_path / "ours")
    torch.testing.assert_close(theirs(ids[None]).logits[0], ours(model), atol=1e-4, rtol=0)
    config = peft.LoraConfig(r=5, lora_alpha=9, target_modules=["q_proj", "up_proj"])
    if model.cfg.model_type != "qwen2_vl":  # whose tower has no such names
        config.target_modules = r".*language_model.*\.(q_proj|up_proj)"
    theirs = peft.get_peft_model(kind.from_pretrained(directory), config)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05)
    theirs.save_pretrained(tmp_path / "theirs")
    again = load_model(directory, adapter=tmp_path / "theirs")
    torch.testing.assert_close(ours(again), theirs(ids[None]).logits[0], atol=1e-4, rtol=0)


RECORDED = Path(__file__).with_name("recorded_peft")  # see `record`


@pytest.mark.parametrize("form", PREFIXES)
def test_an_adapter_that_peft_wrote_gives_the_logits_that_peft_computed(form, tmp_path):
    tensors = load_file(RECORDED / "adapter_model.safetensors")
    renamed = {k.replace(PREFIXES["of PEFT"], PREFIXES[form]): t for k, t in tensors.items()}
    save_file(renamed, tmp_path / "adapter_model.safetensors")
    copy(RECORDED / "adapter_config.json", tmp_path)
    model = load_model(BASE_MODEL, adapter=tmp_path)
    expected = load_file(RECORDED / "logits.safetensors")
    prompt = Processor(BASE_MODEL).assemble("p", expected["ids"].tolist(), [])
    pack = make_pack([prompt], [[torch.tensor([7])]])
    logits = model.logits(model.completion_hidden(pack))[0]
    torch.testing.assert_close(logits, expected["logits"], atol=1e-4, rtol=0)
    without = load_model(BASE_MODEL)
    assert (without.logits(without.completion_hidden(pack))[0] - logits).abs().max() > 0.1


def record(directory: Path = RECORDED) -> None:
    """How RECORDED was made, with peft 0.21.2 and transformers 5.23: an adapter of two layers of
    the bundled base, and the last logits of a text.

        python -c "from tests.model.test_lora import record; record()"
    """
    import peft

    torch.manual_seed(0)
    base = transformers.Qwen2VLForConditionalGeneration.from_pretrained(BASE_MODEL)
    target = r".*language_model\.layers\.[03]\.(self_attn\.(q|v)_proj|mlp\.down_proj)"
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, lora_alpha=5, target_modules=target))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    model.save_pretrained(directory)
    ids = torch.arange(20, 60)
    with torch.no_grad():
        logits = model(ids[None]).logits[0, -1].clone()
    save_file({"ids": ids, "logits": logits}, directory / "logits.safetensors")
    config = directory / "adapter_config.json"
    about = json.loads(config.read_text()) | {"base_model_name_or_path": "assets/garden-vlm"}
    config.write_text(json.dumps(about, indent=2) + "\n")
    (directory / "README.md").unlink()


# ---- refusals ------------------------------------------------------------------------------------


@pytest.fixture
def adapter(tiny_dir, tmp_path):
    model = load_model(tiny_dir)
    new_adapter(model, 2, 4.0, 0)
    save_adapter(model, tmp_path / "adapter", tiny_dir)
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("use_dora", True, "DoRA"),
        ("modules_to_save", ["lm_head"], "whole modules"),
        ("trainable_token_indices", [1], "trained token embeddings"),
        ("target_parameters", ["a"], "bare parameters"),
        ("lora_bias", True, "biases"),
        ("rank_pattern", {"q_proj": 2}, "ranks that differ"),
        ("alpha_pattern", {"q_proj": 2}, "scales that differ"),
        ("peft_type", "IA3", "peft_type 'IA3'"),
        ("bias", "all", "bias 'all'"),
        ("init_lora_weights", "pissa", "'pissa', which changes the base"),
        ("init_lora_weights", "lora_ga", "'lora_ga', which changes the base"),
        ("use_qalora", True, "use_qalora"),
        ("velora_config", {"num_groups": 2}, "velora_config"),
        ("layer_replication", [[0, 2]], "repeated layers"),
        ("r", 0, "r and lora_alpha must be numbers"),
        ("r", 3, r"has shapes .*'A': \(2, \d+\).* wants .*'A': \(3, \d+\)"),
    ],
)
def test_what_is_not_plain_lora_is_refused_by_name(adapter, tiny_dir, field, value, words):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(InputError, match=words):
        load_model(tiny_dir, adapter=adapter)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (SECOND_LINE, "base_model.model.lm_head", "lm_head.* is not a linear layer"),  # tied
        (SECOND_LINE, "base_model.model.model.visual.blocks.9.attn.qkv", "is not a linear layer"),
        (SECOND_LINE, "base_model.model.model.visual.blocks.0.attn.qkv", "has shapes"),
        (SECOND_LINE, SECOND_LINE.replace("layers.1", "layers.9"), "layers.9.* is not a linear"),
        (f"{SECOND_LINE}.lora_B", None, "has shapes"),
        (f"{SECOND_LINE}.lora_B", f"{SECOND_LINE}.lora_magnitude", "is no part of a pair"),
    ],
)
def test_a_tensor_without_effect_is_refused(adapter, tiny_dir, old, new, words):
    path = adapter / "adapter_model.safetensors"
    tensors = {
        key.replace(old, new) if new and key.startswith(old) else key: tensor
        for key, tensor in load_file(path).items()
        if new or not key.startswith(old)
    }
    save_file(tensors, path)
    with pytest.raises(InputError, match=words):
        load_model(tiny_dir, adapter=adapter)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer; run git lfs pull"),
        (b"<html>", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_an_adapter_file_that_is_none_is_one_line(adapter, tiny_dir, content, words):
    path = adapter / "adapter_model.safetensors"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"adapter_model.safetensors: {words}"):
        load_model(tiny_dir, adapter=adapter)


def test_an_adapter_that_is_not_finite_is_refused(adapter, tiny_dir):
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, path)
    with pytest.raises(InputError, match="is not finite; it is damaged"):
        load_model(tiny_dir, adapter=adapter)


def test_dropout_is_taken_as_zero_and_rank_stabilised_scales_are_read(adapter, capsys):
    path = adapter / "adapter_config.json"
    changes = {"lora_dropout": 0.05, "use_rslora": True, "r": 4, "lora_alpha": 8}
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert LoRAConfig.from_directory(adapter).scale == 4.0
    assert "lora_dropout 0.05 is taken as 0" in capsys.readouterr().out


def test_other_weights_another_rank_and_no_adapter_are_refused(adapter, tiny_dirs, tmp_path):
    model = load_model(tiny_dirs["qwen2_vl"])
    with pytest.raises(InputError, match="--lora_rank 16: the adapter in .* has 2"):
        load_adapter(model, adapter, rank=16)
    model.fingerprint = "another"
    with pytest.raises(InputError, match="was trained on other weights"):
        read_adapter(model, adapter)
    with pytest.raises(InputError, match="has no adapter_config.json; name an adapter's"):
        load_adapter(model, tmp_path)
    (adapter / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match="adapter_model.safetensors: cannot be read"):
        load_adapter(model, adapter)
