"""The table of executors."""
