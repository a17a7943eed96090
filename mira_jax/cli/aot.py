"""Compile a configuration's train step for a machine that is not there.

  mira aot configs/dfew.py:L,exact --topology v5e:16x16
  mira aot configs/dfew.py:B --gpu h200 --config.model.remat=attention
  mira aot configs/voxceleb2.py:B --topology v5e --scale 8,256,1024

The real compiler makes the real program, kernels included, and this prints what
it needs: memory, FLOPs, communication, and an estimate of the time from the
peaks of the chip. No data is opened. Any field of the configuration is a flag,
as in train.py. Exits with 1 if the step does not fit into the memory.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import pathlib

import rich.box
import rich.console
import rich.table
from absl import flags
from ml_collections import config_flags

from mira_jax import config
from mira_jax.aot import compilers, measure
from mira_jax.aot.compilers import Target
from mira_jax.cli import flags as cli_flags
from mira_jax.cli.arguments import at_least
from mira_jax.errors import ExitCode, MiraInputError

TAKES_CONFIG_FLAGS = True  # see `cli.main`
CLASSES = 7  # where the configuration leaves them to the dataset
# Clips per chip where the configuration's batch does not divide: of
# fine-tuning, and of pre-training, whose encoder sees a tenth of the tokens.
PER_CHIP = {False: 4, True: 16}


def add_arguments(parser: argparse.ArgumentParser):
  """Adds the configuration, the machine and the compiler."""
  parser.add_argument('config', metavar='CONFIG', help='FILE or FILE:ARGUMENT')
  machine = parser.add_mutually_exclusive_group(required=True)
  machine.add_argument(
    '--topology', help='such as v5e:16x16, v5p:4x4x4 or v6e:2x4'
  )
  machine.add_argument('--gpu', choices=tuple(compilers.GPUS))
  parser.add_argument(
    '--slices', type=at_least(1), default=1, help='joined by the network'
  )
  parser.add_argument(
    '--scale', metavar='CHIPS', help='numbers of chips, such as 8,256,1024'
  )
  parser.add_argument(
    '--batch-per-chip', type=at_least(1), metavar='CLIPS', help='of the batch'
  )
  parser.add_argument('--compiler', metavar='FOLDER', help='where it is')
  parser.add_argument(
    '--install', action='store_true', help='the compiler, if it is missing'
  )
  parser.add_argument(
    '--json', action='store_true', help='print JSON instead of tables'
  )


def run(args: argparse.Namespace) -> int:
  """Compiles, and prints what came of it."""
  cfg = _config(args)
  targets = _targets(args)
  compiler = _compiler(args, targets[0].platform)
  console = rich.console.Console(stderr=args.json)
  reports = []
  for target in targets:
    own = copy.deepcopy(cfg)
    told = _set_batch(own, target, args.batch_per_chip, bool(args.scale))
    config.validate(own, target.devices)
    with console.status(f'compiling for {target}'):
      report = measure.measure(own, target, compiler)
    report |= {'config': args.config, 'flags': args.flags, 'batch_told': told}
    if not args.scale and not report['memory']['fits']:
      report['hints'] = _hints(console, own, target, compiler)
    reports.append(report)
  if args.json:
    print(json.dumps(reports if args.scale else reports[0], indent=2))
  elif args.scale:
    console.print(_scale_table(args, reports))
  else:
    _print(console, own, reports[0])
  fits = all(x['memory']['fits'] for x in reports)
  return ExitCode.OK if fits else ExitCode.FAILED


# ----- what is asked ----------------------------------------------------------


def _config(args: argparse.Namespace) -> config.Config:
  config.find_neighbours(args.config.partition(':')[0])
  argv = ['mira aot', f'--config={args.config}', *args.flags]
  values = flags.FlagValues()
  config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=argv)
  cli_flags.parse_flags(argv, values)
  cfg = values.config
  if cfg.pretrain is None:
    cfg.model.num_classes = cfg.model.num_classes or CLASSES
  return cfg


def _targets(args: argparse.Namespace) -> list[Target]:
  if args.gpu:
    if args.scale or args.slices > 1:
      hint = 'a GPU is compiled for alone; name a --topology instead'
      raise MiraInputError('bad_flag', '--gpu', hint)
    return [Target('cuda', args.gpu)]
  if not args.scale:
    return [compilers.tpu(args.topology, args.slices)]
  kind = args.topology.partition(':')[0]
  try:
    numbers = [int(x) for x in args.scale.split(',')]
  except ValueError as error:
    hint = 'give numbers of chips with commas between, such as 8,256'
    raise MiraInputError('bad_scale', args.scale, hint) from error
  return [compilers.tpu_of(kind, x) for x in numbers]


def _compiler(args: argparse.Namespace, platform: str) -> pathlib.Path | None:
  if args.install:
    try:
      return compilers.find(platform, args.compiler)
    except MiraInputError:
      folder = args.compiler or os.environ.get(compilers.VARIABLES[platform])
      compilers.install(platform, folder or compilers.cache(platform))
  return compilers.find(platform, args.compiler)


def _set_batch(
  cfg: config.Config, target: Target, per_chip: int | None, scale: bool
) -> str:
  """Sets the batch; returns how it was chosen."""
  before = cfg.data.batch_size
  parts = target.devices // cfg.mesh.model * cfg.optim.accumulate
  default = PER_CHIP[cfg.pretrain is not None]
  if per_chip is None and not scale and before % parts == 0:
    return "the configuration's"
  cfg.data.batch_size = (per_chip or default) * target.chips
  if per_chip:
    return f'{per_chip} per chip, as asked'
  if scale:
    return f'{default} per chip, the default of --scale'
  return f"{default} per chip: the configuration's {before} does not divide"


def _hints(
  console: rich.console.Console,
  cfg: config.Config,
  target: Target,
  compiler: pathlib.Path | None,
) -> list[dict]:
  """Compiles what needs less memory, until it fits."""
  tried = []
  for names, other in measure.alternatives(cfg, target.devices):
    with console.status(f'it does not fit; trying {" ".join(names)}'):
      memory = measure.measure(other, target, compiler)['memory']
    tried.append({'flags': names} | memory)
    if memory['fits']:
      break
  return tried


# ----- what is printed --------------------------------------------------------


def _print(
  console: rich.console.Console, cfg: config.Config, report: dict
) -> None:
  console.print(_summary(cfg, report))
  console.print(_memory_table(report))
  if report['estimate'] is None:
    return
  console.print(_flops_table(report))
  if report['collectives']:
    console.print(_collectives_table(report))
  console.print(_estimate_text(report), highlight=False)


def _summary(cfg: config.Config, report: dict) -> rich.table.Table:
  mode = cfg.model.mira.mode if cfg.model.mira else 'plain'
  model = cfg.model
  what = 'pre-training' if cfg.pretrain else f'{model.num_classes} classes'
  rows = {
    'configuration': ' '.join([report['config'], *report['flags']]),
    'model': f'{model.depth} blocks of {model.dim}, {mode}, {what}, '
    f'remat {model.remat}, scan {model.scan}',
    'batch': f'{report["batch"]} clips ({report["batch_told"]})',
    'machine': f'{report["machine"]}: {report["devices"]}',
    'attention': report['attention'],
    'compiled in': f'{report["compile_seconds"]:.0f} s, after '
    f'{report["trace_seconds"]:.0f} s of tracing',
  }
  table = rich.table.Table(box=None, show_header=False, padding=(0, 1))
  for name, text in rows.items():
    table.add_row(name, text)
  for warning in report['warnings']:
    table.add_row('[red]warning', warning)
  return table


def _columns(title: str, *names: str) -> rich.table.Table:
  table = rich.table.Table(
    title=title, title_justify='left', box=rich.box.SIMPLE_HEAD
  )
  for i, name in enumerate(names):
    table.add_column(name, justify='right' if i else 'left')
  return table


def _memory_table(report: dict) -> rich.table.Table:
  memory = report['memory']
  table = _columns('memory of a device', 'what', 'GiB')
  for name in ('arguments', 'temporaries', 'outputs', 'aliased'):
    sign = '-' if name == 'aliased' else ''
    table.add_row(name, sign + _gib(memory[name]))
  table.add_row('peak', _gib(memory['peak']), end_section=True)
  table.add_row(f'of {report["chip"]}', _gib(memory['hbm']))
  verdict = '[green]it fits' if memory['fits'] else '[bold red]it does not fit'
  table.add_row(verdict, '')
  for hint in report.get('hints', ()):
    fits = '[green]fits' if hint['fits'] else 'does not fit'
    table.add_row(f'{" ".join(hint["flags"])} {fits}', _gib(hint['peak']))
  return table


def _gib(size: int | None) -> str:
  return '?' if size is None else f'{size / 2**30:.2f}'


def _flops_table(report: dict) -> rich.table.Table:
  flops = report['flops']
  table = _columns('FLOPs of a device', 'what', 'TFLOP')
  table.add_row('that the model needs', f'{flops["model"] / 1e12:.3f}')
  table.add_row('that are computed', f'{flops["hardware"] / 1e12:.3f}')
  for name, count in flops['by_name'].items():
    if count > flops['hardware'] / 1000:
      table.add_row(f'  {name}', f'{count / 1e12:.3f}')
  return table


def _collectives_table(report: dict) -> rich.table.Table:
  names = ('collective', 'devices', 'times', 'MB per device')
  table = _columns('communication of a step', *names)
  for x in report['collectives']:
    sizes = str(x['group']), str(x['count']), f'{x["bytes"] / 1e6:.2f}'
    table.add_row(x['kind'], *sizes)
  return table


def _estimate_text(report: dict) -> str:
  guess = report['estimate']
  parts = ', '.join(
    f'{name} {1e3 * guess[name]:.1f} ms'
    for name in ('compute', 'memory', 'collectives')
  )
  return (
    f'estimate from the peaks of a {report["chip"]}, not a measurement: '
    f'{1e3 * guess["seconds"]:.1f} ms a step ({parts}; bound by '
    f'{guess["bound"]}), {report["batch"] / guess["seconds"]:.0f} clips/s, '
    f'{guess["utilisation"]:.0%} of the peak. Real steps are slower.'
  )


def _scale_table(args: argparse.Namespace, reports: list[dict]):
  table = _columns(
    f'{args.config} {" ".join(args.flags)}: {reports[0]["batch_told"]}; times '
    'are estimates from peaks',
    'machine',
    'chips',
    'batch',
    'GiB',
    'TFLOP',
    'MB sent',
    'ms',
    'clips/s/chip',
    'efficiency',
  )
  rates = [_rate(x) for x in reports]
  for report, rate in zip(reports, rates, strict=True):
    memory, guess = report['memory'], report['estimate']
    fits = '' if memory['fits'] else ' (does not fit)'
    sent = sum(x['bytes'] for x in report['collectives'] or ())
    table.add_row(
      report['machine'] + fits,
      str(report['chips']),
      str(report['batch']),
      _gib(memory['peak']),
      f'{report["flops"]["hardware"] / 1e12:.2f}',
      f'{sent / 1e6:.1f}' if guess else '',
      f'{1e3 * guess["seconds"]:.1f}' if guess else '',
      f'{rate:.1f}' if guess else '',
      f'{rate / rates[0]:.1%}' if guess and rates[0] else '',
    )
  return table


def _rate(report: dict) -> float:
  """Clips per second and chip."""
  if report['estimate'] is None:
    return 0.0
  return report['batch'] / report['estimate']['seconds'] / report['chips']
