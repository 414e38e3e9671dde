"""Building subject banks: many subjects trained in one batch."""
