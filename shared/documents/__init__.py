"""Documents, their versions and chunks: submission, ingestion states, completion, withdrawal, reading."""
