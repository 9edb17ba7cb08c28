"""Reading the head of a GGUF file that nobody vouches for."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_writer import Streamed, write_gguf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nrvna.llama.gguf import Header, HeaderError, Tensor, read_header

METADATA = {"text": "ä", "number": 7, "fraction": 0.5, "flag": True, "words": ["a", "bc"], "numbers": [1, 2, 3]}
TENSORS: dict[str, NDArray[Any]] = {"wide": np.zeros((2, 3), np.float32), "half": np.ones(5, np.float16)}


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    path = tmp_path / "whole.gguf"
    write_gguf(path, METADATA, TENSORS)
    return path


def test_what_was_written_is_read_back_arrays_by_their_names_alone(whole: Path) -> None:
    header = read_header(whole)
    assert header.metadata == METADATA | {"words": None, "numbers": None}
    assert header.tensors == {"wide": Tensor((3, 2), 0), "half": Tensor((5,), 1)}


def test_arrays_are_read_where_they_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "arrays.gguf"
    metadata = METADATA | {"fractions": [0.5, -2.0]}
    write_gguf(path, metadata, TENSORS)
    assert read_header(path, arrays=True) == Header(metadata, read_header(path).tensors)


def test_a_tensor_written_piece_by_piece_is_the_same_as_one_written_whole(whole: Path, tmp_path: Path) -> None:
    def streamed(name: str, number: int) -> Streamed:
        array = TENSORS[name]
        data = np.frombuffer(array.tobytes(), np.uint8)
        return Streamed(array.shape, number, array.nbytes, [data[:5], data[5:]])

    path = tmp_path / "pieces.gguf"
    write_gguf(path, METADATA, {"wide": streamed("wide", 0), "half": streamed("half", 1)})
    assert path.read_bytes() == whole.read_bytes()


def test_a_tensor_of_other_size_than_it_said_is_an_error(tmp_path: Path) -> None:
    short = Streamed((4,), 0, 16, [np.zeros(12, np.uint8)])
    with pytest.raises(ValueError, match="the tensor a was to have 16 bytes and has 12"):
        write_gguf(tmp_path / "short.gguf", {}, {"a": short})


def test_a_real_models_head_is_read(model_file: Path) -> None:
    header = read_header(model_file)
    assert header.metadata["general.architecture"] == "llama"
    assert header.tensors["token_embd.weight"].shape == (576, 49152)


def test_a_head_that_ends_early_is_an_error_wherever_it_ends(whole: Path, tmp_path: Path) -> None:
    data = whole.read_bytes()
    head = data.index(b"half") + 4 + 4 + 8 + 4 + 8
    cut = tmp_path / "cut.gguf"
    for size in range(head):
        cut.write_bytes(data[:size])
        with pytest.raises(HeaderError, match="ends within its head"):
            read_header(cut)
    cut.write_bytes(data[:head])
    assert read_header(cut).tensors.keys() == TENSORS.keys()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"GGML" + bytes(40), "does not begin with GGUF"),
        (struct.pack("<4sIQQ", b"GGUF", 1, 0, 0), "of version 1, not 3"),
        (struct.pack("<4sIQQQ1sI", b"GGUF", 3, 0, 1, 1, b"a", 77), "value of the unknown type 77"),
        (struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 0, 1, 1, b"a", 9, 9, 1), "array of the unknown type 9"),
        (struct.pack("<4sIQQQ1sI", b"GGUF", 3, 1, 0, 1, b"a", 5), "'a' has 5 dimensions"),
        (struct.pack("<4sIQQQ", b"GGUF", 3, 2**62, 2**62, 2**62), "ends within its head"),
        (struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 0, 1, 1, b"a", 9, 4, 2**62), "ends within its head"),
    ],
)
def test_what_is_no_head_is_an_error(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(data)
    with pytest.raises(HeaderError, match=message):
        read_header(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(changes=st.lists(st.tuples(st.integers(4, 330), st.integers(0, 255)), min_size=1, max_size=6))
def test_damage_is_an_error_or_is_not_seen(whole: Path, changes: list[tuple[int, int]]) -> None:
    data = bytearray(whole.read_bytes())
    for place, value in changes:
        data[place % len(data)] = value
    path = whole.with_name("damaged.gguf")
    path.write_bytes(data)
    for arrays in (False, True):
        try:
            header = read_header(path, arrays=arrays)
        except HeaderError as error:
            assert str(error).isprintable()
        else:
            assert len(header.tensors) <= 2
