"""Models that are compared -> tables, charts and pages."""
