"""LoRA adapters on the real model: random factors, strong enough to change what it says."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_writer import write_gguf
from llama_server import ask, serving
from make_models import VOCABULARY, WIDTH, adapter_factors, adapter_head, make_adapter, make_decoder
from numpy.typing import NDArray

from nrvna.errors import AdapterFormatError, AdapterNotFoundError, ContextError
from nrvna.llama import Adapter, Batch, Context, Greedy, Model, Sampler

PROMPT = "The capital of France is"
Rounds = Callable[..., int]


@pytest.fixture(scope="module")
def adapter_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapters") / "one.gguf")


@pytest.fixture(scope="module")
def other_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapters") / "other.gguf", seed=4)


def logits(model: Model, context: Context) -> NDArray[np.float32]:
    context.clear()
    batch = Batch(64)
    last = batch.add(model.tokenize(PROMPT), position=0)
    context.decode(batch)
    return context.logits(last).copy()


def greedy(model: Model, context: Context, count: int) -> str:
    tokens = model.tokenize(PROMPT)
    with Sampler(model, [Greedy()]) as sampler:
        batch = Batch(64)
        last = batch.add(tokens, position=0)
        answer: list[int] = []
        while len(answer) < count:
            context.decode(batch)
            answer.append(sampler.sample(context, last))
            batch.clear()
            last = batch.add(answer[-1:], position=len(tokens) + len(answer) - 1)
    return model.detokenize(answer)


def test_an_adapter_changes_what_the_model_says_until_it_is_taken_off(model: Model, adapter_file: Path) -> None:
    with Context(model, n_ctx=256) as context, Adapter(model, adapter_file) as adapter:
        plain = logits(model, context)
        context.use_adapters([(adapter, 1.0)])
        changed = logits(model, context)
        context.use_adapters([])
        assert logits(model, context).tobytes() == plain.tobytes()
        assert np.abs(changed - plain).max() > 0.5


def test_a_scale_of_0_is_no_adapter(model: Model, adapter_file: Path) -> None:
    with Context(model, n_ctx=256) as context, Adapter(model, adapter_file) as adapter:
        plain = logits(model, context)
        context.use_adapters([(adapter, 0.0)])
        assert logits(model, context).tobytes() == plain.tobytes()


def test_a_scale_is_how_much_of_an_adapter_acts(model: Model, adapter_file: Path) -> None:
    with Context(model, n_ctx=256) as context, Adapter(model, adapter_file) as adapter:
        plain = logits(model, context)
        distance = []
        for scale in (0.1, 0.5, 1.0):
            context.use_adapters([(adapter, scale)])
            distance.append(float(np.abs(logits(model, context) - plain).mean()))
    assert 0 < distance[0] < distance[1] < distance[2]


def test_two_adapters_act_together(model: Model, adapter_file: Path, other_file: Path) -> None:
    with (
        Context(model, n_ctx=256) as context,
        Adapter(model, adapter_file) as one,
        Adapter(model, other_file) as other,
    ):
        found = []
        for chosen in ([(one, 1.0)], [(other, 1.0)], [(one, 1.0), (other, 1.0)], [(other, 1.0), (one, 1.0)]):
            context.use_adapters(chosen)
            found.append(logits(model, context))
    assert not any(np.allclose(found[2], alone, atol=0.1) for alone in found[:2])
    np.testing.assert_allclose(found[2], found[3], atol=0.1)


def test_contexts_of_one_model_have_adapters_of_their_own(model: Model, adapter_file: Path) -> None:
    with (
        Context(model, n_ctx=256) as plain,
        Context(model, n_ctx=256) as changed,
        Adapter(model, adapter_file) as adapter,
    ):
        before = logits(model, plain)
        changed.use_adapters([(adapter, 1.0)])
        assert logits(model, changed).tobytes() != before.tobytes()
        assert logits(model, plain).tobytes() == before.tobytes()


def test_an_adapter_that_was_closed_in_use_is_an_error_until_it_is_taken_off(
    model: Model, adapter_file: Path
) -> None:
    with Context(model, n_ctx=256) as context:
        plain = logits(model, context)
        adapter = Adapter(model, adapter_file)
        context.use_adapters([(adapter, 1.0)])
        changed = logits(model, context)
        adapter.close()
        with pytest.raises(ContextError, match=r"the adapter one\.gguf of this context was closed already"):
            logits(model, context)
        with pytest.raises(ContextError, match="this Adapter was closed already"):
            context.use_adapters([(adapter, 1.0)])
        context.use_adapters([])
        assert logits(model, context).tobytes() == plain.tobytes()
        # One that is loaded afterwards may lie where the other lay.
        with Adapter(model, adapter_file) as again:
            context.use_adapters([(again, 1.0)])
            assert logits(model, context).tobytes() == changed.tobytes()


def test_closing_an_adapter_leaves_alone_those_that_no_longer_use_it(
    model: Model, adapter_file: Path, other_file: Path
) -> None:
    with Context(model, n_ctx=256) as context, Adapter(model, other_file) as other:
        adapter = Adapter(model, adapter_file)
        context.use_adapters([(adapter, 1.0)])
        context.use_adapters([(other, 1.0)])
        changed = logits(model, context)
        adapter.close()
        assert logits(model, context).tobytes() == changed.tobytes()


def test_a_context_keeps_its_adapter_and_the_model(model_file: Path, adapter_file: Path) -> None:
    own = Model(model_file)
    context = Context(own, n_ctx=256)
    context.use_adapters([(Adapter(own, adapter_file), 1.0)])
    del own
    gc.collect()
    assert logits(context.model, context).any()


def test_closing_the_model_closes_its_adapters_first(model_file: Path, adapter_file: Path) -> None:
    own = Model(model_file)
    adapter, context = Adapter(own, adapter_file), Context(own, n_ctx=256)
    context.use_adapters([(adapter, 1.0)])
    own.close()
    assert adapter.is_closed and context.is_closed


def test_an_object_that_goes_last_frees_what_it_points_into_after_itself(
    model_file: Path, adapter_file: Path
) -> None:
    # llama.cpp frees the adapters of a model with it: freed in the other order, this would free them twice.
    script = f"""
from nrvna.config import llama_dir
from nrvna.llama import Adapter, Context, Model, load_library
load_library(llama_dir())
for _ in range(3):
    adapter = Adapter(Model({str(model_file)!r}), {str(adapter_file)!r})
    del adapter
    context = Context(Model({str(model_file)!r}), n_ctx=256)
    del context
print("freed")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "freed\n"), done.stderr


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number_is_refused(model: Model, adapter_file: Path, scale: float) -> None:
    with (
        Context(model, n_ctx=256) as context,
        Adapter(model, adapter_file) as adapter,
        pytest.raises(ValueError, match="is no number"),
    ):
        context.use_adapters([(adapter, scale)])


def test_an_adapter_is_named_once(model: Model, adapter_file: Path) -> None:
    with (
        Context(model, n_ctx=256) as context,
        Adapter(model, adapter_file) as adapter,
        pytest.raises(ValueError, match="named twice"),
    ):
        context.use_adapters([(adapter, 1.0), (adapter, 0.5)])


def test_an_adapter_belongs_to_the_model_that_it_was_loaded_for(
    model: Model, model_file: Path, adapter_file: Path
) -> None:
    with (
        Model(model_file) as own,
        Adapter(own, adapter_file) as adapter,
        Context(model, n_ctx=256) as context,
        pytest.raises(ValueError, match="was loaded for another model"),
    ):
        context.use_adapters([(adapter, 1.0)])


def test_a_missing_adapter_is_an_error_of_its_own(model: Model, tmp_path: Path) -> None:
    with pytest.raises(AdapterNotFoundError, match=r"no adapter file .*nowhere\.gguf: check the path"):
        Adapter(model, tmp_path / "nowhere.gguf")
    with pytest.raises(AdapterNotFoundError, match="is a folder"):
        Adapter(model, tmp_path)


def test_a_model_is_no_adapter(model: Model, model_file: Path) -> None:
    with pytest.raises(AdapterFormatError, match="is no LoRA adapter: make one with"):
        Adapter(model, model_file)


def test_an_adapter_for_another_architecture_is_an_error_of_its_own(
    embedding_model: Model, adapter_file: Path
) -> None:
    with pytest.raises(AdapterFormatError, match=r"was made for 'llama', but all-MiniLM\S+ is a 'bert'"):
        Adapter(embedding_model, adapter_file)


def test_a_model_without_weights_takes_no_adapter(model_file: Path, adapter_file: Path) -> None:
    with (
        Model(model_file, vocab_only=True) as vocabulary,
        pytest.raises(ContextError, match="vocabulary alone: it takes no adapter"),
    ):
        Adapter(vocabulary, adapter_file)


STEM = "blk.0.attn_q.weight"
FACTORS = {name: array for name, array in adapter_factors().items() if name.startswith(STEM)}
A, B = FACTORS[f"{STEM}.lora_a"], FACTORS[f"{STEM}.lora_b"]

HOSTILE: list[tuple[dict[str, Any], dict[str, NDArray[Any]], str]] = [
    ({"general.type": 7}, FACTORS, "is no LoRA adapter"),
    ({"adapter.type": True}, FACTORS, "is no LoRA adapter"),
    ({"general.architecture": 3}, FACTORS, "was made for 3, but"),
    ({"adapter.lora.alpha": "much"}, FACTORS, "its adapter.lora.alpha is 'much', no number"),
    ({"adapter.lora.alpha": float("nan")}, FACTORS, "its adapter.lora.alpha is nan, no number"),
    ({"adapter.alora.invocation_tokens": [1, 2]}, FACTORS, "aLoRA"),
    ({}, {f"{STEM}.lora_a": A}, "has no lora_b"),
    ({}, {f"{STEM}.lora_b": B}, "has no lora_a"),
    ({}, {f"{STEM}.lora_a": A[:3], f"{STEM}.lora_b": B}, "do not meet"),
    ({}, {f"{STEM}.lora_a": A[:, :100], f"{STEM}.lora_b": B}, "incorrect shape"),
    ({}, {f"{STEM}.lora_a": A, f"{STEM}.lora_b": B[:100]}, "incorrect shape"),
    ({}, {f"{STEM}.lora_a": np.stack([A, A]), f"{STEM}.lora_b": np.stack([B, B])}, "have shapes"),
    ({}, {f"{STEM}.lora_a": A.astype(np.int32), f"{STEM}.lora_b": B}, "cannot be multiplied"),
    ({}, {"blk.99.attn_q.weight.lora_a": A, "blk.99.attn_q.weight.lora_b": B}, "does not exist in base model"),
    ({}, {"something": A}, "unexpected suffix"),
    (
        {},
        {"token_embd.weight.lora_a": np.zeros((49152, 3), "f4"), "token_embd.weight.lora_b": B},
        "also what the model writes with",
    ),
]


@pytest.mark.parametrize(("metadata", "tensors", "message"), HOSTILE, ids=[entry[2] for entry in HOSTILE])
def test_an_adapter_that_does_not_fit_is_an_error_in_one_line_and_no_abort(
    model: Model, tmp_path: Path, metadata: dict[str, Any], tensors: dict[str, NDArray[Any]], message: str
) -> None:
    path = tmp_path / "hostile.gguf"
    write_gguf(path, adapter_head() | metadata, tensors)
    with pytest.raises(AdapterFormatError) as caught:
        Adapter(model, path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("tied", [False, True])
def test_an_adapter_may_change_the_token_embeddings_where_the_model_does_not_write_with_them(
    tmp_path: Path, model_file: Path, tied: bool
) -> None:
    assert model_file
    draw = np.random.default_rng(0)
    factors = {
        "token_embd.weight.lora_a": draw.normal(0, 1, (len(VOCABULARY), 4)).astype(np.float32),
        "token_embd.weight.lora_b": draw.normal(0, 1, (WIDTH, 4)).astype(np.float32),
    }
    path = tmp_path / "embeddings.gguf"
    write_gguf(path, adapter_head() | {"general.architecture": "qwen3"}, factors)
    with Model(make_decoder(tmp_path / "tiny.gguf", pooling=None, tied=tied)) as tiny:
        if tied:
            with pytest.raises(AdapterFormatError, match="is also what the model writes with"):
                Adapter(tiny, path)
            return
        with Context(tiny, n_ctx=256) as context, Adapter(tiny, path) as adapter:
            plain = logits(tiny, context)
            context.use_adapters([(adapter, 1.0)])
            assert np.abs(logits(tiny, context) - plain).max() > 0.1


CHILD = """
import sys
from nrvna.config import llama_dir
from nrvna.errors import AdapterError
from nrvna.llama import Adapter, Batch, Context, Model, load_library
load_library(llama_dir())
model = Model(sys.argv[1])
context = Context(model, n_ctx=256)
used = refused = 0
for path in sys.argv[2:]:
    try:
        adapter = Adapter(model, path)
    except AdapterError as error:
        assert len(str(error).splitlines()) == 1
        refused += 1
        continue
    used += 1
    context.use_adapters([(adapter, 1.0)])
    context.clear()
    batch = Batch(8)
    batch.add([5, 6, 7], position=0)
    context.decode(batch)
    context.use_adapters([])
print(used, refused)
"""


def run_child(model_file: Path, files: list[Path]) -> tuple[int, int]:
    """How many of the files could be used and how many were refused, told by a process that lived through them."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(model_file), *map(str, files)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    used, refused = map(int, done.stdout.split())
    return used, refused


def test_no_truncated_adapter_ends_the_process(model_file: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.gguf"
    write_gguf(whole, adapter_head(), FACTORS)
    data = whole.read_bytes()
    sizes = [0, 3, 4, 9, 24, 40, 100, 200, 300, 400, 1000, len(data) // 2, len(data) - 40]
    files = []
    for size in sizes:
        files.append(tmp_path / f"cut-{size}.gguf")
        files[-1].write_bytes(data[:size])
    assert run_child(model_file, [*files, whole]) == (1, len(sizes))


def test_no_damaged_adapter_ends_the_process(model_file: Path, tmp_path: Path, rounds: Rounds) -> None:
    whole = tmp_path / "whole.gguf"
    write_gguf(whole, adapter_head(), FACTORS)
    data = whole.read_bytes()
    head = len(data) - sum(array.nbytes for array in FACTORS.values())
    chance = random.Random(5)
    files = []
    for number in range(rounds(quick=150, ci=400, long=5000)):
        damaged = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 5))):
            damaged[chance.randrange(head)] = chance.choice((0, 1, 2, 8, 9, 127, 255, chance.randrange(256)))
        files.append(tmp_path / f"damaged-{number}.gguf")
        files[-1].write_bytes(damaged)
    used, refused = run_child(model_file, files)
    assert used + refused == len(files) and refused > len(files) / 4


@pytest.mark.slow
@pytest.mark.parametrize("scale", [2.0, 1.0])
def test_a_greedy_answer_with_an_adapter_is_the_one_that_the_server_gives(
    peers: Path, model: Model, model_file: Path, adapter_file: Path, tmp_path: Path, scale: float
) -> None:
    options = ["--parallel", "1", "--ctx-size", "256", "--flash-attn", "off"]
    options += ["--lora-scaled", f"{adapter_file}:{scale}"]
    with serving(peers, model_file, *options, log=tmp_path / "log") as address:
        body = {"prompt": PROMPT, "n_predict": 24, "temperature": 0, "cache_prompt": False, "ignore_eos": False}
        expected = ask(address, "/completion", body)["content"]
    with Context(model, n_ctx=256, flash_attention=False, threads=2) as context:
        plain = greedy(model, context, 24)
        context.clear()
        with Adapter(model, adapter_file) as adapter:
            context.use_adapters([(adapter, scale)])
            assert greedy(model, context, 24) == expected != plain
