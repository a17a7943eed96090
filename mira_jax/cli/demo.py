"""Open a local web page that classifies clips and shows what a model sees.

  mira demo [RUN...] [--port 7860]

Drop a clip, or record one by the camera. The page runs on this machine: other
machines cannot reach it unless with --host, nothing is sent anywhere, and what
is uploaded is deleted.
"""

from __future__ import annotations

import argparse
import importlib.util

from mira_jax import terminal
from mira_jax.cli import start
from mira_jax.cli.arguments import at_least
from mira_jax.devices import memory
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.inference import predictor


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the models and where the page is served."""
  add = parser.add_argument
  models = f'runs or weights to choose from (default: {start.DEFAULT_RUN})'
  add('models', nargs='*', metavar='RUN', help=models)
  add('--port', type=at_least(1, most=65535), default=7860)
  add('--host', default='127.0.0.1', help='0.0.0.0 lets other machines in')
  add('--most-mb', type=at_least(1), default=200, help='of an upload')
  add('--most-seconds', type=at_least(1), default=60, help='of a clip')
  start.add_arguments(parser)


@memory.explained()
def run(args: argparse.Namespace) -> int:
  """Serves the page until Ctrl-C."""
  if not importlib.util.find_spec('gradio'):
    hint = "it makes the page: pip install 'mira-jax[demo]'"
    raise MiraInputError('no_demo', 'gradio', hint)
  from mira_jax.cli import demo_page  # slow, and of an extra

  start.device(args)
  names = args.models or [start.DEFAULT_RUN]
  models = {name: predictor.load(name) for name in names}
  for name, model in models.items():
    if not (model.has_records and model.class_names):
      hint = 'the page shows classes and attention; give a run or its weights'
      raise MiraInputError('unsupported', name, hint)
    if model.thresholds is not None:
      hint = (
        'it gives action units, and the page shows classes; use mira predict'
      )
      raise MiraInputError('unsupported', name, hint)
  limits = demo_page.Limits(args.most_mb, args.most_seconds)
  terminal.say(f'page: http://{args.host}:{args.port} (Ctrl-C ends it)')
  demo_page.serve(models, limits, args.host, args.port)
  return ExitCode.OK
