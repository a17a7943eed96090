"""Every setting in a file of another program is used, refused or reported.

A table sorts the names of such settings. Those that are used are read by the
code beside the table; some are refused unless they have the one value that our
models can have; those without effect change no number of a given clip. A name
that no table has is reported.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from mira_jax.errors import short, some


class Table:
  """The settings of one kind of file: names with spaces between."""

  def __init__(
    self, used: str, only: Mapping[str, tuple[Any, ...]], without_effect: str
  ):
    self.used = frozenset(used.split())  # decide what is computed here
    self.only = only  # name -> the values that it may have
    # Names that change no number of a given clip.
    self.without_effect = frozenset(without_effect.split())


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings by name, and the file that they are from, for errors.

  Each method that reads one raises ValueError for a value that ours cannot be,
  and gives None, or a default, where it is absent or None.
  """

  values: Mapping[str, Any]
  file: str

  def check(self, table: Table) -> list[str]:
    """A remark on settings that the table does not have."""
    for name, allowed in table.only.items():
      if name in self.values and self.values[name] not in allowed:
        raise self.refused(name, f'only {allowed[0]!r} is')
    known = {*table.used, *table.only, *table.without_effect}
    unknown = [ascii(name)[1:-1] for name in self.values if name not in known]
    if not unknown:
      return []
    return [f'{self.file}: unknown settings are left out: {some(unknown, 12)}']

  def refused(self, name: str, why: str) -> ValueError:
    """The error of a value; `why` ends before 'supported'."""
    value = short(self.values.get(name))
    return ValueError(f'{self.file}: {name} is {value}; {why} supported')

  def number(
    self, name: str, kind: Any = (int, float), below: float = 2**31
  ) -> Any:
    """A finite number above 0."""
    value = self.values.get(name)
    if value is None:
      return None
    fits = isinstance(value, kind) and not isinstance(value, bool)
    if not fits or not 0 < value < below or not math.isfinite(value):
      what = 'a whole number' if kind is int else 'a number'
      raise self.refused(name, f'{what} above 0 and below {below} is')
    return value

  def whole(self, name: str) -> int | None:
    """A whole number above 0."""
    return self.number(name, int)

  def flag(self, name: str, default: Any) -> Any:
    """True or false."""
    value = self.values.get(name)
    if value is not None and not isinstance(value, bool):
      raise self.refused(name, 'true or false is')
    return default if value is None else value

  def choice(self, name: str, choices: tuple[str, ...]) -> str | None:
    """One of some words."""
    value = self.values.get(name)
    if value is not None and value not in choices:
      raise self.refused(name, f'one of {", ".join(choices)} is')
    return value

  def side(self, name: str) -> int | None:
    """A number of pixels, or a pair of equal ones."""
    value = self.values.get(name)
    if not isinstance(value, (list, tuple)):
      return self.whole(name)
    if len(value) != 2 or value[0] != value[1]:
      raise self.refused(name, 'one length for both sides is')
    return Settings({name: value[0]}, self.file).whole(name)


# ----- the authors' runs ------------------------------------------------------

# What argparse saves in their checkpoints, fine-tuning and pre-training.
REFERENCE = Table(
  used="""
    add_fmp_attention fmp_num_last_layers use_fmp_flashlite stats_mode
    fmp_no_use_ema fmp_use_residual flash_tau add_intra_attention
    num_frames input_size window_size patch_size tubelet_size
    mask_type mask_ratio normlize_target no_normlize_target
    sampling_rate data_set
    """,
  only={
    # Theirs takes the first token of the video for one of the class.
    'use_mean_pooling': (True, None),
    'use_cls': (False, None),
    'imagenet_default_mean_and_std': (True, None),
  },
  # Shown by the tensors, of training alone, or of where and how it ran.
  without_effect="""
    model nb_classes use_st_block use_learnable_pos_emb decoder_depth
    init_scale
    drop fc_drop_rate attn_drop_rate drop_path
    batch_size epochs start_epoch update_freq use_checkpoint with_checkpoint
    opt opt_eps opt_betas clip_grad momentum weight_decay weight_decay_end
    lr min_lr warmup_lr warmup_epochs warmup_steps layer_decay loss_type
    model_ema model_ema_decay model_ema_force_cpu color_jitter num_sample aa
    smoothing train_interpolation crop_pct short_side_size test_num_segment
    test_num_crop num_segments reprob remode recount resplit mixup cutmix
    cutmix_minmax mixup_prob mixup_switch_prob mixup_mode finetune model_key
    model_prefix data_path eval_data_path output_dir log_dir device seed resume
    auto_resume no_auto_resume save_ckpt no_save_ckpt save_ckpt_freq eval
    eval_metric dist_eval disable_eval_during_finetuning num_workers pin_mem
    no_pin_mem world_size local_rank rank gpu dist_on_itp dist_url dist_backend
    distributed enable_deepspeed deepspeed deepspeed_config deepscale
    deepscale_config deepspeed_mpi
    """,
)


def of_reference(args: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
  """The saved settings of a run of the authors, by our names.

  Returns:
    Those of `frames`, `image_size`, `rate`, `fit`, `mira` (a mode, 'plain' for
    none), `mira_last_blocks`, `statistics`, `residual_mix`, `temperature`,
    `variant`, `mask`, `mask_ratio`, `normalise_targets` that it has; remarks.

  Raises:
    ValueError: a setting has a value that ours cannot be.
  """
  run = Settings(args, 'the settings saved in it (args)')
  remarks = run.check(REFERENCE)
  normalise = run.flag('normlize_target', None)
  found = {
    'frames': run.whole('num_frames'),
    'image_size': _image_size(run),
    'rate': run.whole('sampling_rate'),
    'fit': _fit(args.get('data_set')),
    'temperature': run.number('flash_tau'),
    'mask': run.choice('mask_type', ('tube', 'random')),
    'mask_ratio': run.number('mask_ratio', below=1),
    'normalise_targets': (
      False if run.flag('no_normlize_target', False) else normalise
    ),
    **_mira(run),
  }
  if run.flag('add_intra_attention', False):
    found['variant'] = 'intra_as_shipped'
  return {n: x for n, x in found.items() if x is not None}, remarks


def _mira(run: Settings) -> dict[str, Any]:
  flashlite = run.flag('use_fmp_flashlite', None)
  residual = run.flag('fmp_use_residual', None)
  mode = run.choice('stats_mode', ('instance', 'batch', 'batch_ema'))
  if mode == 'batch_ema' and run.flag('fmp_no_use_ema', False):
    mode = 'batch'  # batch_ema without the average
  found = {
    'mira': {None: None, True: 'flashlite', False: 'exact'}[flashlite],
    'mira_last_blocks': run.whole('fmp_num_last_layers'),
    'residual_mix': {None: None, True: 0.5, False: 1.0}[residual],
    'statistics': mode,
  }
  if not run.flag('add_fmp_attention', True):
    found |= {'mira': 'plain', 'mira_last_blocks': None}
  return found


def _fit(dataset: Any) -> str | None:
  """The resize mode: their frames are squashed where they are stored."""
  if not isinstance(dataset, str):
    return None
  stored = dataset.startswith(('FERV39k', 'AVCAFFE'))
  return 'squash' if stored or dataset.endswith('_crop') else 'crop'


def _image_size(run: Settings) -> int | None:
  """Pixels, from the size itself or from tokens times their size."""
  size, patch = run.side('input_size'), run.side('patch_size')
  grid = run.values.get('window_size')
  if size or not patch or not isinstance(grid, (list, tuple)) or not grid[1:]:
    return size
  tokens = Settings({'window_size': grid[1:]}, run.file).side('window_size')
  return tokens and tokens * patch
