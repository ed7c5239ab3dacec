"""Every error that hwsearch raises on purpose, and the exit status that the command line gives it.

    HwsearchError                 status 1
    ├── UnitError                 a quantity that cannot be read: "280" where a time is wanted
    ├── ArchitectureError         a shape that no transformer has
    ├── ProfileError              a device profile that is unknown, broken or lacks what was asked of it
    ├── CasesError                a file of measured latencies that cannot be read
    ├── DataError                 text that is missing, unreadable or too little
    ├── TeacherError              a checkpoint that is none, or of a family that is not supported
    ├── RunError                  a run's directory that cannot be written, read or resumed
    ├── TrainingError             a student that cannot be trained: its trial fails, the search goes on
    ├── ExportError               a student that cannot be written in a form, or that computes something else there
    │   └── GraphError            the same of its graphs alone: the Transformers folder stands
    └── NothingFits               status 3: the nearest miss stands in the message

A message gives the rule, the value and the way out, on one line.
"""

from __future__ import annotations

from typing import Any


class HwsearchError(Exception):
    """The root; its message is meant for a person and fits on one line."""

    exit_status = 1


class UnitError(HwsearchError):
    """A quantity that cannot be read."""


class ArchitectureError(HwsearchError):
    """A shape that no transformer has."""


class ProfileError(HwsearchError):
    """A device profile that is unknown, broken or lacks what was asked of it."""


class CasesError(HwsearchError):
    """A file of measured latencies that cannot be read."""


class DataError(HwsearchError):
    """Text that is missing, unreadable or too little."""


class TeacherError(HwsearchError):
    """A checkpoint that is none, or of a family that is not supported."""


class RunError(HwsearchError):
    """A run's directory that cannot be written, read or resumed."""


class TrainingError(HwsearchError):
    """A student that cannot be trained: its trial fails, the search goes on."""


class ExportError(HwsearchError):
    """A student that cannot be written in a form, or that computes something else there."""


class GraphError(ExportError):
    """Graphs of a student that cannot be written; its Transformers folder stands."""


class NothingFits(HwsearchError):
    """No student fits the budget; the nearest miss stands in the message.

    Args:
        message: for a person.
        details: for a program: the nearest miss, or the document of a search that ended with it.
    """

    exit_status = 3

    def __init__(self, message: str, details: Any) -> None:
        super().__init__(message)
        self.details = details
