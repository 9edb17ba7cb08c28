"""Every vocabulary that llama.cpp's source ships makes the tokens of a text that the source says it must make."""

from __future__ import annotations

from pathlib import Path

from vocabularies import SMOLLM2, VOCABULARIES, Vocabulary, read_cases, shipped

from nrvna.llama import Model


def test_the_table_names_every_vocabulary_that_the_source_ships(source: Path) -> None:
    assert shipped(source) == VOCABULARIES.keys() - {SMOLLM2}


def test_the_cases_of_the_source_become_the_tokens_that_it_names(
    vocabulary: Model, vocabulary_name: str, promised: Vocabulary, source: Path
) -> None:
    cases = read_cases(source, vocabulary_name)
    assert bool(cases) == promised.has_cases
    made = [(text, vocabulary.tokenize(text, add_special=False)) for text, _ in cases]
    assert made == cases
