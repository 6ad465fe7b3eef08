"""The slot, by itself and against any order of events."""

import threading

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from pipeline.errors import Cancelled
from serving.admission import HOLDING, Phase, Slot


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_a_second_request_is_refused_until_the_first_computation_has_ended():
    slot = Slot()
    first = slot.admit()
    assert slot.admit() is None
    first.begin()
    first.leave()
    assert first.phase is Phase.ORPHANED
    assert slot.admit() is None
    with pytest.raises(Cancelled):
        first.check()
    first.computed()
    assert slot.admit() is not None


def test_a_request_that_ends_before_computing_frees_the_slot_and_never_computes():
    slot = Slot()
    ticket = slot.admit()
    ticket.leave()
    assert slot.load == 0
    with pytest.raises(Cancelled):
        ticket.begin()


def test_sending_a_finished_video_does_not_hold_the_slot():
    slot = Slot()
    ticket = slot.admit()
    ticket.begin()
    ticket.computed()
    assert slot.load == 0
    other = slot.admit()
    ticket.leave()
    assert slot.holder is other


@pytest.mark.parametrize("error", [Cancelled("deadline"), MemoryError(), KeyboardInterrupt()])
def test_however_a_computation_ends_the_slot_is_free(error):
    slot = Slot()
    ticket = slot.admit()
    with pytest.raises(type(error)), ticket.computing():
        raise error
    assert slot.load == 0
    with slot.admit().computing():
        assert slot.load == 1
    assert slot.load == 0


@pytest.mark.parametrize("failing_load", [0, 1])
def test_a_listener_that_fails_never_keeps_the_slot(failing_load):
    def on_change(load):
        if load == failing_load and failing:
            raise OSError("no space left on device")

    failing = True
    slot = Slot(on_change=on_change)
    with pytest.raises(OSError, match="no space"), slot.admit().computing():
        pass
    failing = False
    assert slot.load == 0
    assert slot.wait_until_free(0)
    slot.admit().leave()
    assert slot.load == 0


def test_the_first_reason_of_a_cancellation_stays():
    ticket = Slot().admit()
    ticket.begin()
    ticket.cancel("deadline")
    ticket.cancel("disconnected")
    with pytest.raises(Cancelled, match="deadline"):
        ticket.check()


def test_busy_time_counts_while_the_slot_is_taken_and_only_then():
    clock = Clock()
    slot = Slot(clock)
    clock.now += 5
    assert slot.busy_s() == 0
    ticket = slot.admit()
    clock.now += 2
    assert slot.busy_s() == 2
    clock.now += 1
    ticket.leave()
    clock.now += 7
    assert slot.busy_s() == 3


def test_of_many_threads_exactly_one_is_admitted():
    slot, barrier, admitted = Slot(), threading.Barrier(32), []

    def ask():
        barrier.wait()
        ticket = slot.admit()
        if ticket is not None:
            admitted.append(ticket)

    threads = [threading.Thread(target=ask) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(admitted) == 1


def test_waiting_ends_when_the_slot_is_free():
    slot = Slot()
    ticket = slot.admit()
    assert not slot.wait_until_free(0.01)
    threading.Timer(0.05, ticket.leave).start()
    assert slot.wait_until_free(5)


class SlotMachine(RuleBasedStateMachine):
    """Requests and their computations begin, end, are cancelled and abandoned in any order."""

    tickets = Bundle("tickets")

    def __init__(self):
        super().__init__()
        self.loads = []
        self.slot = Slot(Clock(), self.loads.append)
        self.all = []
        self.computing = set()

    @rule(target=tickets)
    def admit(self):
        was_free = not any(ticket.phase in HOLDING for ticket in self.all)
        ticket = self.slot.admit()
        assert (ticket is not None) == was_free
        if ticket is not None:
            self.all.append(ticket)
        return ticket

    @rule(ticket=tickets)
    def begin(self, ticket):
        if ticket is None:
            return
        allowed = ticket.phase is Phase.ADMITTED and ticket.reason is None
        if allowed:
            ticket.begin()
            self.computing.add(ticket)
        else:
            with pytest.raises(Cancelled):
                ticket.begin()

    @rule(ticket=tickets, reason=st.sampled_from(["deadline", "disconnected"]))
    def cancel(self, ticket, reason):
        if ticket is not None:
            before = ticket.reason
            ticket.cancel(reason)
            assert ticket.reason == (before or reason)

    @precondition(lambda self: self.computing)
    @rule()
    def end_of_computation(self):
        ticket = self.computing.pop()
        ticket.computed()
        assert ticket.phase not in HOLDING

    @rule(ticket=consumes(tickets))
    def leave(self, ticket):
        if ticket is not None:
            ticket.leave()
            ticket.leave()  # once more does no harm

    @invariant()
    def at_most_one_computes(self):
        assert len(self.computing) <= 1

    @invariant()
    def what_computes_holds_the_slot(self):
        for ticket in self.computing:
            assert self.slot.holder is ticket

    @invariant()
    def the_load_is_the_number_of_holders_and_never_above_one(self):
        assert self.slot.load == sum(ticket.phase in HOLDING for ticket in self.all) <= 1

    @invariant()
    def the_listener_has_seen_each_change(self):
        assert self.loads == [(k + 1) % 2 for k in range(len(self.loads))]
        assert (self.loads[-1:] or [0]) == [self.slot.load]


TestAnyOrderOfEvents = SlotMachine.TestCase
