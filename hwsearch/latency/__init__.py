"""From an op table to milliseconds, with an interval and where they come from."""
