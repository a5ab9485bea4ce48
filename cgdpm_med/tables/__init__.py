"""Numbers, rows, CSV and Markdown: the one way in which tables are written."""
