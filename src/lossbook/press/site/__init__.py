"""The finished site: rendering, serving, links that lead elsewhere."""
