"""Which settings suit a model on this machine: tried with real engines, and told as lines to export.

What counts is how fast a pile of jobs is done: short prompts with answers for the jobs at a time and the threads,
long prompts for the tokens of a step. Machines are noisy, so settings are tried in turns, and one is recommended only
if it was faster than the default in each turn, clearly so on the whole, and the same again in turns of its own.
"""

from __future__ import annotations

import select
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from nrvna.config import SETTINGS, Config
from nrvna.engine.machine import available_memory, processors
from nrvna.engine.process import EngineProcess
from nrvna.engine.protocol import Ready
from nrvna.errors import EngineError, NrvnaError
from nrvna.terminal import printable

# By this factor another setting must be faster than the default.
CLEARLY = 1.03
_TURNS, _TURNS_AGAIN, _FEWEST_TURNS = 3, 4, 2
# Of the default's speed; what is slower in the first turn gets no second.
_HOPELESS = 0.7
_MOST_JOBS = 64
_BATCHES = (256, 1024, 2048)
_FEWEST_IN_PILE, _WARM_UP_JOBS = 4, 2
_ANSWER_TOKENS = (16, 128)
_LONG_PROMPTS, _LONG_WORDS, _TOKENS_A_WORD = 6, (50, 700), 1.6
# A pile should take this part of all the time there is. What is begun may be ended, but not for ever.
_PILE_SHARE, _OVERTIME = 1 / 60, 1.25
# Engines that wait for their next turn may take this part of the memory that is free.
_MEMORY_SHARE = 0.5
_STOP_PATIENCE_S = 2.0

_WHO = ("a fox", "a lighthouse keeper", "two sisters", "an old clock", "a tax officer", "the last bee", "a tailor")
_WHAT = ("a bridge that moves", "a letter without a sender", "the sea in winter", "a stolen recipe", "a radio")


class Trial(NamedTuple):
    """Settings to try, by the names of their fields in Config; 0 leaves one to the engine."""

    parallel: int
    threads: int
    batch_tokens: int

    def __str__(self) -> str:
        forms = ("{} job{} at a time", "{} thread{}", "{} token{} a step")
        given = ((form, value) for form, value in zip(forms, self, strict=True) if value)
        return ", ".join(form.format(value, "" if value == 1 else "s") for form, value in given) or "automatic"


class Load(NamedTuple):
    """A pile of jobs, by default as many as run at a time, with prompts of so many ``words`` more than a sentence."""

    answer_tokens: int
    words: int = 0
    jobs: int = 0


class OutOfTimeError(NrvnaError):
    """The time that was allowed is over."""


class Bench:
    """An engine with some settings, ready to be given piles. Raises EngineError if it cannot start with them."""

    _serial = count(1)

    def __init__(self, model: Path, config: Config, end: float) -> None:
        self._config = config
        self._end = end
        self._engine = EngineProcess(model, {"path": str(model)}, config)
        self._is_gone = False
        try:
            about = next(message["ready"] for message in self._messages() if "ready" in message)
        except BaseException:
            self.close()
            raise
        self.about = Ready(**about)

    def speed(self, load: Load) -> float:
        """Tokens per second of a pile: generated ones, or the computed ones of long prompts and of vectors."""
        left = {str(next(self._serial)) for _ in range(load.jobs or max(_FEWEST_IN_PILE, self.about.parallel))}
        started, tokens = time.monotonic(), 0
        for job_id in sorted(left):
            self._engine.send({"add": self._request(job_id, load)})
        for message in self._messages():
            if "starts" in message:
                self._engine.send({"go": list(message["starts"])})
            elif "refused" in message:
                raise EngineError(message["reason"])
            elif "done" in message:
                left.discard(message["done"])
                tokens += _counted(message["receipt"], generated=self.about.writes and not load.words)
            if not left:
                break
        return tokens / (time.monotonic() - started)

    def _request(self, job_id: str, load: Load) -> dict[str, Any]:
        # Answered anew in each turn: no prompt begins as another one did.
        number = int(job_id)
        who, what = _WHO[number % len(_WHO)], _WHAT[number % len(_WHAT)]
        prompt = f"{number}: A story about {who} and {what}."
        if load.words:
            prompt += " " + " ".join(f"{_WHO[(number + place) % len(_WHO)]}," for place in range(load.words // 2))
        sampling = replace(self._config.sampling, predict=load.answer_tokens, ignore_eos=True, stop=(), seed=number)
        task = {} if self.about.writes else {"kind": "embed"}
        about = {"id": job_id, "prompt": prompt, "queued": "", "system": None, "resume": None, "task": task}
        return {**about, "sampling": sampling.to_dict()}

    def _messages(self) -> Iterator[dict[str, Any]]:
        """What the engine says, as long as it lives. Raises EngineError when it died, OutOfTimeError."""
        engine = self._engine
        while True:
            left = self._end - time.monotonic()
            if left <= 0:
                raise OutOfTimeError("the time is over")
            select.select([engine.stdout, engine.stderr], [engine.stdin] if engine.has_unsent else [], [], left)
            engine.flush()
            engine.pass_on_log()
            messages = engine.receive()
            if messages is None:
                self._is_gone = True
                raise EngineError(f"its engine ended with {engine.wait()}")
            for message in messages:
                if "fatal" in message:
                    raise EngineError(message["fatal"])
                yield message

    def close(self) -> None:
        if not self._is_gone:
            self._engine.stop(_STOP_PATIENCE_S)


def _counted(receipt: Mapping[str, Any], *, generated: bool) -> int:
    if generated:
        return receipt["generated_tokens"] or 0
    return (receipt["prompt_tokens"] or 0) - (receipt["cached_tokens"] or 0)


class Tuning:
    """Finds settings for a model within so many seconds, and shows how it goes.

    ``rows`` are the speeds measured so far: what was tried, with which settings, and the tokens per second of each
    turn. ``failures`` says which settings no engine could run with, and why.
    """

    def __init__(self, model: Path, config: Config, within_s: float, screen: Screen) -> None:
        self._model = model
        self._config = replace(config, log_level="error", llama_log_level="error", log_json=False)
        self._screen = screen
        self._pile_s = within_s * _PILE_SHARE
        self._end = time.monotonic() + within_s
        self._last = time.monotonic() + within_s * _OVERTIME
        self._benches: dict[Trial, Bench] = {}
        self._took_s: dict[Trial, float] = {}
        self.default = Trial(config.parallel, config.threads, config.batch_tokens)
        self.rows: list[tuple[str, Trial, list[float]]] = []
        self.failures: dict[Trial, str] = {}

    def run(self) -> Trial:
        """The settings to recommend: the default, where nothing is clearly better. Raises EngineError."""
        try:
            return self._run()
        finally:
            for bench in self._benches.values():
                bench.close()

    def _run(self) -> Trial:
        best, about = self.default, self._bench(self.default).about
        self._screen.say(
            f"{about.description} on {about.device or about.backend}: by default {about.parallel} jobs at a time, "
            f"{about.threads} threads"
        )
        try:
            load = self._short_load(about)
            if about.writes:
                best = self._best("jobs at a time", best, _other_parallels(best, about), load)
            best = self._best("threads", best, _other_threads(best, about), load)
            if about.writes:
                best = self._best("tokens a step", best, *self._long_load(best, about))
        except OutOfTimeError:
            self._screen.say(
                "the time is over: what was not compared often enough counts for nothing; --within gives it more"
            )
        return best

    def _short_load(self, about: Ready) -> Load:
        fewest, most = _ANSWER_TOKENS
        speed = self._bench(self.default).speed(Load(fewest))
        jobs = max(_FEWEST_IN_PILE, about.parallel)
        return Load(max(fewest, min(most, int(speed * self._pile_s / jobs))))

    def _long_load(self, best: Trial, about: Ready) -> tuple[list[Trial], Load]:
        fewest, most = _LONG_WORDS
        speed = self._bench(best).speed(Load(1, fewest, _WARM_UP_JOBS))
        most = max(fewest, min(most, int((about.context - fewest) / _TOKENS_A_WORD / 2)))
        words = max(fewest, min(most, int(speed * self._pile_s / _LONG_PROMPTS / _TOKENS_A_WORD)))
        tokens = int(words * _TOKENS_A_WORD * _LONG_PROMPTS)
        return [best._replace(batch_tokens=size) for size in _BATCHES if size < tokens], Load(1, words, _LONG_PROMPTS)

    def _best(self, what: str, best: Trial, others: Iterable[Trial], load: Load) -> Trial:
        """The one of several settings that is clearly faster than the best so far, or that."""
        others = list(others)
        if others:
            self._screen.say(f"trying {what}: {best}; {'; '.join(map(str, others))}")
        speeds = self._turns(what, [best, *others], load, _TURNS)
        ratios = {trial: _ratio(speeds, trial, best) for trial in others}
        winner = max(others, key=lambda trial: ratios[trial], default=best)
        if winner == best or ratios[winner] < CLEARLY:
            return best
        again = self._turns(f"{what}, again", [best, winner], load, _TURNS_AGAIN)
        return winner if _ratio(again, winner, best) >= CLEARLY else best

    def _turns(self, what: str, trials: list[Trial], load: Load, turns: int) -> dict[Trial, list[float]]:
        """Tokens per second of each in each turn; of those that fail or are far behind, fewer."""
        speeds: dict[Trial, list[float]] = {trial: [] for trial in trials}
        self.rows += [(what, trial, speeds[trial]) for trial in trials]
        best, alive = trials[0], list(trials)
        for turn in range(turns):
            if len(alive) < 2:
                break
            # There and back: a machine that grows slower, as it gets warm, favours nobody.
            for trial in alive if turn % 2 == 0 else reversed(alive):
                self._check_time(trial)
                self._screen.show(f"{what}: {trial}, turn {turn + 1} of {turns}", self._end - time.monotonic())
                try:
                    with self._timed(trial):
                        speeds[trial].append(self._bench(trial).speed(load))
                except EngineError as error:
                    if trial == best:
                        raise
                    self.failures[trial] = str(error)
                    self._retire(trial)
            enough = _HOPELESS * speeds[best][0]
            for trial in alive[1:]:
                if trial in self.failures or speeds[trial][0] < enough:
                    alive.remove(trial)
                    self._retire(trial)
        return speeds

    def _check_time(self, trial: Trial) -> None:
        """Raises OutOfTimeError where a turn would not end in time."""
        if time.monotonic() + self._took_s.get(trial, self._pile_s) > self._end:
            raise OutOfTimeError("the time is over")

    @contextmanager
    def _timed(self, trial: Trial) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._took_s[trial] = time.monotonic() - started

    def _bench(self, trial: Trial) -> Bench:
        """The engine with these settings, from an earlier turn where memory allows."""
        if trial not in self._benches:
            while self._benches and len(self._benches) >= self._most_benches():
                # The one that was used longest ago.
                self._retire(next(iter(self._benches)))
            self._benches[trial] = Bench(self._model, replace(self._config, **trial._asdict()), self._last)
            # Its first steps read what the later ones find in memory.
            self._benches[trial].speed(Load(1, jobs=_WARM_UP_JOBS))
        self._benches[trial] = self._benches.pop(trial)
        return self._benches[trial]

    def _most_benches(self) -> int:
        # Weights in an order of the engine's own, and about as much again for all else.
        return max(1, int(_MEMORY_SHARE * available_memory() / (2 * self._model.stat().st_size)))

    def _retire(self, trial: Trial) -> None:
        if bench := self._benches.pop(trial, None):
            bench.close()


def _ratio(speeds: Mapping[Trial, list[float]], trial: Trial, best: Trial) -> float:
    """How much faster it was, in the middle of all turns; 0 if it was not in each, or there were too few."""
    ratios = [own / other for own, other in zip(speeds[trial], speeds[best], strict=False)]
    return statistics.median(ratios) if len(ratios) >= _FEWEST_TURNS and min(ratios) > 1 else 0.0


def _other_parallels(best: Trial, about: Ready) -> list[Trial]:
    numbers = {about.parallel // 4, about.parallel // 2, about.parallel * 2} - {about.parallel}
    return [best._replace(parallel=number) for number in sorted(numbers) if 1 <= number <= _MOST_JOBS]


def _other_threads(best: Trial, about: Ready) -> list[Trial]:
    fewer = about.threads - 1 if about.threads > 3 else 0
    numbers = {about.threads // 2, fewer, processors()} - {about.threads}
    return [best._replace(threads=number) for number in sorted(numbers) if number >= 1]


class Screen:
    """Standard error: lines that stay and, on a terminal, one that changes."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()

    def say(self, text: str) -> None:
        print(f"{self._clear}{printable(text)}", file=sys.stderr, flush=True)

    def show(self, text: str, left_s: float) -> None:
        if self._is_terminal:
            print(f"{self._clear}{printable(text)}; {max(0, left_s):.0f} s left", end="", file=sys.stderr, flush=True)

    @property
    def _clear(self) -> str:
        return "\r\x1b[K" if self._is_terminal else ""


def tune(model: Path, config: Config, within_s: int) -> int:
    """``nrvnad --tune``: the settings worth exporting on standard output, all else on standard error.

    Returns the exit code.
    """
    screen = Screen()
    screen.say(f"trying settings for {model.name}: this takes up to {within_s} s; --within SECONDS changes that")
    tuning = Tuning(model, config, within_s, screen)
    try:
        best = tuning.run()
    except (NrvnaError, OSError) as error:
        screen.say(f"nrvnad: {error}")
        return 1
    except KeyboardInterrupt:
        screen.say("nrvnad: stopped before it was done")
        return 130
    for line in table(tuning):
        screen.say(line)
    lines = exports(best, tuning.default)
    screen.say(f"{'clearly' if lines else 'nothing is clearly'} better than what is set now{':' if lines else ''}")
    for line in lines:
        print(line)
    return 0


def table(tuning: Tuning) -> list[str]:
    """What was measured: tokens per second in the middle of the turns, lowest and highest."""
    lines = []
    before = ""
    for what, trial, speeds in tuning.rows:
        if what != before:
            before = what
            lines.append(f"{what:<48}{'tokens/s':>9}{'lowest':>9}{'highest':>9}")
        numbers = [statistics.median(speeds), min(speeds), max(speeds)] if speeds else []
        measured = "".join(f"{number:>9.0f}" for number in numbers)
        lines.append(f"  {trial!s:<46}{measured or '  ' + tuning.failures.get(trial, 'not measured')}")
    return lines


def exports(best: Trial, default: Trial) -> list[str]:
    """The lines for a shell that set what is better otherwise."""
    variables = {setting.field: setting.variable for setting in SETTINGS}
    pairs = zip(Trial._fields, best, default, strict=True)
    return [f"export {variables[field]}={value}" for field, value, before in pairs if value != before]
