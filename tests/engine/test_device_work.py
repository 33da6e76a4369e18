"""What CUDA is asked for: the current card, marks in its queue. `torch.cuda` is replaced."""

from unittest import mock

import pytest
import torch

from i2v.engine.device_work import Pacer, make_current, wait

CPU, SECOND = torch.device("cpu"), torch.device("cuda", 1)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> mock.MagicMock:
    cuda = mock.MagicMock()
    monkeypatch.setattr(torch, "cuda", cuda)
    return cuda


def test_a_card_is_made_current_and_waited_for_by_its_number(cuda: mock.MagicMock) -> None:
    make_current(SECOND)
    wait(SECOND)
    cuda.set_device.assert_called_once_with(SECOND)
    cuda.synchronize.assert_called_once_with(SECOND)


def test_a_cpu_asks_cuda_for_nothing(cuda: mock.MagicMock) -> None:
    make_current(CPU)
    wait(CPU)
    reported: list[int] = []
    Pacer.on(CPU).step(lambda: reported.append(1))
    assert reported == [1]
    assert cuda.mock_calls == []


def test_on_a_card_a_step_is_reported_when_its_own_event_has_passed(cuda: mock.MagicMock) -> None:
    events = [mock.MagicMock(), mock.MagicMock(), mock.MagicMock()]
    for event, done in zip(events, (False, False, True), strict=True):
        event.query.return_value = done
    cuda.Event.side_effect = events
    pace, reported = Pacer.on(SECOND), []
    pace.step(lambda: reported.append(1))
    assert reported == []
    pace.step(lambda: reported.append(2))
    assert reported == [1]
    assert [event.synchronize.call_count for event in events] == [1, 0, 0]
    pace.step(lambda: reported.append(3))  # done already: nothing is held back
    assert reported == [1, 2, 3]
    pace.finish()
    assert reported == [1, 2, 3]
    cuda.current_stream.assert_called_with(SECOND)
    for event in events:
        event.record.assert_called_once_with(cuda.current_stream.return_value)
