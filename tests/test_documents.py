"""Every command line of README.md and docs/*.md runs as it stands, with the small model."""

from __future__ import annotations

from pathlib import Path

import pytest
from documents import Command, File, pages, steps
from sandbox import Sandbox

from nrvna.job import JobState

# tests/test_binding_page.py runs these programs, and compares what they print.
RUN_ELSEWHERE = {"docs/binding.md"}
PAGES = {page: steps for page, steps in pages(Path(__file__).parents[1]).items() if page not in RUN_ELSEWHERE}

# What cannot run in a test, and why.
EXPLAINED = {
    "./scripts/quickstart": "it sets the checkout up from nothing; tests/scripts try its parts",
    "./scripts/test": "it runs these very tests",
    "pip install huggingface_hub": "the network",
    "hf download Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF "
    "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf --local-dir ~/models": "the network, for a gigabyte",
    "python scripts/build_llama.py --backend cuda": "a GPU and an hour; tests/scripts try its parts",
    "python scripts/build_llama.py --backend cuda --cuda-arch 80,90": "the CUDA toolkit and hours; so do they",
    "python scripts/build_llama.py --backend metal": "a Mac",
}
# Parts of commands whose jobs the small model cannot answer, and why.
UNANSWERED = {"--rerank": "it wants a model made for that"}


def follow(to_do: list[Command | File], folder: Path) -> list[str]:
    """Do all that a page says, in a home of its own; returns what went wrong, each with page, line and command."""
    wrong: list[str] = []
    askers: dict[str, Command] = {}
    thinks = any("--reasoning" in step.text for step in to_do if isinstance(step, Command))
    sandbox = Sandbox(folder, thinks=thinks)
    try:
        for step in to_do:
            if isinstance(step, File):
                sandbox.write(step.name, step.content)
            elif step.text not in EXPLAINED:
                ran = sandbox.run(step.text, step.shown)
                if ran.code != step.code:
                    ended = "it did not end" if ran.code is None else f"exit code {ran.code}"
                    wrong.append(f"{where(step)}\n{ended}, where {step.code} is right\n{ran.output}{ran.errors}")
                if ran.code is None:
                    break
                for _, job in sandbox.jobs():
                    askers.setdefault(job.id, step)
        wrong += filter(None, [sandbox.finish()])
        for workspace, job in sandbox.jobs():
            receipt = workspace.receipt(job)
            if job.state is not JobState.FAILED or (receipt and receipt.finish_reason == "cancelled"):
                continue
            asker = askers.get(job.id)
            if asker and not any(part in asker.text for part in UNANSWERED):
                wrong.append(f"{where(asker)}\nits job {job.id} failed: {workspace.answer(job)}")
    finally:
        sandbox.close()
    return wrong


def where(step: Command) -> str:
    return f"{step.page}:{step.line}: $ {step.text}"


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run_as_written(page: str, model_file: Path, tmp_path: Path) -> None:
    assert model_file
    wrong = follow(PAGES[page], tmp_path)
    assert not wrong, "\n\n".join(["", *wrong])


def test_what_is_explained_stands_in_some_page() -> None:
    typed = {step.text for page in PAGES.values() for step in page if isinstance(step, Command)}
    assert [text for text in EXPLAINED if text not in typed] == []
    assert [part for part in UNANSWERED if not any(part in text for text in typed)] == []


def test_pages_are_read_as_a_reader_does() -> None:
    page = """
`words.txt` holds:

```text
one
```

1. In a list:

   ```console
   $ wrk ~/work "a
   > b" \\
   >   --raw  # exit code 3
   shown
   $ cat <<END
   $ no command
   END
   ```

```sh
# A comment
for x in 1; do
    echo $x
done

echo two
```

```python
print(1)
```

```console
$ python one.py x.gguf
1
```
"""
    found = steps("p", page)
    assert [step.name for step in found if isinstance(step, File)] == ["words.txt", "one.py"]
    assert [step[1:] for step in found if isinstance(step, Command)] == [
        (11, 'wrk ~/work "a\nb" \\\n  --raw  # exit code 3', "shown", 3),
        (15, "cat <<END\n$ no command\nEND", "", 0),
        (22, "for x in 1; do\n    echo $x\ndone", "", 0),
        (26, "echo two", "", 0),
        (34, "python one.py x.gguf", "1", 0),
    ]


def test_what_fails_is_told_with_page_line_and_command(model_file: Path, tmp_path: Path) -> None:
    assert model_file
    page = """
```sh
cd src && here=1
test -f parser.py && test $here = 1
flw ~/work nothing   # exit code 2
flw ~/work nothing
wrk ~/work "Hi." --lora none
```
"""
    wrong = follow(steps("a page", page), tmp_path)
    assert len(wrong) == 2
    assert wrong[0].startswith("a page:6: $ flw ~/work nothing\nexit code 2, where 0 is right\nflw: ")
    assert wrong[1].startswith('a page:7: $ wrk ~/work "Hi." --lora none\nits job ')
