"""A daemon whose model lies on devices beside the processor: real ones to llama.cpp, for which no GPU is needed."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from devices import Devices, made_up
from processes import DaemonProcess, command, until

from nrvna.config import Config
from nrvna.engine.fitting import Fit
from nrvna.engine.offload import placement
from nrvna.job import JobState
from nrvna.workspace import Workspace

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the devices' memory is told by Linux's linker"),
]
Start = Callable[..., DaemonProcess]

SMALL = ("--ctx", "512", "--parallel", "4", "--temp", "0", "--predict", "16")
QUESTION, ANSWER = "Write the word banana.", "banana"
LAYERS = 31
# Beside the weights, of which it is not enough for all: see nrvna/engine/offload.py on what stays free.
LITTLE = 520_000_000


@pytest.fixture(scope="module")
def made(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Devices:
    assert model_file
    return Devices(tmp_path_factory.mktemp("devices"))


@pytest.fixture
def devices(made: Devices) -> Iterator[Devices]:
    yield made
    made.close()


@pytest.fixture
def use(devices: Devices, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets daemons that are started from here on have these devices for GPUs."""

    def choose(*names: str) -> None:
        for variable, value in devices.environment(*names).items():
            monkeypatch.setenv(variable, value)

    return choose


def ask(workspace: Workspace, prompt: str = QUESTION) -> str:
    done = command("wrk", "-w", workspace.path, prompt)
    assert done.returncode == 0, done.stderr
    return done.stdout


def offloaded(log: str) -> int:
    found = re.search(rf"offloaded:? +(\d+) of {LAYERS} layers", log)
    return int(found[1]) if found else 0


def test_a_model_that_fits_lies_on_the_device_whole_and_answers(
    devices: Devices, use: Callable[..., None], start_daemon: Start, workspace: Workspace
) -> None:
    name = devices.add()
    use(name)
    daemon = start_daemon(workspace.path, *SMALL)
    assert ANSWER in ask(workspace)
    assert f"runs on    {name}" in daemon.log
    assert offloaded(daemon.log) == LAYERS
    devices.kill(name)
    daemon.process.terminate()


@pytest.mark.parametrize("memory", [LITTLE, 100_000_000])
def test_of_a_model_that_does_not_fit_the_processor_computes_the_rest(
    memory: int,
    devices: Devices,
    use: Callable[..., None],
    start_daemon: Start,
    workspace: Workspace,
    model_file: Path,
) -> None:
    use(devices.add(memory))
    checked = command("daemon", "--check", *SMALL, model_file)
    daemon = start_daemon(workspace.path, *SMALL)
    assert ANSWER in ask(workspace)
    count = offloaded(daemon.log)
    assert 0 < count < LAYERS if memory == LITTLE else count == 0
    said = f"{count} of {LAYERS} layers fit on the GPU, where {memory / 1e9:.1f} GB are free"
    assert said in daemon.log and said in checked.stdout
    assert checked.returncode == 0 and "verdict       will work" in checked.stdout


def test_a_device_without_room_is_not_touched_and_keeps_nothing_from_the_others(
    devices: Devices, use: Callable[..., None], start_daemon: Start, workspace: Workspace
) -> None:
    full, free, another = devices.add(100_000_000), devices.add(), devices.add(100_000_000)
    use(full, free, another)
    daemon = start_daemon(workspace.path, *SMALL, "--gpus", "0+1+2", "--llama-log-level", "info")
    assert ANSWER in ask(workspace)
    assert offloaded(daemon.log) == LAYERS
    assert set(re.findall(r"\[([\d.:]+)\] \w+ buffer size", daemon.log)) == {free}


def test_a_model_is_split_by_layer_over_devices_as_foreseen(
    devices: Devices, use: Callable[..., None], start_daemon: Start, workspace: Workspace, model_file: Path
) -> None:
    memory = (4_000_000_000, 2_000_000_000)
    names = [devices.add(size) for size in memory]
    use(*names)
    daemon = start_daemon(workspace.path, *SMALL, "--gpus", "0+1", "--llama-log-level", "info")
    assert ANSWER in ask(workspace)
    # The last context that was opened is the one that serves.
    held = [float(re.findall(rf"\[{name}\] KV buffer size = +([\d.]+) MiB", daemon.log)[-1]) for name in names]
    fit = Fit(model_file, Config(ctx=512, parallel=4), made_up(*memory), most=99, micro_batch=512)
    assert fit.split
    foreseen = placement(LAYERS - 1, fit.layers, fit.split)[:-1]
    assert held[0] / held[1] == pytest.approx(foreseen.count(0) / foreseen.count(1), rel=0.01)


@pytest.mark.parametrize("options", [("--kv-type", "q8_0"), ("--flash-attention", "off"), ("--gpu-layers", "12")])
def test_it_answers_with_other_settings_too(
    options: tuple[str, str],
    devices: Devices,
    use: Callable[..., None],
    start_daemon: Start,
    workspace: Workspace,
) -> None:
    use(devices.add())
    daemon = start_daemon(workspace.path, *SMALL, *options)
    assert ANSWER in ask(workspace)
    assert offloaded(daemon.log) == (12 if options[0] == "--gpu-layers" else LAYERS)


def test_where_a_device_refuses_memory_that_it_had_fewer_jobs_run_at_a_time(
    devices: Devices, use: Callable[..., None], start_daemon: Start, workspace: Workspace
) -> None:
    name = devices.add()
    devices.limit_growth(name, 200_000_000)
    use(name)
    daemon = start_daemon(workspace.path, *SMALL[4:], "--ctx", "1024", "--parallel", "64")
    assert ANSWER in ask(workspace)
    assert "not enough memory for 64 jobs at a time, 1024 tokens each, 31 layers on the GPU: trying 32" in daemon.log
    assert "(memory allows no more)" in daemon.log
    assert offloaded(daemon.log) == LAYERS


def test_an_engine_on_each_device_shares_the_queue_and_a_device_that_is_lost_costs_no_job(
    devices: Devices, use: Callable[..., None], start_daemon: Start, workspace: Workspace
) -> None:
    names = [devices.add(), devices.add()]
    use(*names)
    daemon = start_daemon(workspace.path, *SMALL, "--ignore-eos", "1", "--gpus", "0,1")
    until(lambda: daemon.log.count("] ready:") == 2, "both engines")
    prompts = "\n".join(f"Describe the number {number}." for number in range(24))
    ids = command("wrk", workspace.path, "--lines", "-", stdin=prompts.encode()).stdout.split()
    until(lambda: {"[gpu 0]", "[gpu 1]"} <= set(re.findall(r"(\[gpu \d\]) \S+ done:", daemon.log)), "answers of both")
    devices.kill(names[0])
    daemon.wait_log("[gpu 0] the engine ended with signal SIGABRT")
    daemon.wait_log("while it loaded the model; trying again until it works")
    devices.start(names[0])
    until(lambda: daemon.log.count("[gpu 0] ready:") == 2, "the engine on the device that is back")
    assert command("flw", "-w", workspace.path).returncode == 0
    jobs = [workspace.find(job_id) for job_id in ids]
    assert {job.state for job in jobs} == {JobState.DONE}
    assert len(ids) == 24
    # One start where nothing went wrong, two for those that were on the lost device.
    assert {receipt.attempts for job in jobs if (receipt := workspace.receipt(job))} == {1, 2}


def test_what_reproducible_mode_can_promise_on_a_device_is_found_out_and_kept(
    devices: Devices, use: Callable[..., None], start_daemon: Start, workspace: Workspace
) -> None:
    use(devices.add())
    daemon = start_daemon(workspace.path, *SMALL, "--reproducible", "1")
    # Its products are llama.cpp's own, whose last bits depend on the other rows.
    assert "reproducible one job at a time only: neighbours change what this model computes" in daemon.log
    alone = ask(workspace)
    prompts = "\n".join([QUESTION, "Name a river.", QUESTION, "Count to nine."])
    ids = command("wrk", workspace.path, "--lines", "-", stdin=prompts.encode()).stdout.split()
    assert command("flw", "-w", workspace.path).returncode == 0
    answers = [command("flw", workspace.path, ids[index]).stdout for index in (0, 2)]
    assert answers == [alone, alone]


def test_what_jobs_share_is_computed_once_there_too(
    devices: Devices, use: Callable[..., None], start_daemon: Start, workspace: Workspace
) -> None:
    use(devices.add())
    context = "You are asked about a village with a mill, a bridge and nine houses. " * 10
    Path(workspace.path, ".nrvna", "context.txt").write_text(context)
    prompts = "\n".join(f"Write the number {number}." for number in range(8))
    ids = command("wrk", workspace.path, "--lines", "-", stdin=prompts.encode()).stdout.split()
    start_daemon(workspace.path, *SMALL)
    assert command("flw", "-w", workspace.path).returncode == 0
    receipts = [receipt for job_id in ids if (receipt := workspace.receipt(workspace.find(job_id)))]
    cached = sorted(receipt.cached_tokens or 0 for receipt in receipts)
    assert len(cached) == 8 and cached[0] == 0 and cached[1] > 100


def test_vectors_are_computed_there_as_well(
    devices: Devices, use: Callable[..., None], start_daemon: Start, workspace: Workspace, embedder_file: Path
) -> None:
    use(devices.add(100_000_000))
    daemon = start_daemon(workspace.path, model=embedder_file)
    vector = command("wrk", "-w", workspace.path, "--embed", "A text")
    assert vector.returncode == 0 and vector.stdout.startswith("[")
    assert "offloaded  7 of 7 layers" in daemon.log
    assert "WARNING" not in daemon.log


def test_vectors_are_computed_by_the_processor_where_the_device_refuses_the_memory(
    devices: Devices, use: Callable[..., None], start_daemon: Start, workspace: Workspace, embedder_file: Path
) -> None:
    name = devices.add()
    devices.limit_growth(name, 10_000_000)
    use(name)
    daemon = start_daemon(workspace.path, model=embedder_file)
    assert command("wrk", "-w", workspace.path, "--embed", "A text").returncode == 0
    assert "not enough memory on the GPU: the CPU computes" in daemon.log
