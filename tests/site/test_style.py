"""The colours of verdicts can be read in both schemes: a property of the style sheet, whatever pages there are."""

import re
from pathlib import Path

import pytest

CSS = (Path(__file__).parents[2] / "book" / "_static" / "lossbook.css").read_text(encoding="utf-8")
SCHEMES = {"light": r"^html \{(.*?)^\}", "dark": r'^html\[data-theme="dark"\] \{(.*?)^\}'}
# WCAG's contrast for text of any size.
ENOUGH = 4.5


def colours(css: str, scheme: str) -> dict[str, str]:
    """The colours that the style sheet names, `good-back: #e6f0f8`; the dark scheme keeps what it does not change."""
    found: dict[str, str] = {}
    for pattern in [SCHEMES["light"], SCHEMES[scheme]]:
        block = re.search(pattern, css, re.MULTILINE | re.DOTALL)
        found |= dict(re.findall(r"--lossbook-([\w-]+): (#[0-9a-f]{6});", block[1]))
    return found


def contrast(one: str, other: str) -> float:
    """WCAG's contrast of two colours, 1 to 21."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


def pale(css: str, scheme: str) -> list[str]:
    """Colours that cannot be read on their backgrounds."""
    named = colours(css, scheme)
    pairs = [(name.removesuffix("-back"), name) for name in named if name.endswith("-back")]
    assert len(pairs) >= 3
    return [f"{text} on {back}" for text, back in pairs if contrast(named[text], named[back]) < ENOUGH]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_verdicts_can_be_read(scheme):
    assert pale(CSS, scheme) == []


def test_a_pale_verdict_would_be_found():
    assert pale(CSS.replace(colours(CSS, "light")["good"], "#8ab4d8"), "light") == ["good on good-back"]
    assert pale(CSS.replace(colours(CSS, "dark")["bad"], "#7a4a20"), "dark") == ["bad on bad-back"]


def test_contrast_is_the_one_of_wcag():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    # The grey that is known to pass by a hair.
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)
    assert contrast("#777777", "#ffffff") < ENOUGH


def test_verdicts_use_these_colours():
    rules = re.findall(r"^\.lossbook-verdict\b(?!s)[^{]*\{([^}]*)\}", CSS, re.MULTILINE)
    assert rules
    for rule in rules:
        assert re.search(r"background: var\(--lossbook-(\w+)-back\).*\bcolor: var\(--lossbook-\1\)", rule, re.DOTALL), (
            rule
        )
