"""Real training processes under fire: see __main__.py."""
