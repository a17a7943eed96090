"""The options that bench/systems.py compares: valid, and all of them."""

from __future__ import annotations

import pytest

from bench import systems
from mira_jax import config
from mira_jax.models import options


@pytest.mark.parametrize('task', systems.TASKS)
def test_every_option_of_a_task_is_a_configuration(task):
  arms = [arm for arm in systems.ARMS if systems.serves(arm, task)]
  assert arms[0] == 'plain'
  found = {}
  for arm in arms:
    cfg = systems.configure(arm, task, seed=1)
    config.validate(cfg)
    found[arm] = config.to_json(cfg)
  assert len({*found.values()}) == len(arms)


def test_every_system_is_compared():
  fields = ' '.join(x for own in systems.ARMS.values() for x in own)
  for name in (*options.SYSTEMS, 'position_stream', 'oracle_units'):
    assert name in fields, name
  for name in ('phases', 'pseudo_labels'):
    assert f'data.{name}' in fields
