"""What an account looks like: text, JSON, a live line. Pure: an account in, text out."""
