"""`InputError`, the one exception for bad input, and how text from outside is shown.

The message is printed as a single line `error: ...` and the process exits with code 2, without a
traceback. Any other exception is a bug of ours and keeps its traceback.
"""

import json
import unicodedata
from typing import Any

KEPT = "\t\n\u200d"  # line breaks, and the joiner that writing systems and emoji need
# Control, format, surrogate and separator characters: invisible, or turning the direction.
UNSEEN = {
    code: f"⟨U+{code:04X}⟩"
    for code in (*range(0x10000), *range(0xE0000, 0xE1000))
    if unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs", "Zl", "Zp") and chr(code) not in KEPT
}


# The same as escapes in JSON text; control characters below a space are escaped there already.
JSON_ESCAPES = {code: json.dumps(chr(code))[1:-1] for code in UNSEEN if code >= 0x7F}


class InputError(ValueError):
    """Bad input from outside. The message names the file or flag, what is wrong, and the fix."""


def one_line(error: BaseException) -> str:
    """An exception of other code as one short line, for a message of ours."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def visible(text: str) -> str:
    """Spell out every character of the text that would vanish or turn the writing direction."""
    return text if text.isascii() and text.isprintable() else text.translate(UNSEEN)


def json_line(value: Any) -> str:
    """A value as a line of JSON: readable letters, but no raw character of `UNSEEN`."""
    return json.dumps(value, ensure_ascii=False).translate(JSON_ESCAPES) + "\n"
