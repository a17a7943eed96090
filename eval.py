"""Scores the weights of a run on a whole split.

python eval.py --workdir=runs/quickstart
python eval.py --workdir=runs/quickstart --dataset=DIR --split=test --views=5

Prints the table and writes scores.json, confusion.csv and confusion.png into
the run's folder, below eval/DATASET-SPLIT.
"""

from __future__ import annotations

import pathlib

import jax
import rich
from absl import flags

from mira_jax import engine, report, training
from mira_jax.data import dataset as prepared
from mira_jax.errors import ExitCode, MiraInputError

_WORKDIR = flags.DEFINE_string('workdir', None, 'folder of the run.')
_DATASET = flags.DEFINE_string('dataset', None, "else the run's own.")
_SPLIT = flags.DEFINE_string('split', None, "else the run's own.")
_VIEWS = flags.DEFINE_integer('views', None, "else the run's own.", 1)
_DISTRIBUTED = flags.DEFINE_bool(
  'distributed', False, 'one of several hosts that all run this command.'
)
flags.mark_flag_as_required('workdir')


def main(_):
  # ----- the run: configuration and weights -----
  if _DISTRIBUTED.value:
    jax.distributed.initialize()
  engine.use_compile_cache()
  workdir = pathlib.Path(_WORKDIR.value)
  cfg = training.read_config(workdir)
  scorer, card = engine.load_run(workdir, cfg.data.batch_size)

  # ----- the dataset: another one must have the same classes -----
  dataset = prepared.open(_DATASET.value or cfg.data.dataset)
  if list(dataset.class_names) != card['class_names']:
    hint = f'the model knows {card["class_names"]} in this order'
    code = ExitCode.DATA
    path = dataset.directory
    raise MiraInputError('other_classes', path, hint, exit_code=code)

  # ----- scores -----
  split = _SPLIT.value or cfg.eval.split
  views = _VIEWS.value or cfg.eval.views
  matrix, _ = training.score_split(
    scorer,
    dataset,
    split=split,
    rate=cfg.data.rate,
    fit=cfg.data.fit,
    views=views,
    threads=cfg.data.threads,
  )

  # ----- report -----
  if jax.process_index() > 0:
    return
  title = f'{dataset.name}, {split}: {workdir.resolve().name}'
  rich.print(report.evaluation_table(matrix, dataset.class_names, title))
  facts = {'workdir': str(workdir), 'split': split, 'views': views}
  path = report.write_evaluation(
    workdir / 'eval' / f'{dataset.name}-{split}',
    matrix=matrix,
    class_names=dataset.class_names,
    metadata=facts | {'dataset': training.fingerprint(dataset), 'card': card},
    title=title,
  )
  print(f'scores: {path}')


if __name__ == '__main__':
  training.run(main)
