"""The first signal is a wish, a later one acts, and afterwards everything is as before."""

import signal
import threading

import pytest

from videoclip.training.interruption import Interruption


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_the_first_signal_is_a_wish(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Interruption() as interruption:
        assert interruption.asked is None
        signal.raise_signal(number)
        assert interruption.asked == number
    assert signal.getsignal(number) is before


def test_a_signal_that_a_launcher_passes_on_is_the_same_wish(monkeypatch) -> None:
    """Ctrl-C reaches torchrun and its processes, and torchrun sends it to them once more."""
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert interruption.asked == signal.SIGINT
        monkeypatch.setattr("videoclip.training.interruption.PAUSE", 0.0)
        with pytest.raises(KeyboardInterrupt):  # a later one acts at once
            signal.raise_signal(signal.SIGINT)


def test_without_a_signal_nothing_is_left_behind() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interruption() as interruption:
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
    assert interruption.asked is None


def test_in_another_thread_nothing_happens() -> None:
    found = []

    def work() -> None:
        with Interruption() as interruption:
            found.append(interruption.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None]
