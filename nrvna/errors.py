"""The exceptions of nrvna. Each also inherits the builtin that a caller would expect.

A message is one line that names what was wrong, the value and what to do about it.
"""

from __future__ import annotations

# How llama.cpp, ggml, CUDA and C++ word that an allocation failed.
_NO_MEMORY = (
    "failed to allocate",
    "unable to allocate",
    "out of memory",
    "insufficient memory",
    "bad_alloc",
    "memoryerror",
    # ggml, where it does not look; Python, of a thread's stack.
    "mem_buffer != null",
    "can't start new thread",
)

# Characters of an exception that a job's reason repeats.
_LONGEST_SURPRISE = 300


def speaks_of_memory(text: str) -> bool:
    """Whether a library's words about its failure, or its end, say that it was for want of memory."""
    return any(words in text.lower() for words in _NO_MEMORY)


def shown(value: object, most: int = 80) -> str:
    """A value in a message's one line, of so many characters at most."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        # A number of thousands of digits, or what is nested as deep.
        return f"a very long {type(value).__name__}"
    return text if len(text) <= most else text[: most - 1] + "…"


def reason_of(error: Exception) -> str:
    """Why a job fails, in one line: what nrvna raised on purpose says so itself.

    Anything else is a mistake of nrvna's: the log gets all of it.
    """
    if isinstance(error, NrvnaError):
        return str(error)
    # Imported here: the tools log nothing, and it takes a while.
    import logging

    said = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_SURPRISE]
    logging.getLogger("nrvna").error("a job failed of what nobody foresaw: %s", said, exc_info=error)
    return f"nrvna failed at this job, by a mistake of its own: {said}; please report it with the daemon's log"


class NrvnaError(Exception):
    """The root: catching it catches everything that nrvna raises on purpose."""


class SettingError(NrvnaError, ValueError):
    """A setting that is no number, out of range or unknown."""


class NoHomeError(NrvnaError, LookupError):
    """The user has no home folder that is known here, and what would lie in it was named nowhere else."""


class WorkspaceError(NrvnaError, OSError):
    """A workspace that is missing, not a workspace, or not writable."""


class NoFolderError(WorkspaceError, NotADirectoryError):
    """A workspace's name that is empty, or that of a file."""


class UnsafeWorkspaceError(WorkspaceError, PermissionError):
    """A workspace that others than its user can write to."""


class SubmitError(WorkspaceError):
    """Not all prompts of a group were queued.

    ``queued`` are the ids of jobs that are safe, ``uncertain`` those of jobs that may run: the disk did not confirm
    them. The others are not in the queue.
    """

    def __init__(self, message: str, queued: list[str], uncertain: list[str]) -> None:
        super().__init__(message)
        self.queued = queued
        self.uncertain = uncertain


class LeaseLostError(WorkspaceError):
    """The workspace that a daemon served is no longer where it was."""


class JobError(NrvnaError, ValueError):
    """A job that cannot be run as it is: no prompt, a NUL byte, invalid UTF-8, too large."""


class JsonError(NrvnaError, ValueError):
    """A value that no job may hold: nested too deep, or with half a character. Its message goes after a name."""


class GrammarError(JobError):
    """A grammar, schema or list of choices that answers cannot be held to."""


class JobNotFoundError(NrvnaError, LookupError):
    """No job of that id in the workspace."""


class JobFailedError(NrvnaError, RuntimeError):
    """A job that has no answer, by its ``id``, with the ``reason``.

    ``finish_reason`` is the receipt's: "error", "cancelled", "timeout", or "thinking" where the model never came to
    an answer.
    """

    # All of them go to args: so it can be pickled, as it must be to come out of another process.
    def __init__(self, id: str, reason: str, finish_reason: str = "error") -> None:
        super().__init__(id, reason, finish_reason)
        self.id = id
        self.reason = reason
        self.finish_reason = finish_reason

    def __str__(self) -> str:
        return f"{self.id} failed: {self.reason}"


class DamagedResultError(NrvnaError, OSError):
    """The files of a finished job are not, any more, those that its daemon wrote."""


class LostRaceError(NrvnaError):
    """Somebody else moved or removed the job first. Never an error for a user: the caller goes on to the next job."""


class LibraryError(NrvnaError, ImportError):
    """llama.cpp was never built here, was built for another machine, or does not load."""


class ModelError(NrvnaError):
    """The model cannot be used."""


class ModelNotFoundError(ModelError, FileNotFoundError):
    """No such model file, or it cannot be read."""


class ModelFormatError(ModelError, ValueError):
    """The file is empty or is not a GGUF file."""


class ModelTruncatedError(ModelError, EOFError):
    """The file ends before the data that its header announces: a download that was cut, usually."""


class ModelLoadError(ModelError, RuntimeError):
    """llama.cpp refused a file that looks like GGUF: unknown architecture, out of memory."""


class ModelMemoryError(ModelLoadError, MemoryError):
    """There is not the memory for the weights."""


class EncoderError(ModelLoadError):
    """The model is an encoder: it makes vectors and continues no text."""


class AdapterError(NrvnaError):
    """A LoRA adapter cannot be used."""


class AdapterNotFoundError(AdapterError, FileNotFoundError):
    """No such adapter file, or it cannot be read."""


class AdapterFormatError(AdapterError, ValueError):
    """The file is no LoRA adapter, is damaged, or was made for another model."""


class TokenizeError(NrvnaError, ValueError):
    """Text that cannot be tokenised, or tokens that cannot be turned into text."""


class TemplateError(NrvnaError, ValueError):
    """A chat template that is missing, unknown to llama.cpp, or fails."""


class ContextError(NrvnaError, RuntimeError):
    """A context could not be made, or was used after it was freed."""


class ContextMemoryError(ContextError, MemoryError):
    """There is not the memory for a context."""


class DecodeError(NrvnaError, RuntimeError):
    """llama_decode failed; ``code`` is what it returned."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class NoSlotError(DecodeError):
    """llama_decode found no room in the KV cache for the batch; the cache is as it was before the call."""


class DecodeMemoryError(DecodeError, MemoryError):
    """There was not the memory to compute a batch."""


class EngineError(NrvnaError, RuntimeError):
    """The engine process died or could not start."""
