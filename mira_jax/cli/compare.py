"""Compare numbers with the reference's, or with PyTorch's of today.

  mira compare golden DIR
  mira compare torch [--weights FILE] [--clip CLIP ...] [--gradients]
  mira compare torch [--weights FILE] [--clip CLIP ...] --train N

`golden` runs every golden case of DIR (cases.json and NAME.npz files with
inputs, outputs and gradients of the PyTorch reference; no PyTorch needed).
`torch` gives the same weights and clips to an independent PyTorch model in this
process and shows, layer by layer, how far apart the two are. With --train, both
are trained for N steps, and each step is compared. All exit with 1 if any
quantity falls short of its bound.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict

import rich.table
import rich.text

from mira_jax import terminal
from mira_jax.cli import compare_torch
from mira_jax.cli.arguments import Help
from mira_jax.errors import ExitCode, MiraInputError, plain
from mira_jax.kernels import dispatch
from mira_jax.parity import golden


def add_arguments(parser: argparse.ArgumentParser):
  """Adds `golden DIR`, `torch` and their options."""
  kinds = parser.add_subparsers(dest='kind', required=True)
  ours = kinds.add_parser('golden', help='arrays of the reference')
  add = ours.add_argument
  add('directory', metavar='DIR')
  add('--dtype', choices=('float64', 'float32'), default='float64')
  add('--attention', choices=dispatch.IMPLEMENTATIONS, default='reference')
  add('--case', action='append', help='only this one; may be repeated')
  add('--brief', action='store_true', help='only the worst of each case')
  torch = kinds.add_parser('torch', help='a PyTorch model in this process')
  for kind in (ours, torch):
    kind.formatter_class = Help
  compare_torch.add_arguments(torch)


def run(args: argparse.Namespace) -> int:
  """Prints tables; 0 if every quantity passed."""
  if args.kind == 'torch':
    return compare_torch.run(args)
  cases = golden.read_cases(args.directory)
  if args.case:
    names = [case['name'] for case in cases]
    for unknown in set(args.case) - set(names):
      raise MiraInputError(
        'unknown_case', unknown, f'choose from {", ".join(names)}'
      )
    cases = [case for case in cases if case['name'] in args.case]
  console = terminal.console()
  counts = defaultdict(int)
  table = _table(f'{args.directory}, {args.dtype}, {args.attention}')
  for case in cases:
    with console.status(rich.text.Text(plain(case['name']))):
      checks = golden.run_case(args.directory, case, args.dtype, args.attention)
    for check in checks:
      counts[check.passed] += 1
    for check in [max(checks, key=_shortfall)] if args.brief else checks:
      _add(table, check)
  console.print(table)
  console.print(
    f'{sum(counts.values())} quantities in {len(cases)} cases: '
    f'{counts[True]} pass, {counts[False]} fail'
  )
  return ExitCode.FAILED if counts[False] else ExitCode.OK


def _shortfall(check: golden.Check) -> float:
  known = math.isfinite(check.relative) and check.bound
  return check.relative / check.bound if known else math.inf


def _table(title: str) -> rich.table.Table:
  table = rich.table.Table(title=plain(title))
  for name in ('case', 'quantity'):
    table.add_column(name, overflow='fold')
  for name in ('max abs', 'relative', 'bound', ''):
    table.add_column(name, justify='right', no_wrap=True)
  return table


def _add(table: rich.table.Table, check: golden.Check):
  numbers = (
    f'{check.max_abs:.1e}',
    f'{check.relative:.1e}',
    f'{check.bound:.0e}',
  )
  passed = 'pass' if check.passed else rich.text.Text('FAIL', 'bold red')
  table.add_row(plain(check.case), plain(check.quantity), *numbers, passed)
