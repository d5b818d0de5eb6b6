"""The table of the campaign tells the truth about its tests."""

import ast
from pathlib import Path

import pytest

from tests.campaign import CASES, Campaign


def test_every_case_is_shown_by_a_test_and_no_other_is_named():
    marked = set()
    for path in Path(__file__).parents[1].rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.case":
                marked |= {argument.value for argument in node.args}
    assert marked == CASES.keys()


def test_a_campaign_is_fine_only_if_every_test_of_every_case_is():
    campaign = Campaign()
    for case in CASES:
        campaign.add([case], "passed")
    lines, is_fine = campaign.table()
    assert is_fine and lines[-1] == "nothing lost" and len(CASES) == 124
    campaign.add(["F12", "I1"], "skipped")  # it ran elsewhere
    assert campaign.table()[1]
    campaign.add(["F12"], "failed")
    lines, is_fine = campaign.table()
    assert not is_fine and f"    F12 failed: {CASES['F12']}" in lines


def test_a_case_that_no_test_shows_fails_the_campaign():
    campaign = Campaign()
    campaign.add([case for case in CASES if case != "O7"], "passed")
    lines, is_fine = campaign.table()
    assert not is_fine and f"    O7 missing: {CASES['O7']}" in lines
    with pytest.raises(KeyError):
        campaign.add(["Z1"], "passed")
