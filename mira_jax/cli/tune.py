"""Find the fastest attention for a configuration on this machine.

  mira tune dfew:B,exact
  mira tune --device=cpu --out=times.json

Times every implementation, and every tuning of ours, at the configuration's own
shapes, forward and with gradients, each in a child with a limit. The fastest
are kept in the cache, where all commands find them. Any field of the
configuration is a flag, as in `mira train`.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

import rich.box
import rich.table

from mira_jax import config, files, terminal
from mira_jax.cli.arguments import at_least
from mira_jax.devices import platform
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.kernels import dispatch
from mira_jax.kernels.records import Row
from mira_jax.models import build as models
from mira_jax.train import build
from mira_jax.tuning import tune, verdicts
from mira_jax.tuning.child import ChildError

TAKES_CONFIG_FLAGS = True  # see `cli.main`
# Numbers in the maps of a batch, at most, on a CPU: a clip of ViT-B. More take
# longer and tell no more.
MAPS = 2**25


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the configuration, the device and the file to write."""
  add = parser.add_argument
  text = 'name or file, such as dfew:B'
  add('config', nargs='?', default='quickstart', metavar='CONFIG', help=text)
  platform.add_argument(parser)
  out = 'file of the times, to be shipped as mira_jax/kernels/tuned/KIND.json'
  add('--out', metavar='FILE.json', help=out)
  budget = 'seconds, after which tunings are no longer tried'
  add('--budget', metavar='S', type=at_least(1), default=900, help=budget)


def run(args: argparse.Namespace) -> int:
  """Prints what is tried, and a table."""
  cfg = config.load(args.config, args.flags)
  if cfg.pretrain is None:
    cfg.model.num_classes = cfg.model.num_classes or 2  # of no matter here
  config.validate(cfg, devices=None)
  try:
    found, count = tune.devices(args.device)
  except ChildError as error:
    asked = f'--device={args.device}' if args.device else 'default device'
    hint = f'it does not start: {error}'
    raise MiraInputError('no_device', asked, hint) from error
  device = verdicts.device_name(found)
  requests = _requests(cfg, found, count)
  kept = verdicts.times_path(device)
  if args.out:
    files.open_folder(pathlib.Path(args.out).parent)
  rows: list[Row] = []
  with files.lock(kept.with_suffix('.lock')):  # others would slow this down
    terminal.say(f'tunes attention on {device}')
    for row in tune.tune(requests, args.budget, _report):
      rows.append(row)  # kept at once: what comes may take long, and Ctrl-C
      old = _others(verdicts.read_times(device), rows)
      files.write_text(kept, tune.as_json(device, [*rows, *old]))
  for i in range(0, len(rows), 2):  # forward, and with gradients
    terminal.show(_table(rows[i : i + 2]))
  terminal.say(f'times: {kept}')
  if args.out:
    files.write_text(args.out, tune.as_json(device, rows))
    terminal.say(f'times: {args.out}')
  return ExitCode.OK


def _requests(
  cfg: config.Config, target: dispatch.Target, count: int
) -> list[dispatch.Request]:
  """What the model asks of attention on each of `count` devices, each once."""
  fields = dataclasses.asdict(cfg.model)
  model = models.build_model(fields)
  if cfg.pretrain:
    decoder = dataclasses.asdict(cfg.pretrain)
    decoder = {n: x for n, x in decoder.items() if n.startswith('decoder_')}
    model = models.build_autoencoder(fields, decoder)
  requests = []
  for call in build.attention_calls(cfg, model):
    batch, length, heads, width = call.shape
    split = cfg.mesh.model if heads % cfg.mesh.model == 0 else 1
    heads, parts = heads // split, max(1, count // cfg.mesh.model)
    batch = batch if batch % parts else batch // parts
    if target.platform == 'cpu':
      batch = max(1, min(batch, MAPS // (heads * length**2)))
    shape = batch, length, heads, width
    requests.append(dispatch.Request(shape, call.dtype, call.mode, target))
  return list(dict.fromkeys(requests))


def _others(old: Sequence[Row], new: Sequence[Row]) -> Iterator[Row]:
  """Old rows that no new one replaces."""

  def key(row: Row) -> tuple:
    return row.shape, row.dtype, row.mode, row.training

  replaced = {key(row) for row in new}
  return (row for row in old if key(row) not in replaced)


def _report(line: str) -> None:
  terminal.say(f'  {line}')


def _table(rows: Sequence[Row]) -> rich.table.Table:
  shape = ' x '.join(map(str, rows[0].shape))
  title = f'{rows[0].mode}, B x L x H x D = {shape}, {rows[0].dtype}'
  table = rich.table.Table(title=title, box=rich.box.SIMPLE_HEAD)
  table.add_column('attention')
  table.add_column('ms', justify='right')
  table.add_column('tuning, where not the assumed one')
  for row in rows:
    table.add_row('forward and backward' if row.training else 'forward')
    for name in row.by_speed():
      tuned = row.tunings.get(name, {})
      text = '\n'.join(f'{key}: {tune.words(x)}' for key, x in tuned.items())
      table.add_row(f'  {name}', tune.number(row.milliseconds[name]), text)
    table.add_section()
  return table
