"""Upstream's v2 rewards on Python floats. They are done: frozen but for corrections."""
