"""Trains a model: `mira train`, from a checkout."""

import sys

from mira_jax.cli.main import main

if __name__ == '__main__':
  sys.exit(main(command='train'))
