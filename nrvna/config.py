"""Settings: one table that yields the variable, the option, the check, the help text and the README's table.

The only module that reads settings from the environment. An option wins over its variable, and that over the default.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nrvna.errors import JsonError, SettingError, shown
from nrvna.jsontext import check_value, read_json

# By the names that llama.cpp gives them.
LOG_LEVELS = {"error": logging.ERROR, "warn": logging.WARNING, "info": logging.INFO, "debug": logging.DEBUG}
# One below LLAMA_DEFAULT_SEED, which asks llama.cpp for a random seed.
MAX_SEED = 0xFFFFFFFE
# The seed that asks for one which is drawn, as in llama.cpp and vLLM.
DRAWN_SEED = -1
# By the names that llama.cpp gives them, in its order.
_TRUNCATION = ("top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc")
DEFAULT_SAMPLERS = ("penalties", "dry", *_TRUNCATION, "temperature")
SAMPLERS = (*DEFAULT_SAMPLERS, "adaptive_p")
# What becomes of a prompt that does not fit: the job fails, or so many tokens are taken out of the prompt's text.
OVERFLOWS = ("fail", "truncate-left", "truncate-right", "truncate-middle")
# Which of llama.cpp's builds is loaded; auto is a GPU's where that GPU is there.
BACKENDS = ("auto", "cpu", "cuda", "metal")
# What the KV cache can be kept in, and when attention goes over it in one pass.
KV_TYPES = ("f16", "q8_0", "q4_0")
FLASH_ATTENTION = ("auto", "on", "off")
_MAX_STOPS = 64
# Each takes its time for every token.
_MAX_SAMPLERS = 64
# llama.cpp compares each with all tokens of the vocabulary, which takes 5 to 30 ms where there are 50,000, and five
# times that where there are 250,000: so many stay below the time after which an engine counts as hung.
_MAX_BREAKERS = 2048
# Of a value that cannot be, in characters.
_SHOWN = 200
# A token for each of as many sequences as there may be fits a step.
_LEAST_BATCH, _MOST_BATCH = 256, 8192
_LEAST_MICRO_BATCH = 32
_MAX_TOKEN, _MAX_BIAS = 2**31 - 1, 1000
# Each GPU that is there, in NRVNA_GPUS.
ALL_GPUS = "all"
_MAX_GPU = 1023
# How llama.cpp lets some of them be called as well.
_ALIASES = {"nucleus": "top_p", "temp": "temperature", "typ": "typ_p", "typicalp": "typ_p"}


@dataclass(frozen=True)
class Sampling:
    """How one job's tokens are chosen. Names, defaults and meaning are llama.cpp's; ``seed`` None is drawn per job.
    DRAWN_SEED becomes None.

    ``samplers`` are the ones in use, in their order. ``logit_bias`` holds pairs of a token, by id or as text that may
    be several, and what is added to its logit; False makes it impossible. ``min_tokens`` and ``ignore_eos`` keep the
    answer from ending, up to so many tokens or to the limit; ``stop`` are texts that end it. ``reasoning_budget`` is
    the most tokens that a model may think before it must answer, -1 for no limit. ``overflow`` says what becomes of a
    prompt that is too long, see OVERFLOWS. Lists, as they come from JSON, become tuples.
    """

    temp: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    predict: int = 512
    seed: int | None = None
    ignore_eos: bool = False
    min_tokens: int = 0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    top_n_sigma: float = -1.0
    typical_p: float = 1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    mirostat: int = 0
    mirostat_lr: float = 0.1
    mirostat_ent: float = 5.0
    adaptive_target: float = -1.0
    adaptive_decay: float = 0.9
    samplers: tuple[str, ...] = DEFAULT_SAMPLERS
    logit_bias: tuple[tuple[int | str, float], ...] = ()
    stop: tuple[str, ...] = ()
    reasoning_budget: int = -1
    overflow: str = "fail"

    def __post_init__(self) -> None:
        for name in ("dry_sequence_breakers", "samplers", "stop"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.seed == DRAWN_SEED:
            object.__setattr__(self, "seed", None)
        object.__setattr__(self, "logit_bias", tuple((token, bias) for token, bias in self.logit_bias))

    def to_dict(self) -> dict[str, Any]:
        """A JSON object of the fields, from which an equal Sampling can be made. Nothing in it is copied: a job may
        have a bias for each token."""
        return dict(vars(self))

    @property
    def is_greedy(self) -> bool:
        """Whether chance has no part in it: another seed would give the same answer."""
        draws = self.mirostat or self.dynatemp_range > 0 or (self.xtc_probability > 0 and "xtc" in self.samplers)
        return self.temp <= 0 and "temperature" in self.samplers and not draws

    @property
    def is_repeatable(self) -> bool:
        """Whether the same prompt, sampled again like this, is meant to give the same answer."""
        return self.seed is not None or self.is_greedy


@dataclass(frozen=True)
class Config:
    """Everything a daemon is told. Zero ``ctx``, ``threads``, ``parallel``, ``batch_tokens`` and
    ``micro_batch`` are chosen for it.

    Raises SettingError for settings that do not go together.
    """

    sampling: Sampling = Sampling()
    ctx: int = 0
    gpu_layers: int = 99
    gpus: str = ""
    replicas: int = 1
    threads: int = 0
    parallel: int = 0
    batch_tokens: int = 0
    micro_batch: int = 0
    kv_type: str = "f16"
    flash_attention: str = "auto"
    named: bool = False
    reproducible: int = 0
    nice: int = 0
    stall: int = 600
    log_level: str = "info"
    llama_log_level: str = "warn"
    chat_template: str | None = None
    lora: tuple[str, ...] = ()
    log_file: str | None = None
    log_json: bool = False
    llama_dir: str | None = None
    backend: str = "auto"

    def __post_init__(self) -> None:
        if self.kv_type != "f16" and self.flash_attention == "off":
            raise SettingError(
                f"NRVNA_KV_TYPE is {self.kv_type}, which needs flash attention, but NRVNA_FLASH_ATTENTION is off: "
                "leave that on auto, or take f16"
            )
        if self.gpus and self.replicas > 1:
            raise SettingError(
                f"NRVNA_GPUS is {self.gpus} and NRVNA_REPLICAS is {self.replicas}: one is for GPUs, the other for "
                "the processor alone; unset one of them"
            )
        if self.gpus and not self.gpu_layers:
            raise SettingError(f"NRVNA_GPUS is {self.gpus}, but NRVNA_GPU_LAYERS is 0, no GPU: unset one of them")
        if self.gpus and self.backend == "cpu":
            raise SettingError(f"NRVNA_GPUS is {self.gpus}, but NRVNA_BACKEND is cpu: unset one of them")

    def to_dict(self) -> dict[str, Any]:
        """A JSON object from which :meth:`from_dict` makes an equal Config."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Config:
        return cls(**{**content, "sampling": Sampling(**content["sampling"]), "lora": tuple(content["lora"])})


@dataclass(frozen=True)
class Setting:
    """One row of the table. ``kind`` turns text into a value; numbers lie in ``low`` to ``high``, both included.

    ``allowed`` says in words what other kinds take. The option of one that ``is_flag`` takes no value: it means 1.
    """

    variable: str
    field: str
    kind: Callable[[str], Any]
    help: str
    low: float = 0
    high: float = 0
    choices: tuple[str, ...] = ()
    allowed: str = ""
    shown_default: str | None = None
    is_flag: bool = False

    @property
    def option(self) -> str:
        return "--" + self.field.replace("_", "-")

    @property
    def daemon_option(self) -> str:
        """What nrvnad calls the option: there, ``--stop`` ends a daemon."""
        return "--stop-text" if self.field == "stop" else self.option

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
            return self.allowed or "a path"
        if self.allowed:
            return self.allowed
        return f"{'a whole number' if self.kind is int else 'a number'} from {self.low:g} to {_plain(self.high)}"

    def parse(self, text: str, given_as: str) -> Any:
        """Raises SettingError naming ``given_as``, the text and what is allowed."""
        try:
            value = self.kind(text if self.kind is _text_or_texts else text.strip())
            if self.of_job:
                # It goes into job.json, where others are paths, of any bytes.
                check_value(value)
        except JsonError as error:
            raise SettingError(f"{given_as} {error}") from None
        except (ValueError, LookupError, TypeError, AttributeError):
            value = None
        if self.choices:
            valid = value in self.choices
        elif self.kind is str:
            valid = bool(value)
        elif self.allowed:
            valid = value is not None
        else:
            valid = value is not None and self.low <= value <= self.high
        if not valid:
            raise SettingError(f"{given_as} is {shown(text, _SHOWN)}, but must be {self.range}")
        return value

    def read(self, environ: Mapping[str, str] | None = None) -> Any:
        """The variable's value, or the default where it is unset or empty."""
        text = (os.environ if environ is None else environ).get(self.variable, "")
        return self.parse(text, self.variable) if text.strip() else self.default


def _switch(text: str) -> bool:
    return {"1": True, "true": True, "0": False, "false": False}[text.lower()]


def _gpus(text: str) -> str:
    """The same in its shortest form."""
    if text.lower() == ALL_GPUS:
        return ALL_GPUS
    groups = [[_gpu(number.strip()) for number in group.split("+")] for group in text.split(",")]
    numbers = [number for group in groups for number in group]
    if len(set(numbers)) < len(numbers):
        raise ValueError
    return ",".join("+".join(map(str, group)) for group in groups)


def _gpu(text: str) -> int:
    number = int(text) if text.isascii() and text.isdecimal() else -1
    if not 0 <= number <= _MAX_GPU:
        raise ValueError
    return number


def gpu_groups(gpus: str) -> tuple[tuple[int, ...], ...]:
    """The GPUs of each engine that NRVNA_GPUS asks for; none where it names none."""
    if gpus in ("", ALL_GPUS):
        return ()
    return tuple(tuple(map(int, group.split("+"))) for group in gpus.split(","))


def _batch(text: str) -> int:
    count = int(text)
    if count and not _LEAST_BATCH <= count <= _MOST_BATCH:
        raise ValueError
    return count


def _micro_batch(text: str) -> int:
    count = int(text)
    if count and not _LEAST_MICRO_BATCH <= count <= _MOST_BATCH:
        raise ValueError
    return count


def _samplers(text: str) -> tuple[str, ...]:
    """Names in one text, as llama.cpp takes them, or as a JSON list."""
    names = read_json(text) if text.startswith("[") else text.replace(",", ";").split(";")
    if len(names) > _MAX_SAMPLERS:
        raise ValueError
    known = {name.replace("_", ""): name for name in SAMPLERS} | _ALIASES
    return tuple(known[name.strip().lower().replace("-", "").replace("_", "")] for name in names)


def _texts(text: str) -> tuple[str, ...]:
    texts = read_json(text)
    if not isinstance(texts, list) or not all(isinstance(each, str) and each for each in texts):
        raise ValueError
    return tuple(texts)


def _breakers(text: str) -> tuple[str, ...]:
    """Each text once: another of the same takes time and changes nothing."""
    breakers = tuple(dict.fromkeys(_texts(text)))
    if len(breakers) > _MAX_BREAKERS:
        raise ValueError
    return breakers


def _is_list(text: str) -> bool:
    """Whether it is a list in JSON: what but begins like one, as [/INST] does, is not."""
    try:
        return isinstance(read_json(text), list)
    except JsonError:
        # Too deep for whoever reads it next, who says so.
        return text.lstrip().startswith("[")
    except ValueError:
        return False


def _text_or_texts(text: str) -> tuple[str, ...]:
    """A JSON list of texts, or one text as it stands, the space around it included."""
    texts = _texts(text) if _is_list(text) else (text,)
    if not all(texts) or len(texts) > _MAX_STOPS:
        raise ValueError
    return texts


def _logit_bias(text: str) -> tuple[tuple[int | str, float], ...]:
    """What llama-server takes: an object or a list of pairs, the token by its id or as text."""
    content = read_json(text)
    if isinstance(content, dict):
        # The ids of an object's keys are text, too.
        content = [[int(token) if token.isdecimal() else token, bias] for token, bias in content.items()]
    return tuple(_one_bias(token, bias) for token, bias in content if bias is False or bias != 0)


def _one_bias(token: object, bias: object) -> tuple[int | str, float]:
    if not (type(token) is int and 0 <= token <= _MAX_TOKEN) and not (isinstance(token, str) and token):
        raise ValueError
    if bias is False:
        return token, False
    if not isinstance(bias, (int, float)) or bias is True or not abs(bias) <= _MAX_BIAS:
        raise ValueError
    return token, float(bias)


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
    Setting(
        "NRVNA_REPEAT_PENALTY",
        "repeat_penalty",
        float,
        "makes the last tokens less likely, prompt included; 1 is off",
        0.1,
        10,
    ),
    Setting("NRVNA_REPEAT_LAST_N", "repeat_last_n", int, "how many last tokens the penalties count", 0, 1_000_000),
    Setting(
        "NRVNA_PRESENCE_PENALTY",
        "presence_penalty",
        float,
        "taken off the logit of each token among the last ones",
        -100,
        100,
    ),
    Setting(
        "NRVNA_FREQUENCY_PENALTY",
        "frequency_penalty",
        float,
        "taken off a token's logit for each time that it is among the last ones",
        -100,
        100,
    ),
    Setting(
        "NRVNA_DRY_MULTIPLIER",
        "dry_multiplier",
        float,
        "DRY: penalty on the token that would go on with a repeated sequence; 0 is off",
        0,
        100,
    ),
    Setting("NRVNA_DRY_BASE", "dry_base", float, "DRY: how the penalty grows with each token repeated", 1, 100),
    Setting(
        "NRVNA_DRY_ALLOWED_LENGTH",
        "dry_allowed_length",
        int,
        "DRY: tokens that may be repeated without a penalty",
        0,
        1_000_000,
    ),
    Setting(
        "NRVNA_DRY_PENALTY_LAST_N",
        "dry_penalty_last_n",
        int,
        "DRY: how many last tokens are searched for repetitions; 0 is off",
        0,
        1_000_000,
    ),
    Setting(
        "NRVNA_DRY_SEQUENCE_BREAKERS",
        "dry_sequence_breakers",
        _breakers,
        "DRY: texts that no repetition goes across",
        allowed=f"a JSON list of texts, {_MAX_BREAKERS} different ones at most",
        shown_default=r"""`["\n", ":", "\"", "*"]`""",
    ),
    Setting(
        "NRVNA_TOP_N_SIGMA",
        "top_n_sigma",
        float,
        "keep logits within so many standard deviations of the largest; 0 and less is off",
        -1,
        1000,
    ),
    Setting("NRVNA_TYPICAL_P", "typical_p", float, "locally typical sampling: the share to keep; 1 is off", 0, 1),
    Setting(
        "NRVNA_XTC_PROBABILITY",
        "xtc_probability",
        float,
        "XTC: how often all the likely tokens but the last of them are dropped; 0 is off",
        0,
        1,
    ),
    Setting(
        "NRVNA_XTC_THRESHOLD",
        "xtc_threshold",
        float,
        "XTC: from which probability on a token is a likely one; above 0.5 is off",
        0,
        1,
    ),
    Setting(
        "NRVNA_DYNATEMP_RANGE",
        "dynatemp_range",
        float,
        "dynamic temperature: how far it strays from NRVNA_TEMP with the entropy; 0 is off",
        0,
        10,
    ),
    Setting(
        "NRVNA_DYNATEMP_EXPONENT",
        "dynatemp_exponent",
        float,
        "dynamic temperature: the power of the entropy that it follows",
        0,
        100,
    ),
    Setting(
        "NRVNA_MIROSTAT",
        "mirostat",
        int,
        "1, 2: Mirostat of that version, in place of all other samplers but temperature and biases; 0 is off",
        0,
        2,
    ),
    Setting("NRVNA_MIROSTAT_LR", "mirostat_lr", float, "Mirostat: learning rate, eta", 0, 10),
    Setting("NRVNA_MIROSTAT_ENT", "mirostat_ent", float, "Mirostat: target entropy in bits, tau", 0, 100),
    Setting(
        "NRVNA_ADAPTIVE_TARGET",
        "adaptive_target",
        float,
        "adaptive-p: draw tokens around this probability; below 0 is off",
        -1,
        1,
    ),
    Setting(
        "NRVNA_ADAPTIVE_DECAY",
        "adaptive_decay",
        float,
        "adaptive-p: how slowly it forgets; it looks back about 1 / (1 - decay) tokens",
        0,
        0.99,
    ),
    Setting(
        "NRVNA_SAMPLERS",
        "samplers",
        _samplers,
        "the samplers in use and their order",
        allowed=f"names out of {', '.join(SAMPLERS)}, with ; between them, {_MAX_SAMPLERS} at most",
        shown_default=";".join(DEFAULT_SAMPLERS),
    ),
    Setting(
        "NRVNA_LOGIT_BIAS",
        "logit_bias",
        _logit_bias,
        'added to the logits of tokens, by id or text; `false` forbids one: `{"15043": -2, " Hello": false}`',
        allowed="JSON: an object or a list of pairs, biases from -1000 to 1000 or false",
        shown_default="none",
    ),
    Setting(
        "NRVNA_MIN_TOKENS",
        "min_tokens",
        int,
        "tokens before which the model cannot end its answer",
        0,
        1_000_000,
    ),
    Setting(
        "NRVNA_IGNORE_EOS",
        "ignore_eos",
        _switch,
        "1: the model never ends its answer, it goes on to the limit",
        allowed="0 or 1",
        shown_default="0",
    ),
    Setting("NRVNA_PREDICT", "predict", int, "most tokens to generate for a job", 1, 1_000_000),
    Setting(
        "NRVNA_SEED",
        "seed",
        int,
        "seed of the sampling; unset or -1, each job draws its own, and its receipt names it",
        DRAWN_SEED,
        MAX_SEED,
        shown_default="drawn per job",
    ),
    Setting(
        "NRVNA_STOP",
        "stop",
        _text_or_texts,
        "text that ends the answer, which is then without it",
        allowed="a text, or a JSON list of texts",
        shown_default="none",
    ),
    Setting(
        "NRVNA_REASONING_BUDGET",
        "reasoning_budget",
        int,
        "most tokens that a model may think before it must answer; -1 is no limit",
        -1,
        1_000_000,
    ),
    Setting(
        "NRVNA_OVERFLOW",
        "overflow",
        str,
        "what becomes of a prompt that is too long: the job fails, or its left, right or middle goes",
        choices=OVERFLOWS,
    ),
    Setting("NRVNA_CTX", "ctx", int, "context of one job in tokens, prompt and answer; 0 is auto", 0, 16_777_216),
    Setting(
        "NRVNA_GPU_LAYERS",
        "gpu_layers",
        int,
        "most layers put on the GPU, where there is one: fewer if its memory is short; 0 is CPU only",
        0,
        999,
    ),
    Setting(
        "NRVNA_GPUS",
        "gpus",
        _gpus,
        "GPUs that have an engine each, by number: 0,1; 0+1 is one engine over both; unset, one engine has them all",
        allowed="numbers with , or + between them, or all",
        shown_default="unset",
    ),
    Setting("NRVNA_REPLICAS", "replicas", int, "engines that share the processor, each with cores of its own", 1, 64),
    Setting("NRVNA_THREADS", "threads", int, "CPU threads of all engines; 0 is one per physical core", 0, 512),
    Setting("NRVNA_PARALLEL", "parallel", int, "jobs decoded together; 0 is auto", 0, 256),
    Setting(
        "NRVNA_BATCH_TOKENS",
        "batch_tokens",
        _batch,
        "most tokens computed in one step: long prompts take several; 0 is auto",
        allowed=f"0, or a whole number from {_LEAST_BATCH} to {_MOST_BATCH}",
    ),
    Setting(
        "NRVNA_MICRO_BATCH",
        "micro_batch",
        _micro_batch,
        "most tokens of a step that are computed at once: fewer take less memory; 0 is auto",
        allowed=f"0, or a whole number from {_LEAST_MICRO_BATCH} to {_MOST_BATCH}",
    ),
    Setting(
        "NRVNA_KV_TYPE",
        "kv_type",
        str,
        "what the KV cache is kept in: q8_0 takes about half of f16's memory, q4_0 a quarter, at some loss",
        choices=KV_TYPES,
    ),
    Setting(
        "NRVNA_FLASH_ATTENTION",
        "flash_attention",
        str,
        "attention in one pass, without a table of scores; auto is what suits device and jobs",
        choices=FLASH_ATTENTION,
    ),
    Setting(
        "NRVNA_NAMED",
        "named",
        _switch,
        "1: answer only jobs that ask for this model by name, beside the workspace's other models",
        allowed="0 or 1",
        shown_default="0",
        is_flag=True,
    ),
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
        "NRVNA_CHAT_TEMPLATE",
        "chat_template",
        str,
        "a file with a chat template in Jinja, or the name of one of llama.cpp's, in place of the model's own",
        allowed="a path or a name",
        shown_default="the model's own",
    ),
    Setting(
        "NRVNA_LORA",
        "lora",
        _text_or_texts,
        "a LoRA adapter that jobs may ask for, as NAME=FILE; several as a JSON list",
        allowed="NAME=FILE, or a JSON list of such",
        shown_default="none",
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
        "NRVNA_LOG_JSON",
        "log_json",
        _switch,
        "1: the log is JSON, an object a line",
        allowed="0 or 1",
        shown_default="0",
        is_flag=True,
    ),
    Setting(
        "NRVNA_LLAMA_DIR",
        "llama_dir",
        str,
        "folder of llama.cpp builds, or one build's own folder",
        shown_default="the user's data folder",
    ),
    Setting(
        "NRVNA_BACKEND",
        "backend",
        str,
        "which build of llama.cpp is used; auto: a GPU's where that GPU is there, else the CPU's",
        choices=BACKENDS,
    ),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add every setting of the table as an option; :func:`from_environment` reads what was given."""
    group = parser.add_argument_group("settings", "Each is also a variable; the option wins.")
    for setting in SETTINGS:
        shown = setting.shown_default or setting.default
        words = f"{setting.help} ({setting.variable}, default {shown})"
        if setting.is_flag:
            group.add_argument(setting.daemon_option, dest=setting.field, action="store_const", const="1", help=words)
        else:
            group.add_argument(setting.daemon_option, dest=setting.field, metavar="X", help=words)


def from_environment(
    given: Mapping[str, str | None] | None = None, environ: Mapping[str, str] | None = None
) -> Config:
    """The settings in force. ``given`` maps fields to the text of their options, None where not given.

    Raises SettingError for a value that is no number, out of range or not among the choices.
    """
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        text = (given or {}).get(setting.field)
        values[setting.field] = setting.read(environ) if text is None else setting.parse(text, setting.daemon_option)
    sampling = {setting.field: values.pop(setting.field) for setting in SETTINGS if setting.of_job}
    return Config(sampling=Sampling(**sampling), **values)


def changed(config: Config) -> dict[str, str]:
    """The settings that differ from the defaults: by their variables, as text that gives them again."""
    found = {}
    for setting in SETTINGS:
        value = getattr(config.sampling if setting.of_job else config, setting.field)
        if value != setting.default:
            found[setting.variable] = _as_text(value)
    return found


def _as_text(value: object) -> str:
    if isinstance(value, (tuple, bool)):
        return json.dumps(value if isinstance(value, tuple) else int(value))
    return str(value)


def of_job(sampling: Sampling, settings: Mapping[str, Any]) -> Sampling:
    """The sampling of a job that has some fields of its own. Raises SettingError for one that cannot be."""
    known = {setting.field: setting for setting in SETTINGS if setting.of_job}
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if name in known:
            text = value if isinstance(value, str) else json.dumps(value)
            values[name] = known[name].parse(text, f"the job's {name}")
        else:
            raise SettingError(f"the job's setting {name} = {shown(value)} is none that a job can have")
    return replace(sampling, **values)


def of_copy(settings: Mapping[str, Any], number: int) -> dict[str, Any]:
    """What a prompt's copy has of the settings asked of all, by its number from 0 on: given seeds count up."""
    seed = settings.get("seed")
    if seed is None or seed == DRAWN_SEED:
        return dict(settings)
    return {**settings, "seed": (seed + number) % (MAX_SEED + 1)}


def llama_dir() -> Path | None:
    """NRVNA_LLAMA_DIR alone: building llama.cpp should not fail over a bad temperature."""
    value = _alone("llama_dir")
    return Path(value) if value else None


def wanted_backend() -> str:
    """NRVNA_BACKEND alone, for tools that run none of a daemon's jobs."""
    return str(_alone("backend"))


def _alone(field: str) -> Any:
    [setting] = [setting for setting in SETTINGS if setting.field == field]
    return setting.read()


# What the README shows; docs/settings.md shows all.
_OFTEN_USED = (
    "temp",
    "top_k",
    "top_p",
    "min_p",
    "repeat_penalty",
    "predict",
    "seed",
    "stop",
    "reasoning_budget",
    "overflow",
)


def markdown_table(*, everything: bool) -> str:
    """The settings as docs/settings.md shows them, or those of the daemon and the ones often used for the README."""
    rows = ["| Variable | Option | Default | Allowed | What it does |", "|---|---|---|---|---|"]
    for setting in SETTINGS:
        if setting.of_job and setting.field not in _OFTEN_USED and not everything:
            continue
        own = "" if setting.daemon_option == setting.option else f"; of nrvnad `{setting.daemon_option}`"
        cells = (
            f"`{setting.variable}`",
            f"`{setting.option}`{own}",
            str(setting.shown_default or setting.default),
            setting.range,
            setting.help,
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else str(number)
