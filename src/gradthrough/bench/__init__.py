"""Bench: tasks, data, one training loop, records and reports. Needs the extra `bench`."""
