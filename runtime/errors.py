"""The one exception for bad input: a missing file, a wrong flag, an unreadable image.

Its message is shown to the user as a single line `error: ...` and the process exits with code 2,
without a traceback. Everything else that is raised is a bug of ours and keeps its traceback.
"""


class InputError(ValueError):
    """Bad input from outside. The message names the file or flag, what is wrong, and the fix."""
