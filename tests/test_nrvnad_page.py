"""What the daemon's page lists is what the program says of itself."""

from __future__ import annotations

from pathlib import Path

from processes import command

PAGE = (Path(__file__).parents[1] / "docs" / "nrvnad.md").read_text()


def test_the_codes_that_it_lists_are_those_of_the_help() -> None:
    words = " ".join(command("daemon", "--help").stdout.split())
    assert "3 with --status none runs, 4 with --status it is not ready yet" in words
    assert "| 3 | | | none runs | |" in PAGE and "| 4 | | | loading, not ready yet | |" in PAGE
