"""Compiles the step of a configuration for a machine, and measures it.

`measure` starts a process for each compilation, whose work is `compile_here`.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax

from mira_jax import config
from mira_jax.aot import chips, compilers, counts, hlo
from mira_jax.aot.compilers import Target
from mira_jax.aot.estimate import estimate
from mira_jax.devices import sharding
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.kernels.operations import REMAT
from mira_jax.train import build

Report = dict[str, Any]  # what --json prints; see docs/aot.md


def measure(
  cfg: config.Config, target: Target, compiler: pathlib.Path | None
) -> Report:
  """Compiles a configuration's train step in a process of its own.

  Args:
    cfg: whose batch divides over the devices.
    target: the machine.
    compiler: see `compilers.find`.

  Raises:
    MiraInputError: the machine or the configuration cannot be, or the compiler
      fails for another reason than memory.
  """
  done = subprocess.run(
    [sys.executable, '-m', 'mira_jax.aot.measure'],
    input=json.dumps({'config': config.to_json(cfg), 'target': target}),
    env=compilers.environment(target.platform, compiler),
    capture_output=True,
    text=True,
  )
  try:
    report = json.loads(done.stdout.splitlines()[-1])
  except (IndexError, ValueError) as error:
    last = [x for x in done.stderr.splitlines() if x.strip()][-1:]
    hint = f'the compiler failed: {"".join(last) or done.returncode}'
    code = ExitCode.FAILED
    raise MiraInputError(
      'not_compiled', str(target), hint, exit_code=code
    ) from error
  if 'error' in report:
    raise MiraInputError(*report['error'])
  # The partitioner's way to say that it gathers whole arrays.
  found = re.findall(r'Involuntary full rematerialization.*', done.stderr)
  return report | {'warnings': sorted(set(found))}


def alternatives(
  cfg: config.Config, devices: int
) -> Iterator[tuple[list[str], config.Config]]:
  """What needs less memory, as flags and as a configuration.

  First what costs least time: to compute more again, to split parameters, to
  go through a batch in parts.
  """
  keeps = list(REMAT)[::-1]  # the most first
  keeps = (
    keeps[keeps.index(cfg.model.remat) + 1 :] if cfg.model.remat else keeps
  )
  tried = [{'model.remat': x} for x in keeps]
  least = {'model.remat': next(iter(REMAT))}
  fsdp = math.gcd(devices // cfg.mesh.model, 8)
  if cfg.mesh.fsdp < fsdp:
    tried.append(least | {'mesh.fsdp': fsdp})
    least |= {'mesh.fsdp': fsdp}
  tried += [least | {'optim.accumulate': 2**i} for i in (1, 2, 3)]
  for fields in tried:
    other = copy.deepcopy(cfg)
    for name, value in fields.items():
      group, field = name.split('.')
      setattr(getattr(other, group), field, value)
    try:
      config.validate(other, devices)
    except MiraInputError:
      continue
    yield [f'--config.{n}={x}' for n, x in fields.items()], other


# ----- in the process of one compilation --------------------------------------


def compile_here(cfg: config.Config, target: Target) -> Report:
  """`measure`, but in this process and without the compiler's warnings."""
  devices = compilers.devices(target)
  config.validate(cfg, len(devices))
  mesh = sharding.make_mesh(**dataclasses.asdict(cfg.mesh), devices=devices)
  chip = chips.of_kind(devices[0].device_kind)
  share = target.chips / len(devices)
  made = build.make(cfg, mesh)
  training = build.training(cfg, made, mesh, steps_per_epoch=1000)
  arguments = (
    training.target,
    build.abstract_batch(cfg, mesh),
    build.abstract_key(mesh),
  )
  # From here on, for nothing can be computed on devices that are not there.
  with jax.set_mesh(mesh):
    start = time.monotonic()
    traced = training.step.trace(*arguments)
    lowered = traced.lower()
    traced_in = time.monotonic() - start
    compiled, told = _compile(lowered)
  report = {
    'machine': str(target),
    'chip': chip.name,
    'chips': target.chips,
    'devices': sharding.describe(mesh).removeprefix('devices: '),
    'mesh': dict(mesh.shape),
    'attention': made.attention.removeprefix('attention: '),
    'batch': cfg.data.batch_size,
    'versions': compilers.versions(target.platform),
    'trace_seconds': round(traced_in, 1),
    'compile_seconds': round(time.monotonic() - start - traced_in, 1),
    'memory': _memory(compiled, told, arguments, int(chip.hbm * share)),
    'flops': _flops(cfg, traced.jaxpr, len(devices)),
  }
  if compiled is None:
    return report | {'traffic': None, 'collectives': None, 'estimate': None}
  text = compiled.as_text()
  found = hlo.collectives(text)
  traffic = hlo.traffic(text)
  guess = estimate(
    chip,
    model_flops=report['flops']['model'],
    hardware_flops=report['flops']['hardware'],
    traffic=traffic,
    collectives=found,
    share=share,
  )
  return report | {
    'kernels': len(re.findall(r'"(?:tpu_custom_call|mosaic_gpu\w*)"', text)),
    'traffic': traffic,
    'collectives': [
      x._asdict() | {'group': len(x.group)} for x in found if len(x.group) > 1
    ],
    'estimate': guess._asdict(),
  }


def _compile(lowered) -> tuple[Any, str]:
  """The compiled step; or None, and how the memory did not suffice."""
  try:
    return lowered.compile(), ''
  except jax.errors.JaxRuntimeError as error:
    line = str(error).splitlines()[0]
    if 'RESOURCE_EXHAUSTED' not in line or not re.search('HBM|hbm', line):
      raise
    return None, line


def _memory(compiled, told: str, arguments, hbm: int) -> Report:
  """Bytes of a device. What is donated is written over: counted once."""
  if compiled is None:
    held = sum(
      math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
      for x in jax.tree.leaves(arguments)
      if jax.dtypes.issubdtype(x.dtype, jax.numpy.number)
      or x.dtype == jax.numpy.bool_
    )
    sizes = {'arguments': held, 'outputs': None, 'aliased': None}
    found = re.search(r'temporaries \(([\d.]+)G\)', told)
    sizes['temporaries'] = int(float(found[1]) * chips.GIB) if found else None
    peak = held + (sizes['temporaries'] or 0)
    return sizes | {'peak': peak, 'hbm': hbm, 'fits': False, 'told': told}
  stats = compiled.memory_analysis()
  sizes = {
    'arguments': stats.argument_size_in_bytes,
    'outputs': stats.output_size_in_bytes,
    'aliased': stats.alias_size_in_bytes,
    'temporaries': stats.temp_size_in_bytes,
  }
  peak = (
    sizes['arguments']
    + sizes['temporaries']
    + sizes['outputs']
    - sizes['aliased']
  )
  return sizes | {'peak': peak, 'hbm': hbm, 'fits': peak <= hbm, 'told': told}


def _flops(cfg: config.Config, jaxpr, devices: int) -> Report:
  """FLOPs per device: that the model needs, and that are computed."""
  by_name = counts.flops(jaxpr)
  clips = cfg.data.batch_size * cfg.data.repeats
  return {
    'model': clips * model_flops(cfg) / devices,
    'hardware': by_name.total() / devices,
    'by_name': {n: x / devices for n, x in by_name.most_common()},
  }


def model_flops(cfg: config.Config) -> int:
  """FLOPs that one clip needs: three times those of the plain model forward.

  By convention: each product has two more in the backward pass. MiRA, what is
  computed again and the augmentation are extra. A frozen backbone needs no
  backward pass.
  """
  plain = copy.deepcopy(cfg)
  plain.model.mira = plain.model.remat = None
  plain.model.scan, plain.model.attention = False, 'meaning'
  plain.data.batch_size = plain.optim.accumulate = plain.data.repeats = 1
  mesh = sharding.make_mesh(devices=jax.devices('cpu')[:1])
  made = build.make(plain, mesh)
  video = jax.ShapeDtypeStruct(build.video_shape(plain), jax.numpy.float32)

  def forward(variables, video):
    if plain.pretrain is None:
      return made.model.apply(variables, video)
    mask, hidden = build.draw_mask(plain, jax.random.key(0), video.shape)
    return made.model.apply(variables, video, mask, num_masked=hidden)

  variables = jax.eval_shape(made.init, build.abstract_key(mesh))
  jaxpr = jax.jit(forward).trace(variables, video).jaxpr
  times = 1 if plain.optim.freeze_backbone else 3
  return times * counts.flops(jaxpr).total()


def _main() -> None:
  asked = json.load(sys.stdin)
  try:
    report = compile_here(
      config.from_json(asked['config']), Target(*asked['target'])
    )
  except MiraInputError as error:
    report = {'error': [error.code, error.path, error.hint]}
  print(json.dumps(report))


if __name__ == '__main__':
  _main()
