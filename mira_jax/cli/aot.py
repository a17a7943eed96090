"""Compile a training step ahead of time for a device you don't have.

  mira aot dfew:L,exact --topology v5e:16x16
  mira aot dfew:B --gpu h200 --config.model.remat=attention
  mira aot voxceleb2:B --topology v5e --scale 8,256,1024

Runs the device's own compiler on the real step, kernels included, and prints
memory, FLOPs, communication, and a step time estimated from the peaks of the
chip. No data is opened. Any field of the configuration is a flag, as in
`mira train`. Exits with 1 if the step does not fit into memory.
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
    '--topology', help='such as v5e:16x16, v5p:4x4x4 or v6e:2x4'
  )
  machine.add_argument('--gpu', choices=tuple(compilers.GPUS))
  add('--slices', type=at_least(1), default=1, help='joined by the network')
  add('--scale', metavar='CHIPS', help='chip counts, such as 8,256,1024')
  add('--batch-per-chip', type=at_least(1), metavar='CLIPS')
  add('--compiler', metavar='FOLDER', help='that holds the compiler')
  add('--install', action='store_true', help='the compiler, if it is missing')
  add('--json', action='store_true', help='print JSON instead of tables')


def run(args: argparse.Namespace) -> int:
  """Compiles, and prints a table with a column per machine."""
  cfg, targets = _config(args), _targets(args)
  platform = targets[0].platform
  compiler = compilers.find(platform, args.compiler, fetch=args.install)
  compilers.load(platform, compiler)
  console = rich.console.Console(stderr=args.json)
  reports = []
  for target in targets:
    own = copy.deepcopy(cfg)
    source = _set_batch(own, target, args.batch_per_chip, bool(args.scale))
    with console.status(f'compiling for {target}'):
      try:
        report = measure.measure(own, target)
      except jax.errors.JaxRuntimeError as error:
        hint = f'the compiler failed: {str(error).splitlines()[0]}'
        raise MiraInputError(
          'not_compiled', str(target), hint, exit_code=ExitCode.FAILED
        ) from error
    report |= {'config': args.config, 'flags': args.flags}
    reports.append(report | {'batch_source': source})
  if args.json:
    print(json.dumps(reports if args.scale else reports[0], indent=2))
  else:
    _print(console, reports)
  fits = all(x['memory']['fits'] for x in reports)
  return ExitCode.OK if fits else ExitCode.FAILED


def _config(args: argparse.Namespace) -> config.Config:
  cfg = config.load(args.config, args.flags)
  if cfg.pretrain is None:
    cfg.model.num_classes = cfg.model.num_classes or CLASSES
  return cfg


def _targets(args: argparse.Namespace) -> list[Target]:
  if args.gpu:
    if args.scale or args.slices > 1:
      hint = 'only one GPU is compiled for; name a --topology instead'
      raise MiraInputError('bad_flag', '--gpu', hint)
    return [Target('cuda', args.gpu)]
  if not args.scale:
    return [compilers.tpu(args.topology, args.slices)]
  kind = args.topology.partition(':')[0]
  try:
    numbers = [int(x) for x in args.scale.split(',')]
  except ValueError as error:
    hint = 'give chip counts separated by commas, such as 8,256'
    raise MiraInputError('bad_scale', args.scale, hint) from error
  return [compilers.tpu_of(kind, x) for x in numbers]


def _set_batch(
  cfg: config.Config, target: Target, per_chip: int | None, scale: bool
) -> str:
  """Sets the batch; returns its source."""
  before = cfg.data.batch_size
  parts = target.devices // cfg.mesh.model * cfg.optim.accumulate
  default = PER_CHIP[cfg.pretrain is not None]
  if per_chip is None and not scale and before % parts == 0:
    return "the configuration's"
  cfg.data.batch_size = (per_chip or default) * target.chips
  if per_chip or scale:
    return f'{per_chip or default} per chip'
  return f"{default} per chip: the configuration's {before} does not divide"


# ----- output -----------------------------------------------------------------


def _print(console: rich.console.Console, reports: list[dict]) -> None:
  title = ' '.join([reports[0]['config'], *reports[0]['flags']])
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
    'Sizes are per device; times are estimated from peaks, and measured steps '
    'are slower.'
  )


def _rows(report: dict) -> Iterator[tuple[str, str]]:
  """Name and value of each line."""
  memory, flops, guess = (report[x] for x in ('memory', 'flops', 'estimate'))
  yield 'devices', report['devices']
  yield 'attention', report['attention']
  yield 'clips', f'{report["batch"]} ({report["batch_source"]})'
  for name in ('arguments', 'temporaries', 'outputs', 'aliased', 'peak'):
    if memory.get(name) is not None:
      yield f'GiB {name}', f'{memory[name] / 2**30:.2f}'
  verdict = 'fits' if memory['fits'] else 'DOES NOT FIT'
  yield f'GiB of {report["chip"]}', f'{memory["hbm"] / 2**30:.2f}: {verdict}'
  yield 'TFLOP of the model', f'{flops["model"] / 1e12:.3f}'
  yield 'TFLOP computed', f'{flops["hardware"] / 1e12:.3f}'
  for name, count in flops['by_name'].items():
    if count > flops['hardware'] / 1000:
      yield f'  {name}', f'{count / 1e12:.3f}'
  if guess is None:
    yield 'the compiler', report['memory']['message']
    return
  for x in report['collectives']:
    yield f'MB {x["kind"]}', f'{x["bytes"] / 1e6:.2f} over {x["group"]}'
  for name in ('compute', 'memory', 'collectives', 'seconds'):
    label = 'step' if name == 'seconds' else name
    yield f'ms {label}', f'{1e3 * guess[name]:.1f}'
  rate = report['batch'] / guess['seconds'] / report['chips']
  yield 'clips/s per chip', f'{rate:.1f}'
  yield 'utilisation', f'{guess["utilisation"]:.1%}, bound by {guess["bound"]}'
