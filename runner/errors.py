"""The one error type that `run.py` prints as a sentence instead of a traceback."""


class RunnerError(Exception):
    """Tell the user which rule was broken, what was found and what to do about it."""
