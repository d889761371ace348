"""Errors of the functions of this package, one for each kind of exit code of the command."""

from __future__ import annotations


class Failed(Exception):
    """The command failed: a device or a write failed (exit code 4), or the command is missing."""

    def __init__(self, message: str, hint: str | None = None, exit_code: int | None = None) -> None:
        super().__init__(message, hint, exit_code)
        self.message = message
        """What is wrong, in the words of the command."""
        self.hint = hint
        """What to do about it, if the command says so."""
        self.exit_code = exit_code
        """The command's exit code; None if it did not run."""

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\nhint: {self.hint}"


class BadInput(Failed, ValueError):
    """A setting or a file is wrong (exit code 2): the message names it."""


class NothingFits(Failed):
    """No plan fits into the memory of the devices, or into the restrictions (exit code 3)."""


class Refuted(Failed):
    """The measurement refutes the prediction of the plan (exit code 5)."""
