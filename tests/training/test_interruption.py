"""The first signal is a wish, the second acts, and afterwards everything is as before."""

import signal
import threading

import pytest

from videoclip.training.interruption import Interruption


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_wish(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Interruption() as interruption:
        assert not interruption.asked
        signal.raise_signal(number)
        assert interruption.asked
        assert signal.getsignal(number) is before  # so a second one acts
    assert signal.getsignal(number) is before


def test_without_a_signal_nothing_is_left_behind() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interruption() as interruption:
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
    assert not interruption.asked


def test_in_another_thread_nothing_happens() -> None:
    found = []

    def work() -> None:
        with Interruption() as interruption:
            found.append(interruption.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]
