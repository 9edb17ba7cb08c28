"""The page that a daemon begins with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nrvna.config import Config, Sampling
from nrvna.engine.protocol import Ready, Share
from nrvna.startpage import start_page
from nrvna.workspace import Peer

MODEL = {"path": "/models/Tiny one.gguf", "size": 4_370_000_000, "mtime_ns": 0}
ABOUT = Ready("Tiny, Q4_0", "cuda", 16, 4096, 8, "NVIDIA H100")


def page(about: Ready = ABOUT, config: Config | None = None, **more: Any) -> dict[str, str]:
    facts: dict[str, Any] = {"queued": 0, "peers": [], "has_terminal": True, **more}
    lines = start_page(about, MODEL, config or Config(), "/home/me/work", **facts)
    return {line[:9].strip(): line[11:] for line in lines}


def test_it_says_what_runs_where_with_which_settings_and_how_to_use_it() -> None:
    assert page() == {
        "model": "Tiny, Q4_0: /models/Tiny one.gguf (4.4 GB)",
        "runs on": "NVIDIA H100 (cuda), 8 threads; 16 jobs at a time, 4096 tokens each",
        "workspace": "/home/me/work: no job waits",
        "settings": "the defaults",
        "use it": "`wrk /home/me/work PROMPT` queues, `flw /home/me/work` shows, Ctrl-C stops",
    }


# Made by hand: no machine with GPUs wrote these figures.
OFFLOADED = replace(
    ABOUT,
    layers=29,
    offloaded=29,
    shares=(
        Share("CUDA0", 3_800 * 2**20, 70_100 * 2**20, 81_559 * 2**20),
        Share("CUDA1", 0, 81_000 * 2**20, 81_559 * 2**20),
        Share("CPU", 125 * 2**20),
    ),
)


def test_it_says_how_much_of_the_model_is_on_which_gpu_and_what_is_left() -> None:
    found = page(OFFLOADED)
    assert list(found)[1:3] == ["runs on", "offloaded"]
    assert found["offloaded"] == (
        "29 of 29 layers; CUDA0 3800 MiB of weights, 70100 of 81559 MiB free; CPU 125 MiB of weights"
    )


def test_where_no_layer_is_on_a_gpu_it_says_nothing_of_them() -> None:
    assert "offloaded" not in page(replace(ABOUT, layers=29))


@pytest.mark.parametrize(("queued", "words"), [(0, "no job waits"), (1, "1 job waits"), (2, "2 jobs wait")])
def test_it_counts_the_jobs_that_wait(queued: int, words: str) -> None:
    assert page(queued=queued)["workspace"].endswith(words)


def test_it_names_settings_as_a_shell_takes_them_and_leaves_out_the_log_file() -> None:
    config = Config(sampling=Sampling(temp=0.2, stop=("a b",)), log_file="/var/log/n", reproducible=1)
    found = page(config=config, has_terminal=False)
    assert found["settings"] == (
        "NRVNA_TEMP=0.2 NRVNA_STOP='[\"a b\"]' NRVNA_REPRODUCIBLE=1 (the others are the defaults)"
    )
    assert found["use it"].endswith("`nrvnad --stop /home/me/work` stops; log: /var/log/n")


def test_it_says_how_to_ask_for_a_named_model_and_for_vectors() -> None:
    about = Ready("Mini, F16, for vectors", "cpu", 32, 512, 2, writes=False)
    found = page(about, Config(named=True))
    assert found["use it"].startswith("`wrk --model 'Tiny one.gguf' --embed /home/me/work PROMPT` queues")
    assert found["runs on"].startswith("unknown (cpu)")


def test_it_tells_of_other_daemons_of_the_workspace() -> None:
    peers = [Peer(pid, {}, True, False, (), "", "", {}, "") for pid in (7, 8)]
    assert page(peers=peers)["workspace"].endswith("; served by process 7 and 8 as well")


def test_a_models_own_name_does_not_steer_the_terminal() -> None:
    lines = start_page(
        Ready("\x1b[2Jevil\nname", "cpu", 1, 1, 1), MODEL, Config(), "/w", queued=0, peers=[], has_terminal=True
    )
    assert len(lines) == 5
    assert all(line.isprintable() for line in lines)
