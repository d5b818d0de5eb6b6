"""Settings that must be in place before any test module is imported, and the shared tiny model."""

import os
from pathlib import Path

import pytest

# Workers (-n auto) share the cores: threads that spin while they wait would starve the rest.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

import torch  # noqa: E402

# Without a GPU the Triton kernels are tested in Triton's interpreter. It has to be chosen before
# the kernels are decorated, and any test module may be the first to import them: hence this file.
# With a GPU the same tests run the compiled kernels.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from model.config import VLMConfig  # noqa: E402
from model.new_checkpoint import init_model, write_new_checkpoint  # noqa: E402
from model.weights import save_model, single_file  # noqa: E402

TINY = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
    vision_depth=2,
    vision_embed_dim=32,
    vision_num_heads=2,
    vision_mlp_ratio=2,
    patch_size=4,
)


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory) -> Path:
    """A complete checkpoint directory of a very small model with random, not too small weights."""
    directory = tmp_path_factory.mktemp("tiny") / "checkpoint"
    skeleton = directory.with_name("skeleton")
    texts = [
        "Which species is this flower?",
        "<think>red petals</think><answer>Solara minor</answer>",
    ]
    write_new_checkpoint(skeleton, texts * 4, 300, max_side=64, **TINY)
    model = init_model(VLMConfig.from_directory(skeleton), seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6.0)  # standard deviation 0.12: answers depend on what is seen
    save_model(model, directory, skeleton, single_file(model, torch.float32))
    return directory


@pytest.fixture(scope="session")
def tiny_dirs(tiny_dir, tmp_path_factory) -> dict[str, Path]:
    """A directory like `tiny_dir` of every family."""
    from tests.model.families import CLASSES, write_tiny_directory

    folder = tmp_path_factory.mktemp("families")
    others = [family for family in CLASSES if family != "qwen2_vl"]
    dirs = {family: write_tiny_directory(family, tiny_dir, folder / family) for family in others}
    return dirs | {"qwen2_vl": tiny_dir}


@pytest.fixture(scope="session")
def other_dirs(tmp_path_factory) -> dict[str, Path]:
    """A tiny directory of every family that runs through transformers."""
    from tests.model.other_families import OTHER_FAMILIES, read_without_torchvision
    from tests.model.other_families import write_other_directory as write

    read_without_torchvision()
    folder = tmp_path_factory.mktemp("others")
    return {family: write(family, folder / family) for family in OTHER_FAMILIES}


# ---- the campaign: `python -m pytest -m campaign` ------------------------------------------------

from tests.campaign import Campaign  # noqa: E402

CAMPAIGN = Campaign()


LONGEST = ("tests/training/test_ranks.py", "tests/gpu/", "tests/kernels/test_compile.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))  # workers end together
    for item in items:
        if cases := [case for mark in item.iter_markers("case") for case in mark.args]:
            item.add_marker(pytest.mark.campaign)
            item.user_properties.append(("cases", cases))


def pytest_runtest_logreport(report):
    if report.when == "call" or report.outcome != "passed":
        CAMPAIGN.add(dict(report.user_properties).get("cases", []), report.outcome)


def is_campaign(config) -> bool:
    is_worker = hasattr(config, "workerinput")  # of -n auto: sees a part, the controller sees all
    asked = config.getoption("-m") == "campaign" and not config.getoption("collectonly")
    return asked and not is_worker


def pytest_terminal_summary(terminalreporter, config):
    if is_campaign(config):
        terminalreporter.section("campaign")
        for line in CAMPAIGN.table()[0]:
            terminalreporter.write_line(line)


def pytest_sessionfinish(session):
    if is_campaign(session.config) and not CAMPAIGN.table()[1] and session.exitstatus == 0:
        session.exitstatus = 1
