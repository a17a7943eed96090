"""List the configurations that come with the package.

mira configs
mira train --config=dfew:B --workdir=runs/dfew
"""

from __future__ import annotations

import argparse

from mira_jax import terminal
from mira_jax.config import shipped
from mira_jax.errors import ExitCode

GIVES_RESULT = True  # to programs, by --json


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Takes no arguments."""
  del parser


def run(args: argparse.Namespace) -> int:
  """Prints the names, with what each trains."""
  del args
  found = shipped.names()
  width = max(map(len, found))
  for name, summary in found.items():
    terminal.say(f'{name:{width}}  {summary}')
  terminal.result(found)
  terminal.say('', f'files: {shipped.folder()}')
  return ExitCode.OK
