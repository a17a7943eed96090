"""Devices: platforms, memory, meshes and sharding."""
