"""Trains a video transformer and leaves its weights in one file.

python train.py --config=configs/quickstart.py --workdir=runs/quickstart

Any field of the configuration is a flag, such as --config.optim.lr=3e-4. The
same command resumes a run that was stopped. A run's folder holds config.json,
metrics.jsonl, tensorboard/, checkpoints/ and at the end weights.safetensors
and curves.png.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
from absl import flags
from ml_collections import config_flags

from mira_jax import (
  checkpoint,
  config,
  engine,
  figures,
  runlog,
  sharding,
  steps,
  training,
  weights,
)
from mira_jax.data import pipeline
from mira_jax.errors import ExitCode

_CONFIG = config_flags.DEFINE_config_file('config', help_string='a file.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'folder of the run.')
_DISTRIBUTED = flags.DEFINE_bool(
  'distributed', False, 'one of several hosts that all run this command.'
)
flags.mark_flags_as_required(['config', 'workdir'])


def main(_):
  # ----- configuration, dataset, folder -----
  if _DISTRIBUTED.value:
    jax.distributed.initialize()
  engine.use_compile_cache()
  cfg: config.Config = _CONFIG.value
  config.validate(cfg, jax.device_count())
  dataset = training.open_dataset(cfg.data)
  training.fit_dataset(cfg, dataset)
  source = dataset.source('train')
  steps_per_epoch = max(1, len(source) // cfg.data.batch_size)
  total = cfg.train.epochs * steps_per_epoch

  # ----- model, optimiser, steps -----
  mesh = sharding.make_mesh()
  model = engine.build_model(dataclasses.asdict(cfg.model))
  attention = training.attention_choice(model, cfg.data.batch_size, mesh)
  if jax.process_index() == 0:
    print(attention)
  optimizer, schedule = training.make_optimizer(
    cfg.optim, steps_per_epoch, total
  )
  train_step = steps.make_train_step(
    model,
    optimizer,
    schedule,
    config.augment(cfg.data),
    mesh,
    smoothing=cfg.optim.label_smoothing,
    mixup_alpha=cfg.data.mixup_alpha,
    cutmix_alpha=cfg.data.cutmix_alpha,
  )

  # ----- state: the newest checkpoint, or a fresh one -----
  # Made under jit, so that every device of every host has them.
  init_key, step_key = jax.jit(
    lambda: tuple(jax.random.split(jax.random.key(cfg.seed))),
    out_shardings=sharding.replicated(mesh),
  )()
  side = cfg.model.image_size
  init = functools.partial(
    steps.init_state,
    model,
    optimizer,
    video_shape=(1, cfg.model.frames, side, side, 3),
  )
  target = steps.abstract(init, init_key, mesh)
  workdir = training.open_workdir(_WORKDIR.value)
  checkpoints = checkpoint.Checkpoints(
    workdir / 'checkpoints', training.identity(cfg, dataset)
  )
  state = checkpoints.restore(target)
  if state is None:
    where = jax.tree.map(lambda x: x.sharding, target)
    state = jax.jit(init, out_shardings=where)(init_key)
  if jax.process_index() == 0:
    (workdir / 'config.json').write_text(config.to_json(cfg))
  start = int(state.step)

  # ----- loop -----
  batches = pipeline.train_batches(
    source,
    frames=cfg.model.frames,
    rate=cfg.data.rate,
    fit=cfg.data.fit,
    size=side,
    batch_size=cfg.data.batch_size,
    seed=cfg.seed,
    start_step=start,
    host=jax.process_index(),
    hosts=jax.process_count(),
    threads=cfg.data.threads,
  )
  scorer = engine.Engine(model, state.variables, cfg.data.batch_size)
  stop = training.StopSignal()
  with (
    checkpoints,
    jax.set_mesh(mesh),
    runlog.Log(workdir, start, total, cfg.data.batch_size) as log,
  ):
    for step in range(start + 1, total + 1):
      batch = sharding.put_batch(next(batches), mesh)
      with jax.transfer_guard('disallow'):  # nothing moves behind our back
        state, metrics = train_step(state, batch, step_key)
      log.add(step, metrics)
      if step % cfg.train.log_every == 0 or step == start + 1:
        log.flush()

      stopping = stop.received or checkpoints.stop_requested(step)
      every = cfg.train.eval_every * steps_per_epoch
      scoring = step == total or (every and step % every == 0)
      scoring = scoring and not stopping
      if not (stopping or scoring or step % cfg.train.save_every == 0):
        continue

      # ----- evaluate, save, stop -----
      log.flush()  # raises before a broken state is saved
      accuracy = -1.0
      if scoring:
        scorer.update(state.variables)
        _, scores = training.score_split(
          scorer,
          dataset,
          split=cfg.eval.split,
          rate=cfg.data.rate,
          fit=cfg.data.fit,
          views=cfg.eval.views,
          threads=cfg.data.threads,
        )
        accuracy = scores.war
        row = {'war': scores.war, 'uar': scores.uar}
        log.write(step, {f'{cfg.eval.split}_{n}': x for n, x in row.items()})
      checkpoints.save(step, state, accuracy)
      if stopping:
        log.say(f'stopped after step {step}; the same command resumes')
        raise SystemExit(int(ExitCode.PREEMPTED))
      log.pause()

  # ----- weights, curves -----
  if jax.process_index() == 0:
    path = workdir / engine.WEIGHTS
    card = training.card(cfg, dataset, total)
    weights.save_weights(path, state.params, state.mira, card)
    rows = runlog.read(workdir)
    figures.curves_figure(workdir / 'curves.png', rows)
    print(f'weights: {path}\nscores:  python eval.py --workdir={workdir}')


if __name__ == '__main__':
  training.run(main)
