"""Configurations: each module's `get_config` returns a whole `Config`."""
