"""Every form of config.json in which the families are found is read into the same sizes.

And whatever would change the model, but is not computed, is refused by its own name.
"""

from copy import deepcopy
from itertools import product

import pytest
import transformers

from model.config import FAMILIES, VLMConfig
from runtime.errors import InputError
from tests.model.families import CLASSES

ROPE = {"type": "mrope", "mrope_section": [16, 24, 24]}
TEXT = {
    **{"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36},
    **{"num_attention_heads": 16, "num_key_value_heads": 2, "vocab_size": 151936},
    **{"rms_norm_eps": 1e-6, "hidden_act": "silu", "use_sliding_window": False},
}
FULL_VISION = {
    "qwen2_vl": {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "hidden_size": 2048},
    "qwen2_5_vl": {
        **{"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 2048},
        **{"window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]},
    },
    "qwen3_vl": {
        **{"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "out_hidden_size": 2048},
        **{"num_position_embeddings": 2304, "deepstack_visual_indexes": [5, 11, 17]},
    },
}
SPARSE_VISION = {  # as transformers 4.45 to 4.49 saved what differs from its defaults
    "qwen2_vl": {"hidden_size": 2048, "in_chans": 3, "spatial_patch_size": 14},
    "qwen2_5_vl": {"hidden_size": 1280, "in_chans": 3, "out_hidden_size": 2048},
}


def full(family: str) -> dict:
    """Nested, with `rope_parameters`: what transformers 5 writes."""
    vision = FULL_VISION[family] | {"num_heads": 16, "in_channels": 3, "temporal_patch_size": 2}
    vision |= {"patch_size": 16 if family == "qwen3_vl" else 14, "spatial_merge_size": 2}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    text = TEXT | {"rope_parameters": rope}
    text |= {"head_dim": 128} if family == "qwen3_vl" else {}
    raw = {"model_type": family, "image_token_id": 151655, "tie_word_embeddings": True}
    return raw | {"vision_config": vision, "text_config": text}


def flat(family: str) -> dict:
    raw = full(family)
    text = raw.pop("text_config")
    del text["rope_parameters"]
    return raw | text | {"rope_scaling": ROPE, "rope_theta": 1e6}


def with_sparse_tower(family: str) -> dict:
    return flat(family) | {
        "vision_config": SPARSE_VISION.get(family, full(family)["vision_config"])
    }


def with_a_copy(family: str) -> dict:
    raw = flat(family)
    copy = {name: raw[name] for name in (*TEXT, "rope_scaling", "rope_theta")}
    return raw | {"text_config": copy | {"image_token_id": None, "bos_token_id": None}}


def nested_with_scaling(family: str) -> dict:
    raw = full(family)
    del raw["text_config"]["rope_parameters"]
    raw["text_config"] |= {"rope_scaling": ROPE | {"rope_type": "default"}, "rope_theta": 1e6}
    raw["text_config"]["tie_word_embeddings"] = raw.pop("tie_word_embeddings")
    return raw


@pytest.mark.parametrize("form", [flat, with_sparse_tower, with_a_copy, nested_with_scaling])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_form_gives_the_same_sizes(family, form):
    assert VLMConfig.from_dict(form(family)) == VLMConfig.from_dict(full(family))


@pytest.mark.parametrize("form", [full, flat, with_a_copy, nested_with_scaling])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_form_is_read_as_transformers_reads_it(family, form):
    if family == "qwen3_vl" and form in (flat, with_a_copy):
        pytest.skip("Qwen3-VL was never saved so")
    ours, raw = VLMConfig.from_dict(form(family)), form(family)
    raw.pop("model_type")
    theirs = getattr(transformers, f"{CLASSES[family]}Config")(**raw)
    text, vision = theirs.text_config, theirs.vision_config
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_key_value_heads"):
        assert getattr(ours.text, name) == getattr(text, name), name
    assert ours.text.rope_theta == text.rope_parameters["rope_theta"]
    assert [*ours.text.mrope_section] == text.rope_parameters["mrope_section"]
    assert (ours.vision.depth, ours.vision.patch_size) == (vision.depth, vision.patch_size)
    assert ours.vision.num_heads == vision.num_heads


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tie_flag_counts_where_transformers_looks_for_it(family):
    for root, nested in product((True, False, None), repeat=2):
        raw = full(family)
        del raw["tie_word_embeddings"]
        raw |= {} if root is None else {"tie_word_embeddings": root}
        raw["text_config"] |= {} if nested is None else {"tie_word_embeddings": nested}
        ours = VLMConfig.from_dict(raw).tie_word_embeddings
        raw.pop("model_type")
        theirs = getattr(transformers, f"{CLASSES[family]}Config")(**raw).tie_word_embeddings
        # Files from before transformers 5 may have it in the text alone; they hold no lm_head.
        assert ours == (theirs or (root is None and nested is True))


def test_the_towers_rope_theta_counts_wherever_it_stands():
    for fields in ({"rope_theta": 100.0}, {"rope_parameters": {"rope_theta": 100.0}}):
        raw = full("qwen2_5_vl")
        raw["vision_config"] |= fields
        assert VLMConfig.from_dict(raw).vision.rope_theta == 100.0


@pytest.mark.parametrize("family", FAMILIES)
def test_the_defaults_of_a_sparse_tower_are_those_of_transformers(family):
    config = getattr(transformers, f"{CLASSES[family]}Config")().vision_config
    for name, value in FAMILIES[family].vision_defaults.items():
        theirs = getattr(config, name)
        if (family, name) != ("qwen2_5_vl", "hidden_size"):  # where the class has the decoder's
            assert theirs == value or list(theirs) == value, name


def test_a_width_of_its_own_and_an_axis_without_frequencies_are_legal():
    raw = full("qwen3_vl")
    raw["text_config"] |= {"head_dim": 64, "num_attention_heads": 24}
    raw["text_config"]["rope_parameters"]["mrope_section"] = [0, 16, 16]
    cfg = VLMConfig.from_dict(raw)
    assert cfg.text.head_dim == 64 and cfg.text.mrope_section == (0, 16, 16)
    assert cfg.vision.levels == 4


YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
REFUSED = {  # where, fields, words of the message
    "quantised": ("", {"quantization_config": {"bits": 4}}, "quantised; take the original"),
    "yarn": ("text_config", {"rope_parameters": YARN}, "yarn"),
    "linear": ("text_config", {"rope_parameters": YARN | {"rope_type": "linear"}}, "linear"),
    "sliding": ("text_config", {"use_sliding_window": True}, "use_sliding_window"),
    "activation": ("text_config", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    "tower": ("vision_config", {"hidden_act": "relu"}, "vision hidden_act 'relu'"),
    "experts": ("", {"model_type": "qwen3_vl_moe"}, "mixture of experts"),
    "linear attention": ("", {"model_type": "qwen3_5_moe"}, "linear attention"),
    "another": ("", {"model_type": "llama"}, "reads Qwen2-VL, Qwen2.5-VL, Qwen3-VL"),
    "no tower": ("", {"vision_config": None}, "wrong type"),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_computed_is_refused_by_name(case, family):
    where, fields, words = REFUSED[case]
    raw = deepcopy(full(family))
    (raw[where] if where else raw).update(fields)
    with pytest.raises(InputError, match="my/config.json") as refusal:
        VLMConfig.from_dict(raw, "my/config.json")
    assert words in str(refusal.value)
    assert ("wrong type" in str(refusal.value)) == (case == "no tower")


def test_a_head_width_that_the_family_ignores_and_a_bias_that_it_lacks_are_refused():
    for family, field in (("qwen2_5_vl", {"head_dim": 64}), ("qwen3_vl", {"attention_bias": True})):
        raw = full(family)
        raw["text_config"] |= field
        with pytest.raises(InputError, match=next(iter(field))):
            VLMConfig.from_dict(raw)


def test_windows_smaller_than_a_token_are_refused_and_stray_fields_do_not_count():
    raw = full("qwen2_5_vl")
    raw["vision_config"]["window_size"] = 27
    with pytest.raises(InputError, match="window_size is smaller than an image token"):
        VLMConfig.from_dict(raw)
    raw = full("qwen2_vl")
    plain = VLMConfig.from_dict(raw)
    raw["vision_config"] |= {"window_size": 112, "fullatt_block_indexes": [7]}
    raw["vision_config"] |= {"num_position_embeddings": 2304, "deepstack_visual_indexes": [1]}
    assert VLMConfig.from_dict(raw) == plain


@pytest.mark.parametrize("place", ["", "text_config"])
@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
def test_a_longer_context_added_by_hand_is_refused_wherever_it_stands(name, place):
    raw = full("qwen2_5_vl")
    (raw[place] if place else raw)[name] = YARN
    with pytest.raises(InputError, match="yarn"):
        VLMConfig.from_dict(raw)


@pytest.mark.parametrize(
    ("where", "field", "value", "words"),
    [
        ("text_config", "num_attention_heads", 0, "a number of heads or a patch size is 0"),
        ("vision_config", "patch_size", 0, "a number of heads or a patch size is 0"),
        ("", "model_type", ["qwen3_vl"], "model_type is"),
        ("", "vision_config", [1], "vision_config is not an object"),
        ("", "tie_word_embeddings", "false", "tie_word_embeddings is 'false', not true or false"),
        ("text_config", "num_hidden_layers", True, "num_hidden_layers is True, not an integer"),
        ("text_config", "num_hidden_layers", "36", "num_hidden_layers is '36', not an integer"),
        ("text_config", "intermediate_size", 11008.5, "is 11008.5, not an integer"),
        ("text_config", "rms_norm_eps", "1e-6", "rms_norm_eps is '1e-6', not a number"),
        ("text_config", "rms_norm_eps", 1e30, "rms_norm_eps must be below 1"),
        ("text_config", "rms_norm_eps", [1e-6], r"rms_norm_eps is \[1e-06\], not a number"),
        ("vision_config", "rope_parameters", {"rope_theta": 0.5}, "rope_theta must be in 1"),
        ("vision_config", "rope_parameters", {"rope_theta": 1e300}, "rope_theta must be in 1"),
        ("", "image_token_id", "<image>", "image_token_id must be an integer"),
        ("", "image_token_id", None, "image_token_id must be an integer"),
        ("", "text_config", "flat", "wrong type"),
        ("vision_config", "num_position_embeddings", 50, "50 is not a square"),
    ],
)
def test_odd_values_are_one_line(where, field, value, words):
    raw = full("qwen3_vl")
    (raw[where] if where else raw)[field] = value
    with pytest.raises(InputError, match=words):
        VLMConfig.from_dict(raw)
