"""The kubectl plugin: `kubectl pyproxy` asks the agents of all nodes by exec in their pods."""
