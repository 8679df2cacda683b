"""Reports: what experiments found, beside what was published, and what has not been run."""
