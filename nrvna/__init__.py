"""nrvna: local inference as durable jobs.

``wrk`` queues a prompt, ``nrvnad`` answers it with a local GGUF model, ``flw`` collects the answer. From Python,
:class:`Workspace` does what ``wrk`` and ``flw`` do.
"""

# As type checkers know it, without the time that importing it from typing takes.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from nrvna.client import Finished, Workspace
    from nrvna.errors import (
        DamagedResultError,
        GrammarError,
        JobError,
        JobFailedError,
        JobNotFoundError,
        NrvnaError,
        SettingError,
        SubmitError,
        WorkspaceError,
    )
    from nrvna.handle import Completed, Job, Ranked
    from nrvna.job import JobState, Receipt
    from nrvna.request import Options, Request

__version__ = "0.1.0"

__all__ = [
    "Completed",
    "DamagedResultError",
    "Finished",
    "GrammarError",
    "Job",
    "JobError",
    "JobFailedError",
    "JobNotFoundError",
    "JobState",
    "NrvnaError",
    "Options",
    "Ranked",
    "Receipt",
    "Request",
    "SettingError",
    "SubmitError",
    "Workspace",
    "WorkspaceError",
    "__version__",
]

# Looked up when they are asked for: the tools start in less time than it takes to import these.
_ROOMS = {
    **dict.fromkeys(("Finished", "Workspace"), "client"),
    **dict.fromkeys(("Completed", "Job", "Ranked"), "handle"),
    **dict.fromkeys(("JobState", "Receipt"), "job"),
    **dict.fromkeys(("Options", "Request"), "request"),
}

# A type checker reads the imports above, and is not to believe that every name is there.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module 'nrvna' has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(f"nrvna.{_ROOMS.get(name, 'errors')}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
