"""Rounds: pure decisions, and the thin loop that carries them out."""
