"""What TensorBoard's own reader finds in a run."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from videoclip.training.logbook import EVENTS


def events(folder: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows: the last value of every step that was not purged."""
    found = EventAccumulator(str(folder / EVENTS))
    found.Reload()
    return {
        tag: {event.step: event.value for event in found.Scalars(tag)}
        for tag in found.Tags()["scalars"]
    }
