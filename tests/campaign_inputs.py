"""The inputs of the campaign: number -> (what and what has to happen, its tests)."""

INPUTS: dict[str, tuple[str, tuple[str, ...]]] = {}
