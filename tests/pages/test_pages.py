"""Pages: one file, nothing from a network, names as text."""

from __future__ import annotations

import base64
import json
import re

import numpy as np
import pytest

from mira_jax import figures, pages


def test_names_are_text():
  page = pages.render('base.html', title='<script>a & b', lead='"', footer='')
  assert '<script>a' not in page
  assert '&lt;script&gt;a &amp; b' in page


def test_a_template_lacks_no_value():
  with pytest.raises(Exception, match='lead'):
    pages.render('base.html', title='a', footer='')


def test_a_page_forbids_to_load_anything():
  page = pages.render('base.html', title='a', lead='', footer='')
  assert "default-src 'none'" in page
  assert not re.search(r'(src|href)="(https?:)?//', page)


def test_arrays_for_scripts_come_back():
  array = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
  data = base64.b64decode(pages.floats(array))
  np.testing.assert_array_equal(np.frombuffer(data, '<f4'), array.ravel())


def test_a_figure_brings_its_numbers():
  picture = figures.confusion_figure(np.eye(2, dtype=int), 'ab', 'a', 'b')
  found = pages.figure(picture, 'Confusion matrix', 'text')
  head, data = found['numbers'].split(',', 1)
  assert head == 'data:application/json;base64'
  numbers = json.loads(base64.b64decode(data))
  assert numbers['matrix'] == [[1, 0], [0, 1]]
  image = base64.b64decode(found['image'].split(',', 1)[1])
  assert image.startswith(b'\x89PNG')
