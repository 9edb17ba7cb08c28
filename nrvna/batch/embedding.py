"""The body of a request to /v1/embeddings: a job for each of its inputs."""

from __future__ import annotations

from typing import Any

from nrvna.batch.fields import Fields, RefusedError
from nrvna.errors import JobError
from nrvna.order import Order, check_prompt, encode_prompt
from nrvna.task import EMBED

# As OpenAI has it.
MAX_INPUTS = 2048


def read_embedding(body: Fields, base: Order) -> tuple[list[Order], dict[str, Any]]:
    """The jobs, and how their vectors are to be written. Raises RefusedError, and JobError for a text."""
    texts = _inputs(body.need("input"))
    wants: dict[str, Any] = {}
    if body.text("encoding_format", ("float", "base64")) == "base64":
        wants["encoding_format"] = "base64"
    dimensions = body.take("dimensions")
    if dimensions is not None:
        if type(dimensions) is not int or dimensions < 1:
            body.refuse("dimensions", dimensions, "a whole number from 1 on")
        # What the model makes is known when it has made it.
        wants["dimensions"] = dimensions
    body.pass_over(("user",))
    body.finish()
    # Settings are about sampling.
    return [base._replace(prompt=text, settings={}, task={"kind": EMBED}) for text in texts], wants


def _inputs(content: object) -> list[str]:
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list) or not content:
        raise RefusedError("body.input must be a text, or a list of texts", "invalid_type", "body.input")
    if len(content) > MAX_INPUTS:
        raise RefusedError(f"body.input has {len(content)} texts: {MAX_INPUTS} are allowed", param="body.input")
    for index, text in enumerate(content):
        place = f"body.input[{index}]"
        if not isinstance(text, str):
            tokens = isinstance(text, int | list)
            reason = "tokens are not supported, as they are another model's: give text" if tokens else "must be text"
            raise RefusedError(f"{place}: {reason}", "invalid_type", place)
        try:
            check_prompt(encode_prompt(text))
        except JobError as error:
            raise RefusedError(f"{place}: {str(error).replace('the prompt', 'the text')}", param=place) from None
    return content
