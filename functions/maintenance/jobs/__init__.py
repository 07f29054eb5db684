"""One module a job; each has `run()`, which returns counts for the record."""
