"""A home in which the documentation's commands run as they stand: a shell, a workspace that is served, a checkout.

``~/work`` is answered by a real daemon whenever no other one does. The commands run one after the other in one bash,
in a folder that looks like the checkout and has the files that examples speak of.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import platformdirs
from fetch_model import model_path
from processes import until

from nrvna.errors import WorkspaceError
from nrvna.job import Job, JobState
from nrvna.workspace import Workspace

ROOT = Path(__file__).parents[1]
PATIENCE_S = 90.0
# Few tokens, and a shape that needs no measuring: the commands are tried, not the model.
CHEAP = {"NRVNA_PREDICT": "16", "NRVNA_CTX": "1024", "NRVNA_PARALLEL": "4"}
_JOB_ID = re.compile(r"\b\d{8}-\d{6}-\d{6}-[0-9a-f]{6}\b")
_STARTS_DAEMON = re.compile(r"\bnrvnad\b(?!.*(--check|--help|--version|--status|--stop|--tune)).*~/work\b")
# Opens a thought, as the templates of models that think do; SmolLM2 does not think by itself.
_THINKS = """\
{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}<|im_start|>assistant
{% if enable_thinking is not defined or enable_thinking %}<think>
{% else %}<think>

</think>

{% endif %}"""

# What the examples take for granted in the folder where they run.
FILES = {
    "src/parser.py": "def parse(text):\n    return text.split(',')\n",
    "src/main.py": "from parser import parse\n\nprint(parse('a,b'))\n",
    "prompt.txt": "Name a river in Europe.\n",
    "requests.jsonl": '{"custom_id": "one", "method": "POST", "url": "/v1/chat/completions", "body": '
    '{"model": "any", "messages": [{"role": "user", "content": "Name a lake."}], "max_tokens": 8}}\n',
    "words.txt": "house\nriver\ntree\n",
    "book.txt": "".join(f"In chapter {number} the river rose, and they moved uphill.\n" for number in range(50)),
    "documents.txt": "Fish live in water.\nBirds fly.\n",
    "chat.json": '[{"role": "user", "content": "Ahoy!"}, {"role": "assistant", "content": "Ahoy, matey!"}]\n',
    "schema.json": '{"type": "object", "properties": {"rivers": {"type": "array", "items": {"type": "string"}, '
    '"maxItems": 1}}, "required": ["rivers"]}\n',
}


class Ran(NamedTuple):
    """What became of a command. ``code`` is None if it did not end in time."""

    text: str
    code: int | None
    output: str
    errors: str


class Sandbox:
    """Makes the home in ``folder`` and starts the shell; :meth:`close` ends all that runs in it.

    ``thinks``: there is a job whose answer came after a thought.
    """

    def __init__(self, folder: Path, *, thinks: bool = False) -> None:
        self.home = folder / "home"
        self.project = self.home / "nrvna"
        self._notes = folder / "notes"
        self._notes.mkdir()
        self._count = 0
        # Ids that the page shows, and those that its commands printed in their place.
        self._ids: dict[str, str] = {}
        self._daemon: subprocess.Popen[bytes] | None = None
        self._lay_out()
        self._environment = self._make_environment()
        self.workspace = Workspace(str(self.home / "work"))
        self.workspace.create()
        self._run_git("init", "-q", "-b", "main")
        self._run_git("add", "src")
        self._run_git("commit", "-q", "-m", "Begin")
        (self.project / "src" / "parser.py").write_text("def parse(text):\n    return text.split(';')\n")
        self._shell = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            stdin=subprocess.PIPE,
            cwd=self.project,
            env=self._environment,
            process_group=0,
        )
        self._thought = self._think() if thinks else ""

    def _lay_out(self) -> None:
        for name, content in FILES.items():
            self.write(name, content)
        data = self.home / ".local" / "share" / "nrvna"
        (self.home / "models").mkdir()
        data.mkdir(parents=True)
        for part in ("llama", "models"):
            (data / part).symlink_to(Path(platformdirs.user_data_dir("nrvna")) / part)
        (self.home / "models" / "model.gguf").symlink_to(model_path())
        for model in model_path().parent.glob("*.gguf"):
            (self.project / model.name).symlink_to(model)
        (self.project / ".venv").symlink_to(sys.prefix)
        # Copies: what the commands do must not change the checkout.
        for part in ("scripts", "docs", "benchmarks"):
            shutil.copytree(ROOT / part, self.project / part)

    def _make_environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("LANG", "LC_ALL", "NRVNA_LLAMA_DIR") if name in os.environ}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        author = {f"GIT_{who}_{what}": "me" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        return {
            **kept,
            **CHEAP,
            **author,
            "HOME": str(self.home),
            "PATH": path,
            "PYTHONPATH": str(ROOT),
            "TERM": "dumb",
        }

    def _run_git(self, *arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=self.project, env=self._environment, check=True)

    def write(self, name: str, content: str) -> None:
        """A file that the page gives; it stays within the sandbox."""
        path = self.project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.parent.resolve().is_relative_to(self.project.resolve()):
            path.write_text(content)

    def run(self, text: str, shown: str = "") -> Ran:
        """Run a command as it stands, but for ids: ``ID``, and those that the page shows as printed before."""
        if _STARTS_DAEMON.search(text):
            self._stop_daemon()
        elif re.search(r"\bwrk\b|\bflw\b|~/work", text):
            self._serve()
        for printed, real in self._ids.items():
            text = text.replace(printed, real)
        if re.search(r"(?<!\$)\bID\b", text.partition(" # ")[0]):
            text = re.sub(r"(?<!\$)\bID\b", self._job_for(text), text)
        ran = self._type(text)
        for printed, real in zip(_JOB_ID.findall(shown), _JOB_ID.findall(ran.output), strict=False):
            self._ids.setdefault(printed, real)
        if _STARTS_DAEMON.search(text) and ran.code == 0:
            self._wait_for_daemon()
        return ran

    def _type(self, text: str) -> Ran:
        self._count += 1
        note = self._notes / str(self._count)
        note.with_suffix(".sh").write_text(text + "\n")
        base = shlex.quote(str(note))
        line = f"source {base}.sh </dev/null >{base}.out 2>{base}.err; echo $? >{base}.tmp; mv {base}.tmp {base}.rc\n"
        assert self._shell.stdin
        self._shell.stdin.write(line.encode())
        self._shell.stdin.flush()
        code: int | None = None
        with suppress(AssertionError):
            until(note.with_suffix(".rc").exists, text, PATIENCE_S)
            code = int(note.with_suffix(".rc").read_text())
        read = (note.with_suffix(suffix) for suffix in (".out", ".err"))
        return Ran(text, code, *(path.read_bytes().decode(errors="replace") for path in read))

    def jobs(self) -> Iterator[tuple[Workspace, Job]]:
        """Every job of every workspace below the home."""
        for workspace in self._workspaces():
            for job in workspace.jobs():
                yield workspace, job

    def _workspaces(self) -> Iterator[Workspace]:
        for folder in self.home.rglob(".nrvna"):
            workspace = Workspace(str(folder.parent))
            with suppress(WorkspaceError):
                workspace.check()
                yield workspace

    # The job that a page means by ID: the newest that can be asked what the command asks.

    def _job_for(self, text: str) -> str:
        if re.search(r"\bflw\b.*(--cancel\b|\bcancel ~)", text):
            return self._must("wrk ~/work 'Count to a million.' --ignore-eos 1 --predict 900")
        if "--reasoning" in text and self._thought:
            return self._thought
        if re.search(r"\bflw retry\b", text):
            too_long = self._must("yes fish | head -5000 | wrk ~/work -")
            assert self._type(f"flw -w ~/work {too_long}").code == 1
            return too_long
        if not re.search(r"\bflw\b.* -\w*[wf]|\bwrk\b", text):
            self._must("flw -w ~/work >/dev/null")
        done = [job.id for job in self.workspace.jobs() if job.state is not JobState.FAILED]
        return done[-1] if done else self._must("wrk ~/work 'Name a river.'")

    def _think(self) -> str:
        template = self._notes / "thinks.jinja"
        template.write_text(_THINKS)
        self._daemon = self._start_daemon("--chat-template", str(template))
        job_id = self._must("wrk ~/work Hi. --reasoning-budget 10 --predict 60 --min-tokens 25 --temp 0")
        self._must(f"flw -w ~/work {job_id} >/dev/null")
        self._stop_daemon()
        return job_id

    def _must(self, text: str) -> str:
        ran = self._type(text)
        assert ran.code == 0, f"the sandbox's own {text!r} exits {ran.code}: {ran.output}{ran.errors}"
        return ran.output.strip()

    # The daemon that serves ~/work.

    def _serve(self) -> None:
        if not self.workspace.peers():
            self._stop_daemon()
            self._daemon = self._start_daemon()

    def _start_daemon(self, *options: str) -> subprocess.Popen[bytes]:
        model = self.home / "models" / "model.gguf"
        command = [sys.executable, "-m", "nrvna.daemon", str(model), self.workspace.path, *options]
        with (self._notes / "daemon.log").open("ab") as log:
            daemon = subprocess.Popen(
                command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._wait_for_daemon(daemon)
        return daemon

    def _wait_for_daemon(self, daemon: subprocess.Popen[bytes] | None = None) -> None:
        def is_ready() -> bool:
            assert daemon is None or daemon.poll() is None, (self._notes / "daemon.log").read_text()
            return any(peer.ready for peer in self.workspace.peers())

        until(is_ready, "a daemon that serves ~/work", PATIENCE_S)

    def _stop_daemon(self) -> None:
        if self._daemon:
            self._daemon.terminate()
            assert self._daemon.wait(PATIENCE_S) == 0
            self._daemon = None

    def finish(self) -> str:
        """Wait for what is queued and end what still runs in the background; says what did not end well."""
        late = ""
        if any(not job.is_finished for job in self.workspace.jobs()):
            self._serve()
            if self._type("flw -w ~/work >/dev/null").code is None:
                late = "jobs of ~/work are still not finished\n"
        ended = self._type('for pid in $(jobs -p); do kill "$pid"; wait "$pid" || echo "$pid: exit code $?"; done')
        return late + ended.output

    def close(self) -> None:
        """End the shell with the daemons that its commands started, and the sandbox's own."""
        if self._daemon:
            self._daemon.kill()
            self._daemon.wait()
        # Whatever a page leaves running in the background is of the shell's process group.
        with suppress(ProcessLookupError):
            os.killpg(self._shell.pid, signal.SIGTERM)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with suppress(subprocess.TimeoutExpired):
                self._shell.wait(0.05)
            try:
                os.killpg(self._shell.pid, 0)
            except ProcessLookupError:
                break
        with suppress(ProcessLookupError):
            os.killpg(self._shell.pid, signal.SIGKILL)
        self._shell.wait()
        # Those that were told to go on by themselves are not.
        for workspace in self._workspaces():
            for peer in workspace.peers():
                os.kill(peer.pid, signal.SIGKILL)
