"""Convert weights of PyTorch to a file of this package, or back.

  mira convert SRC DST.safetensors
  mira convert SRC DST.torch.safetensors

SRC is a file or folder: a checkpoint of MiRA's or VideoMAE's training (.pth,
.ckpt, under any key), a checkpoint folder of DeepSpeed, safetensors with their
names, a model folder of Hugging Face (VideoMAE, ViViT) in one part or in many,
a weights file or run of this package; or hf://OWNER/NAME[@REVISION], a model of
the Hugging Face Hub. PyTorch is not needed, and nothing in a file is run.
docs/weights.md has the details.
"""

from __future__ import annotations

import argparse
import pathlib

import rich.table

from mira_jax import terminal
from mira_jax.cli import weight_flags
from mira_jax.errors import ExitCode, MiraInputError, plain, some
from mira_jax.weights import convert, hub, sources
from mira_jax.weights.metadata import unit_thresholds
from mira_jax.weights.weights_file import compact, flatten

TORCH = '.torch.safetensors'


def add_arguments(parser: argparse.ArgumentParser):
  """Adds the files, and facts that a file may lack."""
  add = parser.add_argument
  add('source', metavar='SRC')
  add('destination', metavar='DST')
  names = f'names of the tensors (default: torch if DST ends in {TORCH})'
  add('--to', choices=('mira', 'torch'), help=names)
  weight_flags.add(parser)
  missing = 'such as head, may be missing; they start at random'
  add('--allow-missing', default='', metavar='PARTS', help=missing)
  add('--force', action='store_true', help='write over DST')


def run(args: argparse.Namespace) -> int:
  """Converts, and prints the model that was found."""
  path = pathlib.Path(args.destination)
  _check_destination(args, path)
  converted = convert.read(args.source, weight_flags.overrides(args))
  usual = 'torch' if path.name.endswith(TORCH) else 'mira'
  if (args.to or usual) == 'torch':
    convert.write_torch(path, converted)
  else:
    convert.write(path, converted)
  table = rich.table.Table(show_header=False, box=None, pad_edge=False)
  for name, text in _summary(converted).items():
    table.add_row(name, plain(text))
  terminal.show(table)
  terminal.say(*(f'note: {note}' for note in converted.notes))
  terminal.say(f'weights: {path}')
  return ExitCode.OK


def _check_destination(args: argparse.Namespace, path: pathlib.Path) -> None:
  if path.suffix != '.safetensors':
    raise MiraInputError('bad_name', path, 'end the name in .safetensors')
  if path.exists() and not hub.is_address(args.source):
    source = sources.weights_path(args.source)
    if source.exists() and path.samefile(source):
      raise MiraInputError('bad_name', path, 'it is the source')
  if path.exists() and not args.force:
    raise MiraInputError('exists', path, 'it is there already; --force')


def _summary(converted: convert.Converted) -> dict[str, str]:
  """The model, as rows of a name and a text."""
  metadata = converted.metadata
  model, names = metadata['model'], metadata['class_names']
  mira, last = model.get('mira'), model.get('mira_last_blocks')
  mode = '{mode}, {statistics}'.format(**mira) if mira else 'plain'
  slots = model['frames'] // model['tubelet']
  side = model['image_size'] // model['patch']
  size = 'width {dim}, {depth} blocks, {heads} heads'
  rows = {
    'source': converted.kind,
    'size': size.format(**model),
    'clips': '{frames} frames of {image_size} pixels'.format(**model),
    'tokens': f'{slots} x {side} x {side}',
    'mode': mode + (f', last {last} blocks' if last else ''),
    'classes' if unit_thresholds(metadata) is None else 'action units': (
      f'{len(names)}: {some(names, 12)}' if names else 'none'
    ),
  }
  if decoder := metadata.get('pretrain'):
    keys = ('dim', 'depth', 'heads')
    rows['decoder'] = size.format(**{k: decoder[f'decoder_{k}'] for k in keys})
  count = len(flatten(converted.variables)) - len(converted.missing)
  rows['taken'] = f'{count} tensors'
  for kind in ('ignored', 'missing'):
    if tensors := getattr(converted, kind):
      rows[kind] = f'{len(tensors)} tensors: {compact(tensors)}'
  return rows
