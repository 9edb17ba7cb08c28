"""One line of a batch file: the jobs that it asks for, or why it cannot be answered."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from nrvna.batch.chat import read_chat
from nrvna.batch.embedding import read_embedding
from nrvna.batch.fields import Fields, RefusedError
from nrvna.batch.lines import MAX_LINE_BYTES
from nrvna.errors import JobError, JsonError, SettingError, shown
from nrvna.files import as_json
from nrvna.jsontext import read_json
from nrvna.order import MAX_ABOUT_BYTES, Order, check_prompt, encode_prompt, may_be_empty

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
_VERSION = "/v1"
# From which size of a line on its jobs may be too large: what is no ASCII takes up to three times the room in them.
_LARGE = MAX_ABOUT_BYTES // 4


class Request(NamedTuple):
    """``orders`` are the jobs whose answers, in this order, make up the response.

    ``model`` is the one that the body names. ``wants`` is how the response is to be written: of embeddings
    "encoding_format", and the "dimensions" that they must have.
    """

    custom_id: str
    url: str
    model: str | None
    orders: list[Order]
    wants: dict[str, Any]


def read_request(line: bytes, base: Order) -> Request:
    """``base`` is what is asked of all jobs, where a line says nothing else. Raises RefusedError."""
    fields = Fields(_parsed(line), "")
    custom_id: str | None = None
    try:
        fields.need("custom_id")
        custom_id = fields.text("custom_id")
        request = _read(fields, custom_id or "", base)
        fields.finish()
        for order in request.orders:
            _check(order, is_large=len(line) > _LARGE)
    except RefusedError as error:
        error.custom_id = custom_id
        raise
    except (JobError, SettingError) as error:
        refusal = RefusedError(str(error))
        refusal.custom_id = custom_id
        raise refusal from None
    return request


def _parsed(line: bytes) -> object:
    if len(line) > MAX_LINE_BYTES:
        raise RefusedError(f"it has more than the {MAX_LINE_BYTES} bytes allowed", "invalid_json_line")
    try:
        return read_json(line.decode())
    except UnicodeDecodeError as error:
        reason = f"it is not UTF-8: byte {line[error.start]:#04x} at position {error.start}"
    except json.JSONDecodeError as error:
        reason = f"it is no JSON: {error.msg} at character {error.colno}"
    except JsonError as error:
        reason = f"it {error}"
    except ValueError as error:
        reason = f"it is no JSON: {error}"
    raise RefusedError(reason, "invalid_json_line")


def _read(fields: Fields, custom_id: str, base: Order) -> Request:
    if not custom_id:
        raise RefusedError("custom_id is empty", param="custom_id")
    fields.need("method")
    fields.text("method", ("POST",))
    url = fields.need("url")
    if url in (CHAT.removeprefix(_VERSION), EMBEDDINGS.removeprefix(_VERSION)):
        # As Azure has it.
        url = _VERSION + url
    if url not in (CHAT, EMBEDDINGS):
        raise RefusedError(
            f"url is {shown(url)}, but nrvna answers {CHAT} and {EMBEDDINGS} alone", "invalid_url", "url"
        )
    body = Fields(fields.need("body"), "body")
    model = body.text("model")
    if url == CHAT:
        return Request(custom_id, url, model, read_chat(body, base), {})
    orders, wants = read_embedding(body, base)
    return Request(custom_id, url, model, orders, wants)


def _check(order: Order, *, is_large: bool) -> None:
    prompt = encode_prompt(order.prompt) if isinstance(order.prompt, str) else order.prompt
    check_prompt(prompt, may_be_empty=may_be_empty(order.task))
    if is_large and len(as_json(order.about())) > MAX_ABOUT_BYTES - 1000:
        raise JobError(f"what stands beside the last message has more than the {MAX_ABOUT_BYTES} bytes allowed")
