"""Valid settings that have no effect are reported before training."""

import pytest

from optbench.cli import main


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        (["evaluate_every=4"], True),
        (["evaluate_every=3"], False),
        (["evaluate_every=4", "early_stopping=null"], False),
        (["max_epochs=0.5"], False),  # the default interval is not the user's choice
    ],
)
def test_an_evaluation_interval_longer_than_the_task_is_reported(
    settings: list[str], warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [part for setting in settings for part in ("--set", f"experiments.digit-pairs.protocol.{setting}")]
    sets = ["--set", "experiments.digit-pairs.protocol.max_epochs=3", *sets]
    early = ["--set", "experiments.digit-pairs.protocol.early_stopping={on: validation}"]
    assert main(["run", "continual", "--dry-run", "--experiment", "digit-pairs", *early, *sets]) == 0
    message = (
        "warning: experiments.digit-pairs.protocol: early stopping has no effect: "
        "expected evaluate_every of at most max_epochs (3), got 4 epochs"
    )
    assert (message in " ".join(capsys.readouterr().out.split())) == warned
