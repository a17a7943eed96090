"""The tables of the benches that train in pairs."""

from __future__ import annotations

import io

import numpy as np
import pytest
import rich.console
import scipy.stats

from bench import paired

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
