"""The oracles of the campaign: number -> (what and what has to happen, its tests)."""

ORACLES: dict[str, tuple[str, tuple[str, ...]]] = {}
