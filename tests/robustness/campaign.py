"""The campaign: every bad input, fault and oracle, and the tests that show what becomes of it.

    python -m pytest -m campaign

A case passes if all of its tests pass and at least one of them ran here. The table is printed at
the end of the run (tests/conftest.py); a case whose tests do not exist fails it.
"""

from dataclasses import dataclass, field

from tests.robustness.campaign_faults import FAULTS
from tests.robustness.campaign_inputs import INPUTS
from tests.robustness.campaign_oracles import ORACLES

# kind -> number -> (what, names of tests as "test_file.py::test_name")
KINDS = {"inputs": INPUTS, "faults": FAULTS, "oracles": ORACLES}
TESTS = {name for cases in KINDS.values() for _, names in cases.values() for name in names}


@dataclass
class Outcomes:
    """What became of the tests: name -> outcomes of its parametrizations."""

    by_test: dict[str, list[str]] = field(default_factory=dict)

    def add(self, name: str, outcome: str) -> None:
        if name in TESTS:
            self.by_test.setdefault(name, []).append(outcome)

    def verdict(self, names: tuple[str, ...]) -> str:
        """passed, failed, skipped (nothing ran here) or missing (a test does not exist)."""
        if any(name not in self.by_test for name in names) or not names:
            return "missing"
        found = [outcome for name in names for outcome in self.by_test[name]]
        if "failed" in found:
            return "failed"
        return "passed" if "passed" in found else "skipped"

    def table(self) -> tuple[list[str], bool]:
        """Lines to print, and whether every case passed or could not run here."""
        lines, is_fine = [f"{'':10}{'cases':>7}{'tests':>7}{'passed':>8}{'other':>7}"], True
        for kind, cases in KINDS.items():
            verdicts = {number: self.verdict(names) for number, (_, names) in cases.items()}
            names = {name for _, of_case in cases.values() for name in of_case}
            ran = sum(len(self.by_test.get(name, [])) for name in names)
            passed = sum(verdict == "passed" for verdict in verdicts.values())
            others = {n: v for n, v in verdicts.items() if v != "passed"}
            lines.append(f"{kind:10}{len(cases):7}{ran:7}{passed:8}{len(others):7}")
            lines += [f"    {n} {verdict}: {cases[n][0]}" for n, verdict in others.items()]
            is_fine &= not {"failed", "missing"} & set(verdicts.values())
        lines.append("nothing lost" if is_fine else "NOT all passed")
        return lines, is_fine
