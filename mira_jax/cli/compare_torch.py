"""`mira compare torch`: the same weights and clip in JAX and in PyTorch."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Sequence

import numpy as np
import rich.table

from mira_jax import terminal
from mira_jax.cli import weight_flags
from mira_jax.cli.arguments import at_least
from mira_jax.data import sampling
from mira_jax.errors import ExitCode, plain
from mira_jax.inference import load
from mira_jax.kernels import dispatch
from mira_jax.parity import torch_compare, torch_peers
from mira_jax.synthetic import faces
from mira_jax.video import decode, footage
from mira_jax.weights import convert

BOUND = 2e-5  # of float32 logits: largest difference over largest number


def add_arguments(parser: argparse.ArgumentParser):
  """Adds the weights, the clip, the other model and what is compared."""
  add = parser.add_argument
  weights = 'what `mira convert` reads'
  add('--weights', metavar='FILE', default='runs/quickstart', help=weights)
  clip = 'a video or a folder of frames, instead of a synthetic face'
  add('--clip', metavar='CLIP', help=clip)
  module = 'your own torch.nn.Module, made without arguments, in a file to run'
  add('--module', metavar='PATH:CLASS', help=module)
  add('--dtype', choices=('both', *torch_compare.DTYPES), default='both')
  add('--gradients', action='store_true', help='of a cross-entropy, too')
  add('--views', type=at_least(1, most=1000), default=2, help='windows')
  weight_flags.add(parser)
  add('--attention', choices=dispatch.IMPLEMENTATIONS, default='reference')
  add('--json', action='store_true', help='print JSON instead of tables')


def run(args: argparse.Namespace) -> int:
  """Prints a table for each number format; 1 if logits differ too much."""
  torch_peers.load()
  found = convert.read(args.weights, weight_flags.overrides(args))
  if found.metadata.get('pretrain'):
    raise load.no_classifier(args.weights, found.metadata)
  fields = found.metadata['model']
  if args.module:
    other = torch_peers.from_path(args.module, found.variables)
  else:
    other = torch_peers.peer(fields, found.variables)
  video = _windows(args, fields, found.metadata['preprocessing'])
  dtypes = torch_compare.DTYPES if args.dtype == 'both' else (args.dtype,)
  agreements = [
    torch_compare.compare(
      fields,
      found.variables,
      other,
      video,
      dtype=dtype,
      gradients=args.gradients,
      attention=args.attention,
    )
    for dtype in dtypes
  ]
  title = f'{pathlib.Path(args.weights).name}: JAX and {other.name}'
  _print(args, title, agreements)
  exact = [a.row('logits') for a in agreements if a.dtype == 'float32']
  far = any(not row.relative <= BOUND for row in exact)  # NaN is far, too
  return ExitCode.FAILED if far else ExitCode.OK


def _windows(args: argparse.Namespace, fields: dict, rules: dict) -> np.ndarray:
  """Windows of the clip, uint8 [V, F, S, S, 3]."""
  frames, size = fields.get('frames', 16), fields.get('image_size', 224)
  if args.clip:
    video = decode.read_clip(args.clip, short_side=size).frames
  else:
    options = {'size': size, 'num_frames': 4 * frames, 'difficulty': 'macro'}
    video = faces.draw_clip(0, split='test', seed=0, **options).frames
  indices = [
    sampling.test_indices(len(video), frames, rules['rate'], view, args.views)
    for view in range(args.views)
  ]
  return footage.resize_windows(video, np.array(indices), size, rules['fit'])


def _print(
  args: argparse.Namespace,
  title: str,
  agreements: Sequence[torch_compare.Agreement],
) -> None:
  if args.json:
    print(json.dumps([dataclasses.asdict(a) for a in agreements], indent=2))
    return
  for agreement in agreements:
    table = rich.table.Table(title=plain(f'{title}, {agreement.dtype}'))
    table.add_column('layer (d: its gradient)')
    for name in ('max abs', 'mean abs', 'relative', '1 - cosine'):
      table.add_column(name, justify='right', no_wrap=True)
    for row in agreement.rows:
      numbers = (row.max_abs, row.mean_abs, row.relative, 1 - row.cosine)
      table.add_row(plain(row.name), *(f'{x:.1e}' for x in numbers))
    terminal.show(table)
    terminal.say(f'{agreement.dtype}: top-1 agrees in {agreement.top1:.0%}')
    if agreement.dtype == 'float32':
      passed = agreement.row('logits').relative <= BOUND
      word = 'pass' if passed else 'FAIL'
      terminal.say(f'float32 logits within {BOUND:.0e}: {word}')
