"""Compare runs, and the baseline of their dataset: a table and a page.

  mira report RUN...
  mira report RUN --groups people.csv --features features.npz
  mira report RUN --card README.md

RUN is a run, the folder of its folds, or a folder of such folders. Scores are
those of the weights that validation chose, on the test clips, of all finished
folds pooled. Runs of the same clips and protocol are one table, with the
baseline that `mira baseline` stored for these.

The page (one file, which needs no network) has intervals, paired tests,
configurations and what differs, confusion matrices, calibration, curves, scores
of each class, fold and group, and the most confident mistakes.
"""

from __future__ import annotations

import argparse
import pathlib

from mira_jax import baseline, files, terminal
from mira_jax.cli import model_card, report_page, report_runs
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.evaluation import metrics, report
from mira_jax.weights import hub, sources

GIVES_RESULT = True  # to programs, by --json


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the folders of runs, and what the page shows beside them."""
  add = parser.add_argument
  add('runs', metavar='RUN', nargs='+')
  page = 'of the page (default: report.html in a single RUN, else here)'
  add('--out', metavar='FILE.html', help=page)
  text = 'table with a column clip or subject, whose others name groups'
  add('--groups', metavar='FILE.csv', help=text)
  text = 'of `mira features`, drawn as points'
  add('--features', metavar='FILE.npz', help=text)
  kinds = report_page.PROJECTIONS
  add('--projection', choices=kinds, default=kinds[0], help='of features')
  text = 'without frames of clips (default: of datasets on request)'
  add('--publish-safe', action=argparse.BooleanOptionalAction, help=text)
  text = 'a model card of a single RUN, for the Hugging Face Hub (extra `hub`)'
  add('--card', metavar='FILE.md', help=text)


def run(args: argparse.Namespace) -> int:
  """Prints a table of each dataset and protocol, and writes the page."""
  groups = report_runs.gather(args.runs)
  for group in groups:
    title = terminal.shortened(group.title)
    terminal.show(report.runs_table(_rows(group), title))
  terminal.result([_as_json(group) for group in groups])
  if args.card:
    _write_card(args, groups)
  if not any(run.finished for group in groups for run in group.runs):
    return ExitCode.OK
  out = pathlib.Path(args.out or 'report.html')
  if not args.out and len(args.runs) == 1:
    out = pathlib.Path(args.runs[0], out)
  page = report_page.render(
    groups,
    table=args.groups,
    features=args.features,
    projection=args.projection,
    publish_safe=args.publish_safe,
  )
  files.open_folder(out.parent)
  files.write_text(out, page)
  terminal.say(f'page: {out}')
  return ExitCode.OK


def _write_card(
  args: argparse.Namespace, groups: list[report_runs.Group]
) -> None:
  """Writes the model card of the one run that is named.

  Raises:
    MiraInputError: there are several, or folds ('bad_flag'); or see
      `sources.read` and `hub.client`.
  """
  runs = [run for group in groups for run in group.runs]
  if len(runs) != 1 or runs[0].folds:
    hint = 'a card is of the weights of one run: name that, or one fold'
    raise MiraInputError('bad_flag', f'--card={args.card}', hint)
  hub.client(args.card)
  source, name = sources.read(runs[0].folder), runs[0].name
  files.write_text(args.card, model_card.write(source, name, None))
  terminal.say(f'model card: {args.card}')


def _rows(group: report_runs.Group) -> list[report.RunRow]:
  """The lines of a group's table, the baseline last."""
  rows = [(x.name, x.counted, x.matrix, x.words) for x in group.ranked()]
  if floor := group.floor:
    words = baseline.words(floor)
    rows.append(('baseline', f'{len(floor.folds)}', floor.matrix, words))
  return rows


def _as_json(group: report_runs.Group) -> dict:
  """The scores of a group's runs as JSON values."""
  rows = []
  for name, folds, matrix, words in _rows(group):
    row = {'run': name, 'folds': folds, 'configuration': words}
    if matrix is not None:
      s = metrics.score(matrix)
      row |= {n: getattr(s, n) for n in ('clips', 'war', 'uar', 'macro_f1')}
    rows.append(row)
  return {'title': group.title, 'runs': rows}
