"""`mira compare torch`: the same weights and clips in JAX and in PyTorch."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence

import numpy as np
import rich.table

from mira_jax import terminal
from mira_jax.cli import weight_flags
from mira_jax.cli.arguments import at_least
from mira_jax.data import sampling
from mira_jax.errors import ExitCode, MiraInputError, plain
from mira_jax.inference import load
from mira_jax.kernels import dispatch
from mira_jax.parity import golden, torch_compare, torch_peers, torch_training
from mira_jax.synthetic import faces
from mira_jax.video import decode, footage
from mira_jax.weights import convert

# Fields, variables, the other model and windows.
Given = tuple[dict, torch_peers.PyTree, torch_peers.Peer, np.ndarray]

# Of logits: largest difference over largest number.
BOUNDS = {'float32': 2e-5, 'float64': golden.FLOAT64_BOUND}
BOTH = ('float32', 'bfloat16')
BOTH_TRAINED = ('float64', 'float32')
FACES = 4  # synthetic ones of a training: a class each


def add_arguments(parser: argparse.ArgumentParser):
  """Adds the weights, the clip, the other model and what is compared."""
  add = parser.add_argument
  weights = 'what `mira convert` reads'
  add('--weights', metavar='FILE', default='runs/quickstart', help=weights)
  clip = 'videos or folders of frames, instead of synthetic faces'
  add('--clip', metavar='CLIP', nargs='+', help=clip)
  module = 'your own torch.nn.Module, made without arguments, in a file to run'
  add('--module', metavar='PATH:CLASS', help=module)
  both = "'both' is float32 and bfloat16, of --train float64 and float32"
  choices = ('both', *torch_compare.DTYPES)
  add('--dtype', choices=choices, default='both', help=both)
  add('--gradients', action='store_true', help='of a cross-entropy, too')
  train = 'train both for N steps instead, and compare each of them'
  add('--train', metavar='N', type=at_least(1, most=10**4), help=train)
  add('--views', type=at_least(1, most=1000), default=2, help='windows')
  weight_flags.add(parser)
  add('--attention', choices=dispatch.IMPLEMENTATIONS, default='reference')
  add('--json', action='store_true', help='print JSON instead of tables')


def run(args: argparse.Namespace) -> int:
  """Prints a table for each number format; 1 if they differ too much."""
  if args.train and args.gradients:
    hint = '--train compares the gradient norm of every step: leave it out'
    raise MiraInputError('bad_flag', '--gradients', hint)
  torch_peers.load()
  found = convert.read(args.weights, weight_flags.overrides(args))
  fields = found.metadata['model']
  labels = args.train or args.gradients
  if found.metadata.get('pretrain') or (labels and not fields['num_classes']):
    raise load.no_classifier(args.weights, found.metadata)
  if args.module:
    other = torch_peers.from_path(args.module, found.variables)
  else:
    other = torch_peers.peer(fields, found.variables)
  video = _windows(args, fields, found.metadata['preprocessing'])
  title = f'{pathlib.Path(args.weights).name}: JAX and {other.name}'
  dtypes = BOTH_TRAINED if args.train else BOTH
  if args.dtype != 'both':
    dtypes = (args.dtype,)
  given = fields, found.variables, other, video
  try:
    if args.train:
      return _train(args, title, given, dtypes)
    return _forward(args, title, given, dtypes)
  except dispatch.RefusalError as error:
    flag = f'--attention={args.attention}'
    raise MiraInputError('bad_flag', flag, error.hint) from error


def _windows(args: argparse.Namespace, fields: dict, rules: dict) -> np.ndarray:
  """Windows of the clips, uint8 [V, F, S, S, 3]."""
  frames, size = fields.get('frames', 16), fields.get('image_size', 224)
  if args.clip:
    clips = (decode.read_clip(x, short_side=size).frames for x in args.clip)
  else:
    options = {'size': size, 'num_frames': 4 * frames, 'difficulty': 'macro'}
    clips = (
      faces.draw_clip(i, split='test', seed=0, **options).frames
      for i in range(FACES if args.train else 1)
    )
  windows = []
  for video in clips:
    indices = [
      sampling.test_indices(len(video), frames, rules['rate'], view, args.views)
      for view in range(args.views)
    ]
    windows.append(
      footage.resize_windows(video, np.array(indices), size, rules['fit'])
    )
  return np.concatenate(windows)


def _forward(
  args: argparse.Namespace, title: str, given: Given, dtypes: Sequence[str]
) -> int:
  agreements = [
    torch_compare.compare(
      *given, dtype=dtype, gradients=args.gradients, attention=args.attention
    )
    for dtype in dtypes
  ]
  if args.json:
    print(json.dumps([dataclasses.asdict(a) for a in agreements], indent=2))
  far = False
  for agreement in agreements:
    bound = BOUNDS.get(agreement.dtype, math.inf)
    passed = agreement.row('logits').relative <= bound  # NaN is far, too
    far |= not passed
    if args.json:
      continue
    _show_rows(f'{title}, {agreement.dtype}', agreement.rows)
    terminal.say(f'{agreement.dtype}: top-1 agrees in {agreement.top1:.0%}')
    if bound < math.inf:
      word = 'pass' if passed else 'FAIL'
      terminal.say(f'{agreement.dtype} logits within {bound:.0e}: {word}')
  return ExitCode.FAILED if far else ExitCode.OK


def _show_rows(
  title: str,
  rows: Sequence[torch_compare.Row],
  what: str = 'layer (d: its gradient)',
) -> None:
  table = rich.table.Table(title=plain(title))
  table.add_column(what)
  for name in ('max abs', 'mean abs', 'relative', 'distance', '1 - cosine'):
    table.add_column(name, justify='right', no_wrap=True)
  for row in rows:
    numbers = row.max_abs, row.mean_abs, row.relative, row.distance
    shown = (f'{x:.1e}' for x in (*numbers, 1 - row.cosine))
    table.add_row(plain(row.name), *shown)
  terminal.show(table)


def _train(
  args: argparse.Namespace, title: str, given: Given, dtypes: Sequence[str]
) -> int:
  agreements = [
    torch_training.compare(
      *given, args.train, dtype=dtype, attention=args.attention
    )
    for dtype in dtypes
  ]
  if args.json:
    found = [
      dataclasses.asdict(a) | {'failures': a.failures()} for a in agreements
    ]
    print(json.dumps(found, indent=2))
  else:
    terminal.say(*_settings(args, len(given[-1])))
    for agreement in agreements:
      _show_training(title, agreement)
  far = any(agreement.failures() for agreement in agreements)
  return ExitCode.FAILED if far else ExitCode.OK


def _settings(args: argparse.Namespace, windows: int) -> tuple[str, ...]:
  """What both sides run."""
  own = torch_training.settings_of(args.train)
  at_once = min(windows, torch_training.BATCH)
  return (
    f'{args.train} steps of AdamW, {at_once} of {windows} windows in each, '
    'without augmentation',
    f'learning rate {own.lr:g} after {own.warmup_epochs} steps of warm-up, '
    f'then a cosine to {own.final_lr:g}; layer decay {own.layer_decay}',
    f'betas {own.b1} and {own.b2}, weight decay {own.weight_decay}, gradients '
    f'clipped to {own.clip_norm:g}, average of parameters {own.ema_decay}',
  )


def _show_training(title: str, found: torch_training.Agreement) -> None:
  """A table of the steps, one of the parameters, and the verdict."""
  table = rich.table.Table(title=plain(f'{title}, {found.dtype}'))
  names = ('step', 'loss', 'apart', 'grad norm', 'apart', 'rate', 'apart')
  for name in names:
    table.add_column(name, justify='right', no_wrap=True)
  for step in found.steps:
    numbers = [str(step.step)]
    for name in torch_training.METRICS:
      numbers.append(f'{getattr(step, name):.5g}')
      numbers.append(f'{step.relative[name]:.1e}')
    table.add_row(*numbers)
  terminal.show(table)
  _show_rows(f'parameters after {len(found.steps)} steps', found.rows, 'layer')
  if found.bound is None:
    return
  failures = found.failures()
  word = f'FAIL, {failures[0]}' if failures else 'pass'
  if found.judged < len(found.steps):
    part = f'first {found.judged} steps'
  else:
    part = 'steps and parameters'
  terminal.say(f'{found.dtype} {part} within {found.bound:.0e}: {word}')
