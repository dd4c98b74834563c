"""What the server does for each kind beyond keeping it: defaults, checks, allocation."""
