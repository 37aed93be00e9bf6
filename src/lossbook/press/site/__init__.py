"""The finished site: rendering, checking, serving, links that lead elsewhere."""
