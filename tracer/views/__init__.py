"""Renderers of an account: text, JSON, a web page, a live table. Pure, except for top's screen and the status line."""
