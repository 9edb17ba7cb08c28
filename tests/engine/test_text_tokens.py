"""What a vocabulary has as whole tokens and is text all the same, as runs of newlines and tags of HTML, becomes these
tokens, exactly as llama.cpp has it; what marks turns and tools stays text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
from conversations import asking, tokens_of
from make_models import GEMMA_TEXT, like_gemma, make_decoder
from processes import DaemonProcess, until
from templated import Templated
from vocabularies import SMOLLM2, VOCABULARIES, Promise, vocabulary_file

from nrvna.engine.prompt import Conversation, PromptEncoder
from nrvna.engine.verbatim import is_text
from nrvna.job import JobState
from nrvna.llama import Model
from nrvna.workspace import Workspace

GEMMA = "like Gemma's"
# Those of models that write.
NAMES = [
    GEMMA,
    *(name for name, known in VOCABULARIES.items() if known.promise not in (Promise.WORDS, Promise.NORMALISED)),
]
TRIMS = (
    "{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content | trim }}{{ eos_token }}\n{% endfor %}"
    "<start_of_turn>assistant\n"
)
TEXTS = (
    *("a\n\nb", "Say hello.\n\n", "\n\n\na\n\n\n\nb\n", "a\t\tb\t\t\tc", "  def f():\n\n\n\t\treturn    1\n"),
    *("<table><tr><td>1</td>\n\n\t</tr></table>", "<b>a</b> <s>b</s>", "a\r\n\r\nb", "\n", " ", "\t\t", "...\n---"),
)
LIMIT = 1 << 20


@pytest.fixture(scope="module")
def gemma_file(source_tree: Path, model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights and such a vocabulary."""
    assert model_file
    target = tmp_path_factory.mktemp("models") / "gemma.gguf"
    return make_decoder(target, pooling=None, tokenizer=like_gemma(vocabulary_file(source_tree, "llama-spm")))


@pytest.fixture(scope="module", params=NAMES)
def model(
    request: pytest.FixtureRequest, model_file: Path, gemma_file: Path, vocabulary: Callable[[str], Templated]
) -> Iterator[Templated]:
    files = {GEMMA: gemma_file, SMOLLM2: model_file}
    if request.param not in files:
        yield vocabulary(request.param)
        return
    with Templated(files[request.param], vocab_only=True) as loaded:
        yield loaded


@pytest.fixture(params=["trims", "own"])
def prompts(request: pytest.FixtureRequest, model: Templated) -> Iterator[PromptEncoder]:
    model.template = TRIMS if request.param == "trims" else model.own_template
    made = PromptEncoder(model)
    yield made
    made.close()


def user_defined(model: Model) -> dict[int, str]:
    return {
        token: text
        for token, text in model.special.items()
        if not model.is_control(token) and not model.is_unknown(token)
    }


def chunks(names: list[str]) -> Iterator[str]:
    """All of the names within few texts."""
    rest = iter(sorted(set(names)))
    while some := list(islice(rest, 100)):
        yield "a" + "b ".join(some) + "c"


def begun(model: Model, tokens: list[int]) -> list[int]:
    bos = model.bos
    return [bos, *tokens] if model.adds_bos and bos is not None and tokens[:1] != [bos] else tokens


def names_controls(model: Model, text: str) -> bool:
    return any(name in text for token, name in model.special.items() if model.is_control(token))


def raw(prompts: PromptEncoder, text: str) -> list[int]:
    return prompts.encode(Conversation((("user", text),), raw=True), limit=LIMIT).tokens


def test_a_text_without_control_tokens_becomes_the_tokens_that_llama_cpp_makes_of_it(
    model: Templated, prompts: PromptEncoder
) -> None:
    names = [name for name in user_defined(model).values() if is_text(name)]
    texts = [text for text in (*TEXTS, *chunks(names)) if not names_controls(model, text)]
    assert len(texts) >= len(TEXTS) - 1
    for text in texts:
        assert raw(prompts, text) == begun(model, model.tokenize(text, add_special=False))
        rendered = prompts._renderer.render(asking(text))
        whole = model.tokenize(rendered, add_special=False, parse_special=prompts.source != "none")
        assert tokens_of(prompts, text) == begun(model, whole)


def test_what_marks_turns_and_tools_stays_text(model: Templated, prompts: PromptEncoder) -> None:
    signs = {token: name for token, name in user_defined(model).items() if not is_text(name)}
    plain = [token for token in tokens_of(prompts, "a") if token in signs]
    for text in chunks(list(signs.values())):
        assert not signs.keys() & set(raw(prompts, text))
        assert [token for token in tokens_of(prompts, text) if token in signs] == plain


def test_runs_of_white_space_and_tags_are_tokens_of_their_own(gemma_file: Path) -> None:
    with Templated(gemma_file, vocab_only=True) as model:
        model.template = TRIMS
        prompts = PromptEncoder(model)
        tokens = {name: token for token, name in user_defined(model).items()}
        assert set(GEMMA_TEXT) == tokens.keys()
        for text, token in tokens.items():
            assert raw(prompts, f"a{text}b")[2] == token
            assert token in tokens_of(prompts, f"a{text}b")
        prompts.close()


def test_a_control_token_that_looks_like_a_word_is_not_made_of_a_text(source_tree: Path, tmp_path: Path) -> None:
    # As in ChatGLM's vocabulary.
    tokenizer = like_gemma(vocabulary_file(source_tree, "llama-spm"), "sop")
    with Templated(make_decoder(tmp_path / "sop.gguf", pooling=None, tokenizer=tokenizer), vocab_only=True) as model:
        [sop] = [token for token, name in model.special.items() if name == "sop"]
        model.template = "sop{{ messages[0].content }}"
        prompts = PromptEncoder(model)
        assert tokens_of(prompts, "sophisticated philosopher").count(sop) == 1
        assert sop not in raw(prompts, "sophisticated philosopher")
        prompts.close()


@pytest.mark.parametrize("template", ["gemma", TRIMS], ids=["a family that trims", "a file that trims"])
def test_a_prompt_that_ends_in_a_blank_line_is_answered(
    start_daemon: Callable[..., DaemonProcess], workspace: Workspace, gemma_file: Path, tmp_path: Path, template: str
) -> None:
    if template == TRIMS:
        (tmp_path / "trims.jinja").write_text(TRIMS)
        template = str(tmp_path / "trims.jinja")
    start_daemon(workspace.path, "--chat-template", template, "--predict", "4", model=gemma_file)
    job_id = workspace.submit("Say hello.\n\n")
    until(lambda: workspace.find(job_id).is_finished, f"the end of {job_id}")
    job = workspace.find(job_id)
    assert job.state is JobState.DONE, workspace.answer(job)
