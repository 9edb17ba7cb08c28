"""Wrong calls: each is answered with exit code 2 and one line, which names the argument and what is expected."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nrvna.workspace import Workspace

MODULES = {"wrk": "nrvna.wrk", "flw": "nrvna.flw", "nrvnad": "nrvna.daemon"}

DEEP = "[" * 900 + "]" * 900
BREAKERS = json.dumps([f"{number}" for number in range(2049)])

# A call, and what its line must say beside the tool's name: the argument, and what is right.
WRONG = {
    # wrk: where, and what
    "wrk": "arguments are required: WORKSPACE",
    "wrk nowhere Hi.": "no workspace nowhere … wrk --init nowhere",
    "wrk plain Hi.": "plain is a folder but no workspace … wrk --init plain",
    "wrk a-file Hi.": "a-file is no folder … name another",
    "wrk --init a-file": "a-file is no folder … name another",
    "wrk '' Hi.": "workspace's name is empty … name its folder",
    "wrk open Hi.": "others can write to open … chmod go-w open",
    "wrk work": "prompt is empty",
    "wrk work ''": "prompt is empty",
    "wrk work '  '": "prompt is empty",
    "wrk --init": "arguments are required: WORKSPACE",
    "wrk --file-of-words work": "unrecognized arguments: --file-of-words",
    "wrk work Hi. --raw=1": "--raw … '1'",
    "wrk work --lines": "--lines: expected one argument",
    "wrk work --lines none.txt": "cannot read none.txt: No such file",
    "wrk work --lines plain": "cannot read plain: Is a directory",
    "wrk work Hi. --model ''": "--model is '' … name",
    # wrk: settings of a job
    "wrk work Hi. --temp hot": "--temp is 'hot' … a number from 0 to 10",
    "wrk work Hi. --temp 11": "--temp is '11' … a number from 0 to 10",
    "wrk work Hi. --temp nan": "--temp is 'nan' … a number from 0 to 10",
    "wrk work Hi. --temp": "--temp: expected one argument",
    "wrk work Hi. --top-k 1.5": "--top-k is '1.5' … a whole number from 0",
    "wrk work Hi. --top-p 2": "--top-p is '2' … from 0 to 1",
    "wrk work Hi. --seed -2": "--seed is '-2' … from -1 to 4294967294",
    "wrk work Hi. --predict 0": "--predict is '0' … from 1 to",
    "wrk work Hi. --overflow cut": "--overflow is 'cut' … fail, truncate-left",
    "wrk work Hi. --ignore-eos maybe": "--ignore-eos is 'maybe' … 0 or 1",
    "wrk work Hi. --samplers best": "--samplers is 'best' … names out of penalties",
    "wrk work Hi. --logit-bias 5": "--logit-bias is '5' … JSON",
    "wrk work Hi. --stop ''": "--stop is '' … a text",
    "wrk work Hi. --dry-sequence-breakers x": "--dry-sequence-breakers is 'x' … a JSON list of texts",
    f"wrk work Hi. --dry-sequence-breakers '{BREAKERS}'": "-breakers is '[ … 2048 different ones at most",
    "wrk work Hi. --reasoning-budget -2": "--reasoning-budget is '-2' … from -1",
    "wrk work Hi. -n 0": "-n is '0' … from 1 to 1000",
    "wrk work Hi. -n five": "-n is 'five' … a whole number",
    f"wrk work Hi. -n {'9' * 5000}": "-n is '999 … a whole number",
    "wrk work Hi. --timeout 2000000d": "--timeout is '2000000d' … and 366d at most",
    "wrk work Hi. --timeout 0": "the timeout is 0.0 … more than 0",
    # wrk: what is asked
    "wrk work Hi. --choices yes": "--choices: … two or more",
    "wrk work Hi. --choices ''": "--choices: … empty",
    "wrk work Hi. --choices a,a": "--choices: … both 'a' … once",
    "wrk work Hi. --choices a,b --schema '{}'": "--schema: not allowed with argument --choices",
    "wrk work Hi. --embed --rerank words.txt": "--rerank: not allowed with argument --embed",
    "wrk work Hi. --raw --system Ahoy.": "raw … no system message",
    "wrk work Hi. --embed --system Ahoy.": "embed … no use for system",
    "wrk work Hi. --system ''": "--system is '' … a text",
    "wrk work Hi. --lora ''": "--lora is '' … a name",
    "wrk work Hi. --schema none.json": "cannot read none.json: No such file",
    "wrk work Hi. --schema plain": "cannot read plain: Is a directory",
    "wrk work Hi. --schema bad.json": "--schema bad.json is no JSON … line 1 column 2",
    "wrk work Hi. --schema '{bad'": "--schema is no JSON … line 1 column 2",
    "wrk work Hi. --schema bad-schema.json": "--schema bad-schema.json: #/type … string, array, object",
    "wrk work Hi. --grammar bad.gbnf": "--grammar bad.gbnf: line 1, column 6 … expecting ::=",
    "wrk work Hi. --grammar latin.txt": "latin.txt is not UTF-8 … position 0",
    "wrk work Hi. --messages bad.json": "--messages bad.json is no JSON",
    "wrk work Hi. --messages bad-schema.json": "--messages bad-schema.json: … must be a list",
    "wrk work Hi. --template-kwargs '[1]'": "--template-kwargs: … a JSON object",
    "wrk work Hi. --template-kwargs '{'": "--template-kwargs is no JSON",
    f"wrk work Hi. --template-kwargs '{{\"a\": {DEEP}}}'": "--template-kwargs is nested more than 100 deep",
    f"wrk work Hi. --schema '{{\"const\": {DEEP}}}'": "--schema is nested more than 100 deep",
    f"wrk work Hi. --stop '{DEEP}'": "--stop is nested more than 100 deep",
    f"NRVNA_SAMPLERS='{DEEP}' nrvnad m.gguf work": "NRVNA_SAMPLERS is nested more than 100 deep",
    "wrk work Hi. --messages deep.json": "--messages deep.json is nested more than 100 deep",
    "wrk work Hi. --rerank empty.txt": "--rerank empty.txt is empty … each line",
    # wrk: halves of characters, and bytes that are not UTF-8
    r"""wrk work Hi. --stop '["\ud800"]'""": "--stop holds \\ud800, half a character",
    "wrk work Hi. --stop a\udcff": "--stop holds \\udcff, the byte 0xff, which is not UTF-8",
    r"""wrk work Hi. --logit-bias '{"\ud800": 1}'""": "--logit-bias holds \\ud800, half a character",
    r"""wrk work Hi. --template-kwargs '{"a": "\ud800"}'""": "--template-kwargs: … template_kwargs holds \\ud800",
    "wrk work Hi. --schema half.json": "--schema half.json: the schema holds \\ud83d, half a character",
    "wrk work Hi. --messages half-said.json": "--messages half-said.json: … messages holds \\ud83d, half a",
    "wrk work Hi. --choices a,\udcff": "choices holds \\udcff, the byte 0xff",
    "wrk work Hi. --system \udcff": "system holds \\udcff, the byte 0xff",
    "wrk work Hi. --lora \udcff": "lora holds \\udcff, the byte 0xff",
    "wrk work Hi. --model \udcff": "model holds \\udcff, the byte 0xff",
    "wrk work Hi. --tag \udcff": "the tag '\\udcff' must be a word",
    "wrk work Hi. --key \udcff": "the key is '\\udcff', but must be text",
    "wrk work Hi. --after \udcff": "'\\udcff' is no job id",
    "wrk work \udcff": "the prompt is not UTF-8: byte 0xff",
    # wrk: batch files
    "wrk work --batch": "--batch: expected one argument",
    "wrk work --batch none.jsonl": "cannot read none.jsonl: No such file",
    "wrk work --batch empty.txt": "empty.txt: there is no request in it … a JSON object on each line",
    "wrk work --batch twice.jsonl": "twice.jsonl: the same custom_id stands there twice: 'a' in lines 1 and 2",
    "wrk work Hi. --batch twice.jsonl": "a prompt has no place beside --batch … its file",
    "wrk work --batch twice.jsonl --system Ahoy.": "beside settings … must stand in the batch file",
    "wrk work --batch twice.jsonl --lines words.txt": "--lines: not allowed with argument --batch",
    "wrk work Hi. --again": "--again … with --batch FILE",
    # flw
    "flw": "arguments are required: WORKSPACE",
    "flw nowhere": "no workspace nowhere",
    "flw plain": "plain is a folder but no workspace",
    "flw a-file": "a-file is no folder",
    "flw ''": "workspace's name is empty",
    "flw work nothing": "no job nothing in work … flw work",
    "flw work ../x": "'../x' is no job id … looks like",
    "flw work a b": "no job a in work",
    "flw work @1": "no job @1 … there are 0 in all",
    "flw work ID --tag t": "by ID, or by --tag and --state, but not both",
    "flw work --state asleep": "--state: 'asleep' is no state … queued, waiting, running, done, cut, failed",
    "flw work -n 0": "-n/--newest: '0' is no whole number above 0",
    "flw work -n 5 -a": "-n and -a contradict each other",
    "flw work --timeout 5": "--timeout is for waiting … -w or -f",
    "flw -w work --timeout soon": "--timeout: it is 'soon' … a time, such as 90s",
    "flw -w work --timeout 1000000d": "--timeout: it is '1000000d' … and 36525d at most",
    "flw work --json --jsonl": "--jsonl: not allowed with argument --json",
    "flw -f work ID ID2": "-f follows one job",
    "flw work cancel ID": "the verb comes first: flw cancel work",
    "flw -f work ID --open": "--open: not allowed with argument -f/--follow",
    "flw -f work --tag t": "flw --follow WORKSPACE ID",
    "flw work --open": "flw --open WORKSPACE ID",
    "flw work --prompt": "flw --prompt WORKSPACE ID",
    "flw work --state done,": "--state: '' is no state",
    "flw work -a ID": "-n and -a are for the list, without an ID",
    # flw: verbs
    "flw cancel work": "which jobs? Name IDs, --tag, --state or --all … flw cancel --help",
    "flw cancel work --all ID": "--all cancels all: name no jobs beside it",
    "flw retry work": "which jobs? Name IDs, --tag, or --state failed",
    "flw retry work --state done": "what is done is asked again with --again",
    "flw rm work": "which jobs? Name IDs, --tag or --state",
    "flw rm work nothing": "no job nothing in work",
    "flw purge work": "arguments are required: --older",
    "flw purge work --older 7": "--older: it is '7' … a unit: 7d",
    "flw purge work --older 1000000w": "--older: it is '1000000w' … and 36525d at most",
    "flw purge work --older 7d --state queued": "only finished jobs are purged, not queued",
    "flw export work -o plain": "cannot write plain: Is a directory",
    "flw export work --format xml": "--format: invalid choice: 'xml'",
    "flw stats nowhere": "no workspace nowhere",
    "flw stats work --since then": "--since: it is 'then' … a time",
    "flw stats work --since 1000000d": "--since: it is '1000000d' … and 36525d at most",
    f"flw stats work --since {'9' * 5000}d": "--since: it is '999 … and 36525d at most",
    "flw stats work ID": "unrecognized arguments: ID",
    "flw --all-of-it work": "unrecognized arguments: --all-of-it",
    "flw --wait=1 work": "--wait … '1'",
    "flw --follow work": "flw --follow WORKSPACE ID",
    "flw --receipt work": "flw --receipt WORKSPACE ID",
    "flw --batch none work": "no batch 'none' in work … wrk --batch",
    "flw --batch none work ID": "a batch goes without jobs … flw --batch BATCH WORKSPACE",
    "flw -o out.jsonl work": "-o and --errors are for a batch … flw --batch BATCH -o FILE WORKSPACE",
    # nrvnad
    "nrvnad": "MODEL",
    "nrvnad m.gguf": "nrvnad MODEL WORKSPACE",
    "nrvnad m.gguf work more": "more",
    "nrvnad m.gguf work --fast": "--fast",
    "nrvnad none.gguf new": "no model file none.gguf: No such file",
    "nrvnad plain new": "plain is a folder: name the .gguf file in it",
    "nrvnad m.gguf a-file": "a-file is no folder … name another",
    "nrvnad m.gguf work --temp hot": "--temp is 'hot' … a number from 0 to 10",
    "NRVNA_TEMP=hot nrvnad m.gguf work": "NRVNA_TEMP is 'hot' … a number from 0 to 10",
    "nrvnad m.gguf work --ctx -1": "--ctx is '-1' … from 0",
    "nrvnad m.gguf work --parallel 1000": "--parallel is '1000' … from 0 to 256",
    "nrvnad m.gguf work --threads many": "--threads is 'many' … a whole number",
    "nrvnad m.gguf work --nice 20": "--nice is '20' … from 0 to 19",
    "nrvnad m.gguf work --log-level loud": "--log-level is 'loud' … error, warn, info, debug",
    "nrvnad m.gguf work --log-file none/log": "log file none/log: No such file",
    "nrvnad m.gguf work --log-file ''": "--log-file is '' … a path",
    "nrvnad --check": "MODEL",
    f"nrvnad --tune m.gguf --within {'9' * 5000}": "--within is '999 … from 1 to 86400",
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a workspace "work" and files that are not what is wanted."""
    folder = tmp_path_factory.mktemp("misuse")
    for name in ("work", "open"):
        Workspace(str(folder / name)).create()
    (folder / "open").chmod(0o777)
    (folder / "plain").mkdir()
    for name, content in {
        "a-file": b"x",
        "m.gguf": b"GGUF",
        "empty.txt": b"",
        "words.txt": b"a\nb\n",
        "twice.jsonl": b'{"custom_id": "a"}\n{"custom_id": "a"}\n',
        "latin.txt": b"\xff",
        "bad.json": b"{bad",
        "half.json": b'{"type": "object", "description": "bad \\ud83d emoji"}',
        "half-said.json": b'[{"role": "user", "content": "bad \\ud83d emoji"}]',
        "deep.json": DEEP.encode(),
        "bad-schema.json": b'{"type": "nonsense"}',
        "bad.gbnf": b'root := "a"',
    }.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("call", WRONG, ids=lambda call: call[:80])
def test_a_wrong_call_is_answered_with_one_line(call: str, here: Path) -> None:
    words, environment = shlex.split(call), dict(os.environ)
    while "=" in words[0]:
        name, _, environment[name] = words.pop(0).partition("=")
    tool, *arguments = words
    command = [sys.executable, "-m", MODULES[tool], *arguments]
    done = subprocess.run(
        command, cwd=here, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith(f"{tool}: ")
    assert done.stderr.count("\n") == 1
    rest = done.stderr
    for part in WRONG[call].split(" … "):
        assert part in rest
        rest = rest.partition(part)[2]


def test_a_wrong_call_leaves_no_trace(here: Path) -> None:
    """To be run behind the calls above: neither a job nor a workspace came of them."""
    assert Workspace(str(here / "work")).jobs() == []
    assert not (here / "nowhere").exists()
    assert not (here / "new").exists()


@pytest.mark.parametrize("tool", MODULES)
def test_what_was_typed_cannot_make_a_second_line(tool: str, here: Path) -> None:
    command = [sys.executable, "-m", MODULES[tool], "work", "--no\nsuch\x1b[2Jthing"]
    done = subprocess.run(command, cwd=here, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "\x1b" not in done.stderr
