"""Tables of benches that train in pairs, and what benches of time share."""

from __future__ import annotations

import io

import numpy as np
import pytest
import rich.console
import scipy.stats

from bench import paired, turns
from bench.step import configuration, flop

ARMS = ('plain', 'exact')
WARS = {'plain': [0.5, 0.6, 0.7], 'exact': [0.6, 0.65, 0.9]}


def runs(wars):
  return [
    {
      'arm': arm,
      'seed': seed,
      'step': 1,
      **dict.fromkeys(paired.METRICS, wars[arm][seed]),
    }
    for seed in range(3)
    for arm in ARMS
  ]


def test_differences_are_of_the_same_seed():
  plain, exact = paired.summary(runs(WARS), ARMS)
  assert plain['war'] == {'mean': pytest.approx(0.6), 'sd': pytest.approx(0.1)}
  found = exact['war']
  assert found['difference'] == pytest.approx((0.1 + 0.05 + 0.2) / 3)
  test = scipy.stats.ttest_rel(WARS['exact'], WARS['plain'])
  assert found['p'] == pytest.approx(test.pvalue)
  # 97.5 % quantile of Student's t with two degrees of freedom: 4.3027.
  half = 4.302653 * np.std([0.1, 0.05, 0.2], ddof=1) / 3**0.5
  np.testing.assert_allclose(
    found['interval_95'],
    [found['difference'] - half, found['difference'] + half],
    rtol=1e-5,
  )


def test_arms_that_do_not_differ_have_no_test():
  same = paired.summary(runs({arm: [0.5, 0.6, 0.7] for arm in ARMS}), ARMS)
  assert same[1]['war']['p'] == 1.0
  assert same[1]['war']['difference'] == 0.0


def test_the_table_shows_points():
  console = rich.console.Console(file=io.StringIO(), width=120)
  console.print(paired.table(paired.summary(runs(WARS), ARMS), 'title'))
  shown = console.file.getvalue()
  assert '60.0 ± 10.0' in shown
  assert '+11.7' in shown
  assert 'WAR - plain' in shown


SERVES = """
import json, sys
from bench import turns
number, = json.loads(sys.argv[2])
turns.serve(lambda: lambda: {'half': number / 2}, with_jax=True)
"""


def test_candidates_take_turns_in_processes_of_their_own(tmp_path, capsys):
  script = tmp_path / 'serves.py'
  script.write_text(SERVES)
  served = [('one', [1]), ('none', []), ('two', [2])]
  rows = turns.take_turns(str(script), served, rounds=3)
  assert [x['candidate'] for x in rows] == ['one', 'two']
  assert [x['half'] for x in rows] == [0.5, 1]
  assert all(len(x['all_seconds']) == 3 for x in rows)
  assert 'none, []: it does not run here' in capsys.readouterr().err


def test_the_products_of_a_step_are_counted():
  model = configuration('plain', 'adamw', 2, 4).model
  tokens = 2 * 8 * 4 * 4
  linear = (4 + 2 * 4) * model.dim**2  # of a block: qkv, proj and MLP
  attention = 2 * 128 * model.dim
  forward = tokens * model.depth * 2 * (linear + attention)
  embed = tokens * 2 * 1536 * model.dim
  # Twice as much back; but no gradient of the video is computed.
  head = 3 * 2 * 2 * model.dim * 7
  assert flop('plain', 2, 4) == pytest.approx(3 * forward + 2 * embed + head)
