"""Which backends a Service has on this node: values in, values out."""
