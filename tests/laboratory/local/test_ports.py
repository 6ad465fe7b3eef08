import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from laboratory.local.layout import FIRST_PORT, reserve
from routing.errors import RoutingError

ROOT = Path(__file__).resolve().parents[3]


def test_ports_are_in_a_row_free_and_below_those_of_the_kernel(tmp_path):
    one = reserve(20, folder=tmp_path)
    assert one.first >= FIRST_PORT
    assert one.first + 20 <= 32_768
    for port in range(one.first, one.first + 20):
        with socket.create_server(("127.0.0.1", port)):
            pass
    one.release()


def test_many_that_reserve_at_once_get_different_ports(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: reserve(30, folder=tmp_path), range(20)))
    ranges = sorted((one.first, one.first + one.count) for one in found)
    for (_, end), (first, _) in pairwise(ranges):
        assert end <= first
    for one in found:
        one.release()


def test_what_is_released_is_free_again(tmp_path):
    one = reserve(10, folder=tmp_path)
    one.release()
    other = reserve(10, folder=tmp_path)
    assert other.first == one.first
    other.release()


def test_ports_that_somebody_listens_on_are_passed_over_or_named(tmp_path):
    first = reserve(10, folder=tmp_path)
    first.release()
    with socket.create_server(("127.0.0.1", first.first + 3)):
        other = reserve(10, folder=tmp_path)
        assert first.first + 3 not in range(other.first, other.first + 10)
        other.release()
        with pytest.raises(RoutingError, match=f"port {first.first + 3} is taken.*--port-base"):
            reserve(10, first.first, folder=tmp_path)


def test_ports_of_another_fleet_are_named(tmp_path):
    one = reserve(10, folder=tmp_path)
    with pytest.raises(RoutingError, match=f"port {one.first + 5} is another fleet's"):
        reserve(10, one.first + 5, folder=tmp_path)
    one.release()


@pytest.mark.parametrize("base", [80, 32_760, 65_530])
def test_ports_out_of_range_are_an_error(tmp_path, base):
    with pytest.raises(RoutingError, match="are not all between 1024 and 32767"):
        reserve(20, base, folder=tmp_path)


def test_a_reservation_ends_with_its_process(tmp_path):
    code = "import sys; from pathlib import Path; from laboratory.local.layout import reserve\n"
    code += "one = reserve(10, folder=Path(sys.argv[1])); print(one.first)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, env=environment
    )
    one = reserve(10, folder=tmp_path)
    assert one.first == int(done.stdout)
    one.release()
