"""Settings: one table that yields the variable, the option, the check, the help text and the README's table.

The only module that reads the environment. An option wins over its variable, a variable over the default.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nrvna.errors import SettingError

# By the names that llama.cpp gives them.
LOG_LEVELS = {"error": logging.ERROR, "warn": logging.WARNING, "info": logging.INFO, "debug": logging.DEBUG}
# One below LLAMA_DEFAULT_SEED, which asks llama.cpp for a random seed.
MAX_SEED = 0xFFFFFFFE


@dataclass(frozen=True)
class Sampling:
    """How one job's tokens are chosen. The defaults are llama.cpp's own; ``seed`` None means drawn per job.

    ``ignore_eos`` goes on to the limit even where the model would end its answer, as benchmarks need it.
    """

    temp: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    predict: int = 512
    seed: int | None = None
    ignore_eos: bool = False

    @property
    def is_repeatable(self) -> bool:
        """Whether the same prompt, sampled again like this, is meant to give the same answer."""
        return self.seed is not None or self.temp == 0


@dataclass(frozen=True)
class Config:
    """Everything a daemon is told. Zero means chosen automatically for ``ctx``, ``threads`` and ``parallel``."""

    sampling: Sampling = Sampling()
    ctx: int = 0
    gpu_layers: int = 99
    threads: int = 0
    parallel: int = 0
    reproducible: int = 0
    nice: int = 0
    stall: int = 600
    log_level: str = "info"
    llama_log_level: str = "warn"
    log_file: str | None = None
    llama_dir: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON object from which :meth:`from_dict` makes an equal Config."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Config:
        return cls(**{**content, "sampling": Sampling(**content["sampling"])})


@dataclass(frozen=True)
class Setting:
    """One row of the table. ``kind`` turns text into a value; numbers lie in ``low`` to ``high``, both included."""

    variable: str
    field: str
    kind: Callable[[str], Any]
    help: str
    low: float = 0
    high: float = 0
    choices: tuple[str, ...] = ()
    shown_default: str | None = None

    @property
    def option(self) -> str:
        return "--" + self.field.replace("_", "-")

    @property
    def default(self) -> Any:
        return getattr(_DEFAULTS.sampling if self.of_job else _DEFAULTS, self.field)

    @property
    def of_job(self) -> bool:
        """Whether it belongs to a job's sampling rather than to the daemon."""
        return self.field in Sampling.__dataclass_fields__

    @property
    def range(self) -> str:
        """What is allowed, in words."""
        if self.choices:
            return ", ".join(self.choices)
        if self.kind is str:
            return "a path"
        return f"{'a whole number' if self.kind is int else 'a number'} from {self.low:g} to {_plain(self.high)}"

    def parse(self, text: str, given_as: str) -> Any:
        """Raises SettingError naming ``given_as``, the text and what is allowed."""
        try:
            value = self.kind(text.strip())
        except ValueError:
            value = None
        if self.choices:
            valid = value in self.choices
        else:
            valid = bool(value) if self.kind is str else value is not None and self.low <= value <= self.high
        if not valid:
            raise SettingError(f"{given_as} is {text!r}, but must be {self.range}")
        return value

    def read(self, environ: Mapping[str, str] | None = None) -> Any:
        """The variable's value, or the default where it is unset or empty."""
        text = (os.environ if environ is None else environ).get(self.variable, "")
        return self.parse(text, self.variable) if text.strip() else self.default


_DEFAULTS = Config()

SETTINGS: tuple[Setting, ...] = (
    Setting("NRVNA_TEMP", "temp", float, "temperature: 0 always takes the likeliest token", 0, 10),
    Setting("NRVNA_TOP_K", "top_k", int, "sample among the k likeliest tokens; 0 is off", 0, 1_000_000),
    Setting(
        "NRVNA_TOP_P",
        "top_p",
        float,
        "nucleus: the likeliest tokens that make up this probability; 1 is off",
        0,
        1,
    ),
    Setting("NRVNA_MIN_P", "min_p", float, "drop tokens below this fraction of the likeliest one; 0 is off", 0, 1),
    Setting("NRVNA_REPEAT_PENALTY", "repeat_penalty", float, "penalty on the last 64 tokens; 1 is off", 0.1, 10),
    Setting("NRVNA_PREDICT", "predict", int, "most tokens to generate for a job", 1, 1_000_000),
    Setting(
        "NRVNA_SEED",
        "seed",
        int,
        "seed of the sampling; unset, each job draws its own, and its receipt names it",
        0,
        MAX_SEED,
        shown_default="drawn per job",
    ),
    Setting("NRVNA_CTX", "ctx", int, "context of one job in tokens, prompt and answer; 0 is auto", 0, 16_777_216),
    Setting(
        "NRVNA_GPU_LAYERS",
        "gpu_layers",
        int,
        "layers put on the GPU, where there is one; 0 is CPU only",
        0,
        999,
    ),
    Setting("NRVNA_THREADS", "threads", int, "CPU threads; 0 is one per physical core", 0, 512),
    Setting("NRVNA_PARALLEL", "parallel", int, "jobs decoded together; 0 is auto", 0, 256),
    Setting(
        "NRVNA_REPRODUCIBLE",
        "reproducible",
        int,
        "1: a job with a seed gives the same answer whatever runs beside it; checked on the model at start",
        0,
        1,
    ),
    Setting(
        "NRVNA_NICE",
        "nice",
        int,
        "niceness of the engine: the higher, the more it leaves to other programs while they want the processor",
        0,
        19,
    ),
    Setting(
        "NRVNA_STALL",
        "stall",
        int,
        "seconds without a sign of life after which an engine at work counts as hung and is replaced; 0 is never",
        0,
        86_400,
    ),
    Setting(
        "LLAMA_LOG_LEVEL",
        "llama_log_level",
        str,
        "what llama.cpp says in the daemon's log",
        choices=tuple(LOG_LEVELS),
    ),
    Setting("NRVNA_LOG_LEVEL", "log_level", str, "what the daemon says in its log", choices=tuple(LOG_LEVELS)),
    Setting(
        "NRVNA_LOG_FILE",
        "log_file",
        str,
        "file to whose end the log goes; SIGHUP opens it anew",
        shown_default="standard error",
    ),
    Setting(
        "NRVNA_LLAMA_DIR",
        "llama_dir",
        str,
        "folder of llama.cpp builds, or one build's own folder",
        shown_default="the user's data folder",
    ),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add every setting of the table as an option; :func:`from_environment` reads what was given."""
    group = parser.add_argument_group("settings", "Each is also a variable; the option wins.")
    for setting in SETTINGS:
        shown = setting.shown_default or setting.default
        group.add_argument(
            setting.option,
            dest=setting.field,
            metavar="X",
            help=f"{setting.help} ({setting.variable}, default {shown})",
        )


def from_environment(
    given: Mapping[str, str | None] | None = None, environ: Mapping[str, str] | None = None
) -> Config:
    """The settings in force. ``given`` maps fields to the text of their options, None where not given.

    Raises SettingError for a value that is no number, out of range or not among the choices.
    """
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        text = (given or {}).get(setting.field)
        values[setting.field] = setting.read(environ) if text is None else setting.parse(text, setting.option)
    sampling = {setting.field: values.pop(setting.field) for setting in SETTINGS if setting.of_job}
    return Config(sampling=Sampling(**sampling), **values)


def of_job(sampling: Sampling, settings: Mapping[str, Any]) -> Sampling:
    """The sampling of a job that has some fields of its own. Raises SettingError for one that cannot be."""
    known = {setting.field: setting for setting in SETTINGS if setting.of_job}
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if name == "ignore_eos" and isinstance(value, bool):
            values[name] = value
        elif name in known:
            values[name] = known[name].parse(str(value), f"the job's {name}")
        else:
            raise SettingError(f"the job's setting {name} = {value!r} is none that a job can have")
    return replace(sampling, **values)


def llama_dir() -> Path | None:
    """NRVNA_LLAMA_DIR alone: building llama.cpp should not fail over a bad temperature."""
    [setting] = [setting for setting in SETTINGS if setting.field == "llama_dir"]
    value = setting.read()
    return Path(value) if value else None


def notify_socket() -> str:
    """Where systemd listens for how the service is doing; empty where it did not start it."""
    return os.environ.get("NOTIFY_SOCKET", "")


def engine_environment(config: Config) -> dict[str, str]:
    """The environment of the engine's process."""
    environment = dict(os.environ)
    # What the service has to say is the daemon's to say.
    environment.pop("NOTIFY_SOCKET", None)
    # It must find this very package, installed or not.
    paths = [str(Path(__file__).parents[1]), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    if "OMP_WAIT_POLICY" not in environment:
        # libgomp's threads spin 300 times as long before they sleep. That gains little on idle cores, and where
        # something else runs on them speed collapses (benchmarks/RESULTS.md).
        environment.setdefault("GOMP_SPINCOUNT", "1000")
    if config.reproducible:
        # The tiled K-quant kernels are used from 8 rows on: a row's result would depend on its neighbours.
        environment["GGML_CPU_TILED_MM"] = "0"
    if config.llama_log_level != "debug":
        # Else ggml attaches a debugger to itself when it aborts, which takes seconds and fills the log.
        environment.setdefault("GGML_NO_BACKTRACE", "1")
    return environment


def markdown_table() -> str:
    """The table of settings as the README shows it."""
    rows = ["| Variable | Option | Default | Allowed | What it does |", "|---|---|---|---|---|"]
    for setting in SETTINGS:
        cells = (
            f"`{setting.variable}`",
            f"`{setting.option}`",
            str(setting.shown_default or setting.default),
            setting.range,
            setting.help,
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else str(number)
