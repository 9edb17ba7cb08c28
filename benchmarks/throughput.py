"""How long a pile of jobs takes: nrvna from submitting to the receipts, against llama.cpp's own programs.

Every contender answers the same prompts greedily with answers of the same length. They take turns, round by round,
so that a slow moment of the machine touches all of them; each round has texts of its own. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import report
from benchmarks.contenders import BenchmarkError, Contender, Nrvna, Sample, exit_code
from benchmarks.peers import BatchedBench, Completion, Server, Setup, program
from benchmarks.report import Results
from benchmarks.workloads import DEFAULT_WORKLOADS, WORKLOADS, Tokenizer, Workload, make
from nrvna.config import llama_dir, wanted_backend
from nrvna.engine.machine import physical_cores
from nrvna.llama.location import find_build

PEERS = ("llama-server", "batched-bench", "completion")


@dataclass(frozen=True)
class Options:
    """The command line, parsed."""

    model: Path
    peers: tuple[str, ...]
    workloads: tuple[str, ...]
    rounds: int
    jobs: int | None
    slots: tuple[int, ...]
    unified: bool
    with_nrvna: bool
    nrvna_options: tuple[str, ...]
    server_options: tuple[str, ...]
    json: Path | None
    plot: Path | None


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(_positive, text.split(",")))


def _names(allowed: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(filter(None, text.split(",")))
        if unknown := set(names) - set(allowed):
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: there are {', '.join(allowed)}")
        return names

    return parse


def _words(text: str) -> tuple[str, ...]:
    return tuple(shlex.split(text))


def parse(argv: Sequence[str] | None) -> Options:
    """The options that were given. Ends the process where they cannot be understood."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, help="a .gguf file")
    add("--peers", type=_names(PEERS), default=PEERS, help=f"of {','.join(PEERS)} (default all; '' for none)")
    add(
        "--workload",
        type=_names([*WORKLOADS]),
        default=DEFAULT_WORKLOADS,
        help=f"of {','.join(WORKLOADS)} (default {','.join(DEFAULT_WORKLOADS)})",
    )
    add("--rounds", type=_positive, default=3)
    add("--jobs", type=_positive, help="jobs of each workload, other than its own number")
    add("--slots", type=_numbers, default=(1, 2, 4, 8, 16), help="llama-server's -np (default 1,2,4,8,16)")
    add("--unified", action="store_true", help="llama-server also with --kv-unified")
    add("--without-nrvna", action="store_true", help="the peers alone")
    add(
        "--nrvna-options", type=_words, default=(), help='for nrvnad: "--parallel 16", or =--option for a single word'
    )
    add("--server-options", type=_words, default=(), help="more options for llama-server, likewise")
    add("--reproducible", action="store_true", help="gives nrvnad --reproducible 1")
    add("--json", type=Path, metavar="FILE", help="where to write all samples")
    add("--plot", type=Path, metavar="FILE.png", help="where to draw the medians; needs matplotlib")
    given = parser.parse_args(argv)
    return Options(
        model=given.model,
        peers=given.peers,
        workloads=given.workload,
        rounds=given.rounds,
        jobs=given.jobs,
        slots=given.slots,
        unified=given.unified,
        with_nrvna=not given.without_nrvna,
        nrvna_options=(*given.nrvna_options, *(("--reproducible", "1") if given.reproducible else ())),
        server_options=given.server_options,
        json=given.json,
        plot=given.plot,
    )


def peers(options: Options, setup: Setup) -> list[Contender]:
    """Raises BenchmarkError if their programs are not built."""
    made: list[Contender] = []
    if "llama-server" in options.peers:
        program("llama-server")
        for is_unified in (False, True) if options.unified else (False,):
            made += [Server(setup, slots, is_unified, options.server_options) for slots in options.slots]
    if "batched-bench" in options.peers:
        program("llama-batched-bench")
        made.append(BatchedBench(setup, options.slots))
    if "completion" in options.peers:
        program("llama-completion")
        made.append(Completion(setup))
    return made


@contextmanager
def daemon(options: Options) -> Iterator[Nrvna | None]:
    """nrvna with a fresh workspace, if it takes part."""
    with ExitStack() as stack:
        if options.with_nrvna:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nrvna-throughput-")))
            yield stack.enter_context(Nrvna.started(options.model, options.nrvna_options, folder))
        else:
            yield None


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def turn(contender: Contender, workload: Workload, number: int) -> Sample | None:
    """One contender's turn at one workload, told on standard error."""
    sample = contender.measure(workload)
    if sample and sample.generated_tokens != workload.generated_tokens:
        raise BenchmarkError(
            f"{contender.name} generated {sample.generated_tokens} tokens of {workload.generated_tokens}"
        )
    took = f"{sample.seconds:.2f} s" if sample else "cannot express it"
    say(f"{workload.name}, round {number}, {contender.name}: {took}")
    return sample


def measure(name: str, options: Options, others: Sequence[Contender], tokenizer: Tokenizer) -> Results:
    """All rounds of one workload. Round 1 says how many jobs and tokens it has; these are the same in every round."""
    results = Results(make(name, tokenizer, 1, options.jobs))
    if results.workload.for_nrvna_alone:
        others = ()
    if not others and not options.with_nrvna:
        raise BenchmarkError(f"nobody is left to be measured at {name}")
    with daemon(options) as nrvna:
        for number in range(1, options.rounds + 1):
            workload = make(name, tokenizer, number, options.jobs)
            if nrvna and workload.reference and (sample := turn(nrvna, workload.reference, number)):
                results.reference.append(sample)
            for contender in (*([nrvna] if nrvna else []), *others):
                results.samples.setdefault(contender.name, []).append(turn(contender, workload, number))
    return results


def run(options: Options) -> None:
    """Measure and print. Raises BenchmarkError or NrvnaError where that cannot be done."""
    if options.plot:
        report.pyplot()
    facts = report.about(
        options.model,
        find_build(llama_dir(), wanted_backend()).commit,
        shlex.join(["python", "-m", "benchmarks.throughput", *sys.argv[1:]]),
    )
    tokenizer = Tokenizer(options.model)
    with tempfile.TemporaryDirectory(prefix="nrvna-peers-") as folder:
        others = peers(options, Setup(options.model, tokenizer, physical_cores(), Path(folder)))
        all_results: list[Results] = []
        if options.json:
            report.write_json(options.json, facts, all_results)
        print(report.heading(facts), flush=True)
        for name in options.workloads:
            all_results.append(measure(name, options, others, tokenizer))
            print(report.table(all_results[-1]), flush=True)
            # After each workload: what is measured is kept if a later one fails.
            if options.json:
                report.write_json(options.json, facts, all_results)
    if options.plot:
        report.plot(options.plot, all_results)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code("throughput", lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
