"""``python -m nrvna.completion SHELL``: print the completion of all tools."""

from __future__ import annotations

import sys

from nrvna.arguments import Parser
from nrvna.completion import SHELLS, script
from nrvna.tools import all_tools


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m nrvna.completion",
        description="Print what teaches a shell to complete wrk, flw and nrvnad. Put it where the shell starts:",
        epilog="""\
  bash, in ~/.bashrc:                   source <(python -m nrvna.completion bash)
  zsh, in ~/.zshrc, after compinit:     source <(python -m nrvna.completion zsh)
  fish, in ~/.config/fish/config.fish:  python -m nrvna.completion fish | source
""",
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
    sys.stdout.write(script(parser.parse_args(argv).shell, all_tools()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
