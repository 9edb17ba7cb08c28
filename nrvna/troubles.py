"""What does not work at the moment: said once, and once more when it works again."""

from __future__ import annotations

import logging
from collections.abc import Callable

from nrvna.errors import LeaseLostError, WorkspaceError

log = logging.getLogger("nrvna")


class Troubles:
    """By name of what is wanted, as the log's readers know it; ``in`` tells whether that has trouble."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._said

    def guard(self, name: str, action: Callable[[], None]) -> None:
        """Trouble with the workspace does not end the daemon: it goes on when that heals.

        Raises LeaseLostError, after which there is nothing to go on with.
        """
        try:
            action()
        except LeaseLostError:
            raise
        except WorkspaceError as error:
            self.complain(name, f"{error}; trying again until it works")
        else:
            if name in self._said:
                del self._said[name]
                log.info("%s works again", name)

    def complain(self, name: str, trouble: str) -> None:
        """Say what is wrong, unless it was the last thing that was said of it."""
        if trouble != self._said.get(name):
            log.error("%s", trouble)
        self._said[name] = trouble

    def forget(self, name: str) -> None:
        """It works again, and somebody else says so."""
        self._said.pop(name, None)
