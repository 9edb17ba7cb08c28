"""The vocabularies that llama.cpp's source ships, and what each can promise of a text that goes in and comes out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

SEPARATOR = "\n__ggml_vocab_test__\n"


class Promise(Enum):
    """What is left of a text after ``detokenize(tokenize(text))``."""

    EXACT = "the text itself"
    TIDIED = "the text without spaces before ? ! . , and apostrophes; the pieces joined are the text itself"
    SPACED = "the text itself; the pieces joined begin with a space more, and a ▁ is a space"
    WORDS = "its words in lower case, without accents, each but a suffix behind a space; what is unknown is gone"
    NORMALISED = "the text in a normal form, with single spaces; what is unknown is gone"


@dataclass(frozen=True)
class Vocabulary:
    """``lacks`` are the bytes of UTF-8 for which it has no token: llama.cpp leaves them out without a word.

    ``has_cases`` tells whether the source holds texts and the tokens that they must become.
    """

    promise: Promise
    lacks: bytes = b""
    has_cases: bool = True
    escapes_spaces: bool = False

    def spelled(self, text: str) -> bytes:
        """What the pieces of the text's tokens are, joined."""
        if self.escapes_spaces:
            text = text.replace("▁", " ")
        if self.promise is Promise.SPACED and text:
            text = f" {text}"
        return bytes(byte for byte in text.encode() if byte not in self.lacks)

    @property
    def is_lossless(self) -> bool:
        return self.promise in (Promise.EXACT, Promise.TIDIED, Promise.SPACED)


# The vocabulary of the model that the tests decode with; the others are the source's.
SMOLLM2 = "SmolLM2"

# Bytes of characters that a tokenizer's makers never showed it.
_SMOLLM2_LACKS = bytes([0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xF1, 0xF2])
_STARCODER_LACKS = b"\xf1"
_FALCON_LACKS = bytes([0x03, 0x04, 0x05, 0x0B, 0x11, *range(0x13, 0x18), 0x19, *range(0x1C, 0x1F), 0xF2])

VOCABULARIES = {
    SMOLLM2: Vocabulary(Promise.EXACT, lacks=_SMOLLM2_LACKS, has_cases=False),
    "aquila": Vocabulary(Promise.TIDIED, has_cases=False),
    "baichuan": Vocabulary(Promise.SPACED, has_cases=False, escapes_spaces=True),
    "bert-bge": Vocabulary(Promise.WORDS),
    "command-r": Vocabulary(Promise.EXACT),
    "deepseek-coder": Vocabulary(Promise.EXACT),
    "deepseek-llm": Vocabulary(Promise.EXACT),
    "falcon": Vocabulary(Promise.TIDIED, lacks=_FALCON_LACKS),
    "gemma-4": Vocabulary(Promise.TIDIED, escapes_spaces=True),
    "gpt-2": Vocabulary(Promise.TIDIED),
    "gpt-neox": Vocabulary(Promise.TIDIED, has_cases=False),
    "llama-bpe": Vocabulary(Promise.TIDIED),
    "llama-spm": Vocabulary(Promise.SPACED, escapes_spaces=True),
    "mpt": Vocabulary(Promise.TIDIED),
    "nomic-bert-moe": Vocabulary(Promise.NORMALISED, has_cases=False),
    "phi-3": Vocabulary(Promise.SPACED, escapes_spaces=True),
    "qwen2": Vocabulary(Promise.EXACT),
    "qwen35": Vocabulary(Promise.EXACT),
    "refact": Vocabulary(Promise.TIDIED, lacks=_STARCODER_LACKS),
    "starcoder": Vocabulary(Promise.TIDIED, lacks=_STARCODER_LACKS),
}


def shipped(source: Path) -> set[str]:
    """The names of the vocabularies in a source tree."""
    return {file.stem.removeprefix("ggml-vocab-") for file in _folder(source).glob("ggml-vocab-*.gguf")}


def vocabulary_file(source: Path, name: str) -> Path:
    return _folder(source) / f"ggml-vocab-{name}.gguf"


def read_cases(source: Path, name: str) -> list[tuple[str, list[int]]]:
    """Texts and their tokens, in the order of the files; none where the source has none."""
    file = vocabulary_file(source, name)
    texts, tokens = file.with_name(f"{file.name}.inp"), file.with_name(f"{file.name}.out")
    if not texts.exists():
        return []
    # A text may end in a carriage return, which text mode would take for the end of a line.
    inputs = texts.read_bytes().decode().split(SEPARATOR)
    outputs = tokens.read_text().splitlines()
    if inputs[-1] == "":
        inputs.pop()
    return [(text, [int(token) for token in line.split()]) for text, line in zip(inputs, outputs, strict=True)]


def _folder(source: Path) -> Path:
    return source / "models"
