"""What goes wrong with a model's files."""

from __future__ import annotations


class ModelError(Exception):
    """A model that cannot be used: not there, corrupt, or of a kind the runner does not know.

    The message names the file, what is wrong with it, and the fix where there is one.
    """
