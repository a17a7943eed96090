"""Prepare clips, choose a recipe, run the baseline, train all folds, report.

  mira fit CLIPS --workdir RUN
  mira fit CLIPS --workdir RUN --table clips.csv
  mira fit CLIPS --workdir RUN --config.data.num_folds=10 --config.seed=1

CLIPS is a tree as for `mira prepare folder`, or a prepared dataset. Each choice
is printed with its reason, and stands in RUN/config.py; where that file is
there, it is taken as it is. The same command resumes what was stopped. See
docs/small_data.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import types
from collections.abc import Sequence
from typing import Any, NamedTuple

from mira_jax import baseline, config, files, terminal
from mira_jax.cli import eval as evaluation
from mira_jax.cli import report, train
from mira_jax.config import recipes
from mira_jax.data import dataset as prepared
from mira_jax.data import holdout, pool, protocol, records
from mira_jax.devices import platform
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.models.vivit import SIZES
from mira_jax.prepare import prepare
from mira_jax.train import datasets as inputs
from mira_jax.train import hints

TAKES_CONFIG_FLAGS = True
CONFIG, DATA, RUNS, GIVEN = 'config.py', 'data', 'runs', 'given.json'
_FEW = 2000  # clips; a test split of fewer says little
_FOLDS = 5
_TEXT = '''\
"""Chosen by mira fit, which takes this file as it is: change what you like.

A fold that is trained keeps its own configuration: remove its folder in runs/
to train it anew.
"""

from mira_jax.config import Config, load


def get_config() -> Config:
  """The recipe of configs/small.py, fitted to the clips."""
  cfg = load({recipe!r})
{lines}
  return cfg
'''


class Choice(NamedTuple):
  """A field of the configuration, its value, and why."""

  field: str
  value: Any
  reason: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the clips, the folder of the run and the mode."""
  add = parser.add_argument
  add('clips', metavar='CLIPS', help='folder of clips, or a prepared dataset')
  add('--workdir', required=True, metavar='RUN', help='for all that is made')
  add('--table', metavar='FILE', help='that lists the clips')
  add('--mode', choices=recipes.MODES, help='of MiRA (default: exact)')
  size = 'of a model of 224 pixels, for --config.train.init_from'
  add('--size', choices=tuple(SIZES), help=size)
  platform.add_argument(parser)


def run(args: argparse.Namespace) -> int:
  """Each step once: what is there already is not made again."""
  workdir = pathlib.Path(args.workdir)
  files.open_folder(workdir)
  _keep_given(args, workdir)
  dataset, given = _dataset(args, workdir)
  path = workdir / CONFIG
  if path.is_file():
    terminal.say(f'config: {path}, as it is there')
  else:
    recipe, choices = choose(dataset, given, args.mode, args.size)
    terminal.say(*(f'{x.field}={x.value}: {x.reason}' for x in choices))
    files.write_text(path, _text(recipe, choices))
    terminal.say(f'config: {path}')
  cfg = config.load(str(path), args.flags)
  if cfg.data.labels != 'classes' or len(dataset.class_names) < 2:
    hint = 'mira fit learns classes, two or more; for action units use mira '
    hint += f'train --config=disfa --config.data.dataset={args.clips}'
    raise MiraInputError('unsupported', args.clips, hint)
  datasets = [prepared.open(name) for name in config.datasets(cfg.data)]
  made = _baseline(datasets, inputs.rules(cfg), workdir / RUNS)
  terminal.say(f'baseline: {made}; {made.seconds:.0f} s')
  flags = [f'--config={path}', f'--workdir={workdir / RUNS}']
  flags += [f'--device={args.device}'] if args.device else []
  if cfg.data.protocol == 'split':
    _command(train, flags, args.flags)
    _command(evaluation, [f'--workdir={workdir / RUNS}'])
  else:
    _command(evaluation, [*flags, '--folds=all'], args.flags)
  _command(report, [str(workdir / RUNS)])
  return ExitCode.OK


def _keep_given(args: argparse.Namespace, workdir: pathlib.Path) -> None:
  """Keeps what later starts do not look at again; what they omit stays.

  Raises:
    MiraInputError: a flag is not that of the first start ('bad_flag').
  """
  path, before = workdir / GIVEN, {}
  with contextlib.suppress(OSError, ValueError, TypeError):
    before = dict(json.loads(path.read_bytes()))
  chosen = (workdir / CONFIG).is_file()
  has_data = (workdir / DATA / prepare.REPORT_NAME).is_file()
  asked = {
    'clips': os.path.realpath(args.clips),
    'table': args.table and os.path.realpath(args.table),
    'mode': args.mode,
    'size': args.size,
  }
  for name, value in asked.items():
    fixed = chosen or (has_data and name in ('clips', 'table'))
    if not (fixed and name in before):  # an older version kept nothing
      continue
    if value not in (None, before[name]):
      flag = 'CLIPS' if name == 'clips' else f'--{name}'
      hint = f'{workdir} was started with {before[name] or "none"}; '
      hint += 'restore that, or choose a new --workdir'
      raise MiraInputError('bad_flag', f'{flag}={value}', hint)
    asked[name] = before[name]
  asked['mode'] = args.mode = asked['mode'] or 'exact'
  args.size = asked['size'] = asked['size'] or ''
  if asked != before and (before or not chosen):
    files.write_text(path, json.dumps(asked, indent=2) + '\n')


def _command(
  module: types.ModuleType, flags: Sequence[str], fields: Sequence[str] = ()
) -> None:
  """Runs another command; `fields` are flags of the configuration."""
  parser = argparse.ArgumentParser()
  module.add_arguments(parser)
  args = parser.parse_args(flags)
  args.flags = list(fields)
  module.run(args)


def _dataset(
  args: argparse.Namespace, workdir: pathlib.Path
) -> tuple[prepared.PreparedDataset, bool]:
  """The prepared clips, and whether their source names a test split.

  Raises:
    MiraInputError: see `prepare.prepare_folder`.
  """
  try:
    dataset, out = prepared.open(args.clips), pathlib.Path(args.clips)
    if args.table:
      hint = f'{args.clips} is prepared already: drop it, or give its source'
      raise MiraInputError('bad_flag', f'--table={args.table}', hint)
  except MiraInputError as error:
    if error.code != 'not_a_dataset':
      raise
    out = workdir / DATA
    if not (out / prepare.REPORT_NAME).is_file():
      found = prepare.prepare_folder(
        args.clips, out, table=args.table, check_faces=True
      )
      terminal.say(*str(found).splitlines())
    dataset = prepared.open(out)
  try:
    rule = json.loads((out / prepare.REPORT_NAME).read_text())['split_rule']
  except (OSError, ValueError, LookupError):
    rule = holdout.AS_GIVEN  # another program made it, for its own split
  return dataset, rule == holdout.AS_GIVEN


def _baseline(
  datasets: Sequence[prepared.PreparedDataset],
  rules: protocol.Rules,
  runs: pathlib.Path,
) -> baseline.Baseline:
  """The baseline on the same folds, stored beside the dataset or the runs."""
  made = baseline.find(datasets, rules, runs)
  if made is None:
    made = baseline.evaluate(datasets, rules)
    try:
      baseline.write(made, baseline.folder(datasets, rules), rules)
    except MiraInputError:  # the dataset is only read
      baseline.write(made, baseline.folder(datasets, rules, runs), rules)
  return made


# ----- what is chosen ---------------------------------------------------------


def choose(
  dataset: prepared.PreparedDataset, given: bool, mode: str, size: str = ''
) -> tuple[str, list[Choice]]:
  """The recipe for a dataset, and what is changed in it.

  Args:
    dataset: opened.
    given: whether its source names a test split.
    mode: 'exact', 'flashlite' or 'plain'.
    size: a key of `SIZES` for a start from weights; '': from scratch.
  """
  clips = pool.of_dataset(dataset, list(dataset.splits))
  tested = next((x for x in ('test', 'val') if x in dataset.splits), '')
  chosen, share = _protocol(clips, tested if given else '')
  count = round(share * len(clips))
  folder = str(dataset.directory.parents[1].resolve())
  classes = len(clips.class_names)
  reason = f'{len(clips)} clips of {classes} classes'
  chosen.insert(0, Choice('data.dataset', folder, reason))
  if one_sided := inputs.lateral(clips.class_names):
    reason = f'a mirrored {one_sided} is of the other side'
    chosen += [
      Choice(name, False, reason) for name in ('data.flip', 'model.mirror')
    ]
  if size:  # the frames and pixels of the weights
    return f'small:{count},{mode},{size}', chosen
  return f'small:{count},{mode}', [*chosen, *_sizes(clips)]


def _protocol(clips: pool.Pool, tested: str) -> tuple[list[Choice], float]:
  """How clips are tested, and the share of them that trains.

  `tested` is a split that their source names; '' where it names none.
  """
  people = len({*clips.subject.tolist()} - {''})
  unknown = int((clips.subject == '').sum())
  if tested == 'val':
    reason = 'the clips have a validation split of their own, and no test split'
    return [
      Choice('data.protocol', 'split', reason),
      Choice('eval.split', 'val', 'so that it is tested'),
    ], 0.8
  if tested:
    reason = 'the clips have a test split of their own'
    return [Choice('data.protocol', 'split', reason)], 0.8
  count, without = len({*clips.fold.tolist()}), int((clips.fold < 0).sum())
  if count > 1 and not without:
    reason = f'the clips have {count} folds of their own'
    return [Choice('data.protocol', 'folds', reason)], 1 - 1 / count
  unused = ''
  if 0 < without < len(clips):
    unused = f'; without a fold: {without}, so that those named are not used'
  if unknown or people < 2 or len(clips) >= _FEW:
    reason = f'{people} people, {unknown} clips of unknown ones'
    if not unknown and people > 1:
      reason = f'{len(clips)} clips are enough for one test split'
    return [Choice('data.protocol', 'split', reason + unused)], 0.8
  count = min(_FOLDS, people)
  reason = f'of {people} people; with under {_FEW} clips each is tested once'
  return [
    Choice('data.protocol', 'folds', reason + unused),
    Choice('data.num_folds', count, 'no person is on both sides'),
  ], 1 - 1 / count


def _sizes(clips: pool.Pool) -> list[Choice]:
  """Frames and pixels of the model, no more than the clips have."""
  chosen, usual = [], config.load('small').model
  known = clips.num_frames[clips.num_frames > 0]
  frames, tubelet = usual.frames, usual.tubelet  # where lengths are unknown
  if len(known):
    frames, tubelet = hints.fitting(known, usual.tubelet)
  if frames < usual.frames:
    reason = f'nearly all clips have {frames} frames or more'
    chosen.append(Choice('model.frames', frames, reason))
    if tubelet != usual.tubelet:
      reason = 'frames in a token: with two, time would be one token'
      chosen.append(Choice('model.tubelet', tubelet, reason))
  clip = clips[0]
  side = min(records.read_frames(clip, [0])[0].shape[:2])
  if side < usual.image_size:
    patch = usual.patch if side >= 3 * usual.patch else usual.patch // 2
    size = max(side // patch, 1) * patch
    reason = f'frames are {side} pixels high or wide'
    chosen.append(Choice('model.image_size', size, reason))
    if patch != usual.patch:
      chosen.append(Choice('model.patch', patch, 'so that there are tokens'))
  return chosen


def _text(recipe: str, choices: Sequence[Choice]) -> str:
  """The configuration file."""
  lines = [f'  cfg.{x.field} = {x.value!r}  # {x.reason}' for x in choices]
  return _TEXT.format(recipe=recipe, lines='\n'.join(lines))
