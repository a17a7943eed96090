"""List the datasets of the field, and which of them are prepared here.

  mira datasets [--data-dir data]

`mira prepare NAME --help` shows the tree of folders of a download.
"""

from __future__ import annotations

import argparse
import pathlib

import rich.box
import rich.console
import rich.table

from mira_jax.data import dataset
from mira_jax.data.builders import BUILDERS, Builder
from mira_jax.errors import ExitCode, MiraInputError


def add_arguments(parser: argparse.ArgumentParser):
  """Adds where prepared datasets lie."""
  parser.add_argument(
    '--data-dir', default='data', help='folder of prepared datasets'
  )


def run(args: argparse.Namespace) -> int:
  """Prints one row per dataset, and where to ask for each."""
  here = _prepared(pathlib.Path(args.data_dir))
  table = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1))
  columns = ('name', 'clips', 'classes', 'protocol', 'licence', 'prepared here')
  for column in columns:
    table.add_column(
      column, justify='right' if column in ('clips', 'classes') else 'left'
    )
  for builder in BUILDERS.values():
    table.add_row(*_row(builder, here))
  for name in here.keys() - {n for b in BUILDERS for n in _names(b, here)}:
    prepared = here[name]
    clips, classes = sum(prepared.splits.values()), len(prepared.class_names)
    where = f'{_splits(prepared)} ({prepared.directory.parents[1]})'
    table.add_row(name, str(clips), str(classes), '', '', where)
  console = rich.console.Console(soft_wrap=False)
  console.print(table)
  for builder in BUILDERS.values():
    print(f'{builder.name:10} {builder.title:18} {builder.ask}')
    print(f'{"":10} {", ".join(builder.class_names)}')
  return ExitCode.OK


def _row(builder: Builder, here: dict[str, dataset.PreparedDataset]):
  clips = builder.counts.get('all') or sum(
    builder.counts.get(split, 0) for split in ('train', 'val', 'test')
  )
  found = [
    f'{_splits(here[name])} ({here[name].directory.parents[1]})'
    for name in _names(builder.name, here)
  ]
  return (
    builder.name,
    f'{clips:,}'.replace(',', ' '),
    str(len(builder.class_names)),
    builder.protocol,
    builder.licence,
    '\n'.join(found),
  )


def _names(builder: str, here: dict[str, dataset.PreparedDataset]) -> list[str]:
  """Prepared datasets of a builder, such as dfew and dfew_16f."""
  return [n for n in here if n == builder or n.startswith(f'{builder}_')]


def _splits(prepared: dataset.PreparedDataset) -> str:
  return ', '.join(f'{name} {n}' for name, n in prepared.splits.items())


def _prepared(folder: pathlib.Path) -> dict[str, dataset.PreparedDataset]:
  """The datasets one or two levels below a folder, by name."""
  found = {}
  for out in sorted([*folder.glob('*/'), *folder.glob('*/*/')]):
    try:
      prepared = dataset.open(out)
    except MiraInputError:  # not a dataset, or a folder of several
      continue
    found.setdefault(prepared.name, prepared)
  return found
