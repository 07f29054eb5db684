"""Web sources: pages and sitemaps of a tenant, when they are fetched, and what became of them."""
