"""Compile a training step ahead of time for a device you don't have.

  mira aot dfew:L,exact --topology v5e:16x16
  mira aot dfew:B --gpu h200 --config.model.remat=attention
  mira aot voxceleb2:B --topology v5e:2x4,v5e:16x16

Runs the device's own compiler on the real step, kernels included, and prints
memory, FLOPs, communication, the least time of a step at the peaks of the chip,
and an estimate with attention as its kernels are compiled. No data is opened.
Any field of the configuration is a flag, as in `mira train`. Exits with 1 if
the step does not fit into memory.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator

import jax
import rich.box
import rich.console
import rich.table

from mira_jax import config
from mira_jax.aot import compilers, measure
from mira_jax.aot.compilers import Target
from mira_jax.cli.arguments import at_least
from mira_jax.errors import ExitCode, MiraInputError, plain

TAKES_CONFIG_FLAGS = True  # see `cli.main`
CLASSES = 7  # where the configuration leaves them to the dataset
# Clips per chip where the configuration's batch does not divide: of
# fine-tuning, and of pre-training, whose encoder sees a tenth of the tokens.
PER_CHIP = {False: 4, True: 16}
TO_SAVE_MEMORY = (
  'To save memory, try in this order: --config.model.remat=linear, attention, '
  'full; --config.mesh.fsdp=8; --config.optim.accumulate=2, 4, 8.'
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the configuration, the machine and the compiler."""
  add = parser.add_argument
  add('config', metavar='CONFIG', help='name or file, such as dfew:B')
  machine = parser.add_mutually_exclusive_group(required=True)
  machine.add_argument(
    '--topology', help='such as v5e:16x16, v5p:4x4x4 or v6e:2x4,v6e:16x16'
  )
  machine.add_argument('--gpu', choices=tuple(compilers.GPUS))
  add('--slices', type=at_least(1), default=1, help='joined by the network')
  add('--batch-per-chip', type=at_least(1), metavar='CLIPS')
  add('--compiler', metavar='FOLDER', help='that holds the compiler')
  add('--json', action='store_true', help='print JSON instead of a table')


def run(args: argparse.Namespace) -> int:
  """Compiles, and prints a table with a column per machine."""
  cfg = config.load(args.config, args.flags)
  if cfg.pretrain is None:
    cfg.model.num_classes = cfg.model.num_classes or CLASSES
  targets = [Target('cuda', args.gpu)]
  if not args.gpu:
    names = args.topology.split(',')
    targets = [compilers.tpu(name, args.slices) for name in names]
  platform = targets[0].platform
  compilers.load(platform, compilers.find(platform, args.compiler))
  console = rich.console.Console(stderr=args.json)
  reports = []
  for target in targets:
    own = copy.deepcopy(cfg)
    source = _set_batch(own, target.chips, args.batch_per_chip)
    with console.status(f'compiling for {target}'):
      try:
        report = measure.measure(own, target)
      except jax.errors.JaxRuntimeError as error:
        hint = f'the compiler failed: {str(error).splitlines()[0]}'
        raise MiraInputError(
          'not_compiled', str(target), hint, exit_code=ExitCode.FAILED
        ) from error
    reports.append(report | {'batch_source': source})
  if args.json:
    print(json.dumps(reports, indent=2))
  else:
    _print(console, reports, ' '.join([args.config, *args.flags]))
  fits = all(x['memory']['fits'] for x in reports)
  return ExitCode.OK if fits else ExitCode.FAILED


def _set_batch(cfg: config.Config, chips: int, per_chip: int | None) -> str:
  """Sets the batch; returns its source."""
  parts = chips // cfg.mesh.model * cfg.optim.accumulate
  if per_chip is None and cfg.data.batch_size % parts == 0:
    return "the configuration's"
  per_chip = per_chip or PER_CHIP[cfg.pretrain is not None]
  cfg.data.batch_size = per_chip * chips
  return f'{per_chip} per chip'


# ----- output -----------------------------------------------------------------


def _print(
  console: rich.console.Console, reports: list[dict], title: str
) -> None:
  table = rich.table.Table(title=plain(title), box=rich.box.SIMPLE_HEAD)
  table.add_column('')
  columns = [dict(_rows(report)) for report in reports]
  for report in reports:
    table.add_column(report['machine'], justify='right', overflow='fold')
  names = {name: None for column in columns for name in column}
  for name in names:
    table.add_row(name, *(column.get(name, '') for column in columns))
  console.print(table, highlight=False)
  if not all(report['memory']['fits'] for report in reports):
    console.print(TO_SAVE_MEMORY)
  console.print(
    'Sizes are per device. No step is faster than "at least"; the estimate '
    'takes attention at the static speed of its kernels and the other products '
    'at peak, and measured steps are slower.'
  )


def _rows(report: dict) -> Iterator[tuple[str, str]]:
  """Name and value of each line."""
  memory, least = report['memory'], report['bound']
  yield 'devices', report['devices']
  yield 'attention', report['attention']
  yield 'clips', f'{report["batch"]} ({report["batch_source"]})'
  for name in ('arguments', 'temporaries', 'outputs', 'aliased', 'peak'):
    if name in memory:
      yield f'GiB {name}', f'{memory[name] / 2**30:.2f}'
  verdict = 'fits' if memory['fits'] else 'DOES NOT FIT'
  yield f'GiB of {report["chip"]}', f'{memory["hbm"] / 2**30:.2f}: {verdict}'
  yield 'TFLOP', f'{report["flops"] / 1e12:.3f}'
  for name, count in report['flops_by_name'].items():
    if count > report['flops'] / 1000:
      yield f'  {name}', f'{count / 1e12:.3f}'
  if least is None:
    yield 'the compiler', memory['message']
    return
  for x in report['collectives']:
    yield f'MB {x["kind"]}', f'{x["bytes"] / 1e6:.2f} over {x["group"]}'
  clips = report['batch'] / report['chips']
  yield 'ms compute, at peak', _ms(least['compute'])
  yield 'ms collectives', _ms(least['collectives'])
  yield 'ms step, at least', _ms(least['seconds'])
  yield 'clips/s per chip, at most', f'{clips / least["seconds"]:.1f}'
  if (estimate := report['estimate']) is None:
    return
  yield 'ms other products, at peak', _ms(estimate['products'])
  for x in estimate['kernels']:
    rate = f'{x["tflops"]} TFLOP/s of {x["rate_of"]}'
    yield f'ms {x["kernel"]}', f'{_ms(x["seconds"])}: {rate}'
  yield 'ms step, estimated', _ms(estimate['seconds'])
  yield (
    'clips/s per chip, estimated',
    f'{clips / estimate["seconds"]:.1f}',
  )


def _ms(seconds: float) -> str:
  return f'{1e3 * seconds:.1f}'
