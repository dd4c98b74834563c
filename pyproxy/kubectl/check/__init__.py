"""`kubectl pyproxy check`: a connectivity test with pods and Services of its own."""
