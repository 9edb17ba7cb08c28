"""The binding on the real model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from make_models import make_parts
from numpy.typing import NDArray

from nrvna.errors import (
    ContextError,
    DecodeError,
    LibraryError,
    ModelFormatError,
    ModelLoadError,
    ModelNotFoundError,
    ModelTruncatedError,
    NoSlotError,
    TemplateError,
    TokenizeError,
)
from nrvna.llama import Batch, Context, Greedy, Model, Sampler, check_file, location, quantize

TEXTS = ["Hello, world!", "  leading spaces", "naïve café — 東京 🦀", "tabs\tand\n\nnewlines\n", "x" * 5000]


def greedy(model: Model, prompt: list[int], count: int) -> list[int]:
    with Context(model, n_ctx=512, flash_attention=False) as ctx, Sampler(model, [Greedy()]) as sampler:
        batch, tokens = Batch(512), []
        last = batch.add(prompt, position=0)
        for position in range(len(prompt), len(prompt) + count):
            ctx.decode(batch)
            tokens.append(sampler.sample(ctx, last))
            batch.clear()
            last = batch.add(tokens[-1:], position=position)
        return tokens


def test_the_model_says_what_it_is(model: Model) -> None:
    assert model.metadata["general.architecture"] == "llama" == model.architecture
    assert model.quantization == "Q4_1"
    assert model.n_params == 134_515_008
    assert model.n_ctx_train == 8192
    assert model.is_generative
    assert model.chat_template is not None and "<|im_start|>" in model.chat_template


def test_the_kv_cache_is_as_large_as_llama_cpp_makes_it(model_file: Path) -> None:
    script = f"""
import logging
from nrvna.config import llama_dir
from nrvna.llama import Context, Model, load_library
load_library(llama_dir())
logging.basicConfig(level=logging.INFO, format="%(message)s")
model = Model({str(model_file)!r})
Context(model, n_ctx=1024)
print(f"expected {{model.kv_cache_bytes(1024) / 2**20:.2f}} MiB")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    expected = done.stdout.split()[1]
    assert f"KV buffer size = {expected:>8} MiB" in done.stderr


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_turn_back_into_the_text(model: Model, text: str) -> None:
    tokens = model.tokenize(text, add_special=False)
    assert model.detokenize(tokens) == text
    assert b"".join(model.piece(token) for token in tokens).decode() == text


def test_text_becomes_a_control_token_only_when_asked(model: Model) -> None:
    assert len(model.tokenize("<|im_end|>", add_special=False, parse_special=True)) == 1
    assert len(model.tokenize("<|im_end|>", add_special=False)) > 1


def test_a_token_outside_the_vocabulary_is_an_error(model: Model) -> None:
    for token in (-1, model.n_vocab):
        with pytest.raises(TokenizeError, match=f"{token} is no token"):
            model.piece(token)
        with pytest.raises(TokenizeError):
            model.detokenize([token])


def test_the_chat_template_wraps_the_messages(model: Model) -> None:
    text = model.apply_chat_template([("system", "Be brief."), ("user", "Hi")])
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_template_of_no_known_family_is_an_error(model: Model) -> None:
    with pytest.raises(TemplateError, match="does not know the chat template"):
        model.apply_chat_template([("user", "Hi")], template="{{ surprise }}")


def test_loading_reports_progress_up_to_the_end(model_file: Path) -> None:
    seen: list[float] = []
    Model(model_file, progress=seen.append).close()
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_an_exception_in_the_progress_function_stops_the_load(model_file: Path) -> None:
    def stop(fraction: float) -> None:
        raise KeyboardInterrupt(f"at {fraction}")

    with pytest.raises(KeyboardInterrupt):
        Model(model_file, progress=stop)


def test_a_missing_model_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no model file .*nowhere\.gguf"):
        Model(tmp_path / "nowhere.gguf")
    with pytest.raises(FileNotFoundError):
        Model(tmp_path / "nowhere.gguf")


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="is a folder"):
        Model(tmp_path)


def test_a_model_in_parts_is_looked_at_as_a_whole_before_it_is_loaded(tmp_path: Path) -> None:
    parts = make_parts(tmp_path / "model", 7)
    check_file(parts[0])
    with pytest.raises(ModelFormatError, match=r"is not the first part .*: name model-00001-of-00007\.gguf$"):
        check_file(parts[3])
    parts[3].write_bytes(b"")
    with pytest.raises(ModelFormatError, match=r"model-00004-of-00007\.gguf is empty"):
        check_file(parts[0])
    for part in parts[1:]:
        part.unlink()
    names = r"model-00002-of-00007\.gguf, .*, model-00005-of-00007\.gguf and 2 more are missing in that folder"
    with pytest.raises(ModelNotFoundError, match=rf"is one of 7 parts of a model, and {names}"):
        check_file(parts[0])


def test_an_empty_model_is_an_error_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(ModelFormatError, match="is empty: download it again"):
        Model(tmp_path / "empty.gguf")


def test_a_file_that_is_not_gguf_is_an_error_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "page.gguf").write_text("<!DOCTYPE html>")
    with pytest.raises(ModelFormatError, match="is no GGUF model: it begins with b'<!DO'"):
        Model(tmp_path / "page.gguf")


@pytest.mark.parametrize("size", [9, 1000, 2_000_000, 50_000_000])
def test_a_truncated_model_is_an_error_of_its_own(tmp_path: Path, model_file: Path, size: int) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(model_file.read_bytes()[:size])
    with pytest.raises(ModelTruncatedError, match=rf"cut short or damaged at {size} bytes: download it again"):
        Model(cut)


def test_an_architecture_that_llama_cpp_does_not_know_is_an_error_of_its_own(
    tmp_path: Path, model_file: Path
) -> None:
    # Both the value of general.architecture and the prefix of its keys, of the same length.
    other = tmp_path / "other.gguf"
    key = b"general.architecture"
    data = model_file.read_bytes()
    at = data.index(key) + len(key) + 4 + 8
    assert data[at : at + 5] == b"llama"
    other.write_bytes(data[:at] + b"lemma" + data[at + 5 :])
    with pytest.raises(ModelLoadError, match="unknown model architecture: 'lemma'"):
        Model(other)


def test_a_library_that_was_never_built_is_an_error_that_says_how_to(tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match=r"llama.cpp is not built: .*python scripts/build_llama.py"):
        location.find_build(tmp_path)


def test_importing_the_binding_needs_no_library(tmp_path: Path) -> None:
    code = "import nrvna.llama; print(nrvna.llama.Model)"
    env = {"XDG_DATA_HOME": str(tmp_path), "PATH": "/usr/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr


def test_a_sequence_decodes_the_same_alone_and_beside_another(model: Model) -> None:
    prompt = model.tokenize("The capital of France is")
    alone = greedy(model, prompt, 12)
    context = Context(model, n_ctx=1024, n_seq_max=2, flash_attention=False)
    with context, Sampler(model, [Greedy()]) as sampler:
        batch, tokens = Batch(512), []
        neighbour = model.tokenize("A list of colours: red,")
        batch.add(neighbour, position=0, sequence=1)
        last = batch.add(prompt, position=0, sequence=0)
        for step in range(12):
            context.decode(batch)
            tokens.append(sampler.sample(context, last))
            batch.clear()
            batch.add([neighbour[step % len(neighbour)]], position=len(neighbour) + step, sequence=1)
            last = batch.add(tokens[-1:], position=len(prompt) + step, sequence=0)
    assert tokens == alone


def test_a_full_cache_is_an_error_that_leaves_it_usable(model: Model) -> None:
    with Context(model, n_ctx=256) as context:
        batch = Batch(256)
        batch.add([5] * 200, position=0)
        context.decode(batch)
        batch.clear()
        batch.add([5] * 100, position=200)
        with pytest.raises(NoSlotError):
            context.decode(batch)
        batch.clear()
        last = batch.add([5] * 50, position=200)
        context.decode(batch)
        assert context.logits(last).any()


def test_a_batch_larger_than_the_context_takes_is_an_error_and_no_abort(model: Model) -> None:
    with Context(model, n_ctx=256) as context:
        batch = Batch(300)
        batch.add([5] * 300, position=0)
        with pytest.raises(DecodeError, match="a batch of 300 tokens is more than this context's 256"):
            context.decode(batch)


def test_a_batch_that_llama_cpp_finds_invalid_is_an_error(model: Model) -> None:
    with Context(model, n_ctx=256) as context:
        batch = Batch(8)
        batch.add([model.n_vocab + 5], position=0)
        with pytest.raises(DecodeError, match="llama_decode returned -1: the batch is invalid"):
            context.decode(batch)


def test_logits_that_nobody_asked_for_are_an_error(model: Model) -> None:
    with Context(model, n_ctx=256) as context:
        batch = Batch(8)
        batch.add([5, 6, 7], position=0)
        context.decode(batch)
        with pytest.raises(IndexError):
            context.logits(0)


@pytest.mark.parametrize("tokens", [[], [1] * 9])
def test_a_batch_refuses_what_does_not_fit(model: Model, tokens: list[int]) -> None:
    assert model.n_vocab
    with pytest.raises(ValueError, match="do not fit a batch of 8"):
        Batch(8).add(tokens, position=0)


def test_a_forgotten_sequence_makes_room(model: Model) -> None:
    with Context(model, n_ctx=256) as context:
        for _ in range(3):
            batch = Batch(256)
            last = batch.add([5] * 200, position=0)
            context.decode(batch)
            assert context.logits(last).any()
            context.forget(0)


def test_closing_a_model_closes_its_contexts_first(model_file: Path) -> None:
    own = Model(model_file)
    context = Context(own, n_ctx=256)
    own.close()
    own.close()
    with pytest.raises(ContextError, match="this Context was closed already"):
        context.decode(Batch(1))
    with pytest.raises(ContextError, match="this Model was closed already"):
        own.tokenize("x")


def test_a_context_outlives_the_name_of_its_model(model_file: Path) -> None:
    context = Context(Model(model_file), n_ctx=256)
    batch = Batch(8)
    last = batch.add([5], position=0)
    context.decode(batch)
    assert context.logits(last).any()


@pytest.mark.parametrize("unified", [True, False])
def test_a_copied_head_of_a_sequence_is_followed_as_if_it_had_been_computed(
    tiny_models: dict[str, Path], unified: bool
) -> None:
    head, tail = list(range(60, 90)), list(range(20, 25))

    def behind(context: Context, head: list[int]) -> NDArray[np.float32]:
        """The logits after the tail, behind a copy of a head that went on otherwise."""
        batch = Batch(64)
        batch.add([*head, 7, 8, 9], position=0, sequence=0)
        context.decode(batch)
        context.copy(0, 1, len(head))
        return logits(context, tail, len(head))

    def logits(context: Context, tokens: list[int], position: int) -> NDArray[np.float32]:
        batch = Batch(64)
        last = batch.add(tokens, position=position, sequence=1)
        context.decode(batch)
        found = context.logits(last).copy()
        context.forget(0)
        context.forget(1)
        return found

    # Weights in F32, as in other formats what is computed is rounded so that the last bits of a sum become the first.
    with (
        Model(tiny_models["decoder"]) as tiny,
        Context(tiny, n_ctx=512, n_seq_max=2, kv_unified=unified, flash_attention=False) as context,
    ):
        computed = logits(context, head + tail, 0)
        assert np.allclose(behind(context, head), computed, atol=1e-4)
        assert not np.allclose(behind(context, [*head[:-1], 91]), computed, atol=1e-2)


def test_what_is_kept_of_a_forgotten_sequence_can_be_continued(model: Model) -> None:
    with Context(model, n_ctx=256) as context:
        batch = Batch(64)
        batch.add(list(range(100, 130)), position=0)
        context.decode(batch)
        context.forget(0, keep=20)
        batch.clear()
        last = batch.add([5], position=20)
        context.decode(batch)
        assert context.logits(last).any()


def test_a_model_can_be_written_in_another_format(model_file: Path, tmp_path: Path) -> None:
    target = tmp_path / "q8.gguf"
    quantize(model_file, target, "Q8_0", threads=2)
    with Model(target, vocab_only=True) as written:
        assert written.quantization == "Q8_0"


def test_a_format_that_is_not_offered_is_refused(model_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'Q9' is none of Q4_0"):
        quantize(model_file, tmp_path / "q9.gguf", "Q9")
