"""The table of settings: what it reads, what it refuses, and that the README shows it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrvna.config import SETTINGS, Config, Sampling, Setting, from_environment, markdown_table
from nrvna.errors import SettingError

ROOT = Path(__file__).parents[1]
NUMBERS = [setting for setting in SETTINGS if setting.kind in (int, float)]


def test_the_defaults_are_those_of_the_original() -> None:
    config = from_environment(environ={})
    assert config.sampling == Sampling(
        temp=0.8, top_k=40, top_p=0.95, min_p=0.05, repeat_penalty=1.0, predict=512, seed=None
    )
    assert (config.ctx, config.gpu_layers, config.threads, config.parallel) == (0, 99, 0, 0)


def test_a_variable_wins_over_the_default_and_an_option_over_the_variable() -> None:
    environ = {"NRVNA_TEMP": "0.5", "NRVNA_TOP_K": "7"}
    sampling = from_environment({"temp": "0.1"}, environ).sampling
    assert (sampling.temp, sampling.top_k) == (0.1, 7)


def test_an_empty_variable_is_an_unset_one() -> None:
    assert from_environment(environ={"NRVNA_TEMP": "", "NRVNA_SEED": " "}) == Config()


@pytest.mark.parametrize("setting", NUMBERS, ids=lambda setting: setting.variable)
@pytest.mark.parametrize("text", ["hot", "nan", "inf", "-1", "1e400", "0x10", "1 2", "１２ｘ"])
def test_a_value_that_is_no_number_in_range_is_refused_by_name(setting: Setting, text: str) -> None:
    with pytest.raises(SettingError) as caught:
        from_environment(environ={setting.variable: text})
    message = str(caught.value)
    assert setting.variable in message
    assert repr(text) in message
    assert setting.range in message


@pytest.mark.parametrize("setting", NUMBERS, ids=lambda setting: setting.variable)
def test_both_ends_of_a_range_are_allowed_and_nothing_beyond(setting: Setting) -> None:
    for end in (setting.low, setting.high):
        assert setting.parse(f"{end:.0f}" if end == int(end) else str(end), "x") == end
    with pytest.raises(SettingError):
        setting.parse(f"{setting.high + 1:.0f}", "x")


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s.choices], ids=lambda setting: setting.variable)
def test_a_choice_that_is_not_offered_is_refused(setting: Setting) -> None:
    with pytest.raises(SettingError, match="error, warn, info, debug"):
        from_environment(environ={setting.variable: "loud"})


@given(st.text())
def test_any_text_is_either_a_value_in_range_or_a_setting_error(text: str) -> None:
    for setting in NUMBERS:
        try:
            value = setting.parse(text, setting.variable)
        except SettingError:
            continue
        assert setting.low <= value <= setting.high


def test_a_config_survives_the_way_to_the_engine() -> None:
    config = from_environment({"temp": "0.3", "seed": "42", "ctx": "1024", "llama_dir": "/somewhere"}, {})
    assert Config.from_dict(config.to_dict()) == config


def test_the_readme_shows_the_table_of_settings() -> None:
    assert markdown_table() in (ROOT / "README.md").read_text()


def test_nothing_but_config_reads_the_environment() -> None:
    readers = []
    for path in (ROOT / "nrvna").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
            if name in ("environ", "getenv", "environb"):
                readers.append(path.name)
    assert set(readers) == {"config.py"}
