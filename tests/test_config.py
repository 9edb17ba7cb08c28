"""The table of settings: what it reads, what it refuses, and that the README shows it."""

from __future__ import annotations

import argparse
import ast
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrvna.config import (
    DEFAULT_SAMPLERS,
    SETTINGS,
    Config,
    Sampling,
    Setting,
    add_options,
    changed,
    from_environment,
    markdown_table,
    of_job,
)
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
@pytest.mark.parametrize("text", ["hot", "nan", "inf", "-1000000", "1e400", "0x10", "1 2", "１２ｘ"])
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
    with pytest.raises(SettingError, match=", ".join(setting.choices)):
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


def test_every_field_of_the_sampling_is_a_setting() -> None:
    assert {field.name for field in fields(Sampling)} == {setting.field for setting in SETTINGS if setting.of_job}
    assert from_environment(environ={}).sampling == Sampling()


SAMPLING = Sampling(
    samplers=("top_k", "temperature"),
    logit_bias=((5, -1.5), (" Hello", False)),
    dry_sequence_breakers=("\n", "|"),
    ignore_eos=True,
)


def test_a_sampling_survives_json_and_can_still_be_told_from_others() -> None:
    returned = Sampling(**json.loads(json.dumps(asdict(SAMPLING))))
    assert returned == SAMPLING
    assert {SAMPLING: "found"}[returned] == "found"
    config = Config(sampling=SAMPLING)
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("top_k;temperature", ("top_k", "temperature")),
        ("Top-K, temp, typ ,nucleus", ("top_k", "temperature", "typ_p", "top_p")),
        ("minp;top-n-sigma;dry", ("min_p", "top_n_sigma", "dry")),
        ('["xtc", "adaptive_p"]', ("xtc", "adaptive_p")),
        ("[]", ()),
        (";".join(DEFAULT_SAMPLERS), DEFAULT_SAMPLERS),
    ],
)
def test_samplers_are_named_as_llama_cpp_lets_them_be(text: str, order: tuple[str, ...]) -> None:
    assert from_environment(environ={"NRVNA_SAMPLERS": text}).sampling.samplers == order


@pytest.mark.parametrize(
    ("text", "biases"),
    [
        ('{"15043": -2, " Hello": false}', ((15043, -2.0), (" Hello", False))),
        ('[[15043, 1.5], ["15043", 1]]', ((15043, 1.5), ("15043", 1.0))),
        ('{"5": 0, "6": 0.0}', ()),
        ("{}", ()),
    ],
)
def test_biases_are_written_as_llama_server_takes_them(text: str, biases: object) -> None:
    assert from_environment({"logit_bias": text}, {}).sampling.logit_bias == biases


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("samplers", "top_k;best"),
        ("samplers", "top_k;"),
        ("samplers", "[1]"),
        ("logit_bias", "15043"),
        ("logit_bias", '{"5": true}'),
        ("logit_bias", '{"5": "high"}'),
        ("logit_bias", '{"5": NaN}'),
        ("logit_bias", '{"5": 1001}'),
        ("logit_bias", '{"": 1}'),
        ("logit_bias", "[[-1, 1]]"),
        ("logit_bias", "[[true, 1]]"),
        ("logit_bias", "[[5, 1, 2]]"),
        ("dry_sequence_breakers", "\\n"),
        ("dry_sequence_breakers", '["a", 1]'),
        ("dry_sequence_breakers", '[""]'),
        ("dry_sequence_breakers", '"a"'),
        ("dry_sequence_breakers", json.dumps([f"{number}" for number in range(2049)])),
        ("samplers", ";".join(["top_k"] * 65)),
        ("ignore_eos", "yes"),
    ],
)
def test_what_is_no_list_of_the_right_things_is_refused_by_name(field: str, text: str) -> None:
    [setting] = [setting for setting in SETTINGS if setting.field == field]
    with pytest.raises(SettingError) as caught:
        from_environment({field: text}, {})
    message = str(caught.value)
    assert setting.option in message
    assert message.endswith(setting.range)


def test_a_breaker_that_is_named_again_is_one_and_so_many_different_ones_are_taken() -> None:
    texts = [f"{number}" for number in range(2048)]
    found = of_job(Sampling(), {"dry_sequence_breakers": texts * 3})
    assert found.dry_sequence_breakers == tuple(texts)
    with pytest.raises(SettingError, match=r"2048 different ones at most$"):
        of_job(Sampling(), {"dry_sequence_breakers": [*texts, "more"]})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"top_k": 7, "temp": 0}, Sampling(top_k=7, temp=0)),
        ({"top_k": "7"}, Sampling(top_k=7)),
        ({"samplers": ["top_k", "temp"]}, Sampling(samplers=("top_k", "temperature"))),
        ({"samplers": "top_k;temp"}, Sampling(samplers=("top_k", "temperature"))),
        ({"logit_bias": {"5": -1, "x": False}}, Sampling(logit_bias=((5, -1.0), ("x", False)))),
        ({"logit_bias": [[5, -1]]}, Sampling(logit_bias=((5, -1.0),))),
        ({"dry_sequence_breakers": ["\n", "ä"]}, Sampling(dry_sequence_breakers=("\n", "ä"))),
        ({"ignore_eos": True}, Sampling(ignore_eos=True)),
        ({"ignore_eos": 1}, Sampling(ignore_eos=True)),
    ],
    ids=str,
)
def test_a_jobs_settings_are_values_of_json(settings: dict[str, Any], expected: Sampling) -> None:
    assert of_job(Sampling(), settings) == expected


@pytest.mark.parametrize(
    "settings", [{"top_k": True}, {"temp": None}, {"samplers": 5}, {"logit_bias": "x"}, {"heat": 1}], ids=str
)
def test_a_jobs_setting_that_cannot_be_is_refused_by_name_in_one_line(settings: dict[str, Any]) -> None:
    [name] = settings
    with pytest.raises(SettingError, match=f"^the job's (setting )?{name} .*$"):
        of_job(Sampling(), settings)


@pytest.mark.parametrize(
    ("sampling", "is_greedy"),
    [
        (Sampling(temp=0), True),
        (Sampling(), False),
        (Sampling(temp=0, samplers=("top_k",)), False),
        (Sampling(temp=0, dynatemp_range=0.5), False),
        (Sampling(temp=0, xtc_probability=0.5), False),
        (Sampling(temp=0, mirostat=1), False),
    ],
)
def test_only_where_chance_has_no_part_another_seed_gives_the_same(sampling: Sampling, is_greedy: bool) -> None:
    assert sampling.is_greedy == sampling.is_repeatable == is_greedy


def test_readme_and_docs_show_the_tables_of_settings() -> None:
    assert markdown_table(everything=False) in (ROOT / "README.md").read_text()
    assert markdown_table(everything=True) in (ROOT / "docs" / "settings.md").read_text()


def test_settings_the_terminals_variables_and_those_of_other_processes_are_read_in_one_place_each() -> None:
    readers = []
    for path in (ROOT / "nrvna").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
            if name in ("environ", "getenv", "environb"):
                readers.append(path.name)
    assert set(readers) == {"config.py", "terminal.py", "environment.py"}


@pytest.mark.parametrize(
    ("text", "stops"),
    [
        ("\n\n", ("\n\n",)),
        ('["END", "\\n"]', ("END", "\n")),
        (" x ", (" x ",)),
        ("[/INST]", ("[/INST]",)),
        (" [INST]\n", (" [INST]\n",)),
        ("[", ("[",)),
        ('["[1]"]', ("[1]",)),
        ("[1]", None),
        ('["a", ""]', None),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_stop_string_stands_as_it_is_and_several_as_a_json_list(text: str, stops: tuple[str, ...] | None) -> None:
    if stops is None:
        with pytest.raises(SettingError, match="must be a text, or a JSON list of texts"):
            of_job(Sampling(), {"stop": text})
    else:
        assert of_job(Sampling(), {"stop": text}).stop == stops


def test_the_settings_of_a_job_come_back_from_json_as_they_were() -> None:
    sampling = Sampling(stop=("a", "b"), logit_bias=((5, False), ("maybe", -2.0)), samplers=("top_k", "temperature"))
    assert Sampling(**json.loads(json.dumps(asdict(sampling)))) == sampling


def test_what_differs_from_the_defaults_is_told_as_text_that_gives_it_again() -> None:
    environ = {
        "NRVNA_TEMP": "0.25",
        "NRVNA_STOP": "END",
        "NRVNA_SAMPLERS": "top_k;temp",
        "NRVNA_LOGIT_BIAS": '{"5": false, "x": -1}',
        "NRVNA_IGNORE_EOS": "1",
        "NRVNA_SEED": "7",
        "NRVNA_LORA": "a=b.gguf",
        "NRVNA_NAMED": "1",
        "NRVNA_LLAMA_DIR": "/x y",
        "NRVNA_PARALLEL": "0",
    }
    config = from_environment({}, environ)
    different = changed(config)
    assert set(different) == set(environ) - {"NRVNA_PARALLEL"}
    assert from_environment({}, different) == config
    assert changed(from_environment({}, {})) == {}


def test_a_flag_takes_no_value_and_is_one() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    options = parser.parse_args(["--log-json", "--named", "--stop-text", "END"])
    config = from_environment({setting.field: getattr(options, setting.field) for setting in SETTINGS}, {})
    assert (config.log_json, config.named, config.sampling.stop) == (True, True, ("END",))


def test_a_variable_that_only_begins_like_a_list_is_a_text() -> None:
    environ = {"NRVNA_STOP": "[INST]", "NRVNA_LORA": "[a]=b.gguf"}
    config = from_environment(environ=environ)
    assert (config.sampling.stop, config.lora) == (("[INST]",), ("[a]=b.gguf",))


def test_a_seed_of_minus_one_is_drawn_also_where_the_daemon_has_one() -> None:
    assert from_environment(environ={"NRVNA_SEED": "-1"}).sampling == Sampling()
    assert of_job(Sampling(seed=42), {"seed": -1}) == Sampling()
    assert not of_job(Sampling(seed=42), {"seed": -1}).is_repeatable
