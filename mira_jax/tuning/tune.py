"""Times every implementation of attention, and every tuning of ours.

Each time is taken in a child with a limit, since a tuning may hang; one that
does not compile, or that fails `checks.check`, is passed over.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mira_jax.devices import hardware
from mira_jax.kernels import dispatch, records, timing
from mira_jax.kernels.dispatch import Request, Target
from mira_jax.kernels.records import Row
from mira_jax.tuning import checks
from mira_jax.tuning.child import Child, ChildError, on_device

LIMIT = 180.0  # seconds of a call, most of them the compiler's
# An implementation that is slower by more than this is not tuned.
HOPELESS = 3.0
GROUP = 16  # calls between which an accelerator doesn't wait for the host
GAIN = 0.98  # a tuning must be this much faster than the assumed one

Fields = dict[str, dict[str, Any]]  # what is tuned -> fields of its tuning
Report = Callable[[str], None]


@dataclasses.dataclass
class Tuner:
  """Finds the fastest implementation of requests.

  Attributes:
    child: where kernels run.
    until: the clock at which tuning ends (`time.monotonic`).
    report: gets a line for each implementation or tuning that is tried.
  """

  child: Child
  until: float
  report: Report

  def row(self, asked: Request) -> Row:
    """The times of a request by every implementation that serves it."""
    times: dict[str, float] = {}
    tunings: dict[str, Fields] = {}
    shape, dtype = 'x'.join(map(str, asked.shape)), jnp.dtype(asked.dtype).name
    what = 'forward and backward' if asked.training else 'forward'
    self.report(f'{asked.mode} {shape} {dtype}, {what}:')
    for name, implementation in dispatch.IMPLEMENTATIONS.items():
      if dispatch.refusal(name, asked):
        continue
      kernels = dispatch.KERNELS.get(asked.target.platform, ())
      if name in kernels and not self._right(asked, name, {}):
        continue
      first = self._time(asked, name, {})
      if first is None:
        continue
      best: Fields = {}
      if first <= HOPELESS * min([first, *times.values()]):
        first, best = self._tune(asked, name, implementation, first)
      times[name] = first
      if best:
        tunings[name] = best
    return Row(
      shape=asked.shape,  # pyright: ignore[reportArgumentType]
      dtype=dtype,
      mode=asked.mode,
      training=asked.training,
      milliseconds=times,
      tunings=tunings,
    )

  def _tune(
    self,
    asked: Request,
    name: str,
    implementation: dispatch.Implementation,
    first: float,
  ) -> tuple[float, Fields]:
    """The least time, and the tunings that differ from the assumed ones."""
    least, best = first, {}
    for key, candidates in implementation.space(asked).items():
      times = []
      for candidate in candidates[1:]:
        if time.monotonic() > self.until:
          break
        tried = best | {key: dataclasses.asdict(candidate)}
        found = self._time(asked, name, tried)
        if found and found < GAIN * least:
          times.append((found, tried))
      for found, tried in sorted(times, key=lambda x: x[0]):
        if self._right(asked, name, tried):
          least, best = found, tried
          break
    return least, best

  def _time(self, asked: Request, name: str, tunings: Fields) -> float | None:
    """Milliseconds of a call; None where there is no answer."""
    what = _what(name, tunings)
    try:
      seconds = self.child.call(
        f'{__name__}:measure',
        LIMIT,
        name=name,
        tunings=tunings,
        asked=[*asked[:1], jnp.dtype(asked.dtype).name, *asked[2:]],
      )
    except ChildError as error:
      self.report(f'  {what}: {error}')
      return None
    milliseconds = 1e3 * statistics.median(seconds)
    self.report(f'  {what}: {number(milliseconds)} ms')
    return milliseconds

  def _right(self, asked: Request, name: str, tunings: Fields) -> bool:
    dtype = jnp.dtype(asked.dtype).name
    try:
      self.child.call(
        checks.CHECK,
        LIMIT,
        name=name,
        tunings=tunings,
        dtypes=[dtype],
      )
    except ChildError as error:
      self.report(f'  {_what(name, tunings)}: WRONG: {error}')
      return False
    return True


def tune(
  requests: Sequence[Request], budget: float, report: Report
) -> Iterator[Row]:
  """A row for each request, forward and with gradients.

  Args:
    requests: what attention is asked to do; `training` is not read.
    budget: seconds until tunings are no longer tried.
    report: gets a line for each thing that is tried.
  """
  with on_device(requests[0].target.platform) as child:
    start = time.monotonic()
    for i, asked in enumerate(requests):
      for training in (False, True):
        share = (2 * i + training + 1) / (2 * len(requests))
        tuner = Tuner(child, start + share * budget, report)
        yield tuner.row(asked._replace(training=training))


def devices(device: str | None) -> tuple[Target, int]:
  """The kind of device that a child finds, and how many there are.

  Raises:
    ChildError: it finds none.
  """
  with on_device(device) as child:
    *found, count = child.call(checks.DEVICE, LIMIT)
  # A child has one of the TPU's chips.
  chips = [x for x in hardware.accelerators() if x.startswith('Google')]
  return Target(*found), max(count, len(chips))


def _what(name: str, tunings: Fields) -> str:
  """What is tried: the newest of the tunings."""
  *_, newest = '', *(f', {key}: {words(x)}' for key, x in tunings.items())
  return name + newest


def words(tuning: Mapping[str, Any]) -> str:
  """The fields of a tuning."""
  return ', '.join(f'{name} {value}' for name, value in tuning.items())


def number(milliseconds: float) -> str:
  """Three digits, such as 0.0312, 5.12 or 26,500."""
  rounded = float(f'{milliseconds:.3g}')
  return f'{rounded:,.0f}' if rounded >= 100 else f'{rounded:.3g}'


def as_json(device: str, rows: Sequence[Row]) -> str:
  """A file of records, see `kernels.records`."""
  fields = {
    'device': device,
    'jax': jax.__version__,
    'kernels': records.version(),
    'date': datetime.date.today().isoformat(),
    'rows': [dataclasses.asdict(row) for row in rows],
  }
  return json.dumps(fields, indent=1)


# ----- in the child -----------------------------------------------------------


def measure(name: str, tunings: Fields, asked: Sequence[Any]) -> list[float]:
  """Seconds of a call, several times.

  Args:
    name: of the implementation.
    tunings: of it, by fields.
    asked: the fields of a Request.
  """
  shape, dtype, mode, (platform, _), training = asked[:5]
  choice = dispatch.Choice(name, '', dispatch.make_tunings(name, tunings))
  frames = next(x for x in (8, 4, 2, 1) if shape[1] % x == 0)
  run = checks.both if training else checks.forward
  run = functools.partial(run, choice, frames=frames, mode=mode)
  arrays = checks.draw(tuple(shape), dtype)
  arrays = arrays if training else arrays[:3]
  return timing.seconds(run, arrays, group=1 if platform == 'cpu' else GROUP)
