"""List the known datasets, and the prepared ones.

  mira datasets [--data-dir data]

`mira prepare NAME --help` shows the folders of a download.
"""

from __future__ import annotations

import argparse
import pathlib

import rich.box
import rich.table

from mira_jax import terminal
from mira_jax.data import dataset
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.prepare.builders import BUILDERS, Builder

GIVES_RESULT = True  # to programs, by --json
_COLUMNS = ('name', 'clips', 'classes', 'protocol', 'licence')


def add_arguments(parser: argparse.ArgumentParser):
  """Adds the folder of prepared datasets."""
  folder = 'of prepared datasets'
  parser.add_argument('--data-dir', default='data', help=folder)


def run(args: argparse.Namespace) -> int:
  """Prints a table of the known datasets, and the prepared ones."""
  here = _prepared(pathlib.Path(args.data_dir))
  table = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1))
  for column in (*_COLUMNS, 'here'):
    right = column in ('clips', 'classes')
    table.add_column(column, justify='right' if right else 'left')
  for builder in BUILDERS.values():
    # Such as dfew, or dfew_16f.
    names = [f'{prepared.name}_' for prepared in here]
    is_here = any(name.startswith(f'{builder.name}_') for name in names)
    table.add_row(*_row(builder), 'yes' if is_here else '')
  terminal.show(table)
  for builder in BUILDERS.values():
    terminal.say(f'{builder.name}: {builder.title}, ask at {builder.ask}')
    terminal.say(f'  {", ".join(builder.action_units or builder.class_names)}')
  terminal.result(
    {
      'known': [
        dict(zip(_COLUMNS, _row(builder), strict=True))
        for builder in BUILDERS.values()
      ],
      'here': [
        {
          'name': x.name,
          'splits': x.splits,
          'action_units': list(x.action_units),
          'directory': str(x.directory),
        }
        for x in here
      ],
    }
  )
  for prepared in here:
    splits = ', '.join(f'{name} {n}' for name, n in prepared.splits.items())
    if units := len(prepared.action_units):
      splits += f', {units} action units'
    terminal.say(f'here: {prepared.name}, {splits}: {prepared.directory}')
  return ExitCode.OK


def _row(builder: Builder) -> tuple[str, ...]:
  counts, classes = builder.counts, str(len(builder.class_names))
  splits = sum(counts.get(split, 0) for split in ('train', 'val', 'test'))
  count = counts.get('all') or splits
  clips = f'{count:,}'.replace(',', ' ') if count else ''
  if builder.action_units:
    classes = f'{len(builder.action_units)} AUs'
  return builder.name, clips, classes, builder.protocol, builder.licence


def _prepared(folder: pathlib.Path) -> list[dataset.PreparedDataset]:
  """The datasets one or two levels below a folder."""
  found = {}
  for out in sorted([*folder.glob('*/'), *folder.glob('*/*/')]):
    try:
      prepared = dataset.open(out)
    except MiraInputError:  # not a dataset, or a folder of several
      continue
    found[prepared.directory] = prepared
  return [*found.values()]
