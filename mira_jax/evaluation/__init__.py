"""Metrics, results, reports and probes."""
