"""Measurements that the documentation cites. Each script writes its own table: ``python -m benchmarks.NAME``."""
