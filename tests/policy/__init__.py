"""Tests of the routing of Services."""
