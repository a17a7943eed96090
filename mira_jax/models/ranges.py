"""The lowest and highest value of every number that describes a model.

A configuration and the card of a weights file are both held to these.
"""

MODEL = {
  'dim': (1, 2**15),
  'depth': (1, 256),
  'heads': (1, 2**10),
  'num_classes': (0, 10**5),
  'frames': (1, 2**14),
  'image_size': (1, 2**13),  # pixels
  'patch': (1, 2**13),
  'tubelet': (1, 2**14),
  'mlp_ratio': (0.01, 2**16),
  'norm_eps': (1e-30, 1),
  'last_norm_eps': (1e-30, 1),
  'mira_last_blocks': (0, 256),
  'drop_path': (0, 0.99),
}
PRETRAIN = {
  'decoder_dim': (1, 2**15),
  'decoder_depth': (0, 256),
  'decoder_heads': (1, 2**10),
  'decoder_mlp_ratio': (0.01, 2**16),
  'mask_ratio': (0.01, 0.99),
}
RATE = (1, 10**4)  # frames from one that is read to the next
