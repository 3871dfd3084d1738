"""`anaphora doctor`, all but the printing: every part that `serve` would use, looked at in turn. Knows no HTTP.

examination.py   the checks in order: the one door
finding.py       what a check says
folders.py       cache folder, disk tier
redis_server.py  the Redis, given or embedded, and its clock
machine.py       device, kernels, memory
template.py      is the chat template append-stable, and what breaks it
text.py          the tokenizer
"""
