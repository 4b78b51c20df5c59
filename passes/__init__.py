"""Graph to graph rewrites, one idea a file."""
