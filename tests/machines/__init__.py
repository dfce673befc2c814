"""Several machines share one PostgreSQL journal, while processes, servers and cables fail."""
