"""A batch file's lines, and what is looked at in all of them before the first is queued."""

from __future__ import annotations

import hashlib
import io

import pytest

from nrvna.batch import lines
from nrvna.batch.lines import numbered_lines, survey
from nrvna.errors import JobError


def test_blank_lines_count_and_are_left_out() -> None:
    assert list(numbered_lines(io.BytesIO(b"a\n\n  \r\nb\r\nc"))) == [(1, b"a"), (4, b"b"), (5, b"c")]


def test_a_byte_order_mark_is_no_part_of_the_first_line() -> None:
    assert list(numbered_lines(io.BytesIO(b"\xef\xbb\xbf{}\n"))) == [(1, b"{}")]


def test_of_a_line_that_is_too_long_no_more_is_kept_than_tells_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 10)
    data = b"x" * 35 + b"\n" + b"y" * 10 + b"\n" + b"z" * 11
    digest = hashlib.sha256()
    assert list(numbered_lines(io.BytesIO(data), digest)) == [(1, b"x" * 11), (2, b"y" * 10), (3, b"z" * 11)]
    assert digest.digest() == hashlib.sha256(data).digest()


def test_a_files_survey_is_its_digest_and_the_number_of_its_requests() -> None:
    data = b'{"custom_id": "a"}\n\nnonsense\n{"custom_id": "b"}\n[1]\n'
    found = survey(io.BytesIO(data))
    assert (found.digest, found.requests) == (hashlib.sha256(data).hexdigest(), 4)


def test_a_custom_id_that_is_there_twice_is_named_with_both_lines() -> None:
    data = b'{"custom_id": "a"}\n\n{"custom_id": "b"}\n{"custom_id": "a"}\n'
    with pytest.raises(JobError, match=r"the same custom_id stands there twice: 'a' in lines 1 and 4; nothing was"):
        survey(io.BytesIO(data))


def test_of_many_custom_ids_that_are_there_twice_some_are_named() -> None:
    data = b"".join(b'{"custom_id": "%d"}\n' % (number % 10) for number in range(20))
    with pytest.raises(
        JobError, match=r"'0' in lines 1 and 11, '1' in lines 2 and 12, .*, and 5 more; nothing"
    ) as caught:
        survey(io.BytesIO(data))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"\n \n"])
def test_a_file_without_a_request_is_refused(data: bytes) -> None:
    with pytest.raises(JobError, match="there is no request in it"):
        survey(io.BytesIO(data))


def test_ids_that_are_no_text_are_not_compared() -> None:
    assert survey(io.BytesIO(b'{"custom_id": 1}\n{"custom_id": 1}\n{}\n{}\n')).requests == 4
