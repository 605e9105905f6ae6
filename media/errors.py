"""The error of this package (standard library only)."""


class MediaError(ValueError):
    """Say which rule a file breaks, what was found, and what to do: one sentence for the user."""
