"""Measuring: graphs with random weights, runtimes that run them, timing that does not fool itself."""
