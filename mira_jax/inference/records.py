"""What MiRA did to a window of a clip, block by block and head by head."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from mira_jax.inference.engine import Engine, Record
from mira_jax.inference.scorer import is_independent

Grid = tuple[int, int, int]
_BALANCE = ('primary', 'anchored', 'attentive', 'corrected')


@dataclasses.dataclass(kw_only=True, frozen=True)
class Block:
  """One block: the share of a head's attention that each token receives.

  Of an ensemble these are means over its members.

  Attributes:
    before: float32 [H, T, h, w], without MiRA; each head sums to 1.
    after: float32 [H, T, h, w], with MiRA; `before` in a block without.
    gain: float32 [T], of every temporal token; None in a block without MiRA, as
      are the next two.
    confidence: float32 [T], its present share of attention or of key energy.
    concentration: float32 [T], 1 / entropy within it, in 1 / nats; None, too,
      where a temporal token is a single token.
    maps: float32 [T, h, w] each, of other systems: the 'gate' of gated
      attention and the 'orientation' of SOA, means over heads and channels.
    angle: of SOA, in degrees.
  """

  before: np.ndarray
  after: np.ndarray
  gain: np.ndarray | None = None
  confidence: np.ndarray | None = None
  concentration: np.ndarray | None = None
  maps: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  angle: float | None = None


@dataclasses.dataclass(kw_only=True, frozen=True)
class Records:
  """All blocks of one window of a clip.

  Attributes:
    window: uint8 [F, S, S, 3], the frames that the model saw.
    indices: int [F], their numbers in the clip.
    number: of the window, from 0.
    windows: number of windows of the clip.
    blocks: in their order.
    maps: float32 [T, h, w] each: of SMA-style attention those of its 'regions'
      [K, T, h, w], of ARBEx's windows 'window_change'.
    balance: float32 [K] each: of ARBEx's head the 'primary', 'anchored',
      'attentive' and 'corrected' prediction.
  """

  window: np.ndarray
  indices: np.ndarray
  number: int
  windows: int
  blocks: tuple[Block, ...]
  maps: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  balance: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

  @property
  def mira(self) -> list[Block]:
    """The blocks with MiRA; [] of a plain ViT."""
    return [x for x in self.blocks if x.gain is not None]

  @property
  def gain(self) -> np.ndarray | None:
    """Of the blocks with MiRA, float32 [blocks, T]; None of a plain ViT."""
    gains = [x.gain for x in self.blocks if x.gain is not None]
    return np.stack(gains) if gains else None

  @property
  def before(self) -> np.ndarray:
    """Mean of `Block.before` over heads and MiRA's blocks, float32 [T, h, w].

    Of a plain ViT the mean is over all blocks.
    """
    return self._mean('before')

  @property
  def after(self) -> np.ndarray | None:
    """As `before`, with MiRA; None of a plain ViT."""
    return None if self.gain is None else self._mean('after')

  def _mean(self, name: str) -> np.ndarray:
    shown = self.mira or self.blocks
    return np.mean([getattr(x, name).mean(axis=0) for x in shown], axis=0)


def of_windows(
  engine: Engine, windows: np.ndarray, indices: np.ndarray, numbers: list[int]
) -> list[Records]:
  """The records of some of a clip's windows.

  Args:
    engine: the model.
    windows: uint8 [V, F, S, S, 3], all windows of the clip.
    indices: int [V, F], the numbers of their frames.
    numbers: of the windows that are wanted.
  """
  if is_independent(engine.model):  # one by one: maps take memory
    each = [(engine.records(windows[i : i + 1]), 0) for i in numbers]
  else:  # batch statistics are then those of the prediction
    together = engine.records(windows)
    each = [(together, i) for i in numbers]
  grid = engine.model.grid
  return [
    Records(
      window=windows[number],
      indices=indices[number],
      number=number,
      windows=len(windows),
      blocks=tuple(_block(record, row, grid) for record in found),
      maps=_maps(found[-1], row, grid),
      balance={
        name: found[-1][name][row] for name in _BALANCE if name in found[-1]
      },
    )
    for number, (found, row) in zip(numbers, each, strict=True)
  ]


def _block(record: Record, row: int, grid: Grid) -> Block:
  fields = {
    name: record[name][min(row, len(record[name]) - 1)]  # a row may be shared
    for name in ('gain', 'confidence', 'concentration')
    if name in record
  }
  before, after = (
    np.stack([on_grid(head, grid) for head in record[f'heads_{name}'][row]])
    for name in ('before', 'after')
  )
  maps = {
    name: on_grid(record[name][row], grid)
    for name in ('gate', 'orientation')
    if name in record and record[name].ndim == 2
  }
  angle = float(record['angle'][row]) if 'angle' in record else None
  return Block(before=before, after=after, maps=maps, angle=angle, **fields)


def _maps(record: Record, row: int, grid: Grid) -> dict[str, np.ndarray]:
  """See `Records.maps`."""
  found = {}
  if 'channel_maps' in record:
    frames, height, width = grid
    regions = record['channel_maps'][row].swapaxes(0, 1)
    found['regions'] = regions.reshape(-1, frames, height, width)
  if 'window_change' in record:
    found['window_change'] = record['window_change'][row].reshape(grid)
  return found


def on_grid(marginal: np.ndarray, grid: Grid) -> np.ndarray:
  """A marginal over tokens [L], after any class token, as [T, h, w].

  A token of a temporal encoder is a whole frame: its positions share it.
  """
  frames, height, width = grid
  positions = height * width
  if len(marginal) < frames * positions:
    marginal = np.repeat(marginal[-frames:] / positions, positions)
  return marginal[-frames * positions :].reshape(grid)
