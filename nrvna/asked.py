"""What a JSON object asks for, a line of ``wrk --jsonl``: by the names that programs use, see request.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nrvna.config import of_copy
from nrvna.errors import JobError, shown
from nrvna.order import Order
from nrvna.request import order_of
from nrvna.task import Task

_OF_AN_ORDER = ("model", "priority", "after", "key", "timeout")


def read_object(content: Mapping[str, Any], orders: Sequence[Order]) -> tuple[str, list[Order]]:
    """The prompt, and for each of its copies what is asked: by ``orders`` of all, and by the object of these.

    Raises JobError, SettingError or GrammarError for what cannot be asked, naming the field.
    """
    options = dict(content)
    prompt = options.pop("prompt", None)
    if not isinstance(prompt, str):
        raise JobError('"prompt" is missing' if prompt is None else f'"prompt" is {shown(prompt)}, but must be text')
    asked = order_of({name: value for name, value in options.items() if name != "after"}, _ids(options.get("after")))
    own = {name: getattr(asked, name) for name in _OF_AN_ORDER if options.get(name) is not None}
    made = []
    for number, order in enumerate(orders):
        settings = {**order.settings, **of_copy(asked.settings, number)}
        # Documents of its own are not the lines that others were.
        numbers = {"numbers": ()} if "documents" in asked.task else {}
        task = Task.from_dict({**order.task, **numbers, **asked.task}).to_dict()
        tags = (*order.tags, *asked.tags)
        made.append(order._replace(settings=settings, task=task, tags=tags, **own))
    return prompt, made


def _ids(after: object) -> list[str]:
    ids = [after] if isinstance(after, str) else [] if after is None else after
    if not isinstance(ids, list) or not all(isinstance(job_id, str) for job_id in ids):
        raise JobError(f'"after" is {shown(after)}, but must be a list of ids')
    return ids
