"""Attacks by tenants, clients and peers, each against the promise that it must not break."""
