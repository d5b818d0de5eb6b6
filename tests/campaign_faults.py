"""The faults of the campaign: number -> (what and what has to happen, its tests)."""

FAULTS: dict[str, tuple[str, tuple[str, ...]]] = {}
