"""Desired state and kernel state of each proxy mode, their difference, and its commit."""
