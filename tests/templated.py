"""A model that goes by the chat template which a test chooses."""

from __future__ import annotations

from nrvna.llama import Model


class Templated(Model):
    """A real vocabulary with another chat template in its model's place."""

    template: str | None = None

    @property
    def own_template(self) -> str | None:
        return super().chat_template

    @property
    def chat_template(self) -> str | None:
        return self.template
