"""One module a job; each has `run(lease, services)`, which works in slices and yields its progress after each."""
