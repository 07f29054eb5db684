"""Reading the web for tenants: which addresses may be reached, one limited GET, robots.txt and sitemaps."""
