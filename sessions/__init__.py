"""Conversations and their KV. No HTTP."""
