"""Compiles the train step of a configuration for a machine, and measures it."""

from __future__ import annotations

import dataclasses
import re
import time
from typing import Any

import jax

from mira_jax import config
from mira_jax.aot import chips, compilers, counts, hlo, rates
from mira_jax.aot.compilers import Target
from mira_jax.devices import sharding
from mira_jax.train import build

Report = dict[str, Any]  # as --json prints it; see docs/aot.md


def measure(cfg: config.Config, target: Target) -> Report:
  """Compiles a train step, after `compilers.load`.

  Args:
    cfg: whose batch divides over the devices.
    target: the machine.

  Raises:
    MiraInputError: the machine or the configuration is impossible.
    jax.errors.JaxRuntimeError: the compiler fails for another reason than
      memory.
  """
  config.validate(cfg, target.chips)
  devices = compilers.devices(target)
  mesh = sharding.make_mesh(**dataclasses.asdict(cfg.mesh), devices=devices)
  chip = chips.of_kind(devices[0].device_kind)
  made = build.make(cfg, mesh)
  training = build.training(cfg, made, mesh, steps_per_epoch=1000)
  batch, key = build.abstract_batch(cfg, mesh), build.abstract_key(mesh)
  step: Any = training.step
  start = time.monotonic()
  with jax.set_mesh(mesh):
    traced = step.trace(training.target, batch, key)
    compiled, message = _compile(traced.lower())
  memory = _memory(compiled)
  fits = compiled is not None and memory['peak'] <= chip.hbm
  total = counts.flops(traced.jaxpr)
  own = counts.Counts({x: n / len(devices) for x, n in total.items()})
  found = hlo.collectives(compiled.as_text()) if compiled else []
  return {
    'machine': str(target),
    'chip': chip.name,
    'chips': target.chips,
    'devices': sharding.describe(mesh).removeprefix('devices: '),
    'attention': made.attention.removeprefix('attention: '),
    'batch': cfg.data.batch_size,
    'seconds': round(time.monotonic() - start, 1),
    'memory': memory | {'hbm': int(chip.hbm), 'fits': fits, 'message': message},
    'flops': own.total(),
    'flops_by_name': {str(x): n for x, n in own.most_common()},
    'collectives': [x._asdict() for x in found if x.group > 1],
    'bound': compiled and chips.bound(chip, own.total(), found),
    'estimate': compiled and rates.estimate(chip, own, found),
  }


def _compile(lowered: Any) -> tuple[Any, str]:
  """The compiled step; or None, and the message that it does not fit."""
  try:
    return lowered.compile(), ''
  except jax.errors.JaxRuntimeError as error:
    line = str(error).splitlines()[0]
    if 'RESOURCE_EXHAUSTED' not in line or not re.search('HBM|hbm', line):
      raise
    return None, line


def _memory(compiled: Any) -> Report:
  """Bytes of a device; nothing of a step that does not fit."""
  if compiled is None:
    return {}
  stats = compiled.memory_analysis()
  sizes = {
    'arguments': stats.argument_size_in_bytes,
    'temporaries': stats.temp_size_in_bytes,
    'outputs': stats.output_size_in_bytes,
    'aliased': stats.alias_size_in_bytes,  # outputs in donated arguments
  }
  return sizes | {'peak': sum(sizes.values()) - 2 * sizes['aliased']}
