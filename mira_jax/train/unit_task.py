"""The task of action units: several labels of a frame at once.

A sample is a window of a clip with the intensities of its middle frame, or with
those of every temporal token (`data.unit_labels`). Windows are never averaged:
the `eval.views` of a clip are samples of their own, spread over it. Validation
chooses the weights by the mean F1 at 0.5, and the threshold of each unit.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mira_jax import files, terminal
from mira_jax.data import pool
from mira_jax.evaluation import results, unit_report, units
from mira_jax.train import build as program
from mira_jax.train import datasets as inputs
from mira_jax.train import hints, selection
from mira_jax.train import log as runlog
from mira_jax.train import step as steps
from mira_jax.train.task import Best, Classification
from mira_jax.weights import weights_file

_Judged = tuple[units.UnitPredictions, list[float]]  # tested, with thresholds


class ActionUnits(Classification):
  """Learns action units; validation chooses weights and thresholds."""

  _units = True
  _thresholds: list[float] | None = None  # of the weights that are written

  def _learned(self) -> Sequence[str]:
    return self.source.action_units

  def _made(self, mesh: Mesh) -> program.Program:
    return program.action_units(self._cfg, mesh, self.source, self._subjects)

  def _rarest(self) -> list[str]:
    return hints.of_units(self.source)

  def metadata(self, step: int) -> dict[str, Any]:
    """Also what outputs are, and from which probability on units are shown."""
    found = super().metadata(step) | {'labels': results.UNITS}
    if self._thresholds:
      found['unit_thresholds'] = self._thresholds
    return found

  def validate(
    self, step: int, state: steps.TrainState, log: runlog.Log
  ) -> float:
    """The mean F1 of the validation clips, -1 without any."""
    parts, views, found = self._parts, self._cfg.eval.look_views, {}
    looks = {'val': parts.val}
    if self._cfg.eval.watch_test:
      looks['test'] = parts.test
    for name, source in looks.items():
      if source is not None:
        f1 = units.score(self._predict(state, source, views)).mean('f1')
        found[name] = 0.0 if math.isnan(f1) else f1
        log.write(step, {f'{name}_f1': found[name]})
    return found.get('val', -1.0)

  def _predict(
    self, state: steps.TrainState, source: pool.Pool, views: int
  ) -> units.UnitPredictions:
    scorer, fold = self._engine(state), self._parts.fold_name
    return inputs.score_units(scorer, source, self._cfg, views, fold)

  def _judge(self, state: steps.TrainState) -> _Judged:
    """The tested samples, and the thresholds of the validation samples."""
    parts, views = self._parts, self._cfg.eval.views
    thresholds = [units.HALF] * len(self.class_names)
    if parts.val is not None:
      held_out = self._predict(state, parts.val, views)
      thresholds = units.best_thresholds(held_out)
    return self._predict(state, parts.test, views), thresholds

  def finish(self, step: int, state: steps.TrainState, best: Best) -> None:
    chosen, chosen_state = best() if self.by_val else (step, state)
    final = {
      at: self._judge(kept)
      for at, kept in {step: state, chosen: chosen_state}.items()
    }
    for name, at, kept in (
      (weights_file.LAST, step, state),
      (weights_file.WEIGHTS, chosen, chosen_state),
    ):
      self._thresholds = final[at][1]
      self._save(name, at, kept)
    if jax.process_index() > 0:
      return
    self._draw_curves()
    rows = [(results.CHOSEN, chosen)] * self.by_val + [(results.LAST, step)]
    self._report(rows, final)

  def _report(
    self, rows: Sequence[tuple[str, int]], final: dict[int, _Judged]
  ) -> None:
    """Prints tables; writes outcome.json and the samples."""
    workdir, chosen = self._workdir, rows[0][1]
    clips = len(self._val or ())
    why = selection.describe(self._cfg, clips, chosen, self.by_val)
    scored = [(name, at, units.score(*final[at])) for name, at in rows]
    looks = {
      int(row['step']): row['test_f1']
      for row in runlog.read(workdir)
      if 'test_f1' in row
    }
    found = [
      {'name': name, 'step': at, 'thresholds': final[at][1]}
      | {'scores': scores.to_dict()}
      for name, at, scores in scored
    ]
    if looks:
      at = max(looks, key=lambda n: (looks[n], n))
      scores = {'mean_f1': looks[at]}
      found.append({'name': results.BEST_ON_TEST, 'step': at, 'scores': scores})
    content = {
      'labels': results.UNITS,
      'fold': self._parts.fold_name,
      'weights': why,
      'class_names': list(self.class_names),
      'results': found,
    }
    path = workdir / results.NAME
    files.clear_for_file(path)
    files.write_text(path, terminal.as_json(content, indent=2) + '\n')
    tested, thresholds = final[chosen]
    table = tested.write(workdir)
    watched = max(looks.values(), default=np.nan)
    terminal.show(unit_report.results_table(scored, watched, self.summary))
    title = f'{rows[0][0]}, test clips'
    terminal.show(unit_report.evaluation_table(tested, thresholds, title))
    command = shlex.join(['mira', 'eval', f'--workdir={workdir}'])
    terminal.say(
      why,
      f'outcome: {path}',
      f'frames:  {table}',
      f'weights: {workdir / weights_file.WEIGHTS}',
      f'scores:  {command}',
    )
