"""Search over a tenant's corpus, and the vector spaces it searches in."""
