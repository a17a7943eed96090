"""The page and the pictures of `mira explain`."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mira_jax import figures, pages
from mira_jax.figures.style import Picture
from mira_jax.inference.predictor import Prediction, Predictor
from mira_jax.inference.records import Records
from mira_jax.video import footage, images

_NAMES = ('gain', 'confidence', 'concentration')  # of a block
_SYSTEMS = {
  'gate': 'gated attention',
  'orientation': 'SOA',
  'window_change': 'guided windows',
}
_FOOTER = (
  'Written by mira explain of mira_jax. Attention is the share that each token '
  'receives, averaged over queries; it shows where a model looks, not why it '
  'decides.'
)


@dataclasses.dataclass(kw_only=True)
class Section:
  """What a page shows of one model: a prediction, and windows of the clip."""

  name: str
  model: Predictor
  video: footage.Video
  predicted: Prediction | None  # None of a backbone
  records: Sequence[Records]
  figures: list[dict[str, str]] = dataclasses.field(default_factory=list)

  @property
  def middle(self) -> Records:
    """The window that pictures show."""
    return self.records[len(self.records) // 2]

  @property
  def verdict(self) -> str:
    """The likeliest class and its probability; '' of a backbone.

    Of action units those that are shown.
    """
    if self.predicted is None:
      return ''
    label = self.predicted.label
    if self.predicted.shown is not None:
      return label if self.predicted.shown else 'no action unit'
    return f'{label} {self.predicted.probabilities[label]:.0%}'

  @property
  def facts(self) -> str:
    """The model in a line."""
    blocks, tokens = self.middle.blocks, self.middle.before.shape
    mira = len(self.middle.mira)
    options = self.model.metadata['model'].get('mira') or {}
    words = [f'MiRA ({options.get("mode")}) in {mira} of' if mira else '']
    per_token = len(self.middle.window) // tokens[0]
    words += [
      f'{len(blocks)} blocks of {len(blocks[0].before)} heads;',
      f'{tokens[0]} temporal tokens of {per_token} frames,',
      f'{tokens[1]} x {tokens[2]} positions',
    ]
    if (members := self.model.metadata['model'].get('members', 1)) > 1:
      words.append(f'; means over {members} members')
    return ' '.join(filter(None, words)).replace(' ;', ';')

  # ----- pictures -------------------------------------------------------------

  def draw(self, title: str, stem: pathlib.Path) -> list[pathlib.Path]:
    """Writes the pictures stem*.png; returns their paths."""
    drawn = [
      ('Seconds', '-timeline', self._timeline),
      ('Frames and attention', '', self._clip),
      ('Blocks over time', '-blocks', self._blocks),
      ('Maps of other systems', '-systems', self._systems),
    ]
    paths = []
    for name, suffix, draw in drawn:
      if found := draw(title):
        picture, alt = found
        path = picture.save(stem.with_name(f'{stem.name}{suffix}.png'))
        paths.append(path)
        caption = f'{path.name}; its numbers are in {path.stem}.npz.'
        address = pages.image(path.read_bytes())
        self.figures.append(
          {'name': name, 'image': address, 'alt': alt, 'caption': caption}
        )
    return paths

  def _timeline(self, title: str) -> tuple[Picture, str] | None:
    if self.predicted is None or self.predicted.timeline is None:
      return None
    timeline, names = self.predicted.timeline, self.model.class_names
    seconds, stills = self.predicted.seconds, self.predicted.stills
    options: dict[str, Any] = {'seconds': seconds, 'stills': stills}
    draw, what = figures.timeline_figure, 'Class probabilities'
    if (least := self.model.thresholds) is not None:
      draw, what = figures.unit_timeline_figure, 'Action units'
      options['thresholds'] = least
    picture = draw(timeline, names, title, **options)
    return picture, f'{what} in {len(timeline)} seconds.'

  def _clip(self, title: str) -> tuple[Picture, str]:
    shown, predicted = self.middle, self.predicted
    if shown.windows > 1:
      title += f' · window {shown.number + 1} of {shown.windows}'
    mean = None if predicted is None else predicted.mean
    picture = figures.clip_figure(
      frames=shown.window,
      indices=shown.indices,
      gain=shown.gain,
      before=shown.before,
      after=shown.after,
      probabilities=np.zeros(0) if mean is None else mean,
      class_names=self.model.class_names,
      title=title,
      scored=1 if predicted is None else predicted.scored,
      thresholds=self.model.thresholds,
    )
    share = (shown.before if shown.after is None else shown.after).sum((1, 2))
    alt = f'{len(share)} frames of the clip and the attention on them; '
    alt += f'temporal token {share.argmax()} receives most, {share.max():.1%}.'
    if shown.gain is not None:
      mean_gain = shown.gain.mean(0)
      alt += f' The mean gain is highest at token {mean_gain.argmax()}, '
      alt += f'{mean_gain.max():.2f}.'
    return picture, alt

  def _blocks(self, title: str) -> tuple[Picture, str]:
    blocks, mira = self.middle.blocks, self.middle.mira

    def stacked(name: str) -> np.ndarray | None:
      values = [x for b in mira if (x := getattr(b, name)) is not None]
      return np.stack(values) if values else None

    def share(name: str) -> np.ndarray:
      return np.stack([getattr(x, name).mean(0).sum((1, 2)) for x in blocks])

    picture = figures.blocks_figure(
      before=share('before'),
      after=share('after') if mira else None,
      title=f'{title}: blocks over time',
      **{name: stacked(name) for name in _NAMES},
    )
    names = 'attention before and after MiRA, gain, confidence, concentration'
    shown = names if mira else 'attention'
    return picture, f'Heat maps of {len(blocks)} blocks over time: {shown}.'

  def _systems(self, title: str) -> tuple[Picture, str] | None:
    shown, angles = self.middle, {}
    maps: dict[str, np.ndarray] = {}
    for name in ('orientation', 'gate'):
      for i, block in enumerate(shown.blocks):
        if (values := block.maps.get(name)) is None:
          continue
        label = f'{_SYSTEMS[name]}, block {i}'
        if name == 'orientation' and block.angle is not None:
          label += f', {block.angle:.0f}°'
          angles[label] = block.angle
        maps[label] = values
    if (change := shown.maps.get('window_change')) is not None:
      maps[_SYSTEMS['window_change']] = change
    regions, names = shown.maps.get('regions', ()), self.model.class_names
    for i, values in enumerate(regions):
      named = names[i] if len(names) == len(regions) else f'{i}'
      maps[f'region {named}'] = values
    if not maps:
      return None
    step = len(shown.window) // len(shown.before)
    picture = figures.maps_figure(
      maps, shown.window[::step], f'{title}: other systems', angles
    )
    return picture, f'Frames of the clip, coloured by {", ".join(maps)}.'

  # ----- the page -------------------------------------------------------------

  def values(self) -> dict[str, Any]:
    """What the template shows."""
    classes: list[tuple[str, float, bool]] = []
    scored = ''
    if self.predicted is not None:
      shares = self.predicted.probabilities.items()
      shown = self.predicted.shown
      best = {self.predicted.label} if shown is None else {*shown}
      ranked = sorted(shares, key=lambda x: -x[1])
      classes = [(name, share, name in best) for name, share in ranked]
      if self.predicted.scored > 1:
        scored = f', mean of {self.predicted.scored} windows'
      if self.predicted.timeline is not None:
        scored = f', mean of {len(self.predicted.timeline)} seconds'
    return {
      'name': self.name,
      'facts': self.facts,
      'classes': classes,
      'caption': 'Class probabilities'
      if self.model.thresholds is None
      else 'Probability of each action unit; those that are shown are marked',
      'scored': scored,
      'windows': self.records,
      'figures': self.figures,
      'tables': [*self._tables()],
    }

  def _tables(self) -> Iterator[dict[str, Any]]:
    """The tables below the figures, with the text of every cell."""
    if balance := self.middle.balance:
      rows = [
        [name, *(f'{100 * share:.1f} %' for share in shares)]
        for name, *shares in zip(
          self.model.class_names, *balance.values(), strict=True
        )
      ]
      name = 'Predictions of the balanced head'
      yield {'name': name, 'head': ['class', *balance], 'rows': rows}
    gains = [
      [number, *(f'{gain:.3f}' for gain in block.gain)]
      for number, block in enumerate(self.middle.blocks)
      if block.gain is not None
    ]
    if gains:
      name = 'Gain of every block and temporal token'
      head = ['block', *range(len(self.middle.before))]
      yield {'name': name, 'head': head, 'rows': gains}

  def data(self) -> dict[str, Any]:
    """What the script of the page shows."""
    blocks = self.middle.blocks
    return {
      'grid': self.middle.before.shape,
      'blocks': len(blocks),
      'heads': len(blocks[0].before),
      'mira': [i for i, x in enumerate(blocks) if x.gain is not None],
      'middle': len(self.records) // 2,
      'windows': [self._window(x) for x in self.records],
    }

  def _window(self, shown: Records) -> dict[str, Any]:
    blocks, mira = shown.blocks, shown.mira
    count = len(shown.before)
    per_token = len(shown.window) // count
    indices = shown.indices.reshape(count, per_token)
    named = {
      name: [getattr(x, name).tolist() for x in mira]
      for name in _NAMES
      if mira and getattr(mira[0], name) is not None
    }
    word = 'frame' if per_token == 1 else 'frames'
    return dict.fromkeys(_NAMES) | {
      'label': self._when(shown),
      'stills': [
        pages.image(images.encode_jpeg(frame, 90), 'jpeg')
        for frame in shown.window[::per_token]
      ],
      'tokens': [
        f'{i}\n{word} {", ".join(map(str, row))}'
        for i, row in enumerate(indices.tolist())
      ],
      'before': pages.floats(np.stack([x.before for x in blocks])),
      'after': pages.floats(np.stack([x.after for x in blocks]))
      if mira
      else None,
      **named,
    }

  def _when(self, shown: Records) -> str:
    """The frames or seconds of a window."""
    first, last = int(shown.indices[0]), int(shown.indices[-1])
    if self.video.fps and self.video.shown is None:
      a, b = (x / self.video.fps for x in (first, last + 1))
      return f'{a:.1f} to {b:.1f} s'
    return f'frames {first} to {last}'


def render(title: str, sections: Sequence[Section]) -> str:
  """The page of a clip."""
  video = sections[0].video
  lead = f'{video.count} frames of {video.size[1]} x {video.size[0]} pixels'
  if video.fps:
    lead += f', {video.count / video.fps:.1f} s'
  return pages.render(
    'explain.html',
    title=title,
    lead=lead,
    footer=_FOOTER,
    models=[x.values() for x in sections],
    data={
      'models': [x.data() for x in sections],
      'maps': {
        'inferno': figures.color_table('inferno'),
        'diverging': figures.color_table('RdBu_r'),
      },
    },
  )
