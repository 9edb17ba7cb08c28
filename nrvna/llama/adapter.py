"""A LoRA adapter: small changes to some of a model's weights, put on and off without loading the model again."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakSet

from nrvna.errors import AdapterFormatError, AdapterNotFoundError, ContextError
from nrvna.llama.gguf import Header, HeaderError, read_header
from nrvna.llama.handle import Handle
from nrvna.llama.library import load_library
from nrvna.llama.model import Model

if TYPE_CHECKING:
    from nrvna.llama.context import Context

_ALPHA = "adapter.lora.alpha"
_ACTIVATED = "adapter.alora.invocation_tokens"
# ggml's numbers for f32, f16, bf16, and for the formats of blocks that a product may have on its left side.
_FACTORS = {0, 1, 30, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14}


class Adapter(Handle):
    """A LoRA adapter for one model, from a GGUF file. :meth:`Context.use_adapters` puts it on.

    The file is not trusted: its head is read before llama.cpp, which takes much of it for granted, sees it.
    Raises AdapterNotFoundError, or AdapterFormatError for a file that is no LoRA adapter, is damaged or belongs to
    another model, and ContextError if the model was loaded for its vocabulary alone.
    """

    def __init__(self, model: Model, path: str | Path) -> None:
        self.path = Path(path)
        self.model = model
        # The contexts that use it, which must know when it is freed.
        self.users: WeakSet[Context] = WeakSet()
        _check(self.path, model)
        library = load_library()
        with library.complaints() as complaints:
            pointer = library.lib.llama_adapter_lora_init(model.pointer, os.fsencode(self.path))
        if not pointer:
            said = complaints[-1].split(": ", 2)[-1] if complaints else "it gave no reason"
            # It may quote a name from the file.
            reason = "".join(letter if letter.isprintable() else "?" for letter in said)
            raise AdapterFormatError(f"llama.cpp cannot use the adapter {self.path} with {model.path.name}: {reason}")
        super().__init__(library, pointer, library.lib.llama_adapter_lora_free, model)
        model.dependents.add(self)

    def close(self) -> None:
        """Free it. A context that uses it decodes nothing more until it is given others, or none."""
        if not self.is_closed:
            for context in list(self.users):
                context.let_go(self)
        super().close()


def _check(path: Path, model: Model) -> None:
    """Raises for what llama.cpp would abort the process at, now or when it computes with it."""
    if model.is_vocab_only:
        raise ContextError(f"{model.path.name} was loaded for its vocabulary alone: it takes no adapter")
    try:
        if path.is_dir():
            raise AdapterNotFoundError(f"{path} is a folder: name the adapter's .gguf file in it")
        header = read_header(path)
    except AdapterNotFoundError:
        raise
    except FileNotFoundError:
        raise AdapterNotFoundError(f"no adapter file {path}: check the path") from None
    except OSError as error:
        raise AdapterNotFoundError(f"cannot read the adapter {path}: {error.strerror}") from error
    except HeaderError as error:
        raise AdapterFormatError(f"{path} is no GGUF file, or a damaged one: {error}") from None
    metadata = header.metadata
    kinds = metadata.get("general.type"), metadata.get("adapter.type")
    if kinds != ("adapter", "lora"):
        raise AdapterFormatError(f"{path} is no LoRA adapter: make one with llama.cpp's convert_lora_to_gguf.py")
    architecture = metadata.get("general.architecture")
    if architecture != model.architecture:
        raise AdapterFormatError(
            f"the adapter {path} was made for {architecture!r:.40}, but {model.path.name} is a {model.architecture!r}"
        )
    alpha = metadata.get(_ALPHA, 0.0)
    if not isinstance(alpha, float) or not math.isfinite(alpha):
        raise AdapterFormatError(f"the adapter {path} is damaged: its {_ALPHA} is {alpha!r:.40}, no number")
    if _ACTIVATED in metadata:
        raise AdapterFormatError(f"the adapter {path} acts from some tokens on only (aLoRA), which is not supported")
    if problem := _misfit(header, model):
        raise AdapterFormatError(f"the adapter {path} does not fit {model.path.name}: {problem}")


def _misfit(header: Header, model: Model) -> str | None:
    """What is wrong with the shapes of its pairs of factors, if anything; llama.cpp compares the rest."""
    experts = int(model.metadata.get(f"{model.architecture}.expert_count", 0))
    for name, a in header.tensors.items():
        stem, dot, suffix = name.rpartition(".")
        if suffix == "lora_b" and f"{stem}.lora_a" not in header.tensors:
            return f"{stem!r} has no lora_a"
        if suffix != "lora_a":
            continue
        b = header.tensors.get(f"{stem}{dot}lora_b")
        if b is None:
            return f"{stem!r} has no lora_b"
        if not {a.type, b.type} <= _FACTORS:
            return f"{stem!r} is in a format that cannot be multiplied"
        (a_row, a_rows, *a_more), (b_row, _, *b_more) = _padded(a.shape), _padded(b.shape)
        is_embedding = stem.endswith("token_embd.weight")
        if is_embedding and _writes_with_its_embeddings(model):
            return f"{stem!r} is also what the model writes with, and llama.cpp cannot change both"
        # Of the token embeddings A is looked up by rows and not multiplied.
        rank = a_row if is_embedding else a_rows
        if rank != b_row:
            return f"the factors of {stem!r} do not meet: {a.shape} and {b.shape}"
        if a_more != b_more or a_more != [experts if "_exps" in stem else 1, 1]:
            return f"the factors of {stem!r} have shapes {a.shape} and {b.shape}"
    return None


def _writes_with_its_embeddings(model: Model) -> bool:
    try:
        return "output.weight" not in read_header(model.path).tensors
    except (OSError, HeaderError):
        return True


def _padded(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape, *[1] * (4 - len(shape)))
