"""What a person asks of a running node: values from a moment's snapshot, and the socket for it."""
