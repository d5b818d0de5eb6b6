"""Random numbers without a state: a function of a name, the same on every machine and in any order.

The counter-based generator Philox (Salmon et al., SC 2011), keyed with a hash of the name.
"""

import hashlib

import numpy as np


def keyed(name: str) -> np.random.Philox:
    """The generator of a name; its raw output is what numpy promises never to change."""
    text = name.encode("utf-8", "backslashreplace")
    digest = hashlib.blake2b(text, digest_size=16).digest()
    return np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64))
