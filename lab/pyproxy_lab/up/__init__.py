"""`pyproxy lab up`: a cluster of network namespaces that stays up until it is ended."""
