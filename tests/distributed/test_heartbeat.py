"""The threads that notice lost ranks, without MLX: each rank is an object in this process."""

import socket
import threading

import pytest

from mlx_gpt.distributed import heartbeat
from mlx_gpt.distributed.heartbeat import Heartbeat
from mlx_gpt.errors import GroupFailed

TOKEN = 12345


def connections(size):
    """Returns the connections of each rank, as `Heartbeat` takes them."""
    hub, found = socket.create_server(("127.0.0.1", 0)), {}
    stranger = socket.create_connection(hub.getsockname())
    stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
    joining = [
        threading.Thread(target=lambda r=rank: found.update({r: Heartbeat.connect(hub.getsockname(), r, TOKEN)}))
        for rank in range(1, size)
    ]
    for thread in joining:
        thread.start()
    peers = Heartbeat.accept(hub, size, TOKEN)
    for thread in joining:
        thread.join()
    stranger.close()
    return [peers] + [found[rank] for rank in range(1, size)]


class Watched:
    """A heartbeat, and whether it has noticed a loss."""

    def __init__(self, rank, peers, silent=60.0):
        self.lost = threading.Event()
        self.heart = Heartbeat(rank, peers, self.lost.set, silent)


@pytest.fixture
def watched():
    """A function that makes a Watched, whose thread and connections end with the test."""
    made = []

    def make(*arguments):
        made.append(Watched(*arguments))
        return made[-1]

    yield make
    for each in made:
        each.heart.close(is_done=True)


def test_the_others_are_told_which_rank_has_ended(watched):
    """Rank 0 sees the end of a connection, and tells the other ranks. A stranger who connects is ignored."""
    first, second, third = connections(3)
    ranks = [watched(0, first), watched(1, second)]
    third[0].close()
    assert all(rank.lost.wait(10) for rank in ranks)
    assert ranks[0].heart.reason(10) == "rank 2 has ended before the end of the run"
    assert ranks[1].heart.reason(10) == "rank 2 has ended or does not answer"


def test_a_rank_that_does_not_answer_is_lost(watched):
    first, second = connections(2)  # the second one never sends a beat
    rank = watched(0, first, 0.2)
    assert rank.lost.wait(10) and rank.heart.reason(10) == "rank 1 has not answered for 0.2 s"
    second[0].close()


@pytest.mark.parametrize("is_done", [True, False])
def test_a_rank_that_leaves_is_lost_unless_it_is_done(watched, is_done):
    first, second = connections(2)
    ranks = [watched(0, first), watched(1, second)]
    ranks[0].heart.close(is_done)
    ranks[1].lost.wait(0.1 if is_done else 10)
    assert ranks[1].lost.is_set() != is_done


def test_the_ranks_that_remain_get_places_and_one_that_is_lost_meanwhile_gets_none(watched):
    """Rank 0 waits for all that are not lost. Each of these waits until rank 0 sends its place."""
    peers = connections(4)
    ranks = [watched(rank, peers[rank]) for rank in range(3)]
    peers[3][0].close()
    assert all(rank.lost.wait(10) for rank in ranks)
    found = []
    waiting = threading.Thread(target=lambda: found.append(ranks[1].heart.place()))
    waiting.start()
    ranks[2].heart.close(is_done=False)
    assert ranks[0].heart.others() == [1]
    ranks[0].heart.send_places({1: b"a place"})
    waiting.join()
    assert found == [b"a place"]


def test_a_rank_gets_no_place_if_rank_0_ends(watched):
    first, second = connections(2)
    ranks = [watched(0, first), watched(1, second)]
    ranks[0].heart.close(is_done=False)
    assert ranks[1].heart.place() == b""


def test_a_rank_that_does_not_connect_is_named(monkeypatch):
    monkeypatch.setattr(heartbeat, "CONNECT_SECONDS", 0.1)
    with pytest.raises(GroupFailed, match="rank 1 did not connect to rank 0"):
        Heartbeat.accept(socket.create_server(("127.0.0.1", 0)), 2, TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = closed.getsockname()
    with pytest.raises(GroupFailed, match=f"rank 1 cannot connect to rank 0 at 127.0.0.1:{address[1]}"):
        Heartbeat.connect(address, 1, TOKEN)
