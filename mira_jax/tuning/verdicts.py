"""Which kernels work on this machine, found out once and kept.

Before JAX takes the devices, `examine` checks every kernel that would be chosen
in a child: one that hangs must not hang a training, and a TPU serves a single
process. The verdict is kept by device, driver, and the versions of jax and of
the kernels. `adopt` tells `kernels.dispatch`, the same on all hosts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mira_jax import files, terminal
from mira_jax.devices import hardware
from mira_jax.errors import MiraInputError
from mira_jax.kernels import dispatch, records
from mira_jax.tuning import checks
from mira_jax.tuning.child import ChildError, on_device

LIMIT = 240.0  # seconds of a check, most of them the compiler's
_OUT_OF_MEMORY = 'RESOURCE_EXHAUSTED'  # others use the device: not for ever
# What reading a file of the cache raises, whatever is in it.
_DAMAGED = (OSError, ValueError, LookupError, TypeError, RecursionError)
_PACKAGES = (
  'jax',
  'jaxlib',
  'libtpu',
  'jax-cuda13-plugin',
  'jax-cuda12-plugin',
)


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What checks of kernels found.

  Attributes:
    device: its kind, such as 'NVIDIA H200'.
    passed: names of implementations.
    failed: others, and why.
  """

  device: str = ''
  passed: tuple[str, ...] = ()
  failed: Mapping[str, str] = dataclasses.field(default_factory=dict)


# ----- finding out ------------------------------------------------------------


def examine(device: str | None = None, limit: float = LIMIT) -> Verdict:
  """The verdict on the kernels of this machine, from the cache or a child.

  Args:
    device: of `platform.start`.
    limit: seconds of a check.
  """
  wanted = device or os.environ.get('JAX_PLATFORMS', '').partition(',')[0]
  found = hardware.accelerators()
  if wanted == 'cpu' or not found:
    return Verdict()
  path = folder() / f'check-{_digest(found)}.json'
  kept = _read(path)
  if kept is None:
    kept = _check_once(path, wanted, limit)
  for name, reason in kept.failed.items():
    hint = f'--attention={name} forces it, without {path} it is checked again'
    _say(f'{name} is not used on {kept.device}: {reason}; {hint}')
  return kept


def folder() -> pathlib.Path:
  """Where verdicts and times are kept."""
  return files.cache() / 'attention'


def _digest(found: list[str]) -> str:
  """A digest of all that a verdict depends on."""
  versions = [_version(name) for name in _PACKAGES]
  hidden = os.environ.get('CUDA_VISIBLE_DEVICES') in ('', '-1')
  facts = [found, hidden, versions, records.version()]
  return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return ''


def _read(path: pathlib.Path) -> Verdict | None:
  try:
    fields = json.loads(path.read_text())
    device, passed, failed = (fields[n] for n in ('device', 'passed', 'failed'))
    return Verdict(str(device), tuple(passed), dict(failed))
  except _DAMAGED:  # or missing: made anew
    return None


def _check_once(path: pathlib.Path, wanted: str, limit: float) -> Verdict:
  """Checks kernels, unless another process does: then it waits for that."""
  until, waits = time.monotonic() + LIMIT + 2 * limit, False
  while True:
    try:
      with files.lock(path.with_suffix('.lock')):
        found = _read(path)
        if found is None:
          found = _check_all(wanted, limit)
          _keep(path, found)
        return found
    except MiraInputError as error:
      if error.code != 'locked':
        _say(f'what is checked now cannot be kept: {error}')
        return _check_all(wanted, limit)
      if time.monotonic() > until:
        _say(f'kernels are not checked: {error}')
        return Verdict()
      if not waits:
        _say(f'kernels are being checked: {error}')
        waits = True
    time.sleep(0.5)


def _keep(path: pathlib.Path, found: Verdict) -> None:
  """Writes a verdict, if it holds for other times, too."""
  if not found.device or _OUT_OF_MEMORY in str(found.failed):
    return
  try:
    files.write_text(path, json.dumps(dataclasses.asdict(found), indent=2))
  except OSError as error:
    _say(f'what is checked now cannot be kept: {error}')


def _check_all(wanted: str, limit: float) -> Verdict:
  """Checks the kernels of the device that a child finds."""
  passed, failed = [], {}
  with on_device(wanted) as child:
    try:
      platform, kind, _ = child.call(checks.DEVICE, LIMIT)
    except ChildError as error:
      _say(f'kernels are not checked: no device ({error})')
      return Verdict()
    for name in dispatch.KERNELS.get(platform, ()):
      _say(f'checks {name} on {kind}, once')
      try:
        if child.call(checks.CHECK, limit, name=name):
          passed.append(name)
      except ChildError as error:
        failed[name] = f'its check failed: {error}'
  return Verdict(kind, tuple(passed), failed)


def _say(text: str) -> None:
  terminal.say(f'mira: attention: {text}', error=True)


# ----- telling ----------------------------------------------------------------


def adopt(verdict: Verdict, forced: str | None = None) -> None:
  """Tells `dispatch` of failed kernels and of times, after JAX has started.

  Of several hosts, a kernel that failed on one is used on none, and all take
  the times of the first: they must trace the same program.

  Args:
    verdict: of `examine`.
    forced: an implementation to use, whatever is known.
  """
  target = dispatch.target()
  text = _times_text(device_name(target))
  if jax.process_count() > 1:
    verdict, text = _agreed(verdict, text)
  measured = records.parse(text, 'measured here') if text else None
  dispatch.learn(
    target=target, failed=verdict.failed, measured=measured, forced=forced
  )


def ensure() -> None:
  """Examines and adopts, unless a command of this process has done so."""
  if dispatch.known().target is None:
    adopt(examine())


def device_name(target: dispatch.Target) -> str:
  """What times belong to: the kind of an accelerator, or the processor."""
  return hardware.processor() if target.platform == 'cpu' else target.kind


def times_path(device: str) -> pathlib.Path:
  """The file of the times that were measured here."""
  digest = hashlib.sha256(device.encode()).hexdigest()[:16]
  return folder() / f'times-{digest}.json'


def read_times(device: str) -> Sequence[records.Row]:
  """The times that were measured here, with these versions."""
  text = _times_text(device)
  return records.parse(text, '').rows if text else ()


def _times_text(device: str) -> str:
  """That file, if it is of these versions; '' if not."""
  try:
    text = times_path(device).read_text()
    fields = json.loads(text)
    records.parse(text, '')
    same = fields['jax'], fields['kernels']
  except _DAMAGED:
    return ''
  return text if same == (jax.__version__, records.version()) else ''


def _agreed(verdict: Verdict, text: str) -> tuple[Verdict, str]:
  """One verdict and one text for all hosts."""
  own = json.dumps([dataclasses.asdict(verdict), text]).encode()
  longest = int(_gather(np.array(len(own))).max())
  padded = np.frombuffer(own.ljust(longest), np.uint8)
  everyone = [json.loads(bytes(row)) for row in _gather(padded)]
  verdicts = [Verdict(**fields) for fields, _ in everyone]
  failed: dict[str, str] = {}
  for one in reversed(verdicts):  # of the first host, if it failed there, too
    failed |= one.failed
  return dataclasses.replace(verdicts[0], failed=failed), everyone[0][1]


def _gather(x: Any) -> np.ndarray:
  return np.asarray(multihost_utils.process_allgather(x))
