"""HTML pages in one file each: nothing of them is loaded from anywhere.

`render` fills a template of `templates/`, which hold the styles and scripts,
too. Pages follow the reader's light or dark mode and fit 360 pixels.
"""

from __future__ import annotations

import base64
import functools
import json
from typing import Any

import jinja2
import numpy as np


@functools.cache
def _environment() -> jinja2.Environment:
  return jinja2.Environment(
    loader=jinja2.PackageLoader(__name__),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )


def render(template: str, **values: Any) -> str:
  """A page of a template, such as 'explain.html', and its values."""
  return _environment().get_template(template).render(**values)


def image(data: bytes, kind: str = 'png') -> str:
  """The bytes of an image as an address; `kind` is 'png' or 'jpeg'."""
  return _address(data, f'image/{kind}')


def _address(data: bytes, kind: str) -> str:
  return f'data:{kind};base64,{base64.b64encode(data).decode()}'


def figure(
  picture: Any, name: str, alt: str, caption: str = ''
) -> dict[str, Any]:
  """A `figures.Picture` for `figure.html`, with its numbers to download."""
  numbers = {n: np.asarray(x).tolist() for n, x in picture.arrays.items()}
  text = json.dumps(numbers).replace('NaN', 'null').encode()
  return {
    'name': name,
    'image': image(picture.encode()),
    'alt': alt,
    'caption': caption,
    'numbers': _address(text, 'application/json'),
  }


def floats(array: np.ndarray) -> str:
  """An array for a script: little-endian float32 in base64."""
  return base64.b64encode(np.asarray(array, '<f4').tobytes()).decode()
