"""From downloads to prepared datasets."""
