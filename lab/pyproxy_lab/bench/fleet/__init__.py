"""A fleet of clients against one API server: bytes, requests and encodings, by count."""
