"""Pictures of the dashboard and of the alerts, from a lab that a real Prometheus scrapes.

`record` runs the lab for 38 minutes and keeps Prometheus' data. `draw` evaluates the dashboard's
queries over these data. `make pictures` runs both, or only the second if there are data.
"""
