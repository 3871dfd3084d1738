"""The client side of the Redis trie: what a replica tells the fleet about its pool, and what it asks.

    prefix_index.py  PrefixIndex: the one door, for the event loop and the engine thread
    ledger.py        what this replica holds and what Redis has not been told; pure
    publisher.py     the thread that beats, publishes, cuts and resyncs; owns the writing connection
    caller.py        a thread and a connection that are asked within a budget
    lookups.py       asks for a chain, and for records of replies
    remote_documents.py   asks for what is stored: no hint, so who cannot be asked says so
    breaker.py       when to leave a failing server alone
    settings.py      the numbers, and how a connection is made

Redis is a hint, but for documents: nothing else here raises because a server is slow, wrong or gone.
"""

from sessions.index.ledger import ResyncSource
from sessions.index.lookups import Lookup
from sessions.index.prefix_index import IndexState, IndexStats, PrefixIndex, open_index
from sessions.index.settings import IndexSettings

__all__ = ["IndexSettings", "IndexState", "IndexStats", "Lookup", "PrefixIndex", "ResyncSource", "open_index"]
