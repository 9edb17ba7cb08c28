"""The pipe between daemon and engine: any message, cut anywhere, comes out as it went in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrvna.engine.protocol import Ready, Share, Unpacker, pack

# Surrogates too: a folder's name need not be UTF-8.
TEXT = st.text(st.characters())
MESSAGES = st.lists(st.dictionaries(TEXT, TEXT | st.integers() | st.booleans(), max_size=4), max_size=6)


@given(MESSAGES, st.data())
def test_messages_survive_being_cut_anywhere(messages: list[dict[str, object]], data: st.DataObject) -> None:
    stream = b"".join(pack(message) for message in messages)
    unpacker, received = Unpacker(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        received += unpacker.feed(stream[:size])
        stream = stream[size:]
    assert received == messages


@given(MESSAGES)
def test_a_message_is_one_line_of_ascii(messages: list[dict[str, object]]) -> None:
    for message in messages:
        line = pack(message)
        assert line.count(b"\n") == 1
        assert line.endswith(b"\n")
        assert line.isascii()


@pytest.mark.parametrize("line", [b"not json\n", b"[1]\n", b"3\n"])
def test_a_line_that_is_no_object_is_an_error(line: bytes) -> None:
    with pytest.raises(ValueError):
        Unpacker().feed(line)


def test_what_an_engine_says_of_its_devices_survives_the_pipe() -> None:
    ready = Ready("Tiny", "cuda", 4, 512, 2, layers=3, offloaded=2, shares=(Share("CUDA0", 1, 2, 3), Share("CPU", 4)))
    [message] = Unpacker().feed(pack({"ready": ready.to_dict()}))
    assert Ready(**message["ready"]) == ready
