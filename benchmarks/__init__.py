"""How fast the loop is, and in how much memory: measured in turns with a plain account of it. See README.md."""
