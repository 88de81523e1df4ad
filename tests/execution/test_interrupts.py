"""Signal handlers: when they raise, when they wait, and how they are restored."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from optbench.execution.interrupts import ECHO, Interrupts

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def _before() -> Iterator[None]:
    before = {number: signal.signal(number, signal.default_int_handler) for number in NUMBERS}
    yield
    try:
        assert all(signal.getsignal(number) is signal.default_int_handler for number in NUMBERS)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_interrupt_is_raised_and_later_ones_call_the_callback(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    later: list[int] = []
    interrupts = Interrupts(lambda: later.append(1))
    now = iter((5.0, 6.0, 9.0))
    monkeypatch.setattr("optbench.execution.interrupts.time.monotonic", lambda: next(now))

    def interrupted() -> None:
        with interrupts:
            try:
                signal.raise_signal(number)
            finally:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert later == [1, 1]


def test_an_echo_of_the_first_interrupt_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """For example, `timeout` forwards the Ctrl-C that the terminal has already sent to both processes."""
    later: list[int] = []
    now = iter((5.0, 5.0 + 0.9 * ECHO, 5.0 + 1.1 * ECHO))
    monkeypatch.setattr("optbench.execution.interrupts.time.monotonic", lambda: next(now))
    with Interrupts(lambda: later.append(1)):
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert not later
        signal.raise_signal(signal.SIGINT)
        assert later == [1]


@pytest.mark.parametrize("again", [True, False])
def test_an_interrupt_during_a_write_is_delayed(again: bool) -> None:
    interrupts, steps = Interrupts(lambda: None), []
    with interrupts:
        try:
            with interrupts.held(again=again):
                signal.raise_signal(signal.SIGINT)
                steps.append("written")
            steps.append("on")
        except KeyboardInterrupt:
            steps.append("interrupted")
    assert steps == ["written", "on" if again is False else "interrupted"]


def test_handlers_are_restored_after_an_error() -> None:
    def wrong() -> None:
        with Interrupts(lambda: None):
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        wrong()


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with Interrupts(lambda: None):
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    assert signal.signal(signal.SIGTERM, signal.default_int_handler) is signal.SIG_IGN


def test_no_handler_is_changed_outside_the_main_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    touched: list[object] = []

    def in_thread() -> None:
        with Interrupts(lambda: None) as entered:
            touched.append(entered)

    with monkeypatch.context() as patch:
        patch.setattr(signal, "signal", lambda *given: touched.append(given))
        thread = threading.Thread(target=in_thread)
        thread.start()
        thread.join()
    assert touched == [None]
