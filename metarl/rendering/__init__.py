"""Rendering: recorded episodes as videos."""
