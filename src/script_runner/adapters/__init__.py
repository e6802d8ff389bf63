"""One outside thing, one file: each adapter implements a port and imports nothing but nouns."""
