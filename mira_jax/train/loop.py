"""The training loop of a run, from a configuration to weights in a file."""

from __future__ import annotations

import dataclasses
import functools
import pathlib

import jax

from mira_jax import config, files, terminal
from mira_jax.data.dataset import fingerprint
from mira_jax.devices import memory, sharding
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.train import (
  build,
  checkpoint,
  datasets,
  guard,
  init_from,
  nan_debug,
  run_folder,
  selection,
  stop_signal,
)
from mira_jax.train import log as runlog
from mira_jax.train import task as tasks
from mira_jax.train.step import TrainState

_LESS_MEMORY = (
  'try a smaller --config.data.batch_size, --config.optim.accumulate=4 or '
  '--config.model.remat=attention'
)


def train(
  cfg: config.Config,
  workdir: pathlib.Path,
  *,
  strict: bool = False,
  force: bool = False,
  debug_nans: bool = False,
) -> None:
  """Trains a run to its end; resumes it if it was stopped.

  Args:
    cfg: of the run; the number of classes is filled in.
    workdir: see `run_folder.open_workdir`.
    strict: whether a damaged newest checkpoint is an error.
    force: resume although the configuration or a dataset changed.
    debug_nans: stop at the first update that is not finite, and find the
      operation that caused it; on one host.

  Raises:
    MiraInputError: another process trains into this folder ('locked'); the
      configuration, a dataset or a checkpoint cannot be used; too many clips
      are damaged, or too many updates in a row not finite.
    SystemExit: a signal came, and the state is saved; see `ExitCode`.
  """
  if debug_nans and jax.process_count() > 1:  # one alone can't repeat a step
    hint = 'it works on one host; leave out --distributed'
    raise MiraInputError('bad_flag', '--debug_nans', hint)
  config.validate(cfg, jax.device_count())
  mesh = sharding.make_mesh(**dataclasses.asdict(cfg.mesh))
  with run_folder.sole_process(workdir):
    run_folder.keep_folds(cfg, workdir)
    task = tasks.make(cfg, workdir, mesh)
    fingerprints = [fingerprint(dataset) for dataset in task.datasets]
    facts = task.facts()
    identity = run_folder.identity(cfg, fingerprints) | facts
    total = cfg.train.epochs * task.steps_per_epoch
    if task.refits:
      again = functools.partial(
        train, strict=strict, force=force, debug_nans=debug_nans
      )
      total = selection.steps_of_refit(cfg, workdir, fingerprints, again)
      identity |= {'steps': total}
    made = build.training(
      cfg, task.program, mesh, total / cfg.train.epochs, donate=not debug_nans
    )
    if debug_nans:
      made = made._replace(step=nan_debug.checked(made.step))
    _report(task, total, mesh)
    # Made under jit, so that every device of every host has it.
    init_key, step_key = jax.jit(
      lambda: tuple(jax.random.split(jax.random.key(cfg.seed))),
      out_shardings=sharding.replicated(mesh),
    )()
    checkpoints = checkpoint.Checkpoints(
      workdir / 'checkpoints', identity, run_folder.older_defaults(cfg) | facts
    )
    state = checkpoints.restore(made.target, strict=strict, force=force)
    task.origin = run_folder.read_origin(workdir) if state is not None else {}
    if state is None:
      state = _fresh(cfg, task, made, init_key, mesh)
    if jax.process_index() == 0:
      files.write_text(workdir / run_folder.CONFIG, config.to_json(cfg))
      run_folder.write_metadata(workdir, task.metadata(step=0))
    run = _Run(cfg, workdir, task, made, checkpoints, total, mesh)
    run.train(state, step_key)


def _report(task: tasks.Task, total: int, mesh: jax.sharding.Mesh) -> None:
  if jax.process_index() == 0:
    datasets.report(task.datasets)
    attention = task.program.attention
    terminal.say(task.summary, attention, sharding.describe(mesh))
    terminal.say(*task.hints(total))


def _fresh(
  cfg: config.Config,
  task: tasks.Task,
  made: build.Training,
  key: jax.Array,
  mesh: jax.sharding.Mesh,
) -> TrainState:
  """A new state, with the weights of `train.init_from` if there are."""
  where = jax.tree.map(lambda x: x.sharding, made.target)
  state = jax.jit(made.init, out_shardings=where)(key)
  if cfg.train.init_from:
    names = task.class_names
    state, transferred = init_from.start_from(cfg, names, state, mesh)
    task.origin = transferred.origin
    if jax.process_index() == 0:
      terminal.say(*f'{cfg.train.init_from}: {transferred}'.split('\n'))
  return state


@dataclasses.dataclass
class _Run:
  """A run whose parts are made."""

  cfg: config.Config
  workdir: pathlib.Path
  task: tasks.Task
  made: build.Training
  checkpoints: checkpoint.Checkpoints
  total: int  # steps, unless validation ends it before
  mesh: jax.sharding.Mesh

  def validates(self, step: int) -> bool:
    """Whether the state is validated after a step."""
    every = self.cfg.train.eval_every * self.task.steps_per_epoch
    return step == self.total or bool(every and step % every == 0)

  @property
  def stalled(self) -> bool:
    """Whether validation ends the run now; the same after a restart."""
    patience = self.cfg.train.patience if self.task.by_val else 0
    return selection.stalled(self.checkpoints.scores, patience)

  def train(self, state: TrainState, key: jax.Array) -> None:
    """All steps that are left, and the files of the end."""
    cfg, task, checkpoints = self.cfg, self.task, self.checkpoints
    start = step = int(state.step)
    # A signal came just when a validation was due, and saving did not wait.
    due = start > 0 and self.validates(start)
    due = due and checkpoints.accuracy(start) is None
    policy = guard.Policy(cfg.optim.max_bad_steps, start)
    batches = task.batches(start)
    with (
      stop_signal.StopSignal() as stop,
      checkpoints,
      jax.set_mesh(self.mesh),
      runlog.Log(
        self.workdir,
        start,
        self.total,
        cfg.data.batch_size,
        validation_due=due,
        pending=checkpoints.pending,
      ) as log,
      memory.explained(f'a step of {cfg.data.batch_size} clips', _LESS_MEMORY),
    ):
      if due:
        checkpoints.rate(start, task.validate(start, state, log))
      while step < self.total and not self.stalled:
        step += 1
        batch = sharding.put_batch(next(batches), self.mesh)
        with jax.transfer_guard('disallow'):  # nothing moves unnoticed
          state, metrics = self.made.step(state, batch, key)
        log.add(step, metrics)
        self._after_step(step, state, log, policy, stop)
      checkpoints.wait()
      if step < self.total:
        log.say(f'the last {cfg.train.patience} validations were no better')
      best = functools.partial(checkpoints.restore_best, self.made.target)
      task.finish(step, state, best)

  def _after_step(
    self,
    step: int,
    state: TrainState,
    log: runlog.Log,
    policy: guard.Policy,
    stop: stop_signal.StopSignal,
  ) -> None:
    """Logs, validates, saves and stops where it is time to.

    Raises:
      MiraInputError: the last save failed, or see `guard.Policy.check`.
      SystemExit: a signal came, and the state is saved.
    """
    train = self.cfg.train
    validates = self.validates(step)
    saves = validates or step % train.save_every == 0
    # Rows are written at the same steps whether or not the run is stopped.
    if saves or step % train.log_every == 0 or step == 1:
      log.judge(policy)
      log.flush()
    self.checkpoints.check()
    stopping = stop.requested(step)
    if not (saves or stopping):
      return
    log.judge(policy)
    if policy.may_save or step == self.total:
      accuracy = None
      if validates and not stopping:
        accuracy = self.task.validate(step, state, log)
      self.checkpoints.save(step, state, accuracy, log.pending)
      policy.saved = step
    if stopping:
      self.checkpoints.wait()
      resumes = f'the same command resumes from step {policy.saved}'
      log.say(f'stopped after step {step}; {resumes}')
      raise SystemExit(int(ExitCode.PREEMPTED))
    log.pause()
