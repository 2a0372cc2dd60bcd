"""Improves a bank's router with what its servers were told: collect, propose, train, gate, canary, again."""
