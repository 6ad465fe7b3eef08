"""A whole rollout over servers that are none, with a clock and counters of the test's."""

import io
import json
import random
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from routing.control.journal import Journal
from routing.errors import InputError, RoutingError
from routing.rollout.counters import BUCKETS, JOBS
from routing.rollout.judge import Clips
from routing.rollout.probe import look, wrong_with
from routing.rollout.runner import NotReadyError, Rollout, spread
from routing.rollout.settings import RolloutSettings
from routing.rollout.state import Order, State
from routing.schema import validated

GPUS = {"a": 8, "b": 4, "c": 4}
SETTINGS = {
    "steps": [{"share": 0.125, "pause_s": 30}, {"share": 0.5, "pause_s": 30}],
    "limits": {"objective": 0.005},
    "decide_s": 900,
}


def clip(*levels, size=(8, 8)):
    """Frames that are dark on the left and of these levels on the right."""
    frames = []
    for level in levels:
        frame = Image.new("L", size, 20)
        frame.paste(level, (4, 0, 8, 8))
        frames.append(frame)
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=100)
    return file.getvalue()


MOVING = clip(60, 120, 200)


class World:
    """A fleet whose users send ten jobs a second, and time that goes by when somebody sleeps."""

    def __init__(
        self, failing=0.0, slow=0.0, ready=True, clips=MOVING, traffic=10.0, blind=(), stable_clip=MOVING, black_every=0
    ):
        self.failing, self.slow, self.can_be_ready, self.clips = failing, slow, ready, clips
        self.stable_clip, self.black_every, self.compared = stable_clip, black_every, 0
        self.traffic, self.blind = traffic, blind
        self.time, self.candidates, self.promoted, self.most = 0.0, dict.fromkeys(GPUS, 0), False, 0
        self.random = random.Random(5)
        self.counts = {"stable": [0, 0, 0], "candidate": [0, 0, 0]}

    def gpus(self):
        return GPUS

    def set_candidates(self, wanted, watch):
        if sum(wanted.values()) > sum(self.candidates.values()):
            watch.leaves("stable")
            self.sleep(5)
            watch.look()
            if not self.can_be_ready:
                raise NotReadyError("not ready after 5 s: a-8")
            watch.arrives("candidate")
        self.candidates = {**dict.fromkeys(GPUS, 0), **wanted}
        self.most = max(self.most, sum(self.candidates.values()))

    def promote(self):
        self.promoted = True

    def ask(self, url):
        return self.stable_clip if url == "stable" else self.clips

    def now(self):
        return self.time

    def sleep(self, seconds):
        self.time += seconds
        share = sum(self.candidates.values()) / sum(GPUS.values())
        self.compared += bool(share)
        for _ in range(round(self.traffic * seconds)):
            version = "candidate" if self.random.random() < share else "stable"
            bad = version == "candidate" and self.random.random() < self.failing
            slow = version == "candidate" and self.random.random() < self.slow
            for i, one in enumerate((not bad, bad, not bad and not slow)):
                self.counts[version][i] += one

    def copies(self):
        return Clips(self.compared, (self.compared + 2) // self.black_every)

    def read(self):
        if any(start <= self.time < end for start, end in self.blind):
            raise RoutingError("no dispatcher's counters can be read")
        page = {}
        for version, (ok, failed, fast) in self.counts.items():
            page[JOBS, frozenset({"version": version, "code": "200", "by": "server"}.items())] = ok
            page[JOBS, frozenset({"version": version, "code": "500", "by": "server"}.items())] = failed
            page[BUCKETS, frozenset({"version": version, "le": "0.5"}.items())] = fast
            page[BUCKETS, frozenset({"version": version, "le": "+Inf"}.items())] = ok
        return {"one": page}


@pytest.fixture
def roll(tmp_path):
    """Runs a rollout over a world; gives its end and the journal's entries."""

    def run(world):
        journal = Journal(tmp_path / "decisions.jsonl", lambda: datetime(2026, 1, 1, tzinfo=UTC), say=lambda _: None)
        rollout = Rollout(
            settings=validated(RolloutSettings, SETTINGS),
            stable="a:1",
            candidate="a:2",
            servers=world,
            source=world,
            ask=world.ask,
            slow_s=0.4,
            journal=journal,
            folder=tmp_path,
            clock=world,
            clips=world.copies if world.black_every else None,
        )
        state = rollout.run()
        return state, [json.loads(line) for line in (tmp_path / "decisions.jsonl").read_text().splitlines()]

    return run


def test_a_good_candidate_gets_more_servers_step_by_step_and_then_all(roll, tmp_path):
    world = World()
    state, entries = roll(world)
    assert (state.phase, state.over, world.promoted, world.most) == ("promoted", True, True, 8)
    assert State.read(tmp_path) == state
    texts = [entry["text"] for entry in entries]
    assert texts[0] == "taking: step 1 of 2: 2 servers get a:2 (a 1, b 1)"
    assert texts[2] == "taking: step 2 of 2: 8 servers get a:2 (a 4, b 2, c 2)"
    assert texts[-1].startswith("promoted: failures: candidate 0 of ")
    assert {entry["event"] for entry in entries} == {"rollout"}
    assert all(entry["candidate"] == "a:2" and entry["stable"] == "a:1" for entry in entries)
    # Before half of the servers have it, it has shown that 0.5 % of all jobs fail at the very most.
    (shown,) = [entry for entry in entries if entry["text"] == texts[2]]
    assert float(shown["findings"][0].split(" to ")[1].split("%")[0]) / 100 * 0.5 <= 0.005


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ({"failing": 0.01}, "failures: candidate "),
        ({"slow": 1.0}, "slow: candidate "),
        ({"ready": False}, "not ready after 5 s: a-8"),
        ({"clips": clip(60, 60, 61)}, "the candidate's clip is still: contrast 20.2 and motion 0.50 of 255"),
        ({"clips": clip(20, 21, 22)}, "the candidate's clip is blank"),
        ({"clips": b"no clip"}, "a probe of the candidate has no clip that can be looked at"),
    ],
)
def test_a_bad_candidate_is_aborted_by_itself_and_users_failures_stay_within_the_objective(roll, what, why):
    world = World(**what)
    state, entries = roll(world)
    assert state.phase == "aborted"
    assert why in state.why
    assert why in entries[-1]["text"]
    assert not world.promoted
    assert set(world.candidates.values()) == {0}
    jobs, failed = sum(sum(one[:2]) for one in world.counts.values()), world.counts["candidate"][1]
    assert failed <= 0.005 * jobs


def test_a_candidate_some_of_whose_clips_are_wrong_gets_no_more_servers_until_it_is_known(roll):
    world = World(black_every=5)
    state, entries = roll(world)
    assert state.phase == "aborted"
    assert state.why.startswith("clips: candidate ")
    assert entries[-1]["step"] == 1
    assert world.most == 2
    assert roll(World(black_every=100))[0].phase == "promoted"  # as many as the margin allows


def test_a_stable_version_whose_clip_is_blank_is_no_measure_of_a_candidate(roll):
    state, entries = roll(World(stable_clip=clip(20, 21, 20)))
    assert state.phase == "promoted"
    assert "clips are not compared: of the stable model there is a blank clip (contrast 0." in entries[1]["text"]


def test_without_traffic_a_candidate_is_never_promoted(roll):
    state, _ = roll(World(traffic=0.0))
    assert state.phase == "aborted"
    assert state.why == "cannot tell after 900 s: the candidate has had no job"


def test_a_moment_without_counters_does_no_harm_and_a_long_one_ends_it(roll):
    assert roll(World(blind=[(40, 60)]))[0].phase == "promoted"
    state, _ = roll(World(blind=[(40, 1e9)]))
    assert (state.phase, state.why) == (
        "aborted",
        "nobody can judge the candidate: no dispatcher's counters can be read",
    )


@pytest.mark.parametrize(("what", "phase"), [("promote", "promoted"), ("abort", "aborted")])
def test_an_operators_order_ends_it(roll, tmp_path, what, phase):
    class Ordered(World):
        def sleep(self, seconds):
            super().sleep(seconds)
            if 20 <= self.time < 21:
                Order(what=what).give(tmp_path)

    state, _ = roll(Ordered(traffic=0.0))
    assert (state.phase, state.why) == (phase, f"an operator's order to {what}")
    assert Order.take(tmp_path) is None


def test_a_rollout_that_is_interrupted_gives_the_servers_back(roll, tmp_path):
    class Interrupted(World):
        def read(self):
            if self.time > 50:
                raise KeyboardInterrupt
            return super().read()

    world = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        roll(world)
    assert set(world.candidates.values()) == {0}
    assert State.read(tmp_path).phase == "aborted"


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 60), min_size=1).filter(
        lambda one: sum(one.values()) > 2
    ),
    st.floats(0.01, 0.99),
)
def test_a_share_is_spread_over_the_regions_and_takes_no_regions_last_server(gpus, share):
    found = spread(gpus, share)
    most = {region: count - 1 for region, count in gpus.items()}
    assert found.keys() == gpus.keys()
    assert all(0 <= found[region] <= most[region] for region in gpus)
    assert sum(found.values()) == min(max(1, round(share * sum(gpus.values()))), sum(most.values()))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"steps": []}, "steps: should hold at least one"),
        ({"steps": [{"share": 0.5}, {"share": 0.2}]}, "steps: should have more servers from step to step"),
        ({"steps": [{"share": 1.0}]}, "steps.0.share: should be less than 1, and is 1.0"),
        ({"limits": {"failure": 0.1}}, "limits.failure: unknown key; did you mean failures?"),
    ],
)
def test_settings_that_cannot_be_used_are_named(content, text):
    with pytest.raises(InputError) as found:
        validated(RolloutSettings, content)
    assert text in str(found.value)


def test_a_clip_that_begins_elsewhere_or_ends_far_away_is_found():
    noise = Image.effect_noise((8, 8), 200)
    file = io.BytesIO()
    noise.save(file, "GIF", save_all=True, append_images=[noise.rotate(90), noise.rotate(180)], duration=100)
    assert "astray" in wrong_with(look(MOVING), look(file.getvalue()))
    assert "adrift" in wrong_with(look(clip(60, 62, 64)), look(clip(60, 160, 255)))
    # What the stable version does too is what the picture and the prompt ask for.
    assert wrong_with(look(clip(60, 150, 240)), look(clip(60, 160, 255))) == ""


def test_a_student_may_be_softer_and_calmer_than_its_teacher():
    assert wrong_with(look(clip(60, 120, 200)), look(clip(60, 80, 110))) == ""
    # What the stable model does not do the candidate need not.
    assert wrong_with(look(clip(60, 60, 60)), look(clip(60, 60, 60))) == ""
