"""The loop of a run, from a configuration to weights in a file."""

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
  init_from,
  nan_debug,
  run_folder,
  stop_signal,
)
from mira_jax.train import log as runlog
from mira_jax.train import task as tasks


def train(
  cfg: config.Config,
  workdir: pathlib.Path,
  *,
  strict: bool = False,
  force: bool = False,
  debug_nans: bool = False,
) -> None:
  """Trains a run to its end, from where it was stopped if it was.

  Args:
    cfg: of the run; the number of classes is filled in.
    workdir: folder of the run, see `training.open_workdir`.
    strict: whether a damaged newest checkpoint is an error.
    force: resume although the configuration or a dataset changed.
    debug_nans: stop at the first update that is not finite, and find the
      operation that made it so; on one host.

  Raises:
    MiraInputError: another process trains into this folder ('locked'); the
      configuration, a dataset or a checkpoint cannot be used; too many clips
      are damaged, or too many updates in a row not finite.
    SystemExit: a signal came, and the state is saved; see `ExitCode`.
  """
  with run_folder.sole_process(workdir):
    _train(cfg, workdir, strict=strict, force=force, debug_nans=debug_nans)


def _train(
  cfg: config.Config,
  workdir: pathlib.Path,
  *,
  strict: bool,
  force: bool,
  debug_nans: bool,
) -> None:
  # ----- data, model, what is minimised -----
  config.validate(cfg, jax.device_count())
  mesh = sharding.make_mesh(**dataclasses.asdict(cfg.mesh))
  task = tasks.make(cfg, workdir, mesh)
  steps_per_epoch = max(1, len(task.source) // cfg.data.batch_size)
  total = cfg.train.epochs * steps_per_epoch
  if total >= 2**31:
    hint = f'{total} steps of int32 cannot be counted; train for fewer'
    raise config.bad_config(f'config.train.epochs={cfg.train.epochs}', hint)
  first_host = jax.process_index() == 0
  if first_host:
    datasets.tell(task.datasets)
    terminal.say(task.summary, task.program.attention, sharding.describe(mesh))

  # ----- state: the newest checkpoint, or a fresh one -----
  # Made under jit, so that every device of every host has it.
  init_key, step_key = jax.jit(
    lambda: tuple(jax.random.split(jax.random.key(cfg.seed))),
    out_shardings=sharding.replicated(mesh),
  )()
  init, train_step, target = build.training(
    cfg, task.program, mesh, steps_per_epoch, donate=not debug_nans
  )
  if debug_nans:
    if jax.process_count() > 1:  # one host alone could not repeat a step
      hint = 'it works on one host; leave out --distributed'
      raise MiraInputError('bad_flag', '--debug_nans', hint)
    train_step = nan_debug.blaming(train_step)
  fingerprints = [fingerprint(dataset) for dataset in task.datasets]
  checkpoints = checkpoint.Checkpoints(
    workdir / 'checkpoints',
    run_folder.identity(cfg, fingerprints),
    config.defaults(),
  )
  state = checkpoints.restore(target, strict=strict, force=force)
  if state is None:
    where = jax.tree.map(lambda x: x.sharding, target)
    state = jax.jit(init, out_shardings=where)(init_key)
    if cfg.train.init_from:
      names = task.source.class_names
      state, told = init_from.start_from(cfg, names, state, mesh)
      if first_host:
        terminal.say(*f'{cfg.train.init_from}: {told}'.split('\n'))
  if first_host:
    files.replace(workdir / 'config.json', config.to_json(cfg))
  start = int(state.step)
  every = cfg.train.eval_every * steps_per_epoch

  def is_look(step: int) -> bool:
    return step == total or bool(every and step % every == 0)

  # A signal came just when a look was due, and saving could not wait for it.
  look_due = (
    start > 0 and is_look(start) and checkpoints.accuracy(start) is None
  )

  # ----- loop -----
  batches = task.batches(start)
  with (
    stop_signal.StopSignal() as stop,
    checkpoints,
    jax.set_mesh(mesh),
    runlog.Log(
      workdir,
      start,
      total,
      cfg.data.batch_size,
      max_bad_steps=cfg.optim.max_bad_steps,
      look_due=look_due,
      pending=checkpoints.pending,
    ) as log,
    memory.measured(
      lambda: train_step.lower(target, batch, step_key),
      f'a step of {cfg.data.batch_size} clips',
      functools.partial(run_folder.fitting, cfg, sharding.clip_parts(mesh)),
    ),
  ):
    if look_due:
      checkpoints.rate(start, task.look(start, state, log))
    for step in range(start + 1, total + 1):
      batch = sharding.put_batch(next(batches), mesh)
      with jax.transfer_guard('disallow'):  # nothing moves behind our back
        state, metrics = train_step(state, batch, step_key)
      log.add(step, metrics)
      if step % cfg.train.log_every == 0 or step == 1:
        log.flush()

      checkpoints.check()  # raises if the last one could not be written
      stopping = stop.received or checkpoints.stop_requested(step)
      looking = is_look(step) and not stopping
      if not (stopping or looking or step % cfg.train.save_every == 0):
        continue

      # ----- look, save, stop -----
      # Either raises when too many updates were not finite. Rows are written
      # at the same steps whether or not the run is stopped in between.
      if is_look(step) or step % cfg.train.save_every == 0:
        log.flush()
      else:
        log.judge()
      # The state that is held while losses are NaN may be their cause. It is
      # not saved, neither here nor when the run ends for that: it would be the
      # newest checkpoint, from which no other learning rate could go on.
      if not log.in_a_row or step == total:
        accuracy = task.look(step, state, log) if looking else None
        checkpoints.save(step, state, accuracy, log.pending)
        log.saved = step
      if stopping:
        checkpoints.wait()
        log.say(
          f'stopped after step {step}; the same command resumes from step '
          f'{log.saved}'
        )
        raise SystemExit(int(ExitCode.PREEMPTED))
      log.pause()

    # ----- what is left behind -----
    checkpoints.wait()
    task.finish(
      total, state, functools.partial(checkpoints.restore_best, target)
    )
