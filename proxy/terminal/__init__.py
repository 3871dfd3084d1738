"""`anaphora chat`, all but its options: a conversation in a terminal, with any OpenAI-compatible server.

branches.py   conversations that share a beginning; pure
talking.py    one streamed reply and its figures
loop.py       lines in, replies and commands out
"""
