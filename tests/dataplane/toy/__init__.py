"""A dataplane that programs a file instead of a kernel, as its own package would be."""
