"""Other engines on the same weights and token ids: each a process in an environment of its own."""

from paceline.benchmark.peers.catalogue import Peer, peers
from paceline.benchmark.peers.compare import Missing, ReadyPeer, Task, choose, prepare, speeds
from paceline.benchmark.peers.environment import environment_python
from paceline.benchmark.peers.process import Answers, PeerError, PeerProcess

__all__ = [
    "Answers",
    "Missing",
    "Peer",
    "PeerError",
    "PeerProcess",
    "ReadyPeer",
    "Task",
    "choose",
    "environment_python",
    "peers",
    "prepare",
    "speeds",
]
