"""Model cards: their text, their metadata and their templates."""
