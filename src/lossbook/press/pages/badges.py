"""Verdicts as pages show them."""

from html import escape


def badge(verdict: str, text: str | None = None) -> str:
    """A verdict as pages show it: a sign and a word, so that colour is not alone."""
    mark = {"verified": "✓", "supported": "✓", "failed": "✗", "contradicted": "✗"}.get(verdict, "?")
    return f"<span class='lossbook-verdict lossbook-{escape(verdict)}'>{mark} {escape(text or verdict)}</span>"
