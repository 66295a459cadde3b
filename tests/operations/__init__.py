"""Real launches, and what users do wrong."""
