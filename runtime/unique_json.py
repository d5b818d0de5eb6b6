"""JSON from outside: as `json.loads`, but a key that occurs twice in an object is an error.

The standard library keeps the last one: of two `"answer"`s one is lost without a word.
"""

import json
from typing import Any


class DuplicateKeyError(ValueError):
    """A key occurs twice in one object; the message names it."""


def loads(text: str, **options) -> Any:
    """Parse JSON text; raises ValueError for what is no JSON, DuplicateKeyError for such a key."""
    return json.loads(text, object_pairs_hook=_unique, **options)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        where = f" (that with id {content['id']!r:.40})" if "id" in content else ""
        raise DuplicateKeyError(f"the key {twice!r:.80} occurs twice in one object{where}")
    return content
