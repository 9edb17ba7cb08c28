#!/usr/bin/env python3
"""Record what llama-server samples in every case of sampler_cases.py, into golden/samplers.json.

To be run again when the pinned llama.cpp, nrvna's kernels or the cases change: ``python tests/record_golden.py``, or
with the names of the cases that are new.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "scripts")]

from conversations import tokens_of
from fetch_model import SHA256, model_path
from llama_server import serving_alike
from sampler_cases import CASES, PROMPTS, of_server

from nrvna.config import llama_dir
from nrvna.engine.prompt import PromptEncoder
from nrvna.llama import Model, load_library
from nrvna.llama.location import KERNELS_SOURCE

RECORDING = Path(__file__).parent / "golden" / "samplers.json"


def fingerprint() -> dict[str, Any]:
    """What the bits of the logits depend on, and with them, here and there, a token."""
    build = load_library(llama_dir()).build
    kernels = b"".join(path.read_bytes() for path in sorted(KERNELS_SOURCE.glob("*.[ch]")))
    return {
        "commit": build.commit,
        "backend": build.backend,
        "cpu": build.cpu,
        "compiler": build.compiler,
        "options": list(build.options),
        "kernels": hashlib.sha256(kernels).hexdigest(),
        "model": SHA256,
    }


def main(names: list[str]) -> None:
    recording: dict[str, Any] = {"fingerprint": fingerprint(), "prompts": {}, "answers": {}}
    kept: dict[str, Any] = json.loads(RECORDING.read_text()) if names else recording
    if kept["fingerprint"] != recording["fingerprint"]:
        sys.exit("the recording is of another build or processor: record all cases")
    programs = load_library().build.directory / "bin"
    encoder = PromptEncoder(Model(model_path(), vocab_only=True))
    prompts = {prompt: tokens_of(encoder, prompt, limit=1024) for prompt in PROMPTS}
    recording["prompts"] = prompts
    with (
        tempfile.TemporaryDirectory() as scratch,
        serving_alike(programs, model_path(), Path(scratch) / "log") as address,
    ):
        for name, case in CASES.items():
            if names and name not in names:
                recording["answers"][name] = kept["answers"][name]
                continue
            print(name, flush=True)
            recording["answers"][name] = [
                of_server(address, tokens, case.sampling, case.grammar) for tokens in prompts.values()
            ]
    RECORDING.parent.mkdir(exist_ok=True)
    # An answer a line: what changed is seen at a glance.
    text = json.dumps(recording, ensure_ascii=False, indent=1)
    RECORDING.write_text(re.sub(r"\[[\d,\s]*\]", lambda found: re.sub(r"\s+", "", found[0]), text) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
