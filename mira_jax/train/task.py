"""Tasks of a run: classification, and masked pre-training before it.

The loop is the same for both, and for action units (`unit_task`); a task has
the clips, the model and its loss, the validation, and the files that are left
at the end.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mira_jax import config, figures, files, terminal
from mira_jax.augment.transforms import denormalise, prepare
from mira_jax.data import phased, pipeline, pool, sampling
from mira_jax.devices import sharding
from mira_jax.evaluation import predictions, report, results
from mira_jax.evaluation.metrics import score
from mira_jax.evaluation.statistics import calibration
from mira_jax.inference import engine
from mira_jax.models import mae
from mira_jax.models.vivit import ViViT
from mira_jax.systems import experts
from mira_jax.train import build as program
from mira_jax.train import datasets as inputs
from mira_jax.train import hints, run_folder, selection
from mira_jax.train import log as runlog
from mira_jax.train import step as steps
from mira_jax.video import footage
from mira_jax.weights import weights_file

PyTree = Any
Best = Callable[[], tuple[int, steps.TrainState]]  # restores a checkpoint
PICTURED = 4  # clips in a picture of a reconstruction


class Task:
  """The parts of a task that the loop uses; a subclass makes them."""

  source: pool.Pool  # the training clips
  program: program.Program
  summary: str  # the datasets and the numbers of clips, in one line
  class_names: Sequence[str] = ()  # of the model; () in pre-training
  # Whether validation clips choose the weights and the end, see `selection`;
  # or whether another training first chooses the steps by them.
  by_val = refits = False
  origin: Mapping[str, Any] = {}  # of the weights that it started from
  _window: pipeline.Window = staticmethod(sampling.train_indices)

  def __init__(self, cfg: config.Config, workdir: pathlib.Path, mesh: Mesh):
    self._cfg, self._workdir, self._mesh = cfg, workdir, mesh
    self.datasets = inputs.open_datasets(cfg.data)

  def batches(self, start: int) -> Iterator[pipeline.Batch]:
    """Endless batches from a step on."""
    return pipeline.train_batches(
      self.source,
      seed=self._cfg.seed,
      start_step=start,
      rows=self._rows(),
      window=self._window,
      phases=self._cfg.data.phases,
      **inputs.reading(self._cfg),
    )

  @property
  def steps_per_epoch(self) -> int:
    """Batches of the training clips, 1 if they are fewer than a batch."""
    data = self._cfg.data
    samples = phased.samples(data.phases) * len(self.source)
    return max(1, samples // data.batch_size)

  def _rows(self) -> np.ndarray:
    """Rows of a batch that this host reads."""
    return sharding.own_rows(self._mesh, self._cfg.data.batch_size)

  def hints(self, total: int) -> list[str]:
    """Hints at the start of a run of so many steps, a line each."""
    steps = hints.of_steps(self._cfg, total, self.steps_per_epoch)
    return steps + hints.of_frames(self._cfg, self.source)

  def facts(self) -> dict[str, Any]:
    """What must not change within a run, beside its configuration and data."""
    table = self._cfg.data.pseudo_labels
    return {
      'class_names': list(self.class_names),
      'pseudo_labels_sha256': files.sha256(table) if table else '',
    }

  def metadata(self, step: int) -> dict[str, Any]:
    """Metadata of the weights after a step, JSON-able."""
    found = run_folder.metadata(
      self._cfg, self.datasets, self.class_names, step
    )
    return found | ({'source': dict(self.origin)} if self.origin else {})

  def validate(
    self, step: int, state: steps.TrainState, log: runlog.Log
  ) -> float:
    """Validates a state; the score that selects checkpoints, -1 without one."""
    raise NotImplementedError

  def finish(self, step: int, state: steps.TrainState, best: Best) -> None:
    """Writes weights and results on the first host; `best` restores a state."""
    raise NotImplementedError

  def _save(self, name: str, step: int, state: steps.TrainState):
    """Writes the parameters, or their average; every host must call it."""
    variables = sharding.gather(state.variables, self._mesh)
    variables['params'] = experts.merged(variables['params'])
    metadata = self.metadata(step)
    metadata['model'] = metadata['model'] | {'experts': None}  # merged
    if jax.process_index() == 0:
      weights_file.save_weights(
        self._workdir / name,
        variables['params'],
        variables['mira'],
        metadata,
      )

  def _draw_curves(self) -> None:
    rows = runlog.read(self._workdir)
    if any('loss' in row for row in rows):  # the log may have been lost
      path = self._workdir / 'curves.png'
      with files.naming(path):
        figures.curves_figure(rows).save(path)


def make(cfg: config.Config, workdir: pathlib.Path, mesh: Mesh) -> Task:
  """The task of a configuration; fills in `model.num_classes`."""
  from mira_jax.train import unit_task  # which builds on this module

  kind = Classification
  if cfg.pretrain:
    kind = Pretraining
  elif cfg.data.labels == results.UNITS:
    kind = unit_task.ActionUnits
  return kind(cfg, workdir, mesh)


class Classification(Task):
  """Learns classes; validation clips choose the weights that are tested."""

  _units = False  # whether outputs are action units

  def __init__(self, cfg: config.Config, workdir: pathlib.Path, mesh: Mesh):
    super().__init__(cfg, workdir, mesh)
    parts = inputs.open_parts(cfg, self.datasets)
    self._parts = inputs.with_pseudo_labels(cfg, self.datasets, parts)
    self._val = self._parts.val  # those of a refit are training clips
    clips = len(self._val or ())
    decides = selection.decides(cfg, clips)
    decides |= clips > 0 and selection.chosen_before(workdir)
    self.by_val = decides and not cfg.train.refit
    self.refits = decides and cfg.train.refit
    if cfg.train.refit:
      self._parts = selection.merged(self._parts)
    self.source = self._parts.train
    self.class_names = self._learned()
    self.summary = inputs.describe(self._parts, cfg.data.phases)
    run_folder.fit_classes(cfg, self.class_names)
    people = self.source.subject.tolist()
    self._subjects = run_folder.fit_subjects(cfg, people)
    self.program = self._made(mesh)
    self._history = runlog.EvalHistory(workdir, len(self.class_names))
    self._scorer: engine.Engine | None = None

  def _learned(self) -> Sequence[str]:
    """The names of the model's outputs."""
    return self.source.class_names

  def _made(self, mesh: Mesh) -> program.Program:
    """The model and its loss."""
    counts, subjects = self.source.counts, self._subjects
    return program.classifier(self._cfg, mesh, counts, subjects)

  def _rarest(self) -> list[str]:
    """Hints on what is learned."""
    return hints.of_classes(self.source)

  def hints(self, total: int) -> list[str]:
    found = [*super().hints(total), *self._rarest()]
    decides = self.by_val or self.refits
    return found + hints.of_validation(self._cfg, self._val, decides)

  def validate(
    self, step: int, state: steps.TrainState, log: runlog.Log
  ) -> float:
    cfg, parts, matrices = self._cfg, self._parts, {}
    views = cfg.eval.look_views
    if parts.val is not None:
      matrices['val'] = self._score(state, parts.val, views).matrix
    if cfg.eval.watch_test:
      matrices['test'] = self._score(state, parts.test, views).matrix
    for name, matrix in matrices.items():
      scores = score(matrix)
      log.write(step, {f'{name}_war': scores.war, f'{name}_uar': scores.uar})
    self._history.add(step, matrices)
    if parts.val is None:
      return -1.0
    return getattr(score(matrices['val']), cfg.eval.select_by)

  def _score(
    self,
    state: steps.TrainState,
    source: pool.Pool,
    views: int,
    primary: bool = False,
  ) -> predictions.Predictions:
    scorer, fold = self._engine(state), self._parts.fold_name
    scorer = scorer.primary() if primary else scorer
    return inputs.score_source(scorer, source, self._cfg, views, fold)

  def _engine(self, state: steps.TrainState) -> engine.Engine:
    """An engine with the weights of a state; one for the whole run."""
    if self._scorer is None:
      model, size = self.program.model, self._cfg.data.batch_size
      assert isinstance(model, ViViT)
      self._scorer = engine.Engine(
        model, state.variables, size, self._mesh, units=self._units
      )
    self._scorer.update(state.variables)
    return self._scorer

  def finish(self, step: int, state: steps.TrainState, best: Best) -> None:
    cfg, parts, workdir = self._cfg, self._parts, self._workdir
    views = cfg.eval.views
    chosen, chosen_state = best() if self.by_val else (step, state)
    final = {
      at: self._score(kept, parts.test, views)
      for at, kept in {step: state, chosen: chosen_state}.items()
    }
    balancing = cfg.model.reliability
    uncorrected = None
    if balancing is not None and balancing.output == 'corrected':
      uncorrected = self._score(chosen_state, parts.test, views, primary=True)
    self._save(weights_file.LAST, step, state)
    self._save(weights_file.WEIGHTS, chosen, chosen_state)
    if jax.process_index() > 0:
      return
    self._draw_curves()
    history = self._history.read().items()
    watched = {n: x['test'] for n, x in history if 'test' in x}
    rows = results.of_run(
      {at: predicted.matrix for at, predicted in final.items()},
      watched,
      chosen=chosen,
      last=step,
      by_val=self.by_val,
    )
    errors = {at: calibration(x).error for at, x in final.items()}
    rows = [
      x
      if x.name == results.BEST_ON_TEST
      else dataclasses.replace(x, calibration=errors[x.step])
      for x in rows
    ]
    if uncorrected is not None:
      error = calibration(uncorrected).error
      own = {'matrix': uncorrected.matrix, 'calibration': error}
      rows.insert(1, results.Result(name=results.PRIMARY, step=chosen, **own))
    clips = len(self._val or ())
    why = selection.describe(self._cfg, clips, chosen, self.by_val)
    names = parts.test.class_names
    path = results.write(workdir, rows, names, fold=parts.fold_name, why=why)
    table = final[chosen].write(workdir)
    terminal.show(report.results_table(rows, self.summary))
    command = shlex.join(['mira', 'eval', f'--workdir={workdir}'])
    terminal.say(
      why,
      f'outcome: {path}',
      f'clips:   {table}',
      f'weights: {workdir / weights_file.WEIGHTS}',
      f'scores:  {command}',
    )
    fold = results.Fold(name=parts.fold_name, matrix=rows[0].matrix)
    if line := inputs.below_baseline(cfg, self.datasets, workdir, [fold]):
      terminal.say(line)


class Pretraining(Task):
  """Learns to reconstruct masked tubelets; draws some reconstructions."""

  _window = staticmethod(sampling.pretrain_indices)

  def __init__(self, cfg: config.Config, workdir: pathlib.Path, mesh: Mesh):
    super().__init__(cfg, workdir, mesh)
    self.source, self._shown = inputs.open_unlabelled(cfg, self.datasets)
    same = self._shown is self.source
    # A batch of them, spread out, because neighbours may show one subject.
    spread = footage.spaced(len(self._shown), cfg.data.batch_size)
    self._shown = self._shown.take(spread)
    names = '+'.join(dataset.name for dataset in self.datasets)
    counts = f'pre-train {len(self.source)}, validate {len(self._shown)}'
    if same:
      counts += ' of these, as no subject is held out'
    self.summary = f'{names}: {counts}'
    self.program = program.autoencoder(cfg, mesh)
    self._fill = jax.jit(self._filled, out_shardings=sharding.replicated(mesh))

  def _filled(self, variables: PyTree, video: jax.Array):
    """The loss, and videos in [0, 1]: masked and reconstructed."""
    pretrain = self._cfg.pretrain
    assert pretrain is not None
    model: Any = self.program.model
    normalise = pretrain.normalise_targets
    size = {'tubelet': model.tubelet, 'patch': model.patch}
    with sharding.ambient(self._mesh):
      mask, hidden = program.draw_mask(
        self._cfg, jax.random.key(0), video.shape
      )
      normalised = prepare(video)
      prediction = model.apply(
        variables, normalised, mask, num_masked=hidden
      ).astype(jnp.float32)
    whole = denormalise(normalised)
    targets = model.targets(whole, normalise=normalise)
    loss = mae.reconstruction_loss(prediction, targets, mask)
    if model.decoder_targets == 'hog':  # histograms make no picture
      return loss, None, None
    shown, filled = mae.reconstruct(
      prediction, whole, mask, **size, normalise=normalise
    )
    return loss, shown, filled

  def validate(
    self, step: int, state: steps.TrainState, log: runlog.Log
  ) -> float:
    batch = next(
      pipeline.eval_batches(
        self._shown, rows=self._rows(), **inputs.reading(self._cfg)
      )
    )
    put = sharding.put_batch(batch, self._mesh)
    loss, shown, filled = self._fill(state.variables, put['video'])
    log.write(step, {'held_out_loss': float(loss)})
    if jax.process_index() == 0 and shown is not None:
      count = min(PICTURED, len(batch['video']))
      figure = figures.reconstruction_figure(
        batch['video'][:count],
        np.asarray(shown[:count]),
        np.asarray(filled[:count]),
        f'step {step}: loss {float(loss):.3f} on held-out clips',
      )
      name = f'reconstruction-{step:07d}.png'
      path = figure.save(self._workdir / 'pictures' / name)
      log.say(f'picture: {path}')
    return -1.0

  def finish(self, step: int, state: steps.TrainState, best: Best) -> None:
    self._save(weights_file.WEIGHTS, step, state)
    if jax.process_index() > 0:
      return
    self._draw_curves()
    path = self._workdir / weights_file.WEIGHTS
    flag = shlex.quote(f'--config.train.init_from={self._workdir}')
    terminal.say(f'weights:   {path}', f'fine-tune: mira train {flag} ...')
