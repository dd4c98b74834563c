"""The server's rules for each kind: defaults, checks, allocation."""
