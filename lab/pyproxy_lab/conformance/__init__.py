"""Cases of what a Service proxy must do, run with real packets against any agent."""
