"""Records become cells, statistics, tables and the page of results."""
