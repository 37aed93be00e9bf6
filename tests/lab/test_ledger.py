"""Checks that stop, claims whose verdict nobody writes by hand, and entries that machines can read."""

import json
import math

import IPython.display
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossbook.formats import LEDGER_TYPE
from lossbook.lab.ledger import CheckFailed, Ledger, max_error


@pytest.fixture
def shown(monkeypatch):
    bundles = []
    monkeypatch.setattr(IPython.display, "display", lambda bundle, raw: bundles.append(bundle))
    return bundles


@pytest.fixture
def ledger(shown):
    return Ledger()


def claim(ledger, direction="greater", margin=0.0, id="c1"):
    return ledger.claim(id, "It helps.", metric="accuracy", direction=direction, margin=margin, unit="points")


def test_a_check_is_shown_for_people_and_machines(ledger, shown):
    ledger.check("identity", "a < b & so on", error=1e-16, tolerance=1e-12, cases=10)
    (bundle,) = shown
    assert json.loads(json.dumps(bundle[LEDGER_TYPE], allow_nan=False)) == {
        "kind": "check", "id": "identity", "statement": "a < b & so on", "verdict": "verified",
        "error": 1e-16, "tolerance": 1e-12, "cases": 10, "evidence": "error 1e-16, tolerance 1e-12, 10 cases",
    }  # fmt: skip
    assert "a &lt; b &amp; so on" in bundle["text/html"]
    assert "verified" in bundle["text/html"] and "verified" in bundle["text/plain"]


@pytest.mark.parametrize("error", [1e-11, math.inf, math.nan, torch.tensor(1.0)])
def test_a_failed_check_is_recorded_and_stops(ledger, shown, error):
    with pytest.raises(CheckFailed, match="identity: error .* is above the tolerance 1e-12"):
        ledger.check("identity", "a = b", error=error, tolerance=1e-12, cases=10)
    entry = shown[0][LEDGER_TYPE]
    assert entry["verdict"] == "failed"
    json.dumps(entry, allow_nan=False)


@pytest.mark.parametrize(
    ("direction", "margin", "values", "verdict"),
    [
        ("greater", 0.0, [1.0, 1.1, 0.9], "supported"),
        ("greater", 0.0, [-1.0, -1.1, -0.9], "contradicted"),
        ("greater", 0.0, [1.0, -1.0, 0.5], "inconclusive"),
        ("greater", 2.0, [1.0, 1.1, 0.9], "contradicted"),
        ("greater", -1.0, [0.1, -0.1, 0.0], "supported"),
        ("less", 0.0, [-1.0, -1.1, -0.9], "supported"),
        ("less", 0.0, [1.0, 1.1, 0.9], "contradicted"),
        ("less", 0.0, [1.0, -1.0], "inconclusive"),
        ("within", 1.0, [0.1, -0.1, 0.0], "supported"),
        ("within", 0.01, [0.1, -0.1, 0.0], "inconclusive"),
        ("within", 1.0, [3.0, 3.1, 2.9], "contradicted"),
        ("within", 1.0, [-3.0, -3.1, -2.9], "contradicted"),
        ("greater", 0.0, [1.0], "inconclusive"),
        ("greater", 0.0, [], "inconclusive"),
        ("greater", 0.0, {}, "inconclusive"),
    ],
)
def test_the_verdict_follows_from_the_interval(ledger, shown, direction, margin, values, verdict):
    judged = claim(ledger, direction, margin)
    assert judged.verdict is None
    judged.judge(values)
    assert judged.verdict == verdict
    entry = shown[0][LEDGER_TYPE]
    assert entry["verdict"] == verdict and entry["seeds"] == len(values)
    json.dumps(entry, allow_nan=False)
    assert str(margin).removesuffix(".0") in entry["criterion"]


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=8), st.floats(-5, 5), st.floats(0.1, 5))
def test_no_claim_and_its_opposite_are_both_supported(values, margin, width):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IPython.display, "display", lambda bundle, raw: None)
        ledger = Ledger()
        claims = [
            claim(ledger, direction, size, id)
            for direction, size, id in [
                ("greater", margin, "above"),
                ("less", margin, "below"),
                ("within", width, "inside"),
                ("greater", width, "outside"),
            ]
        ]
        for each in claims:
            each.judge(values)
        above, below, inside, outside = (each.verdict for each in claims)
    opposite = {"supported": "contradicted", "contradicted": "supported", "inconclusive": "inconclusive"}
    assert below == opposite[above]
    assert not (inside == "supported" and outside == "supported")


def test_of_several_comparisons_the_weakest_decides(ledger, shown):
    strong, weak, wrong = [5.0, 5.1, 4.9], [0.5, 0.6, 0.4], [-5.0, -5.1, -4.9]
    first, second = claim(ledger, id="a"), claim(ledger, id="b")
    first.judge({"x": strong, "y": weak})
    assert first.verdict == "supported"
    assert shown[-1][LEDGER_TYPE]["against"] == "y" and shown[-1][LEDGER_TYPE]["comparisons"] == 2
    second.judge({"x": strong, "y": wrong})
    assert second.verdict == "contradicted"
    assert shown[-1][LEDGER_TYPE]["against"] == "y"


def test_several_comparisons_widen_the_intervals(ledger, shown):
    values = [0.5, 0.6, 0.4]
    claim(ledger, id="one").judge(values)
    claim(ledger, id="two").judge({"x": values, "y": values})
    one, two = (bundle[LEDGER_TYPE] for bundle in shown)
    assert two["low"] < one["low"] < one["high"] < two["high"]


def test_criteria_come_before_the_verdict_and_summary_after(ledger):
    first = claim(ledger)
    ledger.check("identity", "a = b", error=0.0, tolerance=0.0, cases=1)
    assert "It helps." in ledger.criteria()._repr_html_() and "above 0 points" in repr(ledger.criteria())
    with pytest.raises(RuntimeError, match="never judged: c1"):
        ledger.summary()
    first.judge([1.0, 1.1])
    html = ledger.summary()._repr_html_()
    assert html.count("<tr>") == 3 and "supported" in html and "lossbook-verified" in html
    assert "<script" not in html


def test_markup_in_statements_is_escaped(ledger):
    ledger.check("identity", "<script>alert(1)</script>", error=0.0, tolerance=0.0, cases=1)
    assert "<script" not in ledger.summary()._repr_html_()


def test_names_are_used_once_and_settings_make_sense(ledger):
    claim(ledger)
    for again in (lambda: claim(ledger), lambda: ledger.check("c1", "", error=0, tolerance=0, cases=1)):
        with pytest.raises(ValueError, match="id: 'c1' is in the ledger already"):
            again()
    with pytest.raises(ValueError, match="direction: expected"):
        claim(ledger, direction="better", id="c2")
    with pytest.raises(ValueError, match="margin: expected a positive number"):
        claim(ledger, direction="within", margin=0, id="c3")
    for tolerance, cases in ((0, 0), (-1, 1), (math.nan, 1), (math.inf, 1)):
        with pytest.raises(ValueError, match="tolerance >= 0 and cases >= 1"):
            ledger.check(f"none {tolerance}", "", error=0, tolerance=tolerance, cases=cases)
    for margin in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="margin: expected a finite number"):
            claim(ledger, margin=margin, id=f"c {margin}")


def test_a_claim_is_judged_once(ledger):
    first = claim(ledger)
    first.judge([1.0, 1.1])
    with pytest.raises(ValueError, match="claim c1 was judged already"):
        first.judge([2.0, 2.1])


def test_max_error_is_relative_above_one_and_absolute_below():
    assert max_error(torch.tensor([1e-3, 200.0]), torch.tensor([2e-3, 100.0])) == pytest.approx(1.0)
    assert max_error(torch.tensor([1e-3]), torch.tensor([2e-3])) == pytest.approx(1e-3)
    assert max_error(math.inf, math.inf) == 0
    assert math.isnan(max_error(torch.tensor([0.0, math.nan]), torch.zeros(2)))
    assert not max_error(math.inf, 1.0) <= 1e300
    assert not max_error(1.0, math.inf) <= 1e300
