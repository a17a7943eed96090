"""Write a classifier as a program that needs neither flax nor this package.

  mira export RUN OUT
  mira export RUN OUT --to=openvino [--dtype=float32]
  mira export RUN OUT --to=onnx
  mira export RUN OUT --to=openvino --int8 [--calibrate=DATASET]

RUN is the folder of a finished run, or any weights that `mira convert` reads,
with flags for what they do not say. OUT is a new folder: the program
(StableHLO by jax.export, ONNX or OpenVINO's), its weights, a card with the
preprocessing, and clips with their expected probabilities. The files are read
again and verified before OUT appears. docs/export.md shows how to run them;
`mira verify OUT` verifies them on another machine.

--int8 rounds products to eight bits, with the ranges of training clips of a
prepared dataset (by default the run's own), and prints what that costs on its
test clips.
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import numpy as np

from mira_jax import config, terminal
from mira_jax.cli import weight_flags
from mira_jax.data import dataset as prepared
from mira_jax.data import pipeline, pool
from mira_jax.devices import memory, platform
from mira_jax.errors import ExitCode, MiraInputError, data_error
from mira_jax.evaluation import metrics
from mira_jax.inference import engine, export, exported, runtimes
from mira_jax.inference.scorer import Scorer
from mira_jax.train import datasets as inputs
from mira_jax.train import run_folder

_CALIBRATION = 128  # clips that show the ranges of activations


def add_arguments(parser: argparse.ArgumentParser):
  """Adds the model, the folder and the target platforms."""
  add = parser.add_argument
  add('source', metavar='RUN')
  add('out', metavar='OUT')
  every = ','.join(export.PLATFORMS)
  add('--platforms', metavar='LIST', help=f'where it shall run ({every})')
  add('--to', choices=tuple(runtimes.KINDS), default='jax', help='its kind')
  dtype = "else the model's; openvino's is bfloat16 where that agrees here"
  add('--dtype', choices=tuple(exported.TOLERANCES), help=dtype)
  int8 = 'round the products of --to=openvino to eight bits'
  add('--int8', action='store_true', help=int8)
  data = "prepared dataset for --int8; else the run's own"
  add('--calibrate', metavar='DATASET', help=data)
  add('--force', action='store_true', help='replace an export at OUT')
  weight_flags.add(parser)
  platform.add_argument(parser)


@memory.explained()
def run(args: argparse.Namespace) -> int:
  """Exports, and prints the largest difference from the engine."""
  for name in ('platforms', 'int8', 'calibrate'):
    wanted = 'jax' if name == 'platforms' else 'openvino'
    if getattr(args, name) not in (None, False) and args.to != wanted:
      hint = f'it is for --to={wanted}'
      raise MiraInputError('bad_flag', f'--{name}', hint)
  if args.calibrate and not args.int8:
    raise MiraInputError('bad_flag', '--calibrate', 'it is for --int8')
  platform.start(args.device)
  engine.use_compile_cache()
  listed = args.platforms
  if listed is None:
    listed = ','.join(export.PLATFORMS)
  platforms = [part.strip() for part in listed.split(',')]
  card = export.write(
    args.source,
    args.out,
    kind=args.to,
    platforms=platforms,
    dtype=args.dtype,
    int8=_int8(args) if args.int8 else None,
    force=args.force,
    overrides=weight_flags.overrides(args),
  )
  golden = card['golden']['difference']
  terminal.say(f'golden pair: within {golden:.1e} of the engine')
  if args.int8:
    for name in ('float32', 'int8'):
      scores = card['int8'][name]
      text = ', '.join(f'{key} {100 * x:.2f} %' for key, x in scores.items())
      terminal.say(f'{name}: {text}')
  used = args.to if args.to == 'jax' else f'{args.to}, {card["model"]["dtype"]}'
  terminal.say(
    f'export for {", ".join(card["platforms"])} ({used}): {args.out}'
  )
  return ExitCode.OK


def _int8(args: argparse.Namespace) -> export.Calibrate:
  """What an engine and its card are calibrated with."""
  own = (pathlib.Path(args.source) / run_folder.CONFIG).is_file()
  if not (own or args.calibrate):
    hint = (
      'name a prepared dataset; weights alone have none: --calibrate=DATASET'
    )
    raise MiraInputError('bad_flag', '--int8', hint)

  def calibrate(card: dict[str, Any]) -> export.Int8:
    if own and not args.calibrate:
      cfg = run_folder.read_config(pathlib.Path(args.source))
      parts = inputs.open_parts(cfg, inputs.open_datasets(cfg.data))
      train, test = parts.train, parts.test
    else:
      cfg = _config(card)
      dataset = prepared.open(args.calibrate)
      train, test = (
        pool.as_named(dataset, split, card['class_names'])[0]
        for split in ('train', 'test')
      )
    for split, clips in (('train', train), ('test', test)):
      if not len(clips):
        hint = f'its {split} split has no clip of a class of the model'
        raise data_error('no_clips', args.calibrate or args.source, hint)
    count = min(_CALIBRATION, len(train))
    some = train.take(np.linspace(0, len(train) - 1, count).astype(int))
    read: dict[str, Any] = inputs.reading(cfg) | {'batch_size': 1}
    batches = pipeline.eval_batches(some, views=1, **read)
    clips = np.concatenate([batch['video'] for batch in batches])

    def score(scorer: Scorer) -> dict[str, float]:
      predicted = inputs.score_source(scorer, test, cfg, cfg.eval.views)
      found = metrics.score(predicted.matrix)
      return {'WAR': found.war, 'UAR': found.uar}

    return export.Int8(clips, score)

  return calibrate


def _config(card: dict[str, Any]) -> config.Config:
  """How weights without a run read clips."""
  model, rules = card['model'], card['preprocessing']
  return config.Config(
    model=config.ModelConfig(
      frames=model['frames'], image_size=model['image_size']
    ),
    data=config.DataConfig(rate=rules['rate'], fit=rules['fit']),
  )
