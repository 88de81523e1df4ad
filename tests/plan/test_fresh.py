"""The fresh networks with which a trial is compared."""

from __future__ import annotations

from optbench.plan import fresh_networks, trials
from optbench.suite import Suite

ADAM = {"target": "adam", "lr": 0.001}
L2 = {"target": "l2-init", "strength": 0.01}


def pairs(**optimizers: object) -> dict[str, str]:
    """Map optimizer and variant to those of its fresh networks, for one seed and model."""
    suite = Suite.model_validate(
        {
            "name": "s",
            "seeds": 2,
            "optimizers": optimizers,
            "experiments": {
                name: {"tasks": {"kind": "permuted", "count": 2}, "models": {"net": {"kind": "mlp"}}}
                for name in ("one", "two")
            },
        }
    )
    planned = {trial.id: trial for trial in trials(suite)}
    found = {}
    for own, fresh in fresh_networks(planned.values()).items():
        a, b = planned[own], planned[fresh]
        assert (a.experiment, a.model, a.seed, a.order) == (b.experiment, b.model, b.seed, b.order)
        found[f"{a.optimizer} {a.variant}"] = f"{b.optimizer} {b.variant}"
    return found


def test_an_optimizer_is_matched_with_fresh_networks_over_the_same_settings() -> None:
    assert pairs(adam=ADAM, slow={**ADAM, "lr": 0.0001}, sgd={"target": "sgd"}, new=fresh(ADAM)) == {
        "adam default": "new default",
        "new default": "new default",
    }
    # Omitted settings have their defaults on both sides.
    assert "adam default" in pairs(adam={"target": "adam"}, new=fresh(ADAM))


def test_every_variant_of_a_sweep_has_its_own_fresh_network() -> None:
    swept = {**ADAM, "lr": [0.01, 0.1]}
    found = pairs(adam=swept, new=fresh(swept))
    assert {found[f"adam lr={lr}"] for lr in (0.01, 0.1)} == {"new base.lr=0.01", "new base.lr=0.1"}


def test_fresh_networks_over_a_wrapper_take_precedence_over_those_of_its_base() -> None:
    shrunk = {"target": "shrink-and-perturb", "base": {**L2, "base": ADAM}}
    plain = {"l2": {**L2, "base": ADAM}, "shrunk": shrunk, "new": fresh(ADAM)}
    assert pairs(**plain) == dict.fromkeys(["l2 default", "shrunk default", "new default"], "new default")
    both = pairs(**plain, newer=fresh({**L2, "base": ADAM}))
    assert both["l2 default"] == "newer default"
    assert both["shrunk default"] == "new default"
    # The same holds for the other order of nesting.
    assert pairs(l2={**L2, "base": ADAM}, new={**L2, "base": fresh(ADAM)})["l2 default"] == "new default"


def test_an_optimizer_with_other_steps_has_no_fresh_network() -> None:
    assert "sam default" not in pairs(sam={"target": "sam", "base": {"target": "sgd"}}, new=fresh({"target": "sgd"}))
    assert pairs(adam=ADAM) == {}


def fresh(base: dict[str, object]) -> dict[str, object]:
    return {"target": "fresh-network", "base": base}
