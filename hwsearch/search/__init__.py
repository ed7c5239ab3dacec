"""The one room where price and quality meet."""
