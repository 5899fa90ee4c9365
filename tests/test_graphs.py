"""Recording CUDA graphs, with a stand-in for torch's streams that stumbles as they do."""

import gc
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch as th

from sb3_npg import graphs
from sb3_npg.graphs import capture


class Streams:
    """As much of ``torch.cuda`` as records graphs, for two devices."""

    def __init__(self):
        self.index = 0
        self.current = {index: self.Stream(index) for index in (0, 1)}
        self.recorded_on = None
        self.CUDAGraph = SimpleNamespace

    class Stream:
        def __init__(self, index):
            self.index = index
            self.waited_for = []

        def wait_stream(self, other):
            self.waited_for.append(other)

    def current_device(self):
        return self.index

    def current_stream(self):
        return self.current[self.index]

    @contextmanager
    def device(self, device):
        before, self.index = self.index, self.index if device.index is None else device.index
        yield
        self.index = before

    @contextmanager
    def stream(self, stream):
        before, self.current[stream.index] = self.current[stream.index], stream
        try:
            yield
        finally:
            self.current[stream.index] = before

    @contextmanager
    def graph(self, graph, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"
        self.current[stream.index] = self.recorded_on = stream
        yield  # an error leaves the stream as it is, as in torch
        self.recorded_on = None


@pytest.fixture
def streams(monkeypatch):
    found = Streams()
    monkeypatch.setattr(th, "cuda", found)
    graphs._stream.cache_clear()
    yield found
    graphs._stream.cache_clear()


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:1"])
def test_work_is_recorded_on_a_stream_of_its_device(name, streams):
    device = th.device(name)
    index, seen = device.index or 0, []

    def run():
        seen.append((streams.index, streams.current_stream(), streams.recorded_on))
        return (th.zeros(1),)

    before = dict(streams.current)
    for _ in range(2):
        seen.clear()
        capture(device, run)
        side = seen[0][1]
        assert side.index == index
        assert side is not before[index]
        assert seen == [(index, side, None), (index, side, None), (index, side, side)]
        assert before[index].waited_for[-1] is side
        assert side.waited_for[-1] is before[index]
    assert side is graphs._stream(index)  # the same for every graph
    assert streams.current == before
    assert streams.index == 0


def test_a_recording_that_fails_leaves_the_stream_as_it_was(streams):
    before = dict(streams.current)

    def run():
        if streams.recorded_on is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        return (th.zeros(1),)

    with pytest.raises(RuntimeError, match="not permitted"):
        capture(th.device("cuda"), run)
    assert streams.current == before
    with graphs._recording:  # nor does it hold the lock
        pass


@pytest.mark.parametrize("fails", [False, True])
def test_graphs_share_no_workspace_and_none_dies_during_a_recording(fails, streams, monkeypatch):
    seen = []
    monkeypatch.setattr(th._C, "_cuda_clearCublasWorkspaces", lambda: seen.append("cleared"), raising=False)

    def run():
        seen.append(("recording" if streams.recorded_on else "warming up", gc.isenabled()))
        if fails and streams.recorded_on:
            raise RuntimeError("operation not permitted when stream is capturing")
        return (th.zeros(1),)

    with pytest.raises(RuntimeError, match="not permitted") if fails else nullcontext():
        capture(th.device("cuda"), run)
    warming_up = ("warming up", True)
    assert seen == [warming_up, warming_up, "cleared", ("recording", False), "cleared"]
    assert gc.isenabled()


def test_collector_that_is_switched_off_stays_off(streams):
    gc.disable()
    try:
        capture(th.device("cuda"), lambda: (th.zeros(1),))
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_one_graph_is_recorded_at_a_time(streams):
    seen = []

    def run():
        seen.append(graphs._recording.locked())
        return (th.zeros(1),)

    capture(th.device("cuda"), run)
    assert seen == [True, True, True]
    assert not graphs._recording.locked()
