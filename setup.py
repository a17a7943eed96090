"""The packages of a wheel: `configs/` lies inside `mira_jax` there."""

from setuptools import find_packages, setup

setup(
  packages=[*find_packages(include=['mira_jax*']), 'mira_jax.configs'],
  package_dir={'mira_jax.configs': 'configs'},
  package_data={
    'mira_jax': ['py.typed'],
    'mira_jax.aot': ['*.json'],
    'mira_jax.pages': ['templates/*'],
    'mira_jax.configs': ['classes/*.csv'],
  },
)
