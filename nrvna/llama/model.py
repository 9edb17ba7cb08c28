"""A GGUF model: its weights, its vocabulary and what it says about itself."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakSet

from nrvna.errors import (
    ModelFormatError,
    ModelLoadError,
    ModelMemoryError,
    ModelNotFoundError,
    ModelTruncatedError,
    TemplateError,
    TokenizeError,
    speaks_of_memory,
)
from nrvna.llama.gguf import MAGIC, open_file, parts_of
from nrvna.llama.handle import Handle
from nrvna.llama.library import load_library
from nrvna.llama.placement import read_placement
from nrvna.llama.stack import call_on_stack

# How a model says that vectors of tokens become one of the whole input; the numbers of the file.
POOLINGS = {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}
# Architectures that look at all of a text at once, also where their files do not say so.
_NON_CAUSAL = ("gemma-embedding", "dream", "llada", "rnd1", "wavtokenizer-dec")
# The keys of "general.sampling" that llama.cpp reads, and what its options call them.
_RECOMMENDED: dict[str, tuple[str, Callable[[str], str | float]]] = {
    "sequence": ("samplers", str),
    "temp": ("temp", float),
    "top_k": ("top_k", int),
    "top_p": ("top_p", float),
    "min_p": ("min_p", float),
    "xtc_probability": ("xtc_probability", float),
    "xtc_threshold": ("xtc_threshold", float),
    "penalty_last_n": ("repeat_last_n", int),
    "penalty_repeat": ("repeat_penalty", float),
    "mirostat": ("mirostat", int),
    "mirostat_tau": ("mirostat_ent", float),
    "mirostat_eta": ("mirostat_lr", float),
}
# How llama.cpp words a file that ends too early: in the header, or in the weights.
_CUT_SHORT = ("not within the file bounds", "failed to read")
# What a KV cache can be kept in, and of how many numbers the blocks are that these formats know.
KV_TYPES = {"f16": 1, "q8_0": 32, "q4_0": 32}
# Of missing files.
_MOST_NAMES = 4
# Many models' pre-tokenizers are std::regex, which in libstdc++ recurses once for each character of a match, by 327
# bytes as measured: a run of 26,000 letters overflows the usual 8 MiB, and the process dies.
_STACK_A_CHARACTER = 512
_SHALLOW_TEXT = 4096


class Model(Handle):
    """A model loaded from a GGUF file. Several contexts may share one.

    ``gpu_layers`` is the number of layers to put on GPUs, where there are any. ``split`` has a number for each GPU,
    in the order of :meth:`Library.gpus`: its part of these layers, as a part of the sum. One with 0 is not touched,
    and none is where no layer goes there. Without it their free memory decides. ``vocab_only`` loads no weights:
    enough to tokenise and to read the metadata. ``repack`` False leaves the weights in the file's order, without the
    faster orders that ggml knows for some formats. ``progress`` is called with 0.0 to 1.0 and may raise to stop.
    ``placement`` is where the weights went.

    Raises ModelNotFoundError, ModelFormatError, ModelTruncatedError, ModelMemoryError or another ModelLoadError, each
    naming the file, and LibraryError if llama.cpp was never built.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        gpu_layers: int = 99,
        split: Sequence[float] | None = None,
        vocab_only: bool = False,
        repack: bool = True,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        self.path = Path(path)
        check_file(self.path)
        library = load_library()
        params = library.lib.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        if split is not None or not gpu_layers:
            parts = [(gpu, part) for gpu, part in zip(library.gpus(), split or (), strict=False) if part > 0]
            # Borrowed by params while the model is read.
            devices = library.ffi.new("ggml_backend_dev_t[]", [*(gpu for gpu, _ in parts), library.ffi.NULL])
            shares = library.ffi.new("float[]", library.lib.llama_max_devices())
            shares[0 : len(parts)] = [part for _, part in parts]
            params.devices, params.tensor_split = devices, shares
        params.vocab_only = vocab_only
        params.use_extra_bufts = repack
        reporter = _Reporter(progress)
        handle = library.ffi.new_handle(reporter)
        params.progress_callback = library.lib.nrvna_on_progress
        params.progress_callback_user_data = handle
        with library.complaints() as complaints, library.remarks() as remarks:
            pointer = library.lib.llama_model_load_from_file(os.fsencode(self.path), params)
        if reporter.error is not None:
            raise reporter.error
        if not pointer:
            raise _load_error(self.path, complaints)
        super().__init__(library, pointer, library.lib.llama_model_free)
        self.is_vocab_only = vocab_only
        self.placement = read_placement(remarks)
        # What must be freed before the weights are.
        self.dependents: WeakSet[Handle] = WeakSet()

    def close(self) -> None:
        """Free the weights, and before them every context made from this model."""
        for dependent in list(self.dependents):
            dependent.close()
        super().close()

    # What the model says about itself.

    @property
    def description(self) -> str:
        """Architecture, size class and quantization in a few words, such as "llama 135M Q4_1"."""
        return self._read_string(self._lib.llama_model_desc, self.pointer)

    @property
    def quantization(self) -> str:
        """The format of the weights in llama.cpp's words, such as "Q4_1" or "Q4_K - Medium"."""
        # The number in the file: what llama.cpp takes it for is known only with the weights loaded.
        number = self.metadata.get("general.file_type")
        ftype = int(number) if number else self._lib.llama_model_ftype(self.pointer)
        return self._library.string(self._lib.llama_ftype_name(self._ffi.cast("enum llama_ftype", ftype)))

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return int(self._lib.llama_model_size(self.pointer))

    @property
    def n_params(self) -> int:
        """The number of weights."""
        return int(self._lib.llama_model_n_params(self.pointer))

    @property
    def architecture(self) -> str:
        """The architecture's name, such as "llama" or "qwen2"."""
        return self.metadata.get("general.architecture", "unknown")

    @property
    def n_ctx_train(self) -> int:
        """The context length that the model was trained for, in tokens; 0 where it does not say."""
        return self._number("context_length") or 0

    @property
    def is_generative(self) -> bool:
        """Whether it is a plain decoder: encoders and encoder-decoders do not continue a text."""
        return self.has_decoder and not self.has_encoder and self.is_causal

    @property
    def is_causal(self) -> bool:
        """Whether a token sees only those before it, as in models that continue a text; BERT and its like do not."""
        if self.metadata.get(f"{self.architecture}.attention.causal") == "false":
            return False
        return "bert" not in self.architecture and not self.architecture.startswith(_NON_CAUSAL)

    @property
    def has_encoder(self) -> bool:
        """Whether a part of it reads the whole input first, as in T5. BERT and its like have none in this sense."""
        return bool(self._lib.llama_model_has_encoder(self.pointer))

    @property
    def has_decoder(self) -> bool:
        """Whether :meth:`Context.decode` can run it: all models but the encoder of a T5 by itself."""
        return bool(self._lib.llama_model_has_decoder(self.pointer))

    @property
    def n_embd(self) -> int:
        """The width of the model's vectors, those of its input."""
        return int(self._lib.llama_model_n_embd(self.pointer))

    @property
    def n_embd_out(self) -> int:
        """The width of its embeddings: :attr:`n_embd` but for models with a projection behind the last layer."""
        return int(self._lib.llama_model_n_embd_out(self.pointer))

    @property
    def pooling(self) -> str | None:
        """How it was trained to make one vector of an input's: "mean", "cls", "last", "rank" (a score), "none".

        None where it does not say, as models that were not made for embeddings.
        Raises ModelFormatError for a number that llama.cpp does not know: it would abort the process.
        """
        number = self.metadata.get(f"{self.architecture}.pooling_type")
        if number in (None, "-1", str(2**32 - 1)):
            return None
        found = {str(key): name for key, name in POOLINGS.items()}.get(number)
        if found is None:
            raise ModelFormatError(f"{self.path.name} names the pooling {number}, which llama.cpp does not know")
        return found

    @property
    def n_cls_out(self) -> int:
        """How many scores it gives an input; 0 unless it is made to rank or to classify."""
        return int(self._lib.llama_model_n_cls_out(self.pointer)) if self.pooling == "rank" else 0

    @property
    def labels(self) -> list[str]:
        """What its scores stand for, in their order; "" where the file does not say."""
        label = self._lib.llama_model_cls_label
        return [self._library.string(label(self.pointer, index)) for index in range(self.n_cls_out)]

    @property
    def has_plain_cache(self) -> bool:
        """Whether its memory is a KV cache that can be cut at any token: that of a recurrent model cannot."""
        lib, pointer = self._lib, self.pointer
        return not (lib.llama_model_is_recurrent(pointer) or lib.llama_model_is_hybrid(pointer))

    @cached_property
    def metadata(self) -> dict[str, str]:
        """The GGUF metadata, values as text, arrays shortened by llama.cpp."""
        lib, pointer = self._lib, self.pointer
        return {
            self._read_string(lib.llama_model_meta_key_by_index, pointer, i): self._read_string(
                lib.llama_model_meta_val_str_by_index, pointer, i
            )
            for i in range(lib.llama_model_meta_count(pointer))
        }

    @property
    def recommended_sampling(self) -> dict[str, str | float]:
        """The sampling that the model's authors recommend in the file, by the names of llama.cpp's options.

        Nothing here applies it, and it is as unchecked as the file is; what is no number is left out.
        """
        found: dict[str, str | float] = {}
        for key, (name, kind) in _RECOMMENDED.items():
            with suppress(KeyError, ValueError):
                found[name] = kind(self.metadata[f"general.sampling.{key}"])
        return found

    @property
    def n_layer(self) -> int:
        """The number of layers, without what stands before and behind them."""
        return self._number("block_count") or 0

    @property
    def head_widths(self) -> tuple[int, int]:
        """How many numbers a head's key has, and its value; 0 where the file does not say."""
        width = (self._number("embedding_length") or 0) // (self._number("attention.head_count") or 1)
        key, value = (self._number(f"attention.{kind}_length") or width for kind in ("key", "value"))
        return key, value

    def kv_cache_bytes(self, n_ctx: int, kv_type: str = "f16") -> int:
        """About what the KV cache of ``n_ctx`` cells takes in one of KV_TYPES, every layer attending to all of them.

        From the metadata alone, so that it can be told without loading the weights.
        """
        kv_heads = self._number("attention.head_count_kv") or self._number("attention.head_count") or 1
        kind = kv_type_number(kv_type)
        # Whole blocks, also where the format does not suit the model: then there will be no such cache.
        blocks = (-(-kv_heads * width // KV_TYPES[kv_type]) for width in self.head_widths)
        cell = sum(int(self._lib.ggml_row_size(kind, count * KV_TYPES[kv_type])) for count in blocks)
        return self.n_layer * cell * n_ctx

    def _number(self, key: str) -> int | None:
        """A number of the architecture's metadata; the largest of them where each layer has its own."""
        found = re.findall(r"\d+", self.metadata.get(f"{self.architecture}.{key}", ""))
        return max(map(int, found), default=None)

    # The vocabulary.

    @property
    def _vocab(self) -> Any:
        return self._lib.llama_model_get_vocab(self.pointer)

    @property
    def n_vocab(self) -> int:
        """The number of tokens: their ids go from 0 to ``n_vocab - 1``."""
        return int(self._lib.llama_vocab_n_tokens(self._vocab))

    @property
    def adds_bos(self) -> bool:
        """Whether tokenising with ``add_special`` puts the beginning-of-sequence token first."""
        return bool(self._lib.llama_vocab_get_add_bos(self._vocab))

    @property
    def bos(self) -> int | None:
        """The beginning-of-sequence token, if the vocabulary has one."""
        return self._token_or_none(self._lib.llama_vocab_bos(self._vocab))

    @property
    def eos(self) -> int | None:
        """The end-of-sequence token, if the vocabulary has one."""
        return self._token_or_none(self._lib.llama_vocab_eos(self._vocab))

    @property
    def sep(self) -> int | None:
        """The token that parts two texts, if the vocabulary has one."""
        return self._token_or_none(self._lib.llama_vocab_sep(self._vocab))

    @property
    def adds_eos(self) -> bool:
        """Whether tokenising with ``add_special`` puts the end-of-sequence token last."""
        return bool(self._lib.llama_vocab_get_add_eos(self._vocab))

    @property
    def adds_sep(self) -> bool:
        """Whether a separator goes between two texts."""
        return bool(self._lib.llama_vocab_get_add_sep(self._vocab))

    def is_end(self, token: int) -> bool:
        """Whether the token ends a generation: end of sequence, of turn, of message."""
        return bool(self._lib.llama_vocab_is_eog(self._vocab, token))

    def is_control(self, token: int) -> bool:
        """Whether the token steers the model and stands for no text: a beginning, an end, a role.

        Raises TokenizeError for an id that is not in the vocabulary.
        """
        self._check_token(token)
        return bool(self._lib.llama_vocab_is_control(self._vocab, token))

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """All tokens that end a generation."""
        return tuple(token for token in range(self.n_vocab) if self.is_end(token))

    @cached_property
    def special(self) -> dict[int, str]:
        """Control, user-defined and unknown tokens with the text that names them.

        :meth:`tokenize` takes them out of a text as a whole: user-defined ones always, the others if it parses them.
        """
        vocab, attributes = self._vocab, self._lib.llama_vocab_get_attr
        wanted = (
            self._lib.LLAMA_TOKEN_ATTR_CONTROL
            | self._lib.LLAMA_TOKEN_ATTR_USER_DEFINED
            | self._lib.LLAMA_TOKEN_ATTR_UNKNOWN
        )
        return {
            token: self.piece(token, special=True).decode("utf-8", "replace")
            for token in range(self.n_vocab)
            if attributes(vocab, token) & wanted
        }

    def is_unknown(self, token: int) -> bool:
        """Whether the token stands for what the vocabulary has no token for."""
        self._check_token(token)
        return bool(self._lib.llama_vocab_get_attr(self._vocab, token) & self._lib.LLAMA_TOKEN_ATTR_UNKNOWN)

    @property
    def suppressed(self) -> list[int]:
        """Tokens that the model file says must never be generated."""
        count = self._ffi.new("int32_t *")
        tokens = self._lib.llama_vocab_get_suppress_tokens(self._vocab, count)
        return list(self._ffi.unpack(tokens, count[0])) if count[0] else []

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of a text. ``parse_special`` lets text such as "<|im_end|>" become the control token it names.

        ``add_special`` puts the tokens around it that the model wants at the ends of a text, and nothing where it
        wants none. What the vocabulary has no token for is left out or becomes its unknown token: llama.cpp does not
        say so. The empty text is no tokens, save those. A NUL is a character like another.

        Raises TokenizeError if the text is no UTF-8 (a lone surrogate) or llama.cpp cannot.
        """
        if len(text) <= _SHALLOW_TEXT:
            return self._tokenize(text, add_special, parse_special)
        try:
            size = _STACK_A_CHARACTER * len(text)
            return call_on_stack(size, lambda: self._tokenize(text, add_special, parse_special))
        except MemoryError as error:
            raise TokenizeError(f"no memory to tokenise a text of {len(text)} characters: {error}") from error

    def _tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        data = as_utf8(text)
        room = len(data) + 8
        while True:
            tokens = self._ffi.new("llama_token[]", room)
            count = self._lib.llama_tokenize(self._vocab, data, len(data), tokens, room, add_special, parse_special)
            if count >= 0:
                return list(self._ffi.unpack(tokens, count))
            if -count <= room:
                raise TokenizeError(f"llama.cpp cannot tokenise a text of {len(data)} bytes (code {count})")
            room = -count

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of one token: not always whole characters. Control tokens are empty unless ``special``.

        Raises TokenizeError for an id that is not in the vocabulary: llama.cpp would abort.
        """
        self._check_token(token)
        return self._read_bytes(self._lib.llama_token_to_piece, self._vocab, token, tail=(0, special))

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """The text of some tokens, what is no UTF-8 replaced. Raises TokenizeError for an unknown id.

        This is llama.cpp's own function, which for some vocabularies takes spaces away: one at the beginning
        (SentencePiece), and those before punctuation (Llama 3, GPT-2, BERT). Pieces, joined, are what was said.
        """
        for token in tokens:
            self._check_token(token)
        array = self._ffi.new("llama_token[]", list(tokens))
        data = self._read_bytes(self._lib.llama_detokenize, self._vocab, array, len(tokens), tail=(False, special))
        return data.decode("utf-8", "replace")

    # The chat template.

    @property
    def chat_template(self) -> str | None:
        """The model's own template, in Jinja."""
        return self._library.string(self._lib.llama_model_chat_template(self.pointer, self._ffi.NULL)) or None

    @property
    def rerank_template(self) -> str | None:
        """How a reranker wants query and document put together, with "{query}" and "{document}" in it, if it says."""
        return self._library.string(self._lib.llama_model_chat_template(self.pointer, b"rerank")) or None

    def apply_chat_template(
        self, messages: Sequence[tuple[str, str]], *, template: str | None = None, add_assistant: bool = True
    ) -> str:
        """Messages, as (role, content), in the form that the model was trained on.

        This is llama.cpp's own function. It runs no Jinja: it recognises some dozens of template families.
        ``template`` is one of :func:`chat_template_families`, or a template in Jinja; None is the model's own.

        Raises TemplateError if there is no template, llama.cpp does not know its family or a message holds a NUL, and
        TokenizeError if a message is no UTF-8.
        """
        template = template or self.chat_template
        if template is None:
            raise TemplateError(f"{self.path.name} carries no chat template: name one, or give it plain text")
        if any("\0" in part for message in messages for part in message):
            raise TemplateError("a message holds a NUL, at which llama.cpp would cut it: remove it")
        kept = [
            (self._ffi.new("char[]", as_utf8(role)), self._ffi.new("char[]", as_utf8(text)))
            for role, text in messages
        ]
        chat = self._ffi.new("llama_chat_message[]", kept)
        room = 2 * sum(len(content.encode()) for _, content in messages) + 1024
        while True:
            buffer = self._ffi.new("char[]", room)
            length = self._lib.llama_chat_apply_template(
                template.encode(), chat, len(messages), add_assistant, buffer, room
            )
            if length < 0:
                raise TemplateError(f"llama.cpp does not know the chat template of {self.path.name}")
            if length <= room:
                return bytes(self._ffi.buffer(buffer, length)).decode("utf-8", "replace")
            room = length

    def _read_bytes(self, function: Any, *head: Any, tail: tuple[Any, ...]) -> bytes:
        """Calls a function that wants a buffer and its size, and returns the size it needs negated if too small."""
        room = 64
        while True:
            buffer = self._ffi.new("char[]", room)
            length = function(*head, buffer, room, *tail)
            if length >= 0:
                return bytes(self._ffi.buffer(buffer, length))
            room = -length

    def _read_string(self, function: Any, *arguments: Any) -> str:
        """Calls a function that returns the length of its string, whether it fitted or not, as snprintf does."""
        room = 256
        while True:
            buffer = self._ffi.new("char[]", room)
            length = function(*arguments, buffer, room)
            if length < room:
                return self._library.string(buffer)
            room = length + 1

    def _check_token(self, token: int) -> None:
        if not 0 <= token < self.n_vocab:
            raise TokenizeError(f"{token} is no token of {self.path.name}: ids go from 0 to {self.n_vocab - 1}")

    @staticmethod
    def _token_or_none(token: int) -> int | None:
        return token if token >= 0 else None


def chat_template_families() -> list[str]:
    """The names of the chat template families that llama.cpp knows."""
    library = load_library()
    count = library.lib.llama_chat_builtin_templates(library.ffi.NULL, 0)
    names = library.ffi.new("const char *[]", count)
    library.lib.llama_chat_builtin_templates(names, count)
    return [library.string(name) for name in names]


def as_utf8(text: str) -> bytes:
    """Raises TokenizeError for a lone surrogate."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise TokenizeError(
            f"the text is no UTF-8: {half!r} at {error.start} is a lone surrogate; replace it"
        ) from None


# Formats that :func:`quantize` writes.
QUANTIZATIONS = ("Q4_0", "Q5_0", "Q5_1", "Q8_0", "Q4_K_M", "Q6_K")


def quantize(source: str | Path, target: str | Path, quantization: str, *, threads: int = 0) -> None:
    """Write a model file in another format of :data:`QUANTIZATIONS`; also from one that is quantized already.

    ``threads`` 0 takes as many as the machine has. Raises ValueError for another format, what reading the file as a
    Model raises, and ModelLoadError if llama.cpp fails.
    """
    check_file(Path(source))
    library = load_library()
    lib = library.lib
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"{quantization!r} is none of {', '.join(QUANTIZATIONS)}")
    params = library.ffi.new("llama_model_quantize_params *")
    params[0] = lib.llama_model_quantize_default_params()
    ftype = getattr(lib, f"LLAMA_FTYPE_MOSTLY_{quantization}")
    params.nthread, params.ftype, params.allow_requantize = threads, ftype, True
    with library.complaints() as complaints:
        failed = lib.llama_model_quantize(os.fsencode(Path(source)), os.fsencode(Path(target)), params)
    if failed:
        raise ModelLoadError(f"llama.cpp cannot write {source} as {quantization}: {' | '.join(complaints)}")


class _Reporter:
    """Turns a progress function that may raise into the callback that llama.cpp wants."""

    def __init__(self, progress: Callable[[float], None] | None) -> None:
        self._progress = progress
        self.error: BaseException | None = None

    def __call__(self, fraction: float) -> bool:
        try:
            if self._progress is not None:
                self._progress(fraction)
        except BaseException as error:
            self.error = error
        return self.error is None


def check_file(path: Path) -> None:
    """Raises ModelNotFoundError or ModelFormatError for what can be told without llama.cpp.

    Of a model in several files, all of them are looked at.
    """
    _check_magic(path)
    parts = parts_of(path)
    if missing := [part.name for part in parts if not part.exists()]:
        raise ModelNotFoundError(
            f"{path} is one of {len(parts)} parts of a model, and {_are(missing)} missing in that folder: download "
            "all parts; or, if this is a whole model, give it another name"
        )
    if path not in parts[:1]:
        raise ModelFormatError(f"{path} is not the first part of its model: name {parts[0].name}")
    for part in parts[1:]:
        _check_magic(part)


def _are(names: Sequence[str]) -> str:
    if len(names) > _MOST_NAMES:
        names = [*names[:_MOST_NAMES], f"{len(names) - _MOST_NAMES} more"]
    return f"{names[0]} is" if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]} are"


def _check_magic(path: Path) -> None:
    try:
        if path.is_dir():
            raise ModelNotFoundError(f"{path} is a folder: name the .gguf file in it")
        with open_file(path) as file:
            magic = file.read(len(MAGIC))
    except ModelNotFoundError:
        raise
    except FileNotFoundError:
        raise ModelNotFoundError(f"no model file {path}: check the path, or download the model first") from None
    except OSError as error:
        raise ModelNotFoundError(f"cannot read the model {path}: {error.strerror}") from error
    if not magic:
        raise ModelFormatError(f"the model {path} is empty: download it again")
    if magic != MAGIC:
        raise ModelFormatError(f"{path} is no GGUF model: it begins with {magic!r}, not {MAGIC!r}; take a .gguf file")


def kv_type_number(kv_type: str) -> int:
    """ggml's number for one of KV_TYPES. Raises ValueError for another."""
    if kv_type not in KV_TYPES:
        raise ValueError(f"{kv_type!r} is none of {', '.join(KV_TYPES)}")
    return int(getattr(load_library().lib, f"GGML_TYPE_{kv_type.upper()}"))


def _load_error(path: Path, complaints: list[str]) -> Exception:
    said = " | ".join(complaints)
    size = path.stat().st_size
    if any(words in said for words in _CUT_SHORT):
        return ModelTruncatedError(f"the model {path} is cut short or damaged at {size} bytes: download it again")
    reason = next((line.split(": ", 1)[-1] for line in complaints if "error loading model" in line), said)
    kind = ModelMemoryError if speaks_of_memory(said) else ModelLoadError
    return kind(f"llama.cpp cannot load {path}: {reason or 'it gave no reason'}")
