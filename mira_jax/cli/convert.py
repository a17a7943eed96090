"""Turn weights of PyTorch into a file of this package, or back.

  mira convert SRC DST.safetensors
  mira convert SRC DST.torch.safetensors

SRC is a file or folder: what MiRA's or VideoMAE's training saved (.pth, .ckpt,
under any key), a checkpoint folder of DeepSpeed, safetensors with their names,
a model folder of Hugging Face (VideoMAE, ViViT) in one part or in many, a
weights file or run of this package. PyTorch is not needed, and nothing in a
file is run. docs/weights.md has the details.
"""

from __future__ import annotations

import argparse
import pathlib

import rich.console
import rich.table

from mira_jax import terminal
from mira_jax.cli import weight_flags
from mira_jax.errors import ExitCode, MiraInputError, plain
from mira_jax.weights import convert, sources

TORCH = '.torch.safetensors'


def add_arguments(parser: argparse.ArgumentParser):
  """Adds the files, and what a file may not tell."""
  parser.add_argument('source', metavar='SRC')
  parser.add_argument('destination', metavar='DST')
  parser.add_argument(
    '--to',
    choices=('mira', 'torch'),
    help=f'names of the tensors (default: torch if DST ends in {TORCH})',
  )
  weight_flags.add(parser)
  parser.add_argument(
    '--allow-missing',
    default='',
    metavar='PARTS',
    help='parts that may be missing, such as head; they start anew',
  )
  parser.add_argument('--force', action='store_true', help='write over DST')


def run(args: argparse.Namespace) -> int:
  """Converts, and tells what was recognised."""
  path = pathlib.Path(args.destination)
  to_torch = args.to == 'torch' or (
    args.to is None and path.name.endswith(TORCH)
  )
  _check_destination(args, path)
  converted = convert.read(args.source, weight_flags.wishes(args))
  write = convert.write_torch if to_torch else convert.write
  write(path, converted)
  _tell(converted)
  terminal.say(f'{"PyTorch names" if to_torch else "weights"}: {path}')
  return ExitCode.OK


def _check_destination(args: argparse.Namespace, path: pathlib.Path) -> None:
  if path.suffix != '.safetensors':
    raise MiraInputError('bad_name', path, 'end the name in .safetensors')
  source = sources.weights_path(args.source)
  if path.exists() and source.exists() and path.samefile(source):
    raise MiraInputError('bad_name', path, 'it is what is to be converted')
  if path.exists() and not args.force:
    raise MiraInputError('exists', path, 'it is there already; --force')


def _tell(converted: convert.Converted) -> None:
  table = rich.table.Table(show_header=False, box=None, pad_edge=False)
  for name, text in convert.summary(converted):
    table.add_row(name, plain(text))
  terminal.show(table)
  for remark in converted.remarks:
    terminal.say(f'note: {remark}')
