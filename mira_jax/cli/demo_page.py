"""The page of `mira demo`, by gradio."""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any, NamedTuple

# Before gradio is imported, which else asks a server for its newest version.
os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
os.environ.setdefault('HF_HUB_OFFLINE', '1')

import gradio as gr  # pyright: ignore[reportMissingImports]
from gradio import themes  # pyright: ignore[reportMissingImports]

from mira_jax import errors
from mira_jax.cli import explain, explain_page
from mira_jax.inference import find_clips
from mira_jax.inference.predictor import Predictor
from mira_jax.video import footage

_ABOUT = (
  'An expression is not a feeling: the model names what a face shows, by the '
  'labels that it was trained with. Clips stay on this machine and are deleted.'
)
_KEPT = 300  # seconds that uploads and results stay


class Limits(NamedTuple):
  """Of a clip."""

  megabytes: int
  seconds: int


def build(models: Mapping[str, Predictor], limits: Limits) -> gr.Blocks:
  """The page: a clip and a model in, classes, pictures and a video out."""
  names = _short(models)

  def classify(path: str | None, name: str) -> tuple[Any, ...]:
    return _classify(path, models[name], limits)

  with gr.Blocks(
    title='MiRA', analytics_enabled=False, delete_cache=(_KEPT, _KEPT)
  ) as page:
    gr.Markdown(f'# Expressions in video\n\n{_ABOUT}')
    with gr.Row():
      with gr.Column():
        clip = gr.Video(label='Clip', sources=['upload', 'webcam'])
        model = gr.Dropdown(names, value=names[0][1], label='Model')
        button = gr.Button('Classify', variant='primary')
      with gr.Column():
        found = gr.Label(label='Probabilities', num_top_classes=8)
        about = gr.Markdown()
        video = gr.Video(label='Attention over the clip', autoplay=False)
    options: Any = {'type': 'filepath', 'show_label': False}
    options['buttons'] = ['download', 'fullscreen']
    strip = gr.Image(label='Frames and attention', **options)
    blocks = gr.Image(label='Blocks over time', **options)
    button.click(
      classify,
      [clip, model],
      [found, about, strip, blocks, video],
      api_visibility='private',
    )
  return page


def _short(models: Mapping[str, Predictor]) -> list[tuple[str, str]]:
  """The names of models as they are shown, and whole."""
  names = {whole: pathlib.Path(whole).name for whole in models}
  shown = [*names.values()]
  return [
    (name if shown.count(name) == 1 else whole, whole)
    for whole, name in names.items()
  ]


def _classify(
  path: str | None, model: Predictor, limits: Limits
) -> tuple[Any, ...]:
  """What the page shows of a clip; a wrong one is a message."""
  if not path:
    raise gr.Error('Drop a clip first, or record one.', print_exception=False)
  try:
    video = find_clips.read(path, short_side=model.scorer.image_size)
    _check(video, limits)
    predicted = model.predict(video, records=True)
    assert predicted.records
    section = explain_page.Section(
      name='',
      model=model,
      video=video,
      predicted=predicted,
      records=[predicted.records],
    )
    # gradio copies results into its cache, which it deletes.
    with tempfile.TemporaryDirectory() as folder:
      stem = pathlib.Path(folder) / 'clip'
      strip, blocks = section.draw(pathlib.Path(path).name, stem)
      overlay = pathlib.Path(folder) / 'attention.mp4'
      large = find_clips.read(path, short_side=explain.SIDE)
      explain.write_overlay(model, video, large, overlay, section.verdict)
      return (
        dict(predicted.probabilities),
        section.facts,
        _kept(strip),
        _kept(blocks),
        _kept(overlay),
      )
  except errors.MiraInputError as error:
    text = f'{error.code}: {error.hint}'
    raise gr.Error(text, print_exception=False) from error


def _check(video: footage.Video, limits: Limits) -> None:
  if video.fps and video.count / video.fps > limits.seconds:
    hint = f'a clip has at most {limits.seconds} seconds here; cut it'
    raise errors.MiraInputError('too_long', video.path, hint)


def _kept(path: pathlib.Path) -> str:
  """A copy of a file in gradio's cache."""
  from gradio import processing_utils  # pyright: ignore[reportMissingImports]

  folder = os.environ['GRADIO_TEMP_DIR']
  return processing_utils.save_file_to_cache(str(path), cache_dir=folder)


def serve(
  models: Mapping[str, Predictor], limits: Limits, host: str, port: int
) -> None:
  """Serves the page until Ctrl-C; its files are deleted then."""
  with tempfile.TemporaryDirectory(prefix='mira-demo-') as folder:
    os.environ['GRADIO_TEMP_DIR'] = folder
    page = build(models, limits)
    page.launch(
      server_name=host,
      server_port=port,
      share=False,
      quiet=True,
      footer_links=[],
      show_error=True,
      max_file_size=f'{limits.megabytes}mb',
      theme=themes.Default(font=['system-ui', 'sans-serif']),
    )
