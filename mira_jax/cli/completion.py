"""Print a completion script for a shell.

mira completion bash > ~/.local/share/bash-completion/completions/mira
mira completion zsh > ~/.zfunc/_mira      # a folder in $fpath
"""

from __future__ import annotations

import argparse

import shtab

from mira_jax.errors import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the shell."""
  parser.add_argument('shell', choices=shtab.SUPPORTED_SHELLS)


def run(args: argparse.Namespace) -> int:
  """Prints the script of all commands and flags."""
  from mira_jax.cli import main  # which imports this module

  print(shtab.complete(main.whole_parser(), args.shell))
  return ExitCode.OK
