"""Tests that every field of the API is either honoured or left alone for a reason."""
