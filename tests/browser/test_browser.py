"""Pages in a real Chromium: `make test-browser`."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest

from mira_jax.cli import main
from mira_jax.evaluation import predictions, results
from mira_jax.mira import MiraConfig
from mira_jax.video import encode
from predictions import face
from small_models import NAMES, save_model

api = pytest.importorskip('playwright.sync_api')
BROWSER = shutil.which('chromium')
pytestmark = [
  pytest.mark.skipif(not BROWSER, reason='no chromium here'),
  pytest.mark.usefixtures('compile_cache'),
]
WIDTHS, SCHEMES = (360, 1400), ('light', 'dark')


@pytest.fixture(scope='module')
def chromium():
  with api.sync_playwright() as driver:
    browser = driver.chromium.launch(
      executable_path=BROWSER, args=['--no-sandbox']
    )
    yield browser
    browser.close()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('browser')


@pytest.fixture(scope='module')
def clip(folder):
  return encode.write_video(folder / 'clip.mp4', face(1, count=32), 25)


@pytest.fixture(scope='module')
def model(folder):
  options = {'depth': 2, 'frames': 8, 'head_scale': 10.0}
  return save_model(folder / 'w.safetensors', MiraConfig(), **options)


@contextlib.contextmanager
def opened(
  chromium, address, width=1400, scheme='light', allowed=('file', 'data')
):
  """A page that logs no error and asks for nothing elsewhere."""
  context = chromium.new_context(
    viewport={'width': width, 'height': 900}, color_scheme=scheme
  )
  page = context.new_page()
  problems = []
  page.on(
    'console',
    lambda x: problems.append(x.text) if x.type == 'error' else None,
  )
  page.on('pageerror', lambda x: problems.append(str(x)))
  page.on(
    'request',
    lambda x: None if x.url.startswith(allowed) else problems.append(x.url),
  )
  page.goto(address)
  yield page
  context.close()
  assert problems == []


def contrast(page, selector):
  """The ratio of WCAG 2 between a text and the page."""
  colors = page.eval_on_selector(
    selector,
    """x => [getComputedStyle(x).color,
             getComputedStyle(document.body).backgroundColor]""",
  )
  light = []
  for color in colors:
    rgb = np.array(re.findall(r'[\d.]+', color)[:3], float) / 255
    linear = np.where(
      rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4
    )
    light.append(linear @ [0.2126, 0.7152, 0.0722] + 0.05)
  return max(light) / min(light)


def check_layout(page):
  """Nothing is wider than the window, and all pictures have words."""
  wide, room = page.evaluate(
    '[document.documentElement.scrollWidth, window.innerWidth]'
  )
  assert wide <= room
  assert (
    page.eval_on_selector_all('img', 'x => x.filter(y => !y.alt).length') == 0
  )
  unnamed = 'x => x.filter(y => !y.getAttribute("aria-label")).length'
  assert page.eval_on_selector_all('canvas, svg', unnamed) == 0
  for selector in ('h1', '.note', 'footer'):
    assert contrast(page, selector) > 4.5


# ----- mira explain -----------------------------------------------------------


@pytest.fixture(scope='module')
def explained(folder, clip, model, caching):
  out = folder / 'explained'
  with caching():
    assert (
      main.main(['explain', str(clip), f'--weights={model}', f'--out={out}'])
      == 0
    )
  return f'file://{out / "clip.html"}'


@pytest.mark.parametrize('scheme', SCHEMES)
@pytest.mark.parametrize('width', WIDTHS)
def test_an_explanation_fits(chromium, explained, width, scheme):
  with opened(chromium, explained, width, scheme) as page:
    page.wait_for_selector('canvas')
    check_layout(page)
    assert page.locator('canvas').count() == 4 * 4  # rows by temporal tokens


def test_blocks_and_heads_are_chosen_by_keyboard(chromium, explained):
  image = 'x => x.map(y => y.toDataURL()).join()'
  with opened(chromium, explained) as page:
    page.wait_for_selector('canvas')
    seen = [page.eval_on_selector_all('canvas', image)]
    for _ in range(30):  # Tab, until the list of blocks has the focus
      page.keyboard.press('Tab')
      if page.evaluate('document.activeElement.dataset.choose') == 'block':
        break
    for key in ('ArrowDown', 'Tab', 'ArrowDown'):
      page.keyboard.press(key)
      if key != 'Tab':
        page.wait_for_timeout(300)
        seen.append(page.eval_on_selector_all('canvas', image))
    assert len({*seen}) == 3
    text = page.inner_text('.summary')
    assert text.startswith('Block 0, head 0: most attention on temporal token')


def test_a_page_without_scripts_still_shows_pictures(chromium, explained):
  context = chromium.new_context(java_script_enabled=False)
  page = context.new_page()
  page.goto(explained)
  assert page.locator('noscript').count() == 1
  assert page.locator('img').first.is_visible()
  assert not page.locator('.explorer').first.is_visible()
  context.close()


# ----- mira report ------------------------------------------------------------


@pytest.fixture(scope='module')
def reported(folder, request):
  """The page of two runs."""
  import runs
  from mira_jax import config

  names, label = ('a', 'b', 'c'), np.arange(18) % 3
  clips = list(runs.clips('train', 24))
  path = runs.write(folder / 'data', 'levels', names, train=clips)
  for name, wrong in (('first', 2), ('second', 7)):
    run = folder / 'runs' / name
    run.mkdir(parents=True)
    cfg = runs.tiny(path, data={'protocol': 'folds', 'num_folds': 2})
    cfg.model.num_classes = 3
    (run / 'config.json').write_text(config.to_json(cfg))
    guess = np.where(np.arange(18) < wrong, (label + 1) % 3, label)
    made = predictions.Predictions(
      class_names=names,
      clip=np.array([f'train-{i}' for i in range(18)]),
      subject=np.array([f's{i % 6}' for i in range(18)]),
      fold=np.full(18, 'fold 1'),
      label=label,
      probability=np.eye(3)[guess] * 0.7 + 0.1,
    )
    made.write(run)
    row = results.Result(name=results.LAST, step=12, matrix=made.matrix)
    results.write(run, [row], names, fold='fold 1')
  out = folder / 'report.html'
  assert main.main(['report', str(folder / 'runs'), f'--out={out}']) == 0
  return f'file://{out}'


@pytest.mark.parametrize('scheme', SCHEMES)
@pytest.mark.parametrize('width', WIDTHS)
def test_a_report_fits(chromium, reported, width, scheme):
  with opened(chromium, reported, width, scheme) as page:
    check_layout(page)
    assert 'On the same 18 clips of 6 subjects' in page.inner_text('main')
    page.locator('summary').first.press('Enter')
    assert page.locator('img').first.is_visible()
    with page.expect_download() as found:
      page.locator('a[download]').first.click()
    assert found.value.suggested_filename == 'confusion_matrix.json'


# ----- mira demo --------------------------------------------------------------


@pytest.fixture(scope='module')
def served(folder, model):
  """The address of a demo, and the folder of its temporary files."""
  pytest.importorskip('gradio')
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  temporary = folder / 'tmp'
  temporary.mkdir()
  flags = [f'--port={port}', '--most-mb=1', '--most-seconds=3']
  flags += ['--device=cpu', '--attention=reference']
  process = subprocess.Popen(
    [sys.executable, '-m', 'mira_jax.cli.main', 'demo', str(model), *flags],
    env=os.environ | {'TMPDIR': str(temporary)},
  )
  address = f'http://127.0.0.1:{port}/'
  for _ in range(240):
    with contextlib.suppress(OSError):
      urllib.request.urlopen(address).read()
      break
    assert process.poll() is None
    time.sleep(0.5)
  yield address, temporary
  process.send_signal(signal.SIGINT)
  process.wait(30)
  assert not any(temporary.glob('mira-demo-*'))


def demo(chromium, served, **options):
  address = served[0]
  local = ('data', 'blob', address, address.replace('http', 'ws'))
  return opened(chromium, address, allowed=local, **options)


def classify(page, clip: pathlib.Path):
  page.wait_for_selector('button:has-text("Classify")')
  page.set_input_files('input[type=file]', str(clip))
  page.wait_for_selector('video', timeout=20_000)
  page.get_by_role('button', name='Classify').press('Enter')


@pytest.mark.parametrize('scheme', SCHEMES)
@pytest.mark.parametrize('width', WIDTHS)
def test_a_clip_is_classified(chromium, served, clip, width, scheme):
  with demo(chromium, served, width=width, scheme=scheme) as page:
    classify(page, clip)
    page.wait_for_selector('[data-testid=label-output-value]', timeout=90_000)
    label = page.inner_text('[data-testid=label-output-value]').strip()
    assert label in NAMES
    page.wait_for_function("document.querySelectorAll('video').length > 1")
    assert 'MiRA (exact) in 2 of 2 blocks' in page.inner_text('body')
    wide, room = page.evaluate(
      '[document.documentElement.scrollWidth, window.innerWidth]'
    )
    assert wide <= room


def test_wrong_clips_are_messages(chromium, served, folder):
  text = folder / 'text.mp4'
  text.write_text('no video' * 100)
  long = encode.write_video(folder / 'long.mp4', face(2, count=100), 25)
  with demo(chromium, served) as page:
    page.wait_for_selector('button:has-text("Classify")')
    page.get_by_role('button', name='Classify').click()
    page.wait_for_selector('text=Drop a clip first')
  for clip, code in ((long, 'too_long'), (text, 'not_video')):
    with demo(chromium, served) as page:
      classify(page, clip)
      page.wait_for_selector(f'text={code}', timeout=60_000)


def test_a_large_file_is_refused(chromium, served, folder):
  large = folder / 'large.mp4'
  large.write_bytes(b'\0' * (2 << 20))
  address = served[0]
  context = chromium.new_context()
  page = context.new_page()
  page.goto(address)
  page.wait_for_selector('input[type=file]', state='attached')
  page.set_input_files('input[type=file]', str(large))
  page.wait_for_selector('text=/maximum|exceed|too large/i', timeout=20_000)
  context.close()
