"""Scores the weights of a run: `mira eval`, from a checkout."""

import sys

from mira_jax.cli.main import main

if __name__ == '__main__':
  sys.exit(main(command='eval'))
