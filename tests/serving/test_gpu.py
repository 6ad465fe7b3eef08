"""The service with its model on a GPU."""

import pytest

from pipeline.media.video import decode

from ..conftest import test_device

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]


def test_a_server_animates_on_the_gpu_without_a_fallback_and_stops_in_good_order(start_server, packaged_model):
    server = start_server(model=packaged_model.tag, device=test_device())
    server.wait_until_ready()
    replies = [server.animate(seed=seed) for seed in (7, 7, 8)]
    assert [reply.status_code for reply in replies] == [200] * 3
    clips = [decode(reply.content).astype(float) for reply in replies]
    assert clips[0].shape[0] == 4
    assert abs(clips[0] - clips[1]).mean() < 1  # a GPU may add up in another order
    assert abs(clips[0] - clips[2]).mean() > 1
    assert server.metric("stillmotion_runtime_fallback_total") == 0
    server.wait_until_free()
    assert server.stop() == 0
