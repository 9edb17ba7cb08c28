"""The fields of a JSON object that a request consists of, each taken by name, so that none is passed over."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from nrvna.errors import JobError, shown


class RefusedError(JobError):
    """A request that cannot be answered: ``code`` and ``param`` are what OpenAI's API calls them.

    ``custom_id`` is the request's, as far as it has one.
    """

    def __init__(self, message: str, code: str = "invalid_value", param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param
        self.custom_id: str | None = None


class Fields:
    """A JSON object; ``place`` is how it is called in complaints, empty for the request itself.

    A field that is null counts as left out, as OpenAI's clients write it.
    """

    def __init__(self, content: object, place: str) -> None:
        if not isinstance(content, Mapping):
            raise RefusedError(f"{place or 'it'} must be a JSON object", "invalid_type", place or None)
        self._content = content
        self._place = place
        self._taken: set[str] = set()

    def path(self, name: str) -> str:
        return f"{self._place}.{name}" if self._place else name

    def __contains__(self, name: str) -> bool:
        return self._content.get(name) is not None

    def take(self, name: str) -> Any:
        """The field's value, None if it has none."""
        self._taken.add(name)
        return self._content.get(name)

    def need(self, name: str) -> Any:
        """The field's value. Raises RefusedError if it has none."""
        value = self.take(name)
        if value is None:
            raise RefusedError(f"{self.path(name)} is missing", "missing_required_parameter", self.path(name))
        return value

    def text(self, name: str, allowed: Collection[str] = ()) -> str | None:
        """The field's text, one of those ``allowed`` if there are any named."""
        value = self.take(name)
        if value is not None and (not isinstance(value, str) or (allowed and value not in allowed)):
            self.refuse(name, value, " or ".join(allowed) or "text")
        return value if isinstance(value, str) else None

    def refuse(self, name: str, value: object, allowed: str) -> None:
        """Raises RefusedError: the value is not what it must be."""
        raise RefusedError(f"{self.path(name)} is {shown(value)}, but must be {allowed}", param=self.path(name))

    def pass_over(self, names: Collection[str]) -> None:
        """What has nothing to do with the answer."""
        self._taken.update(names)

    def expect(self, name: str, harmless: Collection[Any], reason: str) -> None:
        """Take a field that is supported with these values alone. Raises RefusedError for another."""
        value = self.take(name)
        if value is not None and not any(value is each or value == each for each in harmless):
            raise RefusedError(
                f"{self.path(name)} is not supported: {reason}", "unsupported_parameter", self.path(name)
            )

    def finish(self) -> None:
        """Raises RefusedError, naming them, if there are fields that nobody took."""
        unknown = [name for name, value in self._content.items() if name not in self._taken and value is not None]
        if unknown:
            names = ", ".join(shown(name) for name in unknown[:5])
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            where = self._place or "a request"
            raise RefusedError(
                f"{where} has no field {names}{more} that nrvna knows", "unknown_parameter", self.path(unknown[0])
            )
