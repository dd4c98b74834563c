"""Tests of which backends a Service has."""
