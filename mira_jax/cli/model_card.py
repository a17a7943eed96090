"""The model card of weights: Markdown, as the Hugging Face Hub reads it."""

from __future__ import annotations

import re
from typing import Any

from mira_jax.evaluation import results
from mira_jax.inference import load
from mira_jax.weights import sources
from mira_jax.weights.metadata import unit_thresholds

_METRICS = {'war': ('accuracy', 'WAR'), 'uar': ('recall', 'UAR'),
            'macro_f1': ('f1', 'macro F1')}  # fmt: skip


def write(source: sources.Source, repository: str, licence: str | None) -> str:
  """The model card: YAML for the hub, and text for people."""
  from huggingface_hub import (  # pyright: ignore[reportMissingImports]
    EvalResult,
    ModelCardData,
  )

  metadata, name = source.metadata, repository.rpartition('/')[2]
  dataset = ' + '.join(datasets(metadata))
  classifies = load.is_classifier(metadata)
  scores = _scores(source)
  found = [
    EvalResult(
      task_type='video-classification',
      dataset_type=re.sub(r'\W+', '-', dataset.lower()),
      dataset_name=dataset,
      metric_type=kind,
      metric_name=label,
      metric_value=round(scores[key], 4),
    )
    for key, (kind, label) in _METRICS.items()
    if key in scores
  ]
  origin = _origin(metadata)
  data = ModelCardData(
    license=licence or origin.get('license') or 'unknown',
    library_name='mira_jax',
    pipeline_tag='video-classification' if classifies else None,
    tags=['jax', 'mira', 'facial-expression-recognition'],
    base_model=origin.get('repository'),
    model_name=name if found else None,
    eval_results=found or None,
  )
  parts = [
    f'---\n{data.to_yaml()}\n---\n\n# {name}',
    *_text(source, repository),
  ]
  return '\n\n'.join(parts) + '\n'


def _text(source: sources.Source, repository: str) -> list[str]:
  """The paragraphs of the card."""
  metadata, scores = source.metadata, _scores(source)
  model, rules = metadata['model'], metadata['preprocessing']
  mira = model.get('mira')
  rows = {
    'classes' if unit_thresholds(metadata) is None else 'action units': (
      ', '.join(metadata['class_names'])
    ),
    'model': '{depth} blocks of width {dim}, {heads} heads'.format(**model),
    'MiRA': mira['mode'] if mira else 'none',
    'clips': '{frames} frames of {image_size} pixels, '.format(**model)
    + f'one of {rules["rate"]}, {rules["fit"]}',
    'trained on': ' + '.join(datasets(metadata)),
    'started from': _origin(metadata).get('address', ''),
    **{label: f'{100 * scores[key]:.2f} %' for key, (_, label) in
       _METRICS.items() if key in scores},
  }  # fmt: skip
  table = ['| | |', '|---|---|']
  table += [f'| {n} | {_cell(x)} |' for n, x in rows.items() if x]
  address = f'hf://{repository}'
  use = f'mira predict CLIP --weights {address}'
  if not load.is_classifier(metadata):
    use = f'mira train --config.train.init_from={address} ...'
  return [
    'A video transformer for faces, trained with mira_jax.',
    '\n'.join(table),
    *(['Results are those of the test clips.'] if scores else []),
    f"```\npip install 'mira-jax[hub]'\n{use}\n```",
    'For research on faces in video. An expression is not a feeling: the model '
    'names what a face shows, by the labels that it was trained with. Have the '
    'consent of the people in your clips, and measure the errors for each '
    'group of people concerned before relying on anything. In the European '
    'Union, inferring emotions at work or in education is prohibited (AI Act, '
    'Article 5(1)(f)).',
  ]


def _cell(text: str) -> str:
  return text.replace('|', r'\|').replace('\n', ' ')


def _scores(source: sources.Source) -> dict[str, float]:
  """Test scores of the weights; {} where there are none."""
  found = results.read(source.path.parent)
  step = source.metadata.get('step')
  rows = [row for row in found if row.step == step]
  return {n: getattr(rows[0].scores, n) for n in _METRICS} if rows else {}


def datasets(metadata: dict[str, Any]) -> list[str]:
  """Names of the datasets that weights were trained on."""
  rows = metadata.get('datasets')
  rows = rows if isinstance(rows, list) else []
  return [str(row.get('name')) for row in rows if isinstance(row, dict)]


def _origin(metadata: dict[str, Any]) -> dict[str, str]:
  """The model of the hub that it started from: its name, address, licence."""
  about: Any = metadata.get('source')
  about = about.get('hub') if isinstance(about, dict) else None
  if not isinstance(about, dict):
    return {}
  repo, revision = about.get('repository'), about.get('revision')
  found = {'repository': str(repo), 'license': str(about.get('license') or '')}
  return found | {'address': f'hf://{repo}@{revision}'}
